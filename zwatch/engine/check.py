"""`zwatch check`: verify, load and warm a version without serving it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zwatch.deploy.look import open_version
from zwatch.deploy.resolving import Directory
from zwatch.deploy.seal import read_seal
from zwatch.engine.opening import open_factory
from zwatch.errors import Rejection
from zwatch.shadow.control import LoadControl


def check_version(
    directory: Path,
    device: str,
    report: Callable[[int, int, str], None],
    **options: Any,
) -> tuple[list[str], str]:
    """Verify, load and warm a version, and compare all of its golden images; return what is wrong with it, and how long each phase
    took.

    `report` gets (bytes done, bytes in all, what is being done); `options` are those of `open_factory`.

    Raises:
        OSError: the directory cannot be read.
        FatalError: a library cannot be imported, or the device cannot be opened.
    """
    opened = open_version(directory.parent, directory.name)
    try:
        return [], _load_and_warm(opened, read_seal(opened.fd).digest, device, report, options)
    except Rejection as rejection:
        return [f"{rejection.code}: {rejection.reason}"], ""
    finally:
        opened.close()


def _load_and_warm(
    opened: Directory,
    digest: str,
    device: str,
    report: Callable[[int, int, str], None],
    options: dict[str, Any],
) -> str:
    report(0, 0, "opening the device")
    factory = open_factory(device, **options)
    warming = False

    def report_load() -> None:
        read_all = 0 < control.bytes_done == control.bytes_total
        report(control.bytes_done, control.bytes_total, "warming" if warming else "building" if read_all else "reading")

    control = LoadControl(report_load)
    engine = factory.build(opened, factory.plan(opened, digest, control), control)
    warming = True
    report_load()
    factory.warm(engine, control, golden_seconds=math.inf)
    return ", ".join(f"{name} {seconds:.2f} s" for name, seconds in control.phases.items())
