"""Progress bars, on standard error and only if that is a terminal."""

import sys
from types import TracebackType
from typing import Self

from tqdm import tqdm


class Progress:
    """A bar over bytes. `total` may be None while it is not known."""

    def __init__(self, title: str, total: int | None) -> None:
        self._bar = tqdm(
            total=total, desc=title, unit="B", unit_scale=True, unit_divisor=1024, leave=False, file=sys.stderr,
            disable=sys.stderr is None or not sys.stderr.isatty(),
        )  # fmt: skip

    def advance(self, path: str, count: int) -> None:
        """Add `count` bytes that were read from the file `path`."""
        self._bar.set_postfix_str(path, refresh=False)
        self._bar.update(count)

    def update(self, done: int, total: int, what: str) -> None:
        """Show `done` of `total` bytes, and what is going on."""
        self._bar.total = total or None
        self._bar.n = done
        self._bar.set_postfix_str(what, refresh=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
