"""The stages from a directory to a warmed engine, for the supervisor to walk through in a thread.

Whatever a library raises on the way is turned into a rejection here, so that the supervisor knows only rejections.
"""

import logging
from collections.abc import Callable, Sequence

import torch

from zwatch.deploy.resolving import Directory
from zwatch.engine.pipeline import Engine
from zwatch.engine.store import ComponentStore, Staged
from zwatch.engine.warmup import warm
from zwatch.errors import Abandoned, GenerationCancelled, Rejection, Translating
from zwatch.shadow import loader
from zwatch.shadow.buffers import FileBuffer
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
        return not self.device.has_room([self._store.needed(planned)])

    def build(self, directory: Directory, planned: loader.Plan, control: loader.LoadControl) -> Engine:
        """Load, verify and assemble.

        Raises:
            Rejection: something is wrong with it.
            Abandoned: it is not wanted any more.
        """
        with _only_rejections(control):
            staged = self._store.stage(directory, planned, control)
            return Engine(self._store.assemble(staged, control), self.device)

    def fits_instead(self, planned: loader.Plan, old: Engine, others: Sequence[Engine]) -> bool:
        """Say whether a version fits on the device where `old` gives it what neither it nor `others` share."""
        given = sum(buffer.nbytes for buffer in self._exclusive(old, others, set(planned.seal.files.values())))
        return self._store.needed(planned) <= self.device.room + given

    def stage(
        self,
        directory: Directory,
        planned: loader.Plan,
        control: loader.LoadControl,
        old: Engine,
        others: Sequence[Engine],
    ) -> Staged:
        """Load a version into host memory and verify it there, and have room there for what it will displace: all that
        `exchange` needs and nobody has to wait for.

        Raises:
            Rejection, Abandoned: as `build`.
        """
        with _only_rejections(control):
            staged = self._store.stage(directory, planned, control, on_host=True)
            displaced = [buffer.size for buffer in self._exclusive(old, others, set(planned.seal.files.values()))]
            if not self.device.host.reserve(displaced):
                free, total = self.device.host.memory()
                raise Rejection(
                    "insufficient_memory",
                    f"{old.version} takes {sum(displaced)} bytes and has to make room on {self.device.name} for "
                    f"{planned.version}, but of the host's {total} bytes only {free} are free to put them aside",
                )
            return staged

    def exchange(self, old: Engine, others: Sequence[Engine], staged: Staged, control: loader.LoadControl) -> Engine:
        """Put `old` aside in host memory, bring in what was staged, and let it prove itself; nobody may use `old`
        meanwhile. If that fails, `old` is as it was, or not complete where even that failed.

        Raises:
            Rejection, Abandoned: as `build` and `warm`.
        """
        with _only_rejections(control):
            exclusive = self._exclusive(old, others, set(staged.candidate.plan.seal.files.values()))
            kept = {component.key for component in staged.components.values()}
            leaving = [
                component
                for component in old.components
                if component.key not in kept and any(buffer in exclusive for buffer in component.buffers)
            ]
            with control.phase("aside"):
                aside = old.put_aside(self._store, leaving, exclusive)
            del leaving, exclusive  # the device memory goes with the last reference
            try:
                return self._enter(staged, control)
            except BaseException as error:
                # Its frames, and those of what led to it, hold the memory that `old` needs back.
                failure = error.with_traceback(None)
                failure.__cause__ = failure.__context__ = None
            with control.phase("back"):
                old.bring_back(self._store, aside)
            try:
                raise failure
            finally:
                del failure  # else it holds the frame that holds it, and all that was staged

    def _enter(self, staged: Staged, control: loader.LoadControl) -> Engine:
        engine = Engine(self._store.assemble(staged, control), self.device)
        try:
            self.warm(engine, control)
            control.check()
        except BaseException:
            engine.close()
            raise
        return engine

    @staticmethod
    def _exclusive(old: Engine, others: Sequence[Engine], digests: set[str]) -> set[FileBuffer]:
        """Return the buffers of `old` that no other engine holds and whose bytes are not among `digests`."""
        shared = {buffer for engine in others for component in engine.components for buffer in component.buffers}
        own = {buffer for component in old.components for buffer in component.buffers}
        return {buffer for buffer in own - shared if buffer.digest not in digests}

    def warm(self, engine: Engine, control: loader.LoadControl) -> None:
        """Let the engine prove itself.

        Raises:
            Rejection: its image is no image.
            Abandoned: it is not wanted any more.
        """
        with (
            _only_rejections(control),
            control.phase("warm"),
            self.device.beside(),
            self.device.giving_way(control.check),
        ):
            warm(engine, cancelled=lambda: control.is_abandoned)


def _only_rejections(control: loader.LoadControl | None = None) -> Translating:
    def translate(error: Exception) -> Exception | None:
        # Of what stops a load between two of torch's calls, a library may have made an error of its own.
        if isinstance(error, GenerationCancelled) or (control is not None and control.is_abandoned):
            return Abandoned("superseded by a newer wish")
        return None if isinstance(error, Abandoned | Rejection) else _rejection_of(error)

    return Translating(translate)


def _rejection_of(error: Exception) -> Rejection:
    match error:
        case torch.OutOfMemoryError() | MemoryError():
            return Rejection("out_of_memory", f"memory ran out half-way: {_first_line(error)}")
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            return Rejection("io_error", f"{where}{error.strerror or error}")
        case RuntimeError():
            _log.error("the device failed", exc_info=error)
            return Rejection("device_error", _first_line(error))
    _log.error("a load failed in a way nobody thought of", exc_info=error)
    return Rejection("internal_error", f"{type(error).__name__}: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
