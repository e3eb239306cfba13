"""The components of a Z-Image pipeline, five and perhaps a ControlNet: which classes may be built, and how, from verified bytes.

A component is built on the meta device, which allocates nothing, and its parameters are then assigned the views into
the shadow buffers: there is no second copy of the weights.
"""

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch

from zwatch.deploy import provenance
from zwatch.deploy.contents import SCALE
from zwatch.deploy.header import WEIGHTS_SUFFIX
from zwatch.engine import allowed, library
from zwatch.engine.configs import config_object
from zwatch.engine.networks.autoencoder import Autoencoder
from zwatch.engine.networks.configs import ControlConfig
from zwatch.engine.networks.controlnet import ZImageControlNet
from zwatch.engine.networks.text_encoder import Qwen3Encoder
from zwatch.engine.networks.transformer import ZImageTransformer
from zwatch.engine.precision import adapt
from zwatch.engine.scaled import take_quantized
from zwatch.engine.schedule import EulerSchedule, Schedule
from zwatch.engine.tokenizer_maker import TokenizerMaker
from zwatch.errors import Rejection, Translating
from zwatch.shadow.device import Device
from zwatch.shadow.faults import is_memory_short
from zwatch.shadow.loader import Plan

WEIGHED = ("text_encoder", "vae", "transformer", "controlnet")
"""Components that have weights, in the order in which they are loaded. The last one need not be there."""

COMPUTED = (torch.bfloat16, torch.float32, torch.float16)
"""The dtypes that a component may be stored in."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What components are built with, besides their files."""

    device: Device
    tokenizers: TokenizerMaker


Build = Callable[[Mapping[str, bytes], dict[str, torch.Tensor], Tools], Any]
"""Makes a component from its small files by name inside its folder, and its tensors by name."""


class ComponentKey(NamedTuple):
    """What makes two components equal: their class, and `hashes`, (path, blake3) of all their files."""

    component: str
    library: str
    class_name: str
    hashes: tuple[tuple[str, str], ...]


def default_size(small: Mapping[str, bytes]) -> int:
    """Return a version's default side length, pixels: `default_size` in `zwatch.json`, or the VAE's `sample_size`, which may
    be a height and a width, of which the height counts.

    Raises:
        Rejection: `config_invalid`.
    """
    if provenance.NAME in small and (own := provenance.parse(small[provenance.NAME]).default_size) is not None:
        return own
    size = config_object(small.get("vae/config.json", b"{}"), "vae/config.json").get("sample_size", 1024)
    if isinstance(size, list):
        size = size[0]
    if type(size) is not int or not 16 <= size <= 4096 or size % 16:
        raise Rejection(
            "config_invalid",
            f"vae/config.json: sample_size: the default size is {size!r}, expected a multiple of 16 from 16 to 4096",
        )
    return size


def weight_files(component: str, planned: Plan, small: Mapping[str, bytes]) -> list[str]:
    """Return the paths of a component's weight files: those in its shard index, or else its one file.

    Raises:
        Rejection: `file_missing` or `config_invalid`.
    """
    stem = f"{component}/{'model' if component == 'text_encoder' else 'diffusion_pytorch_model'}{WEIGHTS_SUFFIX}"
    index = f"{stem}.index.json"
    if index not in small:
        if stem not in planned.headers:
            raise Rejection("file_missing", f"{stem}: the seal names neither it nor {index}")
        return [stem]
    named = config_object(small[index], index).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise Rejection(
            "config_invalid", f"{index}: its weight_map is {type(named).__name__}, expected an object that names files"
        )
    paths = sorted({f"{component}/{name}" for name in map(str, named.values())})
    for path in paths:
        if path not in planned.headers:
            raise Rejection("file_missing", f"{path}: {index} names it, the seal does not")
    return paths


def _config(small: Mapping[str, bytes], component: str, name: str = "config.json") -> dict[str, Any]:
    if name not in small:
        raise Rejection("file_missing", f"{component}/{name}: the seal does not name it")
    return config_object(small[name], f"{component}/{name}")


