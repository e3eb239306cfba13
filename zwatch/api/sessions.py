"""Session cookies of the page, which stand for the token, and those that were ended by a logout."""

import errno
import hashlib
import hmac
import json
import logging
import os
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path

from zwatch.deploy.durable import put_aside, remove_leftovers, write_durably

_log = logging.getLogger(__name__)

SESSION_SECONDS = 30 * 86400
FILE = "ended-sessions.json"
"""In the state directory: the sessions that were ended before they expired, so that a restart does not revive them."""
_ROUNDS = 200_000
"""PBKDF2 iterations: the cost of each guess at the token for an attacker who has a cookie."""
_MOST_ENDED = 10_000
_MOST_BYTES = 2**20


class Sessions:
    """Issues, checks and ends session cookies. A cookie's value is its expiry time and a random name, signed with a key derived
    from the token: it stays valid across restarts, becomes invalid with a new token, and does not reveal the token.

    Which sessions were ended is remembered in `state_dir`; without one, until the process ends.
    """

    def __init__(self, token: str, clock: Callable[[], float] = time.time, state_dir: Path | None = None) -> None:
        self._key = hashlib.pbkdf2_hmac("sha256", token.encode(), b"zwatch: the page's cookie", _ROUNDS)
        self._clock = clock
        self._directory = state_dir
        self._ended: dict[str, int] = {} if state_dir is None else _read(state_dir / FILE)
        """Expiry times by signature."""

    def begin(self) -> str:
        """Return a value that is valid for 30 days."""
        return self._signed(f"{int(self._clock()) + SESSION_SECONDS}.{secrets.token_hex(8)}")

    def is_valid(self, value: str) -> bool:
        """Return whether a value was issued with this token, has not expired and was not ended."""
        return self._is_issued(value) and value.rpartition(".")[2] not in self._ended

    def end(self, value: str) -> bool:
        """End a session; return whether it was valid until now."""
        if not self.is_valid(value):
            return False
        # None is forgotten for having expired: a clock that is ahead, and is set back, would revive it.
        self._ended[value.rpartition(".")[2]] = int(value.partition(".")[0])
        while len(self._ended) > _MOST_ENDED:
            del self._ended[next(iter(self._ended))]
        return True

    def save(self) -> None:
        """Write down which sessions were ended. To be called in a thread."""
        if self._directory is None:
            return
        try:
            write_durably(self._directory, FILE, json.dumps(self._ended.copy()).encode())
        except OSError as error:
            _log.warning(
                "%s cannot be written: %s; a restart revives sessions that were ended", self._directory / FILE, error
            )

    def _is_issued(self, value: str) -> bool:
        content = value.rpartition(".")[0]
        expiry = content.partition(".")[0]
        if not (expiry.isascii() and expiry.isdecimal() and len(expiry) < 16):
            return False
        signed = self._signed(content).encode("utf-8", "surrogateescape")
        return hmac.compare_digest(value.encode("utf-8", "surrogateescape"), signed) and int(expiry) > self._clock()

    def _signed(self, content: str) -> str:
        mark = hmac.new(self._key, content.encode("utf-8", "surrogateescape"), "sha256").hexdigest()
        return f"{content}.{mark}"


def _read(path: Path) -> dict[str, int]:
    """Return what a file remembers; nothing if it is not there. One that cannot be used is renamed."""
    remove_leftovers(path.parent, path.name)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return {}
    except OSError as error:
        return _without(path, error, is_ours=error.errno not in (errno.ELOOP, errno.ENXIO))  # a symlink, a socket
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("it is not a regular file")
        with open(fd, "rb", closefd=False) as file:
            found = json.loads(file.read(_MOST_BYTES))
        return {str(name): int(expiry) for name, expiry in found.items()}
    except OSError as error:
        return _without(path, error, is_ours=True)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        return _without(path, error, is_ours=False)
    finally:
        os.close(fd)


def _without(path: Path, error: Exception, *, is_ours: bool) -> dict[str, int]:
    """Return nothing, and log why; what is not ours is renamed, so that the next logout can be saved."""
    aside = None if is_ours else put_aside(path)
    how = "" if aside is None else f"; it is renamed to {aside}"
    _log.warning("%s cannot be used (%s)%s; sessions that were ended may be valid again", path, error, how)
    return {}
