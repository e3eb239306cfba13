"""The process that makes one tokenizer, as its parent sees it."""

import json
import weakref
from pathlib import Path

from zwatch.engine import child, tokenizer_proof

WALL_SECONDS = 120.0
"""Seconds until the process is given up, on a machine that is busy."""


class TokenizerProcess:
    """Makes one tokenizer. From its start on it imports what it needs; if it gets no work, it ends by itself."""

    def __init__(self) -> None:
        """Start the process.

        Raises:
            OSError: it could not be started.
        """
        self._process = child.started(tokenizer_proof.__name__, "serve()")
        self._finalizer = weakref.finalize(self, child.end, self._process)

    def make(self, folder: Path, result: Path) -> tuple[int, str, str]:
        """Make the tokenizer of a folder; return the exit status, the lines that say what was begun, and the errors.

        Raises:
            subprocess.TimeoutExpired: it did not end.
        """
        asked = json.dumps([str(folder), str(result)]).encode() + b"\n"
        try:
            said, errors = self._process.communicate(asked, WALL_SECONDS)
        finally:
            self.end()
        return self._process.returncode, said.decode(errors="replace"), errors.decode(errors="replace")

    @property
    def is_alive(self) -> bool:
        """Whether it can get work."""
        return self._process.poll() is None

    def end(self) -> None:
        """End the process, whatever it does; so does the last reference to this object."""
        self._finalizer()
