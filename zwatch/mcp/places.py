"""The pictures on this machine that tools may read and write: those in one directory that the user named, and no others.

What a tool is asked for may have been written by anybody whose text the agent has read. So nothing outside that directory is
opened, and what is no picture is neither sent to the service nor written over.
"""

import base64
import re
from pathlib import Path

from zwatch.errors import UsageError
from zwatch.generating.asking import HISTORY, Picture, read_file
from zwatch.generating.output import Output, format_of

_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")
"""How the files begin of formats that are pictures. The service decides which of them it takes."""
_URL = re.compile(r"(?:https?://[^/]+)?/history/(?P<name>[^/?#]+)")
_DATA = re.compile(r"data:image/[a-z0-9.+-]+;base64,(?P<data>[A-Za-z0-9+/=\s]+)", re.IGNORECASE)


class Places:
    """The directory, if there is one."""

    def __init__(self, directory: Path | None) -> None:
        self._root = None if directory is None else directory.resolve()

    def picture(self, name: str, text: str) -> Picture:
        """Return the picture that an argument stands for: one of the history, a data URL, or a file in the directory.

        Raises:
            UsageError: it is none of these, or no picture; the sentence names the argument.
        """
        if text.startswith(HISTORY):
            return text
        if (url := _URL.fullmatch(text)) is not None:
            return f"{HISTORY}{url['name']}"
        if (data := _DATA.fullmatch(text)) is not None:
            try:
                return base64.b64decode(data["data"])
            except ValueError as error:
                raise UsageError(f"{name} is not base64: {error}") from None
        path = self._inside(name, text)
        if not path.is_file():
            raise UsageError(f"{name} is {text!r}: there is no such file in {self._root}")
        found = read_file(path)
        if not found.startswith(_SIGNATURES):
            raise UsageError(f"{name} is {text!r}: that file is not a picture")
        return found

    def output(self, name: str, text: str, count: int) -> tuple[Output, str]:
        """Return where the pictures of a request are written, and their format. No file is replaced.

        Raises:
            UsageError: it is outside the directory, or there already.
        """
        path = self._inside(name, text)
        image_format = format_of(path)
        if path.is_dir() or image_format is None:
            raise UsageError(f"{name} is {text!r}: expected the name of a .png, .jpg or .webp file")
        output = Output(path, count)
        output.check()
        return output, image_format

    def _inside(self, name: str, text: str) -> Path:
        if self._root is None:
            expected = "" if name.startswith("save") else "expected history:NAME, or a data URL; "
            raise UsageError(
                f"{name} is {text[:200]!r}: {expected}files are read and written only where the user allows it, "
                "with `zwatch mcp --files DIR`"
            )
        try:
            path = (self._root / Path(text).expanduser()).resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise UsageError(f"{name} is {text[:200]!r}: {error}") from None
        if not path.is_relative_to(self._root):
            raise UsageError(f"{name} is {text[:200]!r}: it is outside {self._root}, the directory of --files")
        return path
