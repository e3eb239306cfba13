"""The stages from a directory to a warmed engine, which the supervisor calls one by one in a thread.

Every error that a library raises in them is translated into a rejection, so that the supervisor handles nothing else.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from zwatch.deploy.resolving import Directory
from zwatch.engine.acceleration import Acceleration
from zwatch.engine.comparing import HELD_SECONDS, SECONDS, compare_first
from zwatch.engine.kept_files import KeptFiles
from zwatch.engine.kernels import Kernels
from zwatch.engine.lora_store import LoraStore
from zwatch.engine.parameters import Generation
from zwatch.engine.pipeline import Engine
from zwatch.engine.precision import Precision
from zwatch.engine.proven import KEPT, ProvenVersions
from zwatch.engine.store import ComponentStore, Staged
from zwatch.engine.tokenizer_maker import TokenizerMaker
from zwatch.engine.warmup import fault_of, warm
from zwatch.errors import Abandoned, GenerationCancelled, Rejection, Translating
from zwatch.shadow import loader
from zwatch.shadow.control import LoadControl
from zwatch.shadow.device import Device
from zwatch.shadow.faults import first_line, is_memory_short, named

_log = logging.getLogger(__name__)


class EngineFactory:
    """Makes engines on one device. Its methods block."""

    def __init__(
        self, device: Device, cache: Path | None = None, tokenizers: TokenizerMaker | None = None, *, exact: bool | None = None,
        precision: Precision = Precision(), text_encoder: str = "auto", kernels: Kernels | None = None,  # noqa: B008 (frozen)
    ) -> None:  # fmt: skip
        """`cache` is the directory in which what was prepared is kept for the next start; None keeps nothing. `exact` as
        `Acceleration` has it; `precision` and `text_encoder` as `zwatch.engine.placement.Placement` has them; `kernels` are the
        device's."""
        self.device = device
        self.acceleration = Acceleration(device, exact=exact, kernels=kernels)
        self._store = ComponentStore(self.device, tokenizers or TokenizerMaker(cache), precision, text_encoder)
        self.loras = self.acceleration.loras = LoraStore(self.device)
        self._proven = ProvenVersions(
            device, KeptFiles(cache, ".proven", KEPT), precision, is_exact=self.acceleration.is_exact
        )

    def plan(self, directory: Directory, digest: str | None, control: LoadControl | None = None) -> loader.Plan:
        """Read a version's seal and weight headers.

        Raises:
            Rejection, Abandoned: as `zwatch.shadow.loader.plan`.
        """
        with _only_rejections(control):
            return loader.plan(directory, digest, control)

    def lacks(self, planned: loader.Plan) -> bool:
        """Return whether the device has too little free memory for this version in addition to the resident ones, and to the LoRAs that
        requests need now: others are let go."""
        return self._store.lacks(planned) and not (self.loras.give_room() and not self._store.lacks(planned))

    def build(self, directory: Directory, planned: loader.Plan, control: LoadControl) -> Engine:
        """Load, verify and assemble a version.

        Raises:
            Rejection: the version is not valid, or it could not be loaded.
            Abandoned: `control` was told to abandon the load.
        """
        with _only_rejections(control):
            staged = self._store.stage(directory, planned, control)
            return Engine(self._store.assemble(staged, control), self.device, self.acceleration)

    def fits_instead(self, planned: loader.Plan, old: Engine, others: Sequence[Engine]) -> bool:
        """Return whether a version fits on the device once `old` has freed what neither it nor `others` share."""
        freed = sum(buffer.nbytes for buffer in old.exclusive_buffers(others, planned.seal.files.values()))
        return self._store.needed_staged(planned) <= self.device.room + freed

    def stage(
        self,
        directory: Directory,
        planned: loader.Plan,
        control: LoadControl,
        old: Engine,
        others: Sequence[Engine],
    ) -> Staged:
        """Load a version into host memory, verify it there, and reserve host memory for what it will displace: the part
        of an exchange during which requests need not wait.

        Raises:
            Rejection, Abandoned: as `build`.
        """
        with _only_rejections(control):
            staged = self._store.stage(directory, planned, control, on_host=True)
            displaced = [buffer.size for buffer in old.exclusive_buffers(others, planned.seal.files.values())]
            if not self.device.host.reserve(displaced):
                free, total = self.device.host.memory()
                raise Rejection(
                    "insufficient_memory",
                    f"{old.version}'s {sum(displaced)} bytes on {self.device.name} must be moved to host memory to make room for "
                    f"{planned.version}, but only {free} of {total} bytes are free",
                )
            return staged

    def exchange(self, old: Engine, others: Sequence[Engine], staged: Staged, control: LoadControl) -> Engine:
        """Put `old` aside in host memory, build the staged version on the device, and warm it; `old` must not be in use.

        If that fails, `old` is restored; if restoring fails too, `old` is not complete.

        Raises:
            Rejection, Abandoned: as `build` and `warm`.
        """
        with _only_rejections(control):
            control.begin(f"exchanging {old.version}", is_slow=True)
            exclusive = old.exclusive_buffers(others, staged.candidate.plan.seal.files.values())
            kept = {component.key for component in staged.parts.components.values()}
            leaving = [
                component
                for component in old.components
                if component.key not in kept and any(buffer in exclusive for buffer in component.buffers)
            ]
            with control.phase("aside"):
                aside = old.put_aside(self._store, leaving, exclusive)
            del leaving, exclusive  # the last references: the device memory is freed
            try:
                return self._enter(staged, control)
            except BaseException as error:
                # Its frames, and those of its causes, hold the device memory that `old` needs again.
                failure = error.with_traceback(None)
                failure.__cause__ = failure.__context__ = None
            with control.phase("back"):
                old.restore(self._store, aside)
            try:
                raise failure
            finally:
                del failure  # else it holds the frame that holds it, and with it the staged buffers

    def _enter(self, staged: Staged, control: LoadControl) -> Engine:
        engine = Engine(self._store.assemble(staged, control), self.device, self.acceleration)
        try:
            self.warm(engine, control, is_held=True)
            control.check()
        except BaseException:
            engine.close()
            raise
        return engine

    def is_proven(self, engine: Engine) -> bool:
        """Return whether a version has made a usable warm-up image on this machine before, with the same libraries, and at least its
        first golden image; if so, the engine has what that has shown, and its first image has to be judged instead."""
        with _only_rejections(None):
            proof = self._proven.find(engine.digest)
            if proof is not None and engine.golden.next is not None and proof.golden == 0:
                proof = None
            engine.colours = None if proof is None else proof.colours
            engine.is_unjudged = proof is not None
            if proof is not None:
                engine.golden.skip(proof.golden)
                engine.prepare()
            return engine.is_unjudged

    def fault(self, engine: Engine, generation: Generation) -> Rejection | None:
        """Return what is wrong with the first image of an engine whose warm-up was skipped; if nothing is, it is judged now."""
        fault = fault_of(generation)
        engine.is_unjudged = fault is not None
        return fault

    def distrust(self, digest: str) -> None:
        """Make a version's warm-up image again at its next load."""
        self._proven.forget(digest)

    def warm(
        self, engine: Engine, control: LoadControl, *, is_held: bool = False, golden_seconds: float | None = None
    ) -> None:
        """Make the warm-up image with an engine, and compare its first golden images, which may take `golden_seconds`, by default as
        the service has it. `is_held`: requests wait meanwhile.

        Raises:
            Rejection: an image is not usable or not like the golden one, or the device failed.
            Abandoned: `control` was told to abandon the load.
        """
        with (
            _only_rejections(control), self.device.beside(), self.device.giving_way(control.check), Translating(_config_fault),
        ):  # fmt: skip
            with control.phase("warm"):
                control.begin("making the warm-up image", is_slow=True)
                warm(engine, cancelled=lambda: control.is_abandoned)
            if engine.golden.next is not None:
                with control.phase("golden"):
                    control.begin("comparing golden images", is_slow=True)
                    seconds = (HELD_SECONDS if is_held else SECONDS) if golden_seconds is None else golden_seconds
                    compare_first(engine, seconds, is_held=is_held, check=control.check)
            engine.is_unjudged = False
            self.note_golden(engine)
            engine.prepare()

    def note_golden(self, engine: Engine) -> None:
        """Remember what is known to be good of an engine: its warm-up image, and the golden images that were checked so far."""
        if engine.golden.missed:
            self._proven.forget(engine.digest)
        elif engine.colours is not None:
            self._proven.note(engine.digest, engine.colours, engine.golden.checked)


