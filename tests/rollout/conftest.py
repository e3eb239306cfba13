"""A service without HTTP: the real parts from the models root to the engines, which tests start, stop and crash."""

import asyncio
import json
import os
import secrets
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from zwatch.bridge import Bridge
from zwatch.deploy.look import point
from zwatch.deploy.sealing import write_seal
from zwatch.engine.factory import EngineFactory
from zwatch.engine.parameters import GenerationParameters
from zwatch.rollout.alias import GOOD_IMAGES
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.lifecycle import EngineState
from zwatch.rollout.operator import Operator
from zwatch.rollout.refusals import BACKOFF_FIRST
from zwatch.rollout.state import StateFile
from zwatch.rollout.supervisor import Supervisor
from zwatch.shadow.device import Device
from zwatch.shadow.pool import Pool

DEADLINE = 60.0
BUDGET = 2**26
"""Bytes of device memory: enough for a handful of tiny versions."""
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
WANTED = GenerationParameters("a cat", "", 64, 64, 1, 0.0, (1,))


def flip_byte(path, position=-1):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def make_v3(models):
    shutil.copytree(models / "v2", models / "v3")
    write_seal(models / "v3", "v3")


def picture(lease):
    return np.asarray(lease.engine.generate(WANTED).images[0])


async def reached(service, stage, version):
    await service.until(lambda: service.supervisor.factory and (stage, version) in service.factory.reached)


def prove_good(service, alias="current"):
    """Let what serves make enough images to be last-known-good."""
    with service.engines.lease(alias) as lease:
        lease.count_images(GOOD_IMAGES)


async def noted_good(service, version):
    """Wait until the state file says that a version has proved itself."""

    def noted():
        saved = json.loads((service.state / "state.json").read_bytes())
        return [key["version"] for key in saved["aliases"]["current"]["good"]][:1] == [version]

    await service.until(noted)


@pytest.fixture
def first_pause():
    """Seconds before the first retry; a test sets others with parametrize."""
    return BACKOFF_FIRST


quick_retries = pytest.mark.parametrize("first_pause", [0.05])


class HeldFactory(EngineFactory):
    """A real factory whose loads of some versions stop at a stage until the test lets them go on."""

    def __init__(
        self, device: str = "cpu", *, budget: int | None = None, pool: Pool | None = None, cache: Path | None = None
    ) -> None:
        super().__init__(Device(device, budget=budget, pool=pool), cache, exact=True)
        self.holding: dict[tuple[str, str], threading.Event] = {}
        self.reached: set[tuple[str, str]] = set()
        self.built: list[str] = []

    def leave_no_room(self) -> None:
        """Make the device full with what is resident now."""
        self.device.budget -= self.device.memory()[0]

    def hold(self, stage: str, version: str) -> threading.Event:
        """Stop loads of `version` before `build` or `warm`, or when `staged` or `exchanged`, until the event is set."""
        event = self.holding[(stage, version)] = threading.Event()
        return event

    def build(self, directory, planned, control):
        self._pass("build", planned.version, control)
        self.built.append(planned.version)
        return super().build(directory, planned, control)

    def warm(self, engine, control, **given):
        self._pass("warm", engine.version, control)
        super().warm(engine, control, **given)

    def stage(self, directory, planned, control, old, others):
        self.reached.add(("stage", planned.version))
        staged = super().stage(directory, planned, control, old, others)
        self._end("staged", planned.version)
        return staged

    def exchange(self, old, others, staged, control):
        engine = super().exchange(old, others, staged, control)
        self._end("exchanged", engine.version)
        return engine

    def _end(self, stage, version):
        """Wait like `_pass`, but whether or not the load is abandoned meanwhile."""
        self.reached.add((stage, version))
        event = self.holding.get((stage, version))
        assert event is None or event.wait(DEADLINE)

    def _pass(self, stage, version, control):
        event = self.holding.get((stage, version))
        self.reached.add((stage, version))
        while event is not None and not event.wait(0.005):
            control.check()


