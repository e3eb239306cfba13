"""The kernels of the fast way on a GPU: compiled for kinds of networks, beside requests, and loaded early by the next start."""

import json
import logging
import threading
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import nn

from zwatch import __version__
from zwatch.engine.fast.computing import FastComputing, gpu_operations
from zwatch.engine.kept_files import KeptFiles
from zwatch.engine.networks.autoencoder import Autoencoder
from zwatch.engine.networks.configs import AutoencoderConfig, TextConfig, TransformerConfig
from zwatch.engine.networks.text_encoder import Qwen3Encoder
from zwatch.engine.networks.transformer import ZImageTransformer
from zwatch.engine.sampling import Pipeline
from zwatch.engine.scaled import QuantizedLinear, quantized_dtype
from zwatch.engine.schedule import EulerSchedule
from zwatch.engine.streamed import StreamedEncoder
from zwatch.lanes import start_thread
from zwatch.shadow.cuda import CudaHasher
from zwatch.shadow.device import Device
from zwatch.shadow.quantized import is_quantizable

_log = logging.getLogger(__name__)

KEPT_KINDS = 4
"""Kinds of networks that are remembered."""
READY = "the kernels for drawing are ready"
"""What the log says then."""
_TOKENS, _SIDE = 16, 8
"""Of the prompt and the latents that kernels are compiled with."""

Networks = tuple[Any, ...]
"""A text encoder, a transformer and an autoencoder."""
_CLASSES: tuple[Any, Any, Any] = (Qwen3Encoder, ZImageTransformer, Autoencoder)


