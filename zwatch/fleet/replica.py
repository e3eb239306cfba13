"""A replica: the process of one device, which loads, verifies and warms versions as a service of its own would, and draws with them.

All that it does the controller asks for. Its methods block, each in a thread of its own, and return a `Failure` instead of raising.
Nothing here imports Ray: it makes an actor of this class.
"""

import gc
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from zwatch import heap
from zwatch.deploy.loras import LoraRoot
from zwatch.engine.opening import open_factory
from zwatch.fleet.awaiting import await_version
from zwatch.fleet.drawing import Runs
from zwatch.fleet.messages import DrawEvent, EngineFacts, Failure, Progress, ReplicaSettings, Sign, begun_anew
from zwatch.fleet.replica_log import Log
from zwatch.shadow.control import LoadControl

if TYPE_CHECKING:
    from zwatch.deploy.resolving import Directory
    from zwatch.engine.factory import EngineFactory
    from zwatch.engine.parameters import GenerationParameters
    from zwatch.engine.pipeline import Engine
    from zwatch.shadow.loader import Plan

P = ParamSpec("P")
R = TypeVar("R")

_UNWINDING = 2.0
"""Seconds for a load that is abandoned to give back what it holds; then others go on without it."""


@dataclass(eq=False)
class _Load:
    """One version on its way to an engine. `ended` is set while no stage of it runs."""

    version: str
    digest: str
    control: LoadControl = field(default_factory=LoadControl)
    directory: "Directory | None" = None
    planned: "Plan | None" = None
    is_waiting: bool = False
    ended: threading.Event = field(default_factory=threading.Event)


@dataclass(eq=False)
class _Held:
    """An engine that is ready, or is being warmed. `is_left`: an earlier controller asked for it."""

    engine: "Engine"
    is_warm: bool = False
    is_left: bool = False


def _answering(
    method: "Callable[Concatenate[Replica, P], R]",
) -> "Callable[Concatenate[Replica, P], R | Failure]":
    """Let a method return a `Failure` instead of raising."""

    def answering(replica: "Replica", /, *args: P.args, **kwargs: P.kwargs) -> "R | Failure":
        try:
            return method(replica, *args, **kwargs)
        except Exception as error:
            return replica.judged(error)

    answering.__name__, answering.__doc__ = method.__name__, method.__doc__
    return answering


