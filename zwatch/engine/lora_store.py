"""The LoRAs that are resident on a device, by content, and the networks that draw with them.

Loading one never waits for the load of a version, nor holds it up: all of it happens in a memory of its own, see
`zwatch.shadow.side`. What a request needs is kept until it is done; of the rest the least recently used goes when memory is short.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import nn

from zwatch.deploy import seal
from zwatch.deploy.hashing import hash_file
from zwatch.deploy.loras import WEIGHTS, OpenedLora
from zwatch.engine.adapted import adapter_dtype, linears
from zwatch.engine.lora import Adapted, Lora, adapted, packed_bytes
from zwatch.engine.precision import has_instructions
from zwatch.errors import Rejection
from zwatch.shadow.buffers import TORCH_DTYPES, FileBuffer, Footprint
from zwatch.shadow.converted import Buffer, Conversion, ConvertedBuffer, converted_bytes
from zwatch.shadow.device import Device
from zwatch.shadow.hashing import host_view
from zwatch.shadow.read_threads import Filling
from zwatch.shadow.side import SideShadow

_log = logging.getLogger(__name__)

MOST_BYTES = 4 * 2**30
"""Device memory for LoRAs: some dozens of the usual ones for Z-Image-Turbo, of 80 to 160 MB."""
MOST_VIEWS = 4
"""Of one network. On a GPU each has its own recorded graphs."""
_LOOK_SECONDS = 0.1
"""How often a load that waits for another one looks whether that was given up."""

Key = tuple[str, torch.dtype]


class LoraStore:
    """The LoRAs of one device. Its methods block, but for `ready`, `residents` and the numbers."""

    def __init__(self, device: Device, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self.on_load: Callable[[float], None] = lambda seconds: None
        """Called with the seconds that a load took, in its thread."""
        self._device = device
        self._side = SideShadow(device)
        self._lock = threading.RLock()
        self._loading = threading.Lock()
        self._loras: OrderedDict[Key, Lora] = OrderedDict()
        self._views: WeakKeyDictionary[nn.Module, OrderedDict[tuple[str, ...], Adapted]] = WeakKeyDictionary()
        self._in_use: dict[Adapted, int] = {}

    # --- what is there

    @property
    def residents(self) -> dict[str, int]:
        """Device bytes of each resident LoRA, by digest."""
        with self._lock:
            return {lora.digest: lora.nbytes for lora in self._loras.values()}

    @property
    def nbytes(self) -> int:
        """Device bytes of all resident LoRAs, and of what was made of them."""
        with self._lock:
            return sum(lora.nbytes for lora in self._loras.values()) + sum(view.nbytes for view in self._all_views())

    def _all_views(self) -> list[Adapted]:
        kept = (view for views in self._views.values() for view in views.values())
        return list(dict.fromkeys([*kept, *self._in_use]))

    def ready(self, network: nn.Module, digests: Sequence[str]) -> Adapted | None:
        """Return the view of a transformer that draws with these LoRAs, if it is there; it counts as used now."""
        with self._lock:
            views = self._views.get(network)
            found = None if views is None else views.get(tuple(digests))
            if views is None or found is None:
                return None
            views.move_to_end(tuple(digests))
            for lora in found.loras:
                if (lora.digest, lora.dtype) in self._loras:
                    self._loras.move_to_end((lora.digest, lora.dtype))
            return found

    @contextmanager
    def used(self, view: Adapted | None) -> Iterator[None]:
        """Keep a view, and its LoRAs, inside."""
        if view is None:
            yield
            return
        with self._lock:
            self._in_use[view] = self._in_use.get(view, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._in_use[view] -= 1
                if not self._in_use[view]:
                    del self._in_use[view]

    # --- loading

    def load(self, network: nn.Module, opened: Sequence[OpenedLora]) -> Adapted:
        """Return a view of a transformer that draws with LoRAs, which are loaded first if they are not resident.

        Raises:
            Rejection: the bytes that landed on the device are not those that a seal names, or memory is short.
            OSError, RuntimeError, MemoryError: a read or the device failed.
        """
        digests = tuple(lora.digest for lora in opened)
        with self._turn():
            if (found := self.ready(network, digests)) is not None:
                return found
            dtype = self._dtype(network)
            loras: list[Lora] = []
            for one in opened:
                loras.append(self._resident(one, dtype, keeping=loras))
            names = " and ".join(lora.name for lora in loras)
            self._make_room(packed_bytes(loras), f"what is computed with of {names}", keeping=loras)
            with self._side.beside(), torch.inference_mode():
                view = adapted(network, linears(network), loras, self._side)
            with self._lock:
                views = self._views.setdefault(network, OrderedDict())
                views[digests] = view
                while len(views) > MOST_VIEWS:
                    views.popitem(last=False)
            return view

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Load alone inside. What waits behind a load that does not return goes on once `renew` was called, also if it began to wait
        just before."""
        while not (loading := self._loading).acquire(timeout=_LOOK_SECONDS):
            pass
        try:
            yield
        finally:
            loading.release()

    def prepare(self) -> None:
        """Allocate what loads use again and again, so that the first one need not.

        Raises:
            RuntimeError, MemoryError: the device failed.
        """
        with self._side.beside():
            self._side.prepare()

    def renew(self) -> None:
        """Go on without a load that does not return: others do not wait for it, and share no memory with it."""
        self._loading, self._side = threading.Lock(), SideShadow(self._device)

    def _dtype(self, network: nn.Module) -> torch.dtype:
        dtype: torch.dtype = network.dtype  # type: ignore[assignment]
        return adapter_dtype(network, has_instructions=has_instructions(self._device.torch_device, dtype))

    def _resident(self, opened: OpenedLora, dtype: torch.dtype, keeping: Sequence[Lora]) -> Lora:
        key = (opened.digest, dtype)
        with self._lock:
            if (found := self._loras.get(key)) is not None:
                self._loras.move_to_end(key)
                return found
        begun = time.monotonic()
        is_stored = all(TORCH_DTYPES[info.dtype] is dtype for info in opened.header.tensors.values())
        conversion = None if is_stored else Conversion(dtype, dtype)
        needed = Footprint.of(opened.header).total
        if conversion is not None:
            needed += converted_bytes(opened.header, conversion)
        self._make_room(needed, f"the LoRA {opened.name}", keeping)
        with self._side.beside(), torch.inference_mode():
            made = Lora(opened, self._read(opened, conversion), dtype)
            _check_finite(made)
        with self._lock:
            self._loras[key] = made
        seconds = time.monotonic() - begun
        _log.info("loaded the LoRA %s (%s, %d bytes) in %.3f s", opened.name, opened.digest[:10], made.nbytes, seconds)
        self.on_load(seconds)
        return made

    def _read(self, opened: OpenedLora, conversion: Conversion | None) -> Buffer:
        path = f"{opened.name}/{WEIGHTS}"
        buffer = FileBuffer(path, opened.header, self._side)
        hashing = buffer.begin_hash()
        with opened.opened() as fd:
            filling = Filling(fd, path, buffer.data, buffer)
            self._side.reader.fill([filling], lambda number, prefix: hashing.advance(prefix))
        hashing.finish()
        _check_others(opened)
        seal.check_hash(path, hashing.hexdigest(), opened.seal.files[WEIGHTS])
        if bytes(host_view(buffer.data[: opened.header.data_start])) != opened.header.raw:
            raise Rejection(
                "header_invalid", f"{path}: its header changed while it was loaded, expected the one that was read"
            )
        buffer.digest = opened.seal.files[WEIGHTS]
        if conversion is None:
            return buffer
        return ConvertedBuffer.of(buffer, conversion, self._side, is_alone=True)

    # --- memory

    def _make_room(self, needed: int, what: str, keeping: Sequence[Lora] = ()) -> None:
        """Let LoRAs go until there is room for some bytes.

        Raises:
            Rejection: `insufficient_memory`.
        """
        while self.nbytes + needed > self.most_bytes or not self._device.has_room([needed]):
            if not self._evict(keeping):
                free, total = self._device.memory()
                raise Rejection(
                    "insufficient_memory",
                    f"{what}: {needed} bytes are needed on {self._device.name}, {max(0, min(free, self._device.room))} of {total} are "
                    f"free for weights, and LoRAs may take {self.most_bytes}",
                )

    def _evict(self, keeping: Sequence[Lora] = ()) -> bool:
        """Let a view, or else a LoRA, go that nothing needs; the least recently used. Return whether there was one."""
        with self._lock:
            in_use = {id(lora) for view in self._in_use for lora in view.loras} | {id(lora) for lora in keeping}
            for views in self._views.values():
                for digests, view in views.items():
                    if view not in self._in_use:
                        del views[digests]
                        return True
            for key, lora in self._loras.items():
                if id(lora) not in in_use:
                    self._forget(key)
                    _log.info("let go of the LoRA %s (%s, %d bytes)", lora.name, lora.digest[:10], lora.nbytes)
                    return True
        return False

    def _forget(self, key: Key) -> None:
        lora = self._loras.pop(key)
        for views in self._views.values():
            for digests in [digests for digests, view in views.items() if lora in view.loras]:
                del views[digests]

    def give_room(self) -> bool:
        """Let all LoRAs go that nothing needs, because memory is short; return whether there was one."""
        with self._lock:
            had = False
            while self._evict():
                had = True
            return had

    def verify(self) -> tuple[int, list[str]]:
        """Hash every byte of the resident LoRAs; return how many there are, and a sentence for each that changed. A LoRA that has
        changed is let go, and read again when it is asked for."""
        with self._lock:
            loras = list(self._loras.items())
            views = self._all_views()
        with self._side.beside():
            checks = [(key, lora.buffer.begin_check()) for key, lora in loras]
            packed = [(view, view.packed.begin_check()) for view in views]
            bad = [(key, problem) for key, check in checks if (problem := check()) is not None]
            bad_views = [(view, problem) for view, check in packed if (problem := check()) is not None]
        with self._lock:
            for key, _ in bad:
                if key in self._loras:
                    self._forget(key)
            for view, _ in bad_views:
                for views_of in self._views.values():
                    for digests in [digests for digests, one in views_of.items() if one is view]:
                        del views_of[digests]
        total = sum(lora.nbytes for _, lora in loras) + sum(view.nbytes for view in views)
        return total, [problem for _, problem in [*bad, *bad_views]]


def _check_finite(lora: Lora) -> None:
    """Check the factors as they are computed: a number that is too great for their dtype has become infinite.

    Raises:
        Rejection: `weights_mismatch`, with the first tensor that is not finite.
    """
    # Of all before the first is looked at: the device is waited for once. A maximum is NaN if anything is.
    greatest = torch.stack([torch.linalg.vector_norm(tensor, torch.inf) for tensor in lora.tensors.values()])
    for name, is_finite in zip(lora.tensors, greatest.isfinite().tolist(), strict=True):
        if not is_finite:
            dtype = str(lora.dtype).removeprefix("torch.")
            raise Rejection(
                "weights_mismatch",
                f"{lora.name}/{WEIGHTS}: {name} has NaN or infinite numbers in {dtype}; the LoRA is broken",
            )


def _check_others(opened: OpenedLora) -> None:
    """Verify what else a LoRA's seal names: nothing of it is used, but what is there is what was sealed."""
    for path, expected in opened.seal.files.items():
        if path != WEIGHTS:
            with opened.opened(path) as fd:
                seal.check_hash(f"{opened.name}/{path}", hash_file(fd, lambda count: None), expected)