def _only_rejections(control: LoadControl | None) -> Translating:
    def translate(error: Exception) -> Exception | None:
        # Abandoned is raised inside calls of torch, and a library may have translated it into its own error.
        if isinstance(error, GenerationCancelled) or (control is not None and control.is_abandoned):
            return Abandoned("superseded by a newer target")
        return None if isinstance(error, Abandoned | Rejection) else _rejection_of(error)

    return Translating(translate)


_PROGRAMMING = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError)


def _config_fault(error: Exception) -> Exception | None:
    """Return the rejection for an error of a library that computes the warm-up's image: neither the device nor memory
    failed, so the configs ask for what the library cannot do, though each of their known fields is right."""
    if not isinstance(error, _PROGRAMMING):
        return None
    _log.error("the warm-up failed", exc_info=error)
    return Rejection(
        "config_invalid",
        f"the configs of this version cannot make an image together: {named(error)}",
    )


def _rejection_of(error: Exception) -> Rejection:
    if is_memory_short(error):
        return Rejection("out_of_memory", f"memory ran out during the load: {first_line(error)}")
    match error:
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            return Rejection("io_error", f"{where}{error.strerror or error}")
        case RuntimeError():
            _log.error("device failed during a load", exc_info=error)
            return Rejection("device_error", first_line(error))
    _log.error("load failed unexpectedly", exc_info=error)
    return Rejection("internal_error", named(error))
