"""Which way the pictures of a device's engines are computed: exactly, until the kernels of the fast way are compiled."""

import logging
import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from zwatch.engine.computing import EXACT, Computing
from zwatch.engine.fast.computing import FastComputing, gpu_operations
from zwatch.engine.fast.graphs import Graphs
from zwatch.engine.fast.operations import TorchOperations
from zwatch.engine.networks.autoencoder import Autoencoder
from zwatch.engine.networks.text_encoder import Qwen3Encoder
from zwatch.engine.networks.transformer import ZImageTransformer
from zwatch.engine.precision import is_mixed
from zwatch.engine.prompt_cache import PromptCache
from zwatch.engine.sampling import Pipeline
from zwatch.engine.schedule import EulerSchedule
from zwatch.lanes import start_thread
from zwatch.shadow.cuda import CudaHasher
from zwatch.shadow.device import SPARE, Device
from zwatch.shadow.graphs import GRAPH_ROOM

_log = logging.getLogger(__name__)

EXACT_BY_DEFAULT = {"cuda": False, "cpu": True}
"""Whether pictures have diffusers' own bits where `--exact` is not given, by the kind of device."""
_TOKENS, _SIDE = 16, 8
"""Of the prompt and the latents that kernels are compiled with."""


class Acceleration:
    """The fast way to compute on one device: kernels that serve all versions of an architecture, and encoded prompts.

    No request waits for a kernel to be compiled: until those of its version's architecture are, it is computed exactly.
    """

    def __init__(self, device: Device, *, exact: bool | None = None) -> None:
        """`exact`: whether pictures have diffusers' own bits; None: as usual on such a device."""
        kind = device.torch_device.type
        self.is_exact = EXACT_BY_DEFAULT[kind] if exact is None else exact
        self.prompts = None if self.is_exact else PromptCache()
        self._device = device
        self._lock = threading.Lock()
        self._begun: set[Hashable] = set()
        self._ready: set[Hashable] = set()
        self._fast: FastComputing | None = None
        self._of_requests: Computing | None = None
        self._graphs = Graphs(device.recorder, self._has_room) if device.recorder is not None else None
        self._beside: torch.cuda.Stream | None = None
        if kind == "cpu":
            self._fast = FastComputing(TorchOperations())

    def computing(self, pipeline: Pipeline) -> Computing:
        """Return how a picture of a pipeline is to be computed now."""
        if self.is_exact or self._fast is None or _is_mixed(pipeline):
            return EXACT
        return self._fast if self._device.torch_device.type == "cpu" or _kind(pipeline) in self._ready else EXACT

    @contextmanager
    def during(self, pipeline: Pipeline, *, is_request: bool) -> Iterator[Computing]:
        """Make pictures of a pipeline inside, as `computing` says; a request's with graphs, unless another request has them."""
        computing, graphs = self.computing(pipeline), self._graphs
        if not is_request or computing is EXACT or self._of_requests is None or graphs is None or not graphs.hold():
            yield computing
            return
        try:
            yield self._of_requests
        finally:
            graphs.release()

    def prepare(self, pipeline: Pipeline) -> None:
        """Begin to compile what a pipeline needs, in a thread, unless that was begun before."""
        if self.is_exact or self._device.torch_device.type == "cpu" or _is_mixed(pipeline):
            return
        with self._lock:
            if (kind := _kind(pipeline)) in self._begun:
                return
            self._begun.add(kind)
        thread = threading.Thread(target=self._compile, args=(pipeline, kind), name="zwatch-kernels", daemon=True)
        try:
            start_thread(thread)
        except OSError:  # the next version tries again
            self._begun.discard(kind)
            return
        self._device.preparing.append(thread)

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

    def give_room(self) -> bool:
        """Release the graphs, because an image needs their memory now; return whether there were any."""
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

    def _compile(self, pipeline: Pipeline, kind: Hashable) -> None:
        try:
            hasher = self._device.hasher
            if isinstance(hasher, CudaHasher):
                hasher.compiling.result()  # it says where compiled kernels are kept, and verifying comes first
            fast = self._fast or FastComputing(gpu_operations(), runs_ahead=True)
            with self._device.beside(), torch.inference_mode():
                _try(fast, pipeline, self._device.torch_device)
            self._fast = fast
            self._of_requests = FastComputing(fast.operations, runs_ahead=True, graphs=self._graphs)
            self._ready.add(kind)
            _log.info("the kernels for drawing are ready")
        except Exception:  # no triton, no compiler, no memory: the exact way needs none of them
            _log.exception(
                "the kernels for drawing do not work on this device: pictures are computed the slower, exact way"
            )


def _is_mixed(pipeline: Pipeline) -> bool:
    """Return whether a pipeline computes with matrices in float16, for which there is no faster way."""
    return any(is_mixed(network) for network in (pipeline.text_encoder, pipeline.transformer))


def _kind(pipeline: Pipeline) -> Hashable:
    """Return what the kernels for a pipeline are compiled for."""
    networks = (pipeline.text_encoder, pipeline.transformer, pipeline.vae)
    own = (Qwen3Encoder, ZImageTransformer, Autoencoder)
    return tuple(
        (network.config, next(network.parameters()).dtype) if isinstance(network, own) else None for network in networks
    )


def _try(computing: Computing, pipeline: Pipeline, device: torch.device) -> None:
    """Compute with each network once, and wait: kernels are compiled for widths and dtypes, not for sizes."""
    tokens = torch.zeros(_TOKENS, dtype=torch.int64).to(device)
    computing.encode(_mirrored(pipeline.text_encoder), tokens, torch.ones(_TOKENS, dtype=torch.bool))
    transformer = _mirrored(pipeline.transformer)
    latents = torch.zeros((1, pipeline.transformer.in_channels, _SIDE, _SIDE), device=device)
    prompt = torch.zeros((_TOKENS, pipeline.transformer.config.cap_feat_dim), dtype=transformer.dtype, device=device)
    timeline = EulerSchedule().timeline(2, _TOKENS, device)
    at = computing.velocities(transformer, timeline, [prompt], latents)
    for number in range(2):
        at(latents, number)
    pixels = computing.decode(_mirrored(pipeline.vae), latents.to(pipeline.vae.dtype))
    if not torch.isfinite(pixels).all():
        raise RuntimeError("they give a picture that is not finite")
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _mirrored(network: Any) -> Any:
    """Return a network with the same weights and nothing else in common: requests use the other meanwhile."""
    if not isinstance(network, Qwen3Encoder | ZImageTransformer | Autoencoder):
        return network
    with torch.device("meta"):
        made = type(network)(network.config)  # type: ignore[arg-type]
    made.load_state_dict(network.state_dict(), assign=True)
    return made.requires_grad_(False).eval()
