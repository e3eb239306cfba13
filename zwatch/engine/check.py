"""`zwatch check`: verify, load and warm a version as a deploy would, without serving it."""

from collections.abc import Callable
from pathlib import Path

from zwatch.deploy.look import open_version
from zwatch.deploy.resolving import Directory
from zwatch.deploy.seal import read_seal
from zwatch.engine.factory import EngineFactory
from zwatch.errors import Rejection
from zwatch.shadow.device import Device


def check_version(directory: Path, device: str, report: Callable[[int, int, str], None]) -> tuple[list[str], str]:
    """Verify, load and warm a version; return its problems, and the seconds of each phase.

    `report` gets (bytes done, bytes in all, the phases so far).

    Raises:
        OSError: the directory cannot be read.
    """
    opened: Directory = open_version(directory.parent, directory.name)
    factory = EngineFactory(Device(device))
    control = factory.control(lambda: report(control.bytes_done, control.bytes_total, ", ".join(control.phases)))
    try:
        planned = factory.plan(opened, read_seal(opened.fd).digest)
        engine = factory.build(opened, planned, control)
        factory.warm(engine, control)
    except Rejection as rejection:
        return [f"{rejection.code}: {rejection.reason}"], ""
    finally:
        opened.close()
    return [], ", ".join(f"{name} {seconds:.2f} s" for name, seconds in control.phases.items())