def _fill(component: str, module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> Any:
    """Assign tensors to a module that was built on the meta device, and check that none is missing and none unknown."""
    take_quantized(module, tensors, _computed_dtype(component, tensors))
    expected = module.state_dict()
    for name, tensor in tensors.items():
        if name not in expected:
            raise Rejection("weights_mismatch", f"{component}: the weights have {name!r}, the config does not")
        if tensor.is_floating_point() != expected[name].is_floating_point():
            raise Rejection(
                "weights_mismatch", f"{component}: {name!r} is {tensor.dtype}, the config says {expected[name].dtype}"
            )
        if tensor.shape != expected[name].shape:
            raise Rejection(
                "weights_mismatch",
                f"{component}: {name!r} has the shape {list(tensor.shape)}, the config says {list(expected[name].shape)}",
            )
    if missing := sorted(expected.keys() - tensors.keys()):
        raise Rejection(
            "weights_mismatch", f"{component}: the weights lack {missing[0]!r} and {len(missing) - 1} others"
        )
    module.load_state_dict(tensors, assign=True)
    left = [name for name, item in [*module.named_parameters(), *module.named_buffers()] if item.is_meta]
    if left:
        raise Rejection("weights_mismatch", f"{component}: the weights lack values for {left[0]!r}")
    return module.requires_grad_(False).eval()


def _computed_dtype(component: str, tensors: dict[str, torch.Tensor]) -> torch.dtype:
    """Return the dtype that all weights have, since the modules compute in it. Only matrices may be in float16 while the rest is in
    float32, see `zwatch.engine.precision`, and quantized with their scales, see `zwatch.engine.scaled`.

    Raises:
        Rejection: `weights_mismatch`.
    """
    quantized = {name.removesuffix(SCALE) for name in tensors if name.endswith(f".{SCALE}")}
    plain = {
        name: tensor.dtype
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and name.rpartition(".")[0] + "." not in quantized
    }
    first = next(iter(plain.values()), torch.bfloat16)
    if set(plain.values()) == {torch.float16, torch.float32}:
        return torch.float32
    for name, dtype in plain.items():
        if dtype != first or first not in COMPUTED:
            raise Rejection(
                "weights_mismatch",
                f"{component}: {name!r} is {dtype}, the first tensor {first}; all must be the same, one of "
                f"{', '.join(map(str, COMPUTED))}",
            )
    return first


def _as_rejection_of(path: str) -> Translating:
    """Translate every error that a library raises because of a config into a rejection of that config."""

    def translate(error: Exception) -> Exception | None:
        return None if _may_pass(error) else Rejection("config_invalid", f"{path}: {type(error).__name__}: {error}")

    return Translating(translate)


def _may_pass(error: BaseException | None) -> bool:
    """Return whether an error, or what it was raised because of, says that memory, descriptors or a disk failed."""
    while error is not None:
        if is_memory_short(error):
            return True
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
            return True
        error = error.__cause__ or error.__context__
    return False


def _on_meta(component: str, make: Callable[[], Any]) -> Any:
    with _as_rejection_of(f"{component}/config.json"), torch.device("meta"):
        return make()


def _empty_transformer(small: Mapping[str, bytes]) -> Any:
    config = _config(small, "transformer")
    own = allowed.own_transformer(config)
    make = partial(library.transformer, config) if own is None else partial(ZImageTransformer, own)
    return _on_meta("transformer", make)


def _transformer(small: Mapping[str, bytes], tensors: dict[str, torch.Tensor], tools: "Tools") -> Any:
    return _fill("transformer", _empty_transformer(small), tensors)


def _empty_controlnet(small: Mapping[str, bytes]) -> Any:
    return _on_meta("controlnet", partial(ZImageControlNet, ControlConfig.of(_config(small, "controlnet"))))


def _controlnet(small: Mapping[str, bytes], tensors: dict[str, torch.Tensor], tools: "Tools") -> Any:
    return _fill("controlnet", _empty_controlnet(small), tensors)


def _empty_vae(small: Mapping[str, bytes]) -> Any:
    config = _config(small, "vae")
    own = allowed.own_vae(config)
    make = partial(library.autoencoder, config) if own is None else partial(Autoencoder, own)
    return _on_meta("vae", make)


def _vae(small: Mapping[str, bytes], tensors: dict[str, torch.Tensor], tools: "Tools") -> Any:
    return _fill("vae", _empty_vae(small), tensors)


def _empty_text_encoder(small: Mapping[str, bytes]) -> Any:
    config = allowed.computing(_config(small, "text_encoder"))
    own = allowed.own_text_encoder(config)
    return _on_meta(
        "text_encoder", partial(library.text_encoder, config) if own is None else partial(Qwen3Encoder, own)
    )


def _text_encoder(small: Mapping[str, bytes], tensors: dict[str, torch.Tensor], tools: "Tools") -> Any:
    model = _empty_text_encoder(small)
    tensors = allowed.without_head(tensors)
    if not isinstance(model, Qwen3Encoder):
        with _as_rejection_of("text_encoder/config.json"):
            library.place_frequencies(model, tools.device.torch_device)
    return _fill("text_encoder", model, tensors)


def _tokenizer(small: Mapping[str, bytes], tensors: dict[str, torch.Tensor], tools: "Tools") -> Any:
    _config(small, "tokenizer", "tokenizer_config.json")
    return tools.tokenizers.get(small)


def _scheduler(small: Mapping[str, bytes], tensors: dict[str, torch.Tensor], tools: "Tools") -> Schedule:
    path = "scheduler/scheduler_config.json"
    config = _config(small, "scheduler", "scheduler_config.json")
    if allowed.is_known(path, config) and (own := EulerSchedule.of(config)) is not None:
        return own
    with _as_rejection_of(path):
        return library.LibrarySchedule(config)


BUILDERS: Mapping[str, Mapping[tuple[str, str], Build]] = {
    "tokenizer": {("transformers", "Qwen2Tokenizer"): _tokenizer, ("transformers", "Qwen2TokenizerFast"): _tokenizer},
    "scheduler": {("diffusers", "FlowMatchEulerDiscreteScheduler"): _scheduler},
    "text_encoder": {("transformers", "Qwen3Model"): _text_encoder},
    "vae": {("diffusers", "AutoencoderKL"): _vae},
    "transformer": {("diffusers", "ZImageTransformer2DModel"): _transformer},
    "controlnet": {("diffusers", "ZImageControlNetModel"): _controlnet},
}
"""What may be built for each component, and how: the pairs are those of `allowed.ALLOWED`."""


def build(key: ComponentKey, small: Mapping[str, bytes], tensors: dict[str, torch.Tensor], tools: "Tools") -> Any:
    """Build a component of a class on the allow-list from its small files by name and its tensors.

    Raises:
        Rejection: its config is wrong, or the tensors do not fit it.
    """
    component = BUILDERS[key.component][key.library, key.class_name](small, tensors, tools)
    if isinstance(component, torch.nn.Module):
        adapt(component, tools.device.torch_device)
    return component


_EMPTY: Mapping[str, Callable[[Mapping[str, bytes]], Any]] = {
    "text_encoder": _empty_text_encoder, "vae": _empty_vae, "transformer": _empty_transformer,
    "controlnet": _empty_controlnet,
}  # fmt: skip


def check_control(transformer: Any, controlnet: Any) -> None:
    """Check that a ControlNet can give hints to a transformer whose config it fits.

    Raises:
        Rejection: `weights_mismatch` or `config_invalid`.
    """
    if not isinstance(transformer, ZImageTransformer):
        raise Rejection(
            "config_invalid",
            "transformer/config.json: has fields that only its library knows, and beside a controlnet the transformer is computed "
            "without it; leave them out, or the controlnet",
        )
    if controlnet.dtype != transformer.dtype:
        raise Rejection(
            "weights_mismatch",
            f"controlnet: its weights are computed in {controlnet.dtype}, the transformer's in {transformer.dtype}; store both in "
            "one dtype, or give --dtype",
        )


def shapes(component: str, small: Mapping[str, bytes]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor that a component with weights must have, by its name, as its config in `small` says.

    Raises:
        Rejection: its config is wrong.
    """
    return {name: tuple(tensor.shape) for name, tensor in _EMPTY[component](small).state_dict().items()}
