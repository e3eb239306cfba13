"""Progress on a terminal, on standard error: a bar while bytes are counted, else what is being done and for how long."""

import sys
import threading
from types import TracebackType
from typing import Self, TextIO

from tqdm import tqdm

_REFRESH_SECONDS = 0.2
_BYTES = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
_THINGS = "{desc}: {n_fmt} of {total_fmt} |{bar}| [{elapsed}<{remaining}{postfix}]"
_NO_BYTES = "{desc}{postfix} [{elapsed}]"


class Progress:
    """Shows how far something is; nothing if the stream is no terminal.

    The bar ends with its last byte. What is done before the first byte and after the last one is shown by its name, with
    the time that passes, so that a terminal at work never looks as if it stood still.
    """

    def __init__(self, title: str, total: int | None = None, *, unit: str = "B", stream: TextIO | None = None) -> None:
        """`total` is in bytes or another `unit`, and None while it is not known; `stream` is by default standard error."""
        stream = stream or sys.stderr
        self._counted = _BYTES if unit == "B" else _THINGS
        # Without tqdm's monitor thread: the thread below refreshes more often.
        self._bar = tqdm(
            total=total, desc=title, unit=unit, unit_scale=unit == "B", unit_divisor=1024, leave=False, file=stream,
            disable=stream is None or not stream.isatty(), mininterval=_REFRESH_SECONDS, bar_format=self._counted if total else _NO_BYTES,
        )  # fmt: skip
        self._ended = threading.Event()
        self._refreshing = threading.Thread(target=self._refresh, name="zwatch-progress", daemon=True)
        if not self._bar.disable:
            self._refreshing.start()

    def advance(self, what: str, count: int) -> None:
        """Add `count` bytes of `what`, the path of a file or the name of a step."""
        self._bar.set_postfix_str(what, refresh=False)
        self._bar.update(count)
        if self._bar.total and self._bar.n >= self._bar.total:
            self.step("finishing")

    def update(self, done: int, total: int, what: str) -> None:
        """Show `done` of `total` bytes or other units; before the first one and after the last one, only `what` is going on."""
        if 0 < done < total:
            self._bar.bar_format, self._bar.total, self._bar.n = self._counted, total, done
            self._bar.set_postfix_str(what, refresh=False)
        else:
            self.step(what)

    def step(self, what: str) -> None:
        """Show what is being done; nothing is counted meanwhile."""
        self._bar.bar_format = _NO_BYTES
        self._bar.set_postfix_str(what, refresh=False)

    def _refresh(self) -> None:
        while not self._ended.wait(_REFRESH_SECONDS):
            self._bar.refresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._refreshing.is_alive():
            self._refreshing.join()
        self._bar.close()
