"""Where requests begin and end in the bytes of a connection: a head must arrive in time, and only between two requests can another
process take the connection over."""

import re

_END = b"\r\n\r\n"
_MOST_HEAD = 64 * 1024
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*(?=\r\n)", re.IGNORECASE)
_UNCOUNTED = re.compile(rb"\r\n(transfer-encoding|upgrade)[ \t]*:", re.IGNORECASE)


class Framing:
    """Follows the bytes that a client sends, as far as they have heads and lengths."""

    __slots__ = ("_head", "_is_lost", "_rest", "heads")

    def __init__(self) -> None:
        self._head = bytearray()
        self._rest = 0
        """Bytes of the present request's body that have not arrived."""
        self._is_lost = False
        self.heads = 0
        """How many heads were complete."""

    @property
    def is_lost(self) -> bool:
        """Whether it is no longer known where requests begin and end."""
        return self._is_lost

    @property
    def is_in_head(self) -> bool:
        """Whether a part of a head has arrived."""
        return not self._is_lost and bool(self._head)

    @property
    def is_between(self) -> bool:
        """Whether all bytes so far are whole requests; False if that is not known."""
        return not self._is_lost and not self._head and not self._rest

    def feed(self, data: bytes) -> None:
        """Note the next bytes."""
        at = 0
        while at < len(data) and not self._is_lost:
            if self._rest:
                taken = min(self._rest, len(data) - at)
                self._rest -= taken
                at += taken
                continue
            before = len(self._head)
            self._head += data[at : at + _MOST_HEAD]
            if not before:
                stripped = self._head.lstrip(b"\r\n")  # as a parser skips them
                at += len(self._head) - len(stripped)
                self._head = stripped
            end = self._head.find(_END, max(0, before - len(_END)))
            if end < 0:
                self._is_lost = len(self._head) > _MOST_HEAD
                return
            at += end + len(_END) - before
            self._end_head(bytes(self._head[: end + len(_END)]))

    def _end_head(self, head: bytes) -> None:
        self._head.clear()
        self.heads += 1
        lengths = _LENGTH.findall(head)
        self._is_lost = len(lengths) > 1 or _UNCOUNTED.search(head) is not None
        self._rest = int(lengths[0]) if lengths else 0
