"""Room for what an import writes, and what is said where it, or something else, comes to an end."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from zwatch.errors import NoRoom, Refused, Rejection
from zwatch.importing.place import Place

Say = Callable[[str], None]
"""Gets a line for people whenever something is decided."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
SPARE = 2**20
"""Bytes beside the files: directories, the seal, and what is remembered of complete files."""


@contextmanager
def explained(place: Place, root: Path, say: Say) -> Iterator[None]:
    """Say what to do after a failure in the middle. What is complete is kept, unless the source is refused."""
    try:
        yield
    except NoRoom:
        raise
    except Refused:
        place.done = {}
        raise
    except Rejection as rejection:
        place.done = {}
        raise Refused(rejection.reason) from None
    except OSError as error:
        if error.errno in _FULL:
            free = free_bytes(root)
            raise NoRoom(
                f"{root}: {error.strerror}, {free:,} bytes are free now; make room, then {place.remark}"
            ) from None
        _say_left(place, say)
        raise
    except Exception:
        _say_left(place, say)
        raise


def _say_left(place: Place, say: Say) -> None:
    if place.done:
        say(f"no {place.kind} was made; {place.remark}")


def free_bytes(root: Path) -> int:
    """Return how many bytes are free; all there are if the file system does not count."""
    status = os.statvfs(root)
    return status.f_bavail * status.f_frsize if status.f_blocks else sys.maxsize
