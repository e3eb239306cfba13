"""The systemd unit, which comes with the package."""

from importlib import metadata
from pathlib import Path

from zwatch.errors import UsageError

_PACKAGED_PATH = "/opt/zwatch/bin"
"""Where the unit's own comments install zwatch."""


def text(programs: Path) -> str:
    """Return the unit, with `programs` as the directory in which it finds the command `zwatch`.

    Raises:
        UsageError: this installation has no unit, or systemd cannot name the directory.
    """
    directory = str(programs.absolute())
    if any(character.isspace() or character in ":\"'\\" for character in directory):
        raise UsageError(
            f"{directory!r} cannot be in the PATH of a unit; install zwatch at a path without such characters"
        )
    unit = _file().read_text(encoding="utf-8")
    return unit.replace(f"PATH={_PACKAGED_PATH}:", f"PATH={directory.replace('%', '%%')}:")


def _file() -> Path:
    checkout = Path(__file__).parent.parent / "systemd" / "zwatch.service"
    if checkout.is_file():
        return checkout
    for file in metadata.files("zwatch") or ():
        if file.name == "zwatch.service":
            return Path(str(file.locate()))
    raise UsageError("this installation of zwatch has no systemd/zwatch.service; take it from the repository")
