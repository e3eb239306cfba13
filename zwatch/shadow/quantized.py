"""Numbers in fp8 or int8 with a scale for each row, and which weights of a pipeline are stored so."""

import re
from dataclasses import dataclass

import torch

KINDS = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
"""The dtypes of quantized weights, by what they are called."""
LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
"""The number that the largest of each row becomes."""
LEAST = 1e-12
"""Least absolute maximum of a row: a row of zeros has a scale, too."""
_BLOCKS = re.compile(
    r"(layers|noise_refiner|context_refiner)\.\d+\.(attention\.(to_q|to_k|to_v|to_out\.0)|feed_forward\.w[123])\.weight"
    r"|(model\.)?layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight"
)
"""The matrices of the blocks of transformer and text encoder: 98 % of their bytes. What embeds time and prompt, and what modulates,
stays as it is: in fp8 it costs quality and saves nothing."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What `values * scales` stands for: `values` of shape (..., width), `scales` float32 of shape (..., 1)."""

    values: torch.Tensor
    scales: torch.Tensor

    @classmethod
    def of(cls, x: torch.Tensor, dtype: torch.dtype) -> "Rows":
        """Return numbers with the largest of each row at the largest of `dtype`, the same on every device; NaN stays NaN in fp8."""
        exact = x.float()
        # By a tensor: CUDA multiplies by the reciprocal of a number, whose last bits are others than a CPU's.
        largest = exact.new_full((1,), LARGEST[dtype])
        scales = exact.abs().amax(dim=-1, keepdim=True).clamp_min(LEAST) / largest
        scaled = exact / scales
        return cls((scaled.round() if dtype is torch.int8 else scaled).to(dtype), scales)


def is_quantizable(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a tensor of a transformer or a text encoder is one of those that are quantized."""
    return len(shape) == 2 and _BLOCKS.fullmatch(name) is not None
