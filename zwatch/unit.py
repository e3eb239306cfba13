"""The systemd units, which come with the package."""

from importlib import metadata
from pathlib import Path

from zwatch.errors import UsageError

_PACKAGED_PATH = "/opt/zwatch/bin"
"""Where the unit's own comments install zwatch."""
_SERVICE, _SOCKET, _NODE = "zwatch.service", "zwatch.socket", "zwatch-node.service"
_TEMPLATE = (
    ("zwatch serve --models", "zwatch serve --takeover --models"),
    # With `always`, the process that was taken over from would take over again.
    ("\nRestart=always\n", "\nRestart=on-failure\n"),
    ("\nTimeoutStartSec=2min\n", "\nTimeoutStartSec=10min\nSockets=zwatch.socket\n"),
    # What belongs to the user is the other instance's too.
    ("\nRemoveIPC=yes\n", "\nRemoveIPC=no\n"),
    ("> /etc/systemd/system/zwatch.service", "--takeover > /etc/systemd/system/zwatch@.service"),
    ("--socket > /etc/", "--takeover --socket > /etc/"),
    ("enable --now zwatch.socket zwatch.service", "enable --now zwatch.socket zwatch@a.service"),
    ("Ready as soon as it listens; requests wait for the first version.", "Ready when it has taken over, or listens."),
    ("How to install it stands in zwatch.service.", "How to install it stands in zwatch@.service."),
    ("\n[Socket]\n", "\n[Socket]\n# Started by the first request when no instance runs.\nService=zwatch@a.service\n"),
)
"""What is different if instances of a template, `zwatch@a` and `zwatch@b`, take over from each other."""


def text(programs: Path, *, takeover: bool = False) -> str:
    """Return the unit of the service, with `programs` as the directory in which it finds the command `zwatch`; with `takeover`, the
    template `zwatch@.service`.

    Raises:
        UsageError: this installation has no unit, or systemd cannot name the directory.
    """
    return _with_path(_read(_SERVICE, takeover=takeover), programs)


def node_text(programs: Path) -> str:
    """Return the unit of a fleet's node, `zwatch-node.service`, with `programs` as the directory in which it finds the command `ray`.

    Raises:
        UsageError: as `text`.
    """
    return _with_path(_read(_NODE, takeover=False), programs)


def _with_path(unit: str, programs: Path) -> str:
    directory = str(programs.absolute())
    if any(character.isspace() or character in ":\"'\\" for character in directory):
        raise UsageError(
            f"{directory!r} cannot be in the PATH of a unit; install zwatch at a path without such characters"
        )
    return unit.replace(f"PATH={_PACKAGED_PATH}:", f"PATH={directory.replace('%', '%%')}:")


def socket_text(*, takeover: bool = False) -> str:
    """Return the unit of the socket; with `takeover`, the one for the template.

    Raises:
        UsageError: this installation has no unit.
    """
    return _read(_SOCKET, takeover=takeover)


def _read(name: str, *, takeover: bool) -> str:
    unit = _file(name).read_text(encoding="utf-8")
    for plain, other in _TEMPLATE if takeover else ():
        unit = unit.replace(plain, other)
    return unit


def _file(name: str) -> Path:
    checkout = Path(__file__).parent.parent / "systemd" / name
    if checkout.is_file():
        return checkout
    for file in metadata.files("zwatch") or ():
        if file.name == name:
            return Path(str(file.locate()))
    raise UsageError(f"this installation of zwatch has no systemd/{name}; take it from the repository")