@dataclass(frozen=True, slots=True)
class Kind:
    """What kernels are compiled for: configs of networks, and dtypes of their weights by torch's names."""

    text: TextConfig
    transformer: TransformerConfig
    vae: AutoencoderConfig
    dtypes: tuple[str, str, str]
    quantized: tuple[str | None, str | None]
    """Of the quantized weights of the first two."""
    is_offloaded: bool = False
    """Whether the text encoder is in host memory, and computed the exact way, without these kernels."""

    @classmethod
    def of(cls, pipeline: Pipeline) -> "Kind | None":
        """Return the kind of a pipeline; None if it has networks of a library, for which there are no kernels."""
        encoder = pipeline.text_encoder
        is_offloaded = isinstance(encoder, StreamedEncoder)
        networks = encoder.network if is_offloaded else encoder, pipeline.transformer, pipeline.vae
        if not all(map(isinstance, networks, _CLASSES)):
            return None
        text, transformer, vae = networks
        dtypes = _name(next(text.parameters()).dtype), _name(transformer.dtype), _name(vae.dtype)
        quantized = _name(quantized_dtype(text)), _name(quantized_dtype(transformer))
        return cls(text.config, transformer.config, vae.config, dtypes, quantized, is_offloaded)  # type: ignore[arg-type]

    @classmethod
    def read(cls, found: dict[str, Any]) -> "Kind":
        """Return what `asdict` made, after JSON.

        Raises:
            TypeError, ValueError, LookupError, AttributeError: it is something else.
        """

        def made(config: Any, values: dict[str, Any]) -> Any:
            return config(
                **{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
            )

        configs = (
            (TextConfig, found["text"]),
            (TransformerConfig, found["transformer"]),
            (AutoencoderConfig, found["vae"]),
        )
        first, second, third = found["dtypes"]
        fourth, fifth = found["quantized"]
        text, transformer, vae = (made(*each) for each in configs)
        return cls(
            text, transformer, vae, (first, second, third), (fourth, fifth), bool(found.get("is_offloaded", False))
        )

    def small(self, device: torch.device) -> Networks:
        """Make networks of one layer, of zeros, that need the same kernels."""
        configs = (
            replace(self.text, vocab_size=64, num_hidden_layers=2),
            replace(self.transformer, n_layers=1, n_refiner_layers=1),
            self.vae,
        )
        with torch.device("meta"):
            made = [cls(config) for cls, config in zip(_CLASSES, configs, strict=True)]
        for network, dtype in zip(made, self.dtypes, strict=True):
            network.to(getattr(torch, dtype)).to_empty(device=device).requires_grad_(False).eval()
            for value in network.state_dict().values():
                value.zero_()
        for network, quantized in zip(made, self.quantized, strict=False):
            if quantized is not None:
                _quantize(network, getattr(torch, quantized))
        return tuple(made)


class Kernels:
    """The compiled kernels of one GPU, and which kinds of networks they are ready for. `cache` is where kinds are remembered."""

    def __init__(self, device: Device, cache: Path | None = None) -> None:
        self.computing: FastComputing | None = None
        """Computes with them; None until there are some."""
        self._device = device
        self._files = KeptFiles(cache, ".kinds", KEPT_KINDS)
        self._lock = threading.Lock()
        self._begun: set[Kind] = set()
        self._ready: set[Kind] = set()
        self._early: dict[Kind, threading.Event] = {}  # set when they are ready, or will not be

    def is_ready(self, kind: Kind) -> bool:
        """Return whether nothing has to be compiled for such networks."""
        return kind in self._ready

    def wait(self, kind: Kind, seconds: float | None = None) -> None:
        """Wait for kernels that an earlier start compiled, and that are being loaded."""
        if kind in self._early:
            self._early[kind].wait(seconds)

    def begin(self, pipeline: Pipeline, kind: Kind) -> None:
        """Begin to compile what a pipeline needs, in a thread, unless that was begun before."""
        with self._lock:
            if kind in self._begun or kind in self._ready:
                return
            self._begun.add(kind)
        thread = threading.Thread(target=self._compile, args=(pipeline, kind), name="zwatch-kernels", daemon=True)
        try:
            start_thread(thread)
        except OSError:  # the next version tries again
            self._begun.discard(kind)
            return
        self._device.preparing.append(thread)

    def rehearse(self) -> bool:
        """Load what earlier starts compiled, with small networks of the same kinds, on torch's current stream; return whether
        there was any. It raises what a device or a compiler raises."""
        kinds = self._remembered()
        self._early = {kind: threading.Event() for kind in kinds}
        try:
            for kind in kinds:
                self._make_ready(kind, kind.small(self._device.torch_device))
                self._early[kind].set()
        finally:
            for event in self._early.values():
                event.set()
        if kinds:
            _log.info(READY)
        return bool(kinds)

    def _compile(self, pipeline: Pipeline, kind: Kind) -> None:
        self.wait(kind)
        if self.is_ready(kind):
            return
        try:
            networks = tuple(map(_mirrored, (pipeline.text_encoder, pipeline.transformer, pipeline.vae)))
            with self._device.beside(), torch.inference_mode():
                self._make_ready(kind, networks)
            _log.info(READY)
            kinds = [kind, *(other for other in self._remembered() if other != kind)]
            self._files.write(self._name(), json.dumps([asdict(one) for one in kinds[:KEPT_KINDS]]).encode())
        except Exception:  # no triton, no compiler, no memory: the exact way needs none of them
            _log.exception(
                "the kernels for drawing do not work on this device: pictures are computed the slower, exact way"
            )

    def _make_ready(self, kind: Kind, networks: Networks) -> None:
        hasher = self._device.hasher
        if isinstance(hasher, CudaHasher):
            hasher.compiling.result()  # it says where compiled kernels are kept, and verifying comes first
        computing = self.computing or FastComputing(gpu_operations(), runs_ahead=True)
        try_networks(computing, networks, self._device.torch_device)
        self.computing = computing
        self._ready.add(kind)

    def _remembered(self) -> list[Kind]:
        data = self._files.read(self._name())
        with suppress(ValueError, TypeError, LookupError, AttributeError):
            return [Kind.read(one) for one in json.loads(data or b"[]")]
        return []

    def _name(self) -> str:
        place = json.dumps([__version__, _triton_version(), *self._device.identity()])
        return blake3(place.encode()).hexdigest(32)


def try_networks(computing: FastComputing, networks: Networks, device: torch.device) -> None:
    """Compute with each network once, and wait: kernels are compiled for widths and dtypes, not for sizes.

    Raises:
        RuntimeError: the picture is not finite, or what a device raises.
    """
    text, transformer, vae = networks
    tokens = torch.zeros(_TOKENS, dtype=torch.int64).to(device)
    computing.encode(text, tokens, torch.ones(_TOKENS, dtype=torch.bool))
    latents = torch.zeros((1, transformer.in_channels, _SIDE, _SIDE), device=device)
    prompt = torch.zeros((_TOKENS, transformer.config.cap_feat_dim), dtype=transformer.dtype, device=device)
    timeline = EulerSchedule().timeline(2, _TOKENS, device)
    at = computing.velocities(transformer, timeline, [prompt], latents)
    for number in range(2):
        at(latents, number)
    pixels = computing.decode(vae, latents.to(vae.dtype))
    moments = computing.encode_image(vae, torch.zeros_like(pixels))
    if not (torch.isfinite(pixels).all() and torch.isfinite(moments).all()):
        raise RuntimeError("they give a picture that is not finite")
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _mirrored(network: nn.Module) -> nn.Module:
    """Return a network with the same weights and nothing else in common: requests use the other meanwhile."""
    return deepcopy(network, {id(weight): weight for weight in network.parameters()})


def _quantize(network: nn.Module, dtype: torch.dtype) -> None:
    """Replace those weights of a network that are quantized."""
    for name, linear in list(network.named_modules()):
        if isinstance(linear, nn.Linear) and is_quantizable(f"{name}.weight", tuple(linear.weight.shape)):
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, QuantizedLinear.of(linear.weight, dtype))


def _name(dtype: torch.dtype | None) -> str | None:
    return None if dtype is None else str(dtype).removeprefix("torch.")


def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        return ""
    return str(triton.__version__)
