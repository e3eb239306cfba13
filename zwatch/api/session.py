"""The page's cookie: what a browser holds instead of the token, because its `<img>` and `EventSource` send no headers."""

import hashlib
import hmac
import time
from collections.abc import Callable

COOKIE = "zwatch"
SESSION_SECONDS = 30 * 86400
_ROUNDS = 200_000  # each guess at a short token costs a stolen cookie's thief this many hashes


class Sessions:
    """Gives out cookie values and knows them again. A value says when it ends, signed with a key derived from the token:
    it outlives a restart, a new token ends it, and the token cannot be read from it."""

    def __init__(self, token: str, clock: Callable[[], float] = time.time) -> None:
        self._key = hashlib.pbkdf2_hmac("sha256", token.encode(), b"zwatch: the page's cookie", _ROUNDS)
        self._clock = clock

    def begin(self) -> str:
        """Return a value that is good for 30 days."""
        return self._signed(str(int(self._clock()) + SESSION_SECONDS))

    def knows(self, value: str) -> bool:
        """Say whether a value is one of ours and has not ended."""
        end = value.partition(".")[0]
        if not (end.isascii() and end.isdecimal() and len(end) < 16):
            return False
        ours = hmac.compare_digest(value.encode("utf-8", "surrogateescape"), self._signed(end).encode())
        return ours and int(end) > self._clock()

    def _signed(self, end: str) -> str:
        return f"{end}.{hmac.new(self._key, end.encode(), 'sha256').hexdigest()}"
