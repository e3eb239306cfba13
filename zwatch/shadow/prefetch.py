"""Reading a version's weights into the page cache while the libraries that load them are still being imported."""

import logging
import mmap
import os
import threading
from collections import deque
from contextlib import suppress
from typing import NamedTuple

from zwatch.deploy import header, seal
from zwatch.deploy.resolving import Directory
from zwatch.lanes import start_thread
from zwatch.shadow.page_cache import ENOUGH, cached_share
from zwatch.shadow.read_sizes import CHUNK
from zwatch.shadow.system import system_memory

_log = logging.getLogger(__name__)

THREADS = 8
"""Most threads that read: on a disk that takes more at once, the load itself uses more."""


class _Piece(NamedTuple):
    fd: int
    begin: int


class Prefetch:
    """Reads a version's weight files that the page cache does not have, in the order in which they are loaded, in threads of
    its own. What it cannot do is left to the load, which says what is wrong."""

    def __init__(self, directory: Directory) -> None:
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        with suppress(OSError):
            own = directory.duplicate()
            thread = threading.Thread(target=self._run, args=(own,), name="zwatch-prefetch", daemon=True)
            try:
                start_thread(thread)
            except OSError:
                own.close()
                raise
            self._thread = thread

    def end(self) -> None:
        """Read no more; the calls that run go on until they return."""
        self._ended.set()

    def join(self) -> None:
        """Wait until nothing is read any more."""
        if self._thread is not None:
            self._thread.join()

    def _run(self, directory: Directory) -> None:
        try:
            most = system_memory()[0] // 2  # more might displace itself
            sealed = seal.read_seal(directory.fd)
            paths = sorted((path for path in sealed.files if path.endswith(header.WEIGHTS_SUFFIX)), key=_place)
            for path in paths:
                with seal.opened_sealed(directory.fd, sealed, path) as fd:
                    size = os.fstat(fd).st_size
                    if self._ended.is_set() or size > most:
                        return
                    if cached_share(fd, size) < ENOUGH:
                        most -= size
                        self._read(fd, size)
        except Exception:
            _log.debug("prefetching failed", exc_info=True)
        finally:
            directory.close()

    def _read(self, fd: int, size: int) -> None:
        pieces = deque(_Piece(fd, begin) for begin in range(0, size, CHUNK))
        count = min(THREADS, len(os.sched_getaffinity(0)), len(pieces))
        readers = [threading.Thread(target=self._work, args=(pieces,), daemon=True) for _ in range(count)]
        begun = []
        with suppress(OSError):
            for reader in readers:
                start_thread(reader)
                begun.append(reader)
        for reader in begun:
            reader.join()

    def _work(self, pieces: deque[_Piece]) -> None:
        with mmap.mmap(-1, CHUNK) as scratch:
            while not self._ended.is_set():
                try:
                    piece = pieces.popleft()
                    os.preadv(piece.fd, [scratch], piece.begin)
                except (IndexError, OSError):
                    return


def _place(path: str) -> tuple[bool, str]:
    """Return what to sort by: a load begins with the text encoder and ends with the transformer."""
    return header.carries_version(path), path