class Replica:
    """One device and what is loaded on it. `seconds` are limits; an `engine_id` is chosen by the controller."""

    def __init__(self, settings: ReplicaSettings) -> None:
        self._settings = settings
        self._incarnation = secrets.token_hex(8)
        self._factory: EngineFactory | None = None
        self._opening, self._loading = threading.Lock(), threading.Lock()
        self._loads: dict[str, _Load] = {}
        self._held: dict[str, _Held] = {}
        self._runs = Runs(LoraRoot(Path(settings.loras)))
        self._log = Log()
        logger = logging.getLogger("zwatch")
        logger.addHandler(self._log)
        logger.setLevel(logging.INFO)
        logger.propagate = False  # Ray would write each line into its own files too

    # --- what it is

    def greet(self, settings: ReplicaSettings) -> Sign | None:
        """Let another controller have it, if that has the same settings: what the one before asked for is left, and given up unless this one
        asks for it too. Else return None."""
        if settings != self._settings:
            return None
        self._runs.cancel_all()
        for load in list(self._loads.values()):
            load.control.abandon()
        for held in list(self._held.values()):
            held.is_left = True
        return self.look()

    def look(self) -> Sign:
        """Return what it holds and does; at once."""
        factory = self._factory
        device = None if factory is None else factory.device
        return Sign(
            self._incarnation,
            os.getpid(),
            self._settings.host or socket.gethostname(),
            None if device is None else f"{device.torch_device} ({device.name})",
            device is not None and device.torch_device.type == "cuda",
            None if device is None else device.memory(),
            {engine_id: held.engine.digest for engine_id, held in list(self._held.items()) if held.is_warm},
            self._runs.running,
            {} if factory is None else factory.loras.residents,
            self._log.take(),
        )

    def judged(self, error: Exception) -> Failure:
        """Return what an error means here: whether the device is lost."""
        failure = Failure.of(error)
        if failure.kind == "error" and self._factory is not None and (why := self._factory.device.lost()) is not None:
            return Failure("lost", f"its device does not work any more ({why}) after {failure.text}")
        return failure

    @_answering
    def open(self) -> Sign:
        """Import torch and open the device, unless that was done."""
        with self._opening:
            if self._factory is None:
                self._factory = self._opened()
        return self.look()

    def _opened(self) -> "EngineFactory":
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        asked = self._settings
        gc.disable()  # as in a service of its own, see `zwatch.opening`
        try:
            factory = open_factory(
                asked.device, budget=asked.memory_budget, cache=Path(asked.cache), exact=asked.exact, dtype=asked.dtype,
                quantize=asked.quantize, text_encoder=asked.text_encoder,
            )  # fmt: skip
        finally:
            gc.enable()
        gc.freeze()
        if asked.threads is not None:
            import torch

            torch.set_num_threads(asked.threads)
        return factory

    @property
    def factory(self) -> "EngineFactory":
        """What makes engines.

        Raises:
            RuntimeError: the device is not open.
        """
        if self._factory is None:
            raise RuntimeError("the device is not open yet")
        return self._factory

    # --- a version on its way

    @_answering
    def plan(self, engine_id: str, version: str, digest: str, seconds: float) -> None:
        """Find a version on this host, which may take so many seconds, and read its seal and headers. One that an earlier controller
        left here is taken as it is."""
        if self._left(digest) is not None:
            return
        load = self._loads[engine_id] = _Load(version, digest)
        with _Stage(load):
            load.is_waiting = True
            load.directory = await_version(Path(self._settings.models), version, digest, seconds, load.control)
            load.is_waiting = False
            load.planned = self.factory.plan(load.directory, digest, load.control)

    def _left(self, digest: str) -> str | None:
        """Return the id of an engine of this content that no controller has asked for since the last one ended."""
        return next(
            (
                one
                for one, held in list(self._held.items())
                if held.is_left and held.is_warm and held.engine.digest == digest
            ),
            None,
        )

    @_answering
    def lacks(self, engine_id: str) -> bool:
        """Return whether there is too little memory for a version that was planned."""
        load = self._loads.get(engine_id)
        if load is None or load.planned is None:
            return False
        with self._loading:
            if self.factory.lacks(load.planned):
                self.forget_left()
            return self.factory.lacks(load.planned)

    @_answering
    def build(self, engine_id: str, digest: str) -> EngineFacts | Failure:
        """Load and verify a version that was planned, or take the one that was left here."""
        if (left := self._left(digest)) is not None and engine_id not in self._loads:
            held = self._held[engine_id] = self._held.pop(left)
            held.is_left = False
            return self._facts(held.engine, LoadControl())
        load = self._loads.get(engine_id)
        if load is None or load.directory is None or load.planned is None:
            return begun_anew()
        with self._loading, _Stage(load):
            engine = self.factory.build(load.directory, load.planned, load.control)
            if load.control.is_abandoned:  # it was forgotten meanwhile
                engine.close()
                load.control.check()
            self._held[engine_id] = _Held(engine)
        return self._facts(engine, load.control)

    @_answering
    def warm(self, engine_id: str) -> EngineFacts | Failure:
        """Let an engine make its warm-up image, unless it was left here warm."""
        held = self._held.get(engine_id)
        if held is None:
            return begun_anew()
        load = self._loads.get(engine_id)
        if held.is_warm or load is None:
            return self._facts(held.engine, LoadControl())
        with self._loading, _Stage(load):
            self.factory.warm(held.engine, load.control)
            held.is_warm = True
        self._end_load(engine_id)
        return self._facts(held.engine, load.control)

    def _facts(self, engine: "Engine", control: LoadControl) -> EngineFacts:
        return EngineFacts(
            engine.version, engine.digest, engine.default_size, engine.max_side, engine.precision, engine.nbytes,
            engine.host_nbytes, tuple(engine.sizes), engine.linear_shapes, engine.has_control, engine.golden, dict(control.phases),
            tuple(control.shared), control.bytes_done,
        )  # fmt: skip

    def progress(self, engine_id: str) -> Progress | None:
        """Return how far a load is; None if there is none of this id."""
        load = self._loads.get(engine_id)
        if load is None:
            return None
        control = load.control
        return Progress(
            control.activity, control.bytes_done, control.bytes_total, time.monotonic() - control.got_on, control.is_slow,
            load.is_waiting,
        )  # fmt: skip

    def forget(self, engine_id: str) -> None:
        """Abandon a load, or free an engine that draws nothing any more. A load that does not end holds up no other one."""
        load = self._loads.get(engine_id)
        if load is not None:
            load.control.abandon()
            if not load.ended.wait(_UNWINDING):
                self._loading = threading.Lock()
                self.factory.device.reader.renew()
        self._end_load(engine_id)
        if (held := self._held.pop(engine_id, None)) is not None:
            self._runs.wait()
            held.engine.close()
            del held
            heap.give_back()

    def forget_left(self) -> None:
        """Free what an earlier controller left and this one has not asked for."""
        for engine_id in [engine_id for engine_id, held in list(self._held.items()) if held.is_left]:
            self.forget(engine_id)

    def _end_load(self, engine_id: str) -> None:
        load = self._loads.pop(engine_id, None)
        if load is not None and load.directory is not None and load.ended.is_set():
            load.directory.close()

    # --- what is ready

    def draw(
        self, run_id: str, engine_id: str, parameters: "GenerationParameters", loras: tuple[tuple[str, str], ...]
    ) -> Iterator[tuple[DrawEvent, ...]]:
        """Draw, and yield what happens as it happens, several events at a time if they come fast; `loras` are names and digests. The last event is a `Drawn` or a `Failure`."""
        held = self._held.get(engine_id)
        if held is None:
            yield (begun_anew(),)
            return
        yield from self._runs.draw(run_id, held.engine, self.factory, parameters, loras, self.judged)

    def cancel(self, run_id: str) -> None:
        """End a drawing at its next step."""
        self._runs.cancel(run_id)

    def preview(self, run_id: str) -> None:
        """Make previews of a drawing from now on."""
        self._runs.preview(run_id)

    @_answering
    def load_loras(self, engine_id: str, loras: tuple[tuple[str, str], ...]) -> None:
        """Load LoRAs, given by name and digest, for an engine."""
        self._runs.adapted(self._held[engine_id].engine, self.factory, loras)

    @_answering
    def verify(self, engine_id: str) -> tuple[int, list[str]]:
        """Hash all that is resident of an engine, as `Engine.verify_resident`."""
        return self._held[engine_id].engine.verify_resident()

    @_answering
    def reserve(self, sizes: list[int]) -> bool:
        """Allocate what the next version will take, as `Device.reserve`."""
        with self._loading:
            return self.factory.device.reserve(sizes)

    @_answering
    def give_lora_room(self) -> bool:
        """Let all LoRAs go that nothing needs."""
        return self.factory.loras.give_room()


class _Stage:
    """Marks a load as running inside."""

    def __init__(self, load: _Load) -> None:
        self._load = load

    def __enter__(self) -> None:
        self._load.ended.clear()
        try:
            self._load.control.check()
        except BaseException:
            self._load.ended.set()  # nothing runs: who abandoned it need not wait
            raise

    def __exit__(self, *error: object) -> None:
        self._load.ended.set()
