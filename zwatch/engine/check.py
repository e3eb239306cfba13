"""`zwatch check`: what would happen if this version were linked, without serving it."""

from collections.abc import Callable
from pathlib import Path

from zwatch.deploy.look import open_version
from zwatch.deploy.resolving import Directory
from zwatch.deploy.seal import read_seal
from zwatch.engine.factory import EngineFactory
from zwatch.errors import Rejection


def check_version(directory: Path, device: str, report: Callable[[int, int, str], None]) -> tuple[list[str], str]:
    """Verify, load and warm a version; return what is wrong with it, and how long things took.

    `report` gets (bytes done, bytes in all, the phases so far).

    Raises:
        OSError: the directory cannot be read.
    """
    opened: Directory = open_version(directory.parent, directory.name)
    factory = EngineFactory(device)
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
