"""Which way the pictures of a device's engines are computed: exactly, until the kernels of the fast way are compiled."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy

import torch

from zwatch.engine.computing import EXACT, Computing
from zwatch.engine.fast.computing import FastComputing
from zwatch.engine.fast.graphs import Graphs
from zwatch.engine.fast.operations import ProcessorOperations
from zwatch.engine.kernels import Kernels, Kind
from zwatch.engine.lora_store import LoraStore
from zwatch.engine.precision import is_mixed
from zwatch.engine.prompt_cache import PromptCache
from zwatch.engine.sampling import Pipeline
from zwatch.shadow.device import SPARE, Device
from zwatch.shadow.graphs import GRAPH_ROOM

EXACT_BY_DEFAULT = {"cuda": False, "cpu": True}
"""Whether pictures have diffusers' own bits where `--exact` is not given, by the kind of device."""
EARLY_SECONDS = 1.0
"""Longest wait of a request for kernels that are being loaded. They are usually ready within half of that, and so much longer takes a
picture of 1024 x 1024 without them."""


class Acceleration:
    """The fast way to compute on one device: kernels that serve all versions of an architecture, graphs, and encoded prompts.

    No request waits for a kernel to be compiled: until those of its version's architecture are, it is computed exactly.
    """

    def __init__(self, device: Device, *, exact: bool | None = None, kernels: Kernels | None = None) -> None:
        """`exact`: whether pictures have diffusers' own bits; None: as usual on such a device. `kernels` are the device's."""
        kind = device.torch_device.type
        self.is_exact = EXACT_BY_DEFAULT[kind] if exact is None else exact
        self.prompts = None if self.is_exact else PromptCache()
        self.loras: LoraStore | None = None
        """The device's LoRAs, where requests may have some."""
        self._device = device
        self._on_cpu = FastComputing(ProcessorOperations()) if kind == "cpu" else None
        self._kernels = None if kind == "cpu" else kernels or Kernels(device)
        self._graphs = Graphs(device.recorder, self._has_room) if device.recorder is not None else None
        self._beside: torch.cuda.Stream | None = None

    def computing(self, kind: Kind | None) -> Computing:
        """Return how a picture is to be computed now by networks of a kind, as `kind_of` has it."""
        return self._fast(kind) or EXACT

    @contextmanager
    def during(self, kind: Kind | None, *, is_request: bool) -> Iterator[Computing]:
        """Make pictures inside, as `computing` says; a request's with graphs, unless another request has them."""
        fast, graphs = self._fast(kind, EARLY_SECONDS if is_request else 0), self._graphs
        if not is_request or fast is None or graphs is None or not graphs.hold():
            yield fast or EXACT
            return
        try:
            yield FastComputing(fast.operations, runs_ahead=True, graphs=graphs)
        finally:
            graphs.release()

    def other(self) -> "Acceleration":
        """Return the other way for the same device: fast where this is exact, exact where this is fast."""
        found = copy(self)
        found.is_exact, found.prompts = not self.is_exact, None
        return found

    def prepare(self, pipeline: Pipeline) -> None:
        """Begin to compile what a pipeline needs, in a thread, unless that was begun before."""
        if not self.is_exact and self._kernels is not None and (kind := kind_of(pipeline)) is not None:
            self._kernels.begin(pipeline, kind)

    def _fast(self, kind: Kind | None, seconds: float = 0) -> FastComputing | None:
        """Return the fast way if it can be used now, or within some seconds."""
        if self.is_exact or kind is None:
            return None
        if self._kernels is None:
            return self._on_cpu
        if seconds:
            self._kernels.wait(kind, seconds)
        return self._kernels.computing if self._kernels.is_ready(kind) else None

    @contextmanager
    def beside_steps(self, *read: torch.Tensor) -> Iterator[None]:
        """Work inside on what the device has computed, without waiting for the step that it computes now."""
        if not read[0].is_cuda:
            yield
            return
        if self._beside is None:
            self._beside = torch.cuda.Stream(self._device.torch_device)
        with torch.cuda.stream(self._beside):
            yield
        for tensor in read:
            tensor.record_stream(self._beside)

    def verify_loras(self) -> tuple[int, list[str]]:
        """As `LoraStore.verify`, where there may be some."""
        return (0, []) if self.loras is None else self.loras.verify()

    def give_room(self) -> bool:
        """Release the graphs, and the LoRAs that nobody needs, because an image needs their memory now; return whether there were
        any."""
        had_loras = self.loras is not None and self.loras.give_room()
        return self._forget_graphs() or had_loras

    def _forget_graphs(self) -> bool:
        graphs, recorder = self._graphs, self._device.recorder
        if graphs is None or recorder is None or not graphs.hold():
            return False
        try:
            recorder.forget()
            return graphs.forget()
        finally:
            graphs.release()

    def _has_room(self) -> bool:
        return self._device.room - self._device.kept >= SPARE + GRAPH_ROOM


def kind_of(pipeline: Pipeline) -> Kind | None:
    """Return the kind of a pipeline's networks; None if there is no faster way for them: those of a library, and those that compute
    with matrices in float16."""
    if any(is_mixed(network) for network in (pipeline.text_encoder, pipeline.transformer)):
        return None
    return Kind.of(pipeline)
