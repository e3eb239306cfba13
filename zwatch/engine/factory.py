"""The stages from a directory to a warmed engine, for the supervisor to walk through in a thread.

Whatever a library raises on the way is turned into a rejection here, so that the supervisor knows only rejections.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from zwatch.deploy.aliases import Directory
from zwatch.engine.components import ComponentStore
from zwatch.engine.pipeline import Engine
from zwatch.engine.warmup import warm
from zwatch.errors import Abandoned, GenerationCancelled, Rejection
from zwatch.shadow import loader
from zwatch.shadow.device import Device

_log = logging.getLogger(__name__)


class EngineFactory:
    """Makes engines on one device. Its methods block."""

    def __init__(self, device: str, *, budget: int | None = None) -> None:
        self.device = Device(device, budget=budget)
        self._store = ComponentStore(self.device)

    def control(self, report: Callable[[], None]) -> loader.LoadControl:
        """Return the handle on a load to come; `report` is called in the loading thread when it got further."""
        return loader.LoadControl(report)

    def plan(self, directory: Directory, digest: str | None) -> loader.Plan:
        """Read what seal and headers tell.

        Raises:
            Rejection: as `zwatch.shadow.loader.plan`.
        """
        with _only_rejections():
            return loader.plan(directory, digest)

    def lacks(self, planned: loader.Plan) -> bool:
        """Say whether the device has too little free memory for this version beside what is resident."""
        return self._store.needed(planned) + self.device.request_peak > self.device.memory()[0]

    def build(self, directory: Directory, planned: loader.Plan, control: loader.LoadControl) -> Engine:
        """Load, verify and assemble.

        Raises:
            Rejection: something is wrong with it.
            Abandoned: it is not wanted any more.
        """
        with _only_rejections():
            return Engine(self._store.assemble(directory, planned, control), self.device)

    def warm(self, engine: Engine, control: loader.LoadControl) -> None:
        """Let the engine prove itself.

        Raises:
            Rejection: its image is no image.
            Abandoned: it is not wanted any more.
        """
        with _only_rejections(), control.phase("warm"):
            warm(engine, cancelled=lambda: control.is_abandoned)


@contextmanager
def _only_rejections() -> Iterator[None]:
    try:
        yield
    except (Rejection, Abandoned):
        raise
    except GenerationCancelled:
        raise Abandoned("superseded by a newer wish") from None
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise Rejection("out_of_memory", f"memory ran out half-way: {_first_line(error)}") from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise Rejection("io_error", f"{where}{error.strerror or error}") from None
    except RuntimeError as error:
        _log.exception("the device failed")
        raise Rejection("device_error", _first_line(error)) from None
    except Exception as error:
        _log.exception("a load failed in a way nobody thought of")
        raise Rejection("internal_error", f"{type(error).__name__}: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
