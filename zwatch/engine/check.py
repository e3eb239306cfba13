"""`zwatch check`: verify, load and warm a version without serving it."""

from collections.abc import Callable
from pathlib import Path

from zwatch.deploy.look import open_version
from zwatch.deploy.resolving import Directory
from zwatch.deploy.seal import read_seal
from zwatch.errors import Rejection


def check_version(directory: Path, device: str, report: Callable[[int, int, str], None]) -> tuple[list[str], str]:
    """Verify, load and warm a version; return what is wrong with it, and how long each phase took.

    `report` gets (bytes done, bytes in all, the phases so far).

    Raises:
        OSError: the directory cannot be read.
    """
    opened = open_version(directory.parent, directory.name)
    try:
        return [], _load_and_warm(opened, read_seal(opened.fd).digest, device, report)
    except Rejection as rejection:
        return [f"{rejection.code}: {rejection.reason}"], ""
    finally:
        opened.close()


def _load_and_warm(opened: Directory, digest: str, device: str, report: Callable[[int, int, str], None]) -> str:
    # Importing torch takes seconds: only for a version with a seal.
    from zwatch.engine.factory import EngineFactory
    from zwatch.shadow.control import LoadControl
    from zwatch.shadow.device import Device

    factory = EngineFactory(Device(device))
    control = LoadControl(lambda: report(control.bytes_done, control.bytes_total, ", ".join(control.phases)))
    engine = factory.build(opened, factory.plan(opened, digest, control), control)
    factory.warm(engine, control)
    return ", ".join(f"{name} {seconds:.2f} s" for name, seconds in control.phases.items())
