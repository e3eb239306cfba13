"""Quantized weights: what fp8 files bring with their tensors, and the formats that are refused by name.

ComfyUI's conventions (comfy/utils.py convert_old_quants, comfy/quant_ops.py, QUANTIZATION.md): a tensor `scaled_fp8` marks an
older file, whose layers have `scale_weight` and `scale_input`; newer ones have `weight_scale`, `input_scale` and a
`comfy_quant` each, JSON as bytes, or all of that in `_quantization_metadata` of the header. The scales of the inputs are for
computing in fp8, which this service does not do with stored scales.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from zwatch.deploy.header import TensorInfo
from zwatch.importing.layouts.computing import check_format
from zwatch.importing.layouts.parts import count_of, quoted, refusal

FP8 = ("F8_E4M3", "F8_E5M2")
FLOATS = ("F64", "F32", "F16", "BF16", *FP8)
METADATA = "_quantization_metadata"

_SCALE = re.compile(r"^(.*\.)(?:weight_scale|scale_weight)$")
_ASIDE = re.compile(r"^(?:.*\.)?(?:input_scale|scale_input|scaled_fp8)$")
_DESCRIBED = re.compile(r"^(.*\.)comfy_quant$")

_TAKE = "take the file in bf16, or fp8 with scales, and import that"
_FORMATS = (
    (re.compile(r"\.(?:wscales|wcscales|wtscale|smooth_factor|smooth_factor_orig|smooth)$"), "nunchaku's SVDQuant (svdq, 4 bits)"),
    (re.compile(r"\.quant_state\.bitsandbytes__|\.(?:nested_)?quant_map$|\.(?:nested_)?absmax$"), "bitsandbytes (nf4 or fp4)"),
    (re.compile(r"\.(?:SCB|weight_format)$"), "bitsandbytes (int8)"),
    (re.compile(r"\.g_idx$"), "GPTQ"),
    (re.compile(r"\.(?:qweight|qzeros)$"), "AWQ or GPTQ (4 bits)"),
    (re.compile(r"\.weight_(?:packed|shape|zero_point|global_scale)$"), "compressed-tensors"),
    (re.compile(r"\.weight_scale_2$|\.pre_quant_scale$"), "NVFP4"),
    (re.compile(r"\.weight_scale_inv$"), "fp8 with a scale for each block of 128 x 128 (as Qwen's own fp8 files)"),
    (re.compile(r"[._](?:_data|_scale|_qdata|qdata)$|\._weight_qdata$"), "torchao or quanto"),
    (re.compile(r"\.W_q$|\.(?:weight\.)?(?:zero_point|svd_up|svd_down)$"), "HQQ or SDNQ"),
)  # fmt: skip
"""Names that only these formats have; the first that matches names the file."""


@dataclass(slots=True)
class Scales:
    """What belongs to the stored weights: each weight's scale and description by the weight's name."""

    scale: dict[str, str] = field(default_factory=dict)
    described: dict[str, str] = field(default_factory=dict)


def refuse_formats(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> None:
    """Refuse what is quantized in a way that is not a stored fp8 value times a scale.

    Raises:
        Rejection: with the format's name and what to do.
    """
    for pattern, title in _FORMATS:
        for name in tensors:
            if pattern.search(name):
                raise refusal(f"quantized as {title}, as {quoted(name)} shows; it is not read: {_TAKE}")
    for name, info in tensors.items():
        if info.dtype in ("I8", "U8") and name.endswith(".weight"):
            title = (
                "int8 (ComfyUI's int8_tensorwise or another)"
                if info.dtype == "I8"
                else "bytes (NVFP4, nf4, fp8 stored as uint8, or another)"
            )
            raise refusal(
                f"quantized as {title}: {quoted(name)} is {info.dtype} {list(info.shape)}; it is not read: {_TAKE}"
            )
    _check_metadata(metadata)


def _check_metadata(metadata: Mapping[str, str]) -> None:
    if METADATA not in metadata:
        return
    try:
        layers = json.loads(metadata[METADATA])["layers"].items()
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise refusal(f"{METADATA} in the header is not what ComfyUI writes; {_TAKE}") from None
    for layer, format_of in layers:
        check_format(format_of, quoted(layer))


def split_scales(tensors: Mapping[str, TensorInfo]) -> tuple[dict[str, TensorInfo], Scales]:
    """Return the weights, and what belongs to them.

    Raises:
        Rejection: a scale does not fit its weight, or a weight has two.
    """
    weights: dict[str, TensorInfo] = {}
    scales = Scales()
    for name, info in tensors.items():
        if _ASIDE.match(name):
            continue
        if (match := _SCALE.match(name)) and f"{match[1]}weight" in tensors:
            weight = f"{match[1]}weight"
            if weight in scales.scale:
                raise refusal(f"{quoted(weight)} has two scales, {quoted(scales.scale[weight])} and {quoted(name)}")
            _check_scale(weight, tensors[weight], name, info)
            scales.scale[weight] = name
        elif (match := _DESCRIBED.match(name)) and f"{match[1]}weight" in tensors:
            scales.described[f"{match[1]}weight"] = name
        else:
            weights[name] = info
    return weights, scales


def _check_scale(weight: str, info: TensorInfo, name: str, scale: TensorInfo) -> None:
    if scale.dtype in ("U8", "F8_E8M0"):
        raise refusal(f"quantized as MXFP8, as {quoted(name)} of {scale.dtype} shows; it is not read: {_TAKE}")
    if scale.dtype not in ("F64", "F32", "F16", "BF16"):
        raise refusal(f"the scale {quoted(name)} is {scale.dtype}, expected a float")
    rows = info.shape[0] if info.shape else 1
    count = count_of(scale.shape)
    if count != 1 and not (count == rows and scale.shape[0] == rows):
        raise refusal(
            f"{quoted(name)} has the shape {list(scale.shape)}, expected one scale or one for each of the {rows} rows of "
            f"{quoted(weight)}; scales for blocks are not read: {_TAKE}"
        )