class Service:
    """Bridge, engines, state file and supervisor of one run on one models root."""

    def __init__(
        self,
        root: Path,
        state: Path,
        aliases: tuple[str, ...],
        make_factory: Callable[[], EngineFactory],
        first_pause: float = BACKOFF_FIRST,
        policy_file: Path | None = None,
    ):
        self.first_pause, self.policy_file = first_pause, policy_file
        self.root, self.state, self.aliases, self.make_factory = root, state, aliases, make_factory
        self._task: asyncio.Task[None] | None = None

    async def start(self, *, run: bool = True) -> "Service":
        """Start a run as `app.running` does; without `run`, the loop has to be started later."""
        self.wire()
        await self.supervisor.start()
        if run:
            self.run()
        return self

    def wire(self) -> None:
        """Make the parts of a run, as they are while the saved state is not read."""
        self.bridge = Bridge()
        self.state_file = StateFile(self.state)
        self.engines = EngineRegistry(self._lease_returned)
        self.supervisor = Supervisor(
            self.root,
            self.aliases,
            strict_links=False,
            bridge=self.bridge,
            engines=self.engines,
            state_file=self.state_file,
            make_factory=lambda control: self.make_factory(),
            first_pause=self.first_pause,
            policy_file=self.policy_file,
        )
        self.operator = Operator(self.supervisor, self.bridge)

    def run(self) -> None:
        """Let the supervisor look and act."""
        self._task = asyncio.create_task(self.supervisor.run())

    async def stop(self) -> None:
        """End the run without a crash."""
        if self.bridge is not None:
            await asyncio.wait_for(self.supervisor.stop(), DEADLINE)
            await self._end()

    async def crash(self) -> None:
        """End the run as a killed process does: the state file stays as it was at this moment."""
        saved = (self.state / "state.json").read_bytes()
        await asyncio.wait_for(self.supervisor.stop(), DEADLINE)
        await self._end()
        (self.state / "state.json").write_bytes(saved)

    async def _end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await asyncio.to_thread(self.bridge.close)
        self.state_file.close()
        self.bridge = None

    def _lease_returned(self) -> None:
        self.supervisor.ring()
        self.supervisor.changes.fire()

    # --- what an operator does

    def link(self, version: str, alias: str = "current") -> None:
        """Repoint an alias atomically, as `mv -T` does, and let the supervisor look at once."""
        temporary = self.root / f".{secrets.token_hex(4)}"
        temporary.symlink_to(version)
        os.replace(temporary, self.root / alias)
        self.supervisor.ring()

    def point(self, version: str, alias: str = "current"):
        """Repoint as `POST /api/deploy` does; return the new link's stamp."""
        return point(self.root, alias, version)

    # --- what can be seen

    async def until(self, what: Callable[[], object]) -> None:
        """Wait until a condition is true."""

        async def wait() -> None:
            while not what():
                try:
                    await asyncio.wait_for(self.supervisor.changes.wait(), 0.02)
                except TimeoutError:
                    pass

        try:
            await asyncio.wait_for(wait(), DEADLINE)
        except TimeoutError:
            pytest.fail(f"the condition did not become true; serving {self.serves()}, attempts {self.attempts()}")

    async def until_serves(self, version: str | None, alias: str = "current") -> None:
        """Wait until an alias serves this version and nothing is left to do."""
        await self.until(lambda: self.serves(alias) == version and self.supervisor.settled_once)

    async def until_rejected(self, version: str, code: str) -> None:
        """Wait until the last attempt is a rejection of this version with this code."""
        await self.until(lambda: self.attempts()[:1] == [(version, "REJECTED", code)])

    def serves(self, alias: str = "current") -> str | None:
        """Return the name of the version that an alias serves."""
        resident = self.engines.serving(alias)
        return None if resident is None else resident.key.version

    def attempts(self) -> list[tuple[str, str, str | None]]:
        """Return (version, state, code) of every attempt, newest first."""
        return [
            (attempt.key.version, attempt.state.value, attempt.rejection.code if attempt.rejection else None)
            for attempt in self.supervisor.attempts
        ]

    def states(self) -> dict[str, EngineState]:
        """Return the state of every resident engine."""
        return {resident.key.version: resident.state for resident in self.engines.residents}

    @property
    def factory(self) -> HeldFactory:
        """The factory, once the first load has made it."""
        assert isinstance(self.supervisor.factory, HeldFactory)
        return self.supervisor.factory


@pytest.fixture
async def services(models, tmp_path, first_pause):
    """Make services on this test's models root; every one is ended with the test."""
    made = []

    def make(*, aliases=("current",), make_factory=HeldFactory, policy_file=None):
        made.append(Service(models, tmp_path / "state", aliases, make_factory, first_pause, policy_file))
        return made[-1]

    yield make
    for service in made:
        if getattr(service, "bridge", None) is not None:
            for event in getattr(service.supervisor.factory, "holding", {}).values():
                event.set()
            await service.stop()


@pytest.fixture
async def service(services):
    """A service that serves v1."""
    started = await services().start()
    await started.until_serves("v1")
    return started
