"""The LoRAs of requests: opened when a request comes, loaded while it waits, and beside the version that draws it at its turn."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from zwatch.bridge import LANES, Bridge, NoAnswer
from zwatch.deploy.loras import LoraRoot, OpenedLora
from zwatch.engine.lora_layout import misfit
from zwatch.engine.parameters import UsedLora
from zwatch.errors import Rejection, RequestError
from zwatch.generation.fields import invalid
from zwatch.generation.lora_fields import LoraWish
from zwatch.shadow.faults import is_memory_short

if TYPE_CHECKING:
    from zwatch.engine.lora import Adapted
    from zwatch.engine.lora_store import LoraStore
    from zwatch.engine.pipeline import Engine

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class HeldLora:
    """A LoRA that is open while a request needs it; requests for the same content share it."""

    opened: OpenedLora

    def __del__(self) -> None:
        self.opened.close()


@dataclass(frozen=True, eq=False)
class JobLoras:
    """The LoRAs of one request, ordered by their digests: the same LoRAs give the same image in whatever order they are named."""

    held: tuple[HeldLora, ...]
    used: tuple[UsedLora, ...]
    loading: list[asyncio.Task[RequestError | None]] = field(default_factory=list)
    """What loads them while the request waits, if anything does."""

    @property
    def opened(self) -> list[OpenedLora]:
        """The LoRAs."""
        return [one.opened for one in self.held]

    @property
    def digests(self) -> tuple[str, ...]:
        """Their digests."""
        return tuple(one.digest for one in self.used)

    @property
    def is_loading(self) -> bool:
        """Whether they are being loaded, so that other requests may be drawn first."""
        return any(not task.done() for task in self.loading)

    def check(self, engine: "Engine") -> None:
        """Check that they fit a version.

        Raises:
            RequestError: 400, with the names and shapes of what does not.
        """
        for held in self.held:
            lora = held.opened
            if (problem := misfit(lora.matrices, engine.linear_shapes)) is not None:
                raise invalid("loras", f"loras: {lora.name} does not fit version {engine.version}: {problem}")


class Loras:
    """What requests have of the LoRA root. Used on the event loop; what blocks runs in threads."""

    def __init__(self, bridge: Bridge, root: LoraRoot, store: "Callable[[], LoraStore | None]" = lambda: None) -> None:
        """`store` returns the device's LoRAs, None before the device is opened."""
        self.root = root
        self.changed: Callable[[], None] = lambda: None
        """Called when a request's LoRAs are loaded, or cannot be."""
        self.on_load: Callable[[float], None] = lambda seconds: None
        """Called with the seconds that each load took, in a thread."""
        self._bridge, self._find_store = bridge, store
        self._preparing: asyncio.Task[None] | None = None
        self._held: WeakValueDictionary[tuple[str, str], HeldLora] = WeakValueDictionary()

    @property
    def residents(self) -> dict[str, int]:
        """Device bytes of each resident LoRA, by digest."""
        store = self._find_store()
        return {} if store is None else store.residents

    @property
    def nbytes(self) -> int:
        """Device bytes of all that is resident of LoRAs."""
        store = self._find_store()
        return 0 if store is None else store.nbytes

    def prepare(self) -> None:
        """Begin to prepare the device for the first LoRA that is loaded, unless that was begun."""
        store = self._find_store()
        if store is not None and self._preparing is None:
            self._preparing = asyncio.create_task(self._prepare(store), name="lora")

    async def _prepare(self, store: "LoraStore") -> None:
        try:
            await self._bridge.run("lora", store.prepare)
        except Exception as error:  # then the first load does it, or says what is wrong
            _log.warning("the device could not be prepared for LoRAs: %s: %s", type(error).__name__, error)

    async def opened(self, wishes: Sequence[LoraWish]) -> JobLoras | None:
        """Open the LoRAs that a request names; None if it names none.

        Raises:
            RequestError: 400, there is none of that name, or it cannot be used; 500, it cannot be read.
        """
        if not wishes:
            return None
        found = [(await self._open(wish.name), wish.scale) for wish in wishes]
        found.sort(key=lambda one: (one[0].opened.digest, one[0].opened.name))
        used = tuple(UsedLora(held.opened.name, scale, held.opened.digest) for held, scale in found)
        return JobLoras(tuple(held for held, _ in found), used)

    async def _open(self, name: str) -> HeldLora:
        try:
            lora = await self._bridge.run("inspect", self.root.open_lora, name)
        except Rejection as rejection:
            raise await self._refusal(name, rejection) from None
        except OSError as error:
            raise _unreadable(name, error) from None
        key = (lora.name, lora.digest)
        held = self._held.get(key)
        if held is not None and held.opened.stamps == lora.stamps:  # else it was copied again, or written to
            lora.close()
            return held
        made = self._held[key] = HeldLora(lora)
        return made

    async def _refusal(self, name: str, rejection: Rejection) -> RequestError:
        if rejection.code != "file_missing":
            return _unusable(name, rejection)
        try:
            there = [lora.name for lora in await self._bridge.run("inspect", self.root.look) if lora.problem is None]
        except OSError:
            there = []
        if name in there:  # it is a file of its own that is missing
            return _unusable(name, rejection)
        known = f"there are {', '.join(there[:20])}" if there else "there is none in the LoRA root"
        return invalid("loras", f"loras: there is no LoRA {name!r}; {known}")

    def begin(self, loras: JobLoras, engine: "Engine") -> None:
        """Begin to load a request's LoRAs while it waits, for the version that will probably draw it."""
        store = self._find_store()
        if (
            store is None
            or not engine.is_complete
            or store.ready(engine.pipeline.transformer, loras.digests) is not None
        ):
            return
        task = asyncio.create_task(self._preload(store, loras, engine), name="lora")
        task.add_done_callback(lambda done: self.changed())
        loras.loading.append(task)

    async def _preload(self, store: "LoraStore", loras: JobLoras, engine: "Engine") -> RequestError | None:
        try:
            await self._load(store, loras, engine)
        except RequestError as error:
            return error.to_keep()
        except RuntimeError:
            pass  # the version was freed meanwhile: another one draws
        return None

    async def adapted(self, loras: JobLoras | None, engine: "Engine") -> "Adapted | None":
        """Return what draws with a request's LoRAs, of an engine that is leased.

        Raises:
            RequestError: they cannot be loaded.
            RuntimeError, MemoryError: the device failed.
        """
        if loras is None or (store := self._find_store()) is None:
            return None
        for task in loras.loading:
            error = await task
            if error is not None and error.code != "out_of_memory":  # memory may be there by now
                raise error
        if (ready := store.ready(engine.pipeline.transformer, loras.digests)) is not None:
            return ready
        return await self._load(store, loras, engine)

    async def _load(self, store: "LoraStore", loras: JobLoras, engine: "Engine") -> "Adapted":
        names = " and ".join(lora.name for lora in loras.opened)
        store.on_load = self.on_load
        try:
            return await self._at_its_turn(store, loras, engine)
        except Rejection as rejection:
            if rejection.code == "insufficient_memory":
                raise RequestError("out_of_memory", rejection.reason) from None
            name = next((one.name for one in loras.opened if rejection.reason.startswith(f"{one.name}/")), names)
            for lora in loras.opened:
                if lora.name == name:
                    self.root.refuse(lora, rejection)
            raise _unusable(name, rejection) from None
        except OSError as error:
            raise _unreadable(names, error) from None
        except (RuntimeError, MemoryError) as error:
            if not is_memory_short(error):
                raise
            raise RequestError("out_of_memory", f"memory ran out while the LoRA {names} was loaded") from None
        finally:
            self.changed()

    async def _at_its_turn(self, store: "LoraStore", loras: JobLoras, engine: "Engine") -> "Adapted":
        """Return what `LoraStore.load` does. A load that others held up until they were left, because their disk does not answer, waits
        again: nothing is known against it.

        Raises:
            NoAnswer: it did not return itself, or as many others did not as may be left.
        """
        tries = LANES["lora"].most_left
        while True:
            tries -= 1
            try:
                return await self._bridge.run("lora", store.load, engine.pipeline.transformer, loras.opened)
            except NoAnswer as error:
                if error.has_begun:
                    store.renew()
                if error.has_begun or not tries:
                    raise

    @contextmanager
    def using(self, view: "Adapted | None") -> Iterator[None]:
        """Keep what draws a request, and its LoRAs, inside."""
        if view is None or (store := self._find_store()) is None:
            yield
            return
        with store.used(view):
            yield


def beside(loras: JobLoras | None) -> str:
    """Return the words of an error that tell what a request was drawn with: they may be the cause."""
    if loras is None:
        return ""
    named = " and ".join(f"{one.name}:{one.scale:g}" for one in loras.used)
    return f" with the LoRA{'s' if len(loras.used) > 1 else ''} {named}"


def _unusable(name: str, rejection: Rejection) -> RequestError:
    return invalid("loras", f"loras: {name} cannot be used: {rejection.reason}")


def _unreadable(name: str, error: OSError) -> RequestError:
    return RequestError("generation_failed", f"loras: {name} cannot be read: {error.strerror or error}", param="loras")
