"""GGUF files: Z-Image's transformer, or Qwen3-4B, with weights in blocks of few bits, made into bf16.

The `gguf` package reads the file's tables and computes the values of a block, in numpy (its `quants` module; diffusers loads
the same files by its own). What is read goes the way of all weights: a table of where the tensors lie, and a recipe.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from zwatch.deploy.header import TensorInfo
from zwatch.errors import Rejection
from zwatch.importing.layouts.gguf_tables import check
from zwatch.importing.layouts.parts import quoted, refusal
from zwatch.importing.layouts.recognition import recognise
from zwatch.importing.recipes import Made, Translation

if TYPE_CHECKING:
    import torch

_PLAIN = {"F32": "F32", "F16": "F16", "BF16": "BF16"}
_STEP = 2**22
"""Elements that are computed at a time: numpy works in float32 and makes some copies."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What a GGUF file has. `tensors` say where the bytes lie and how they are to be read, a quantized one as rows of bytes
    (U8); `translations` are recipes whose sources are these."""

    tensors: Mapping[str, TensorInfo]
    translations: tuple[Translation, ...]


def read(path: str) -> Opened:
    """Read the tables of a GGUF file and recognise what is in it.

    Raises:
        Rejection: `header_invalid`, with the path: it is not well formed, or the package is missing. `weights_mismatch`, without
            it: it is no component of Z-Image.
        OSError: it could not be read.
    """
    try:
        import gguf
    except ImportError:
        raise Rejection(
            "header_invalid", f"{path}: reading GGUF needs the package gguf: `pip install 'zwatch[gguf]'`"
        ) from None
    try:
        check(path)
        found = gguf.GGUFReader(path, "r").tensors
        entries = [(str(one.name), one.tensor_type, [int(size) for size in one.shape], one) for one in found]
    except OSError:
        raise
    except Exception as error:  # of the package, which checks little
        raise Rejection("header_invalid", f"{path}: not a GGUF file that can be read: {error}"[:400]) from None
    stored: dict[str, TensorInfo] = {}
    meant: dict[str, TensorInfo] = {}
    kinds: dict[str, Any] = {}
    for name, kind, sizes, one in entries:
        if not all(sizes):
            raise Rejection("header_invalid", f"{path}: tensor {quoted(name)} has the sizes {sizes}")
        shape, begin, end = tuple(reversed(sizes)), int(one.data_offset), int(one.data_offset) + int(one.n_bytes)
        plain = _PLAIN.get(kind.name)
        if plain is None:
            _check_known(gguf, kind, name)
            kinds[name] = kind
        rows = (*shape[:-1], int(one.n_bytes) // prod(shape[:-1]))
        stored[name] = TensorInfo(plain or "U8", shape if plain else rows, begin, end)
        meant[name] = TensorInfo(plain or "F8_E4M3", shape, begin, end)
    return Opened(stored, tuple(_made(one, kinds, meant) for one in recognise(meant, {})))


def _check_known(gguf: Any, kind: Any, name: str) -> None:
    """Check that the package computes the values of a type, by one block of zeros."""
    import numpy as np

    try:
        gguf.quants.dequantize(np.zeros(gguf.GGML_QUANT_SIZES[kind][1], dtype=np.uint8), kind)
    except (KeyError, NotImplementedError):
        raise refusal(
            f"{quoted(name)} is stored as {kind.name}, which the package gguf does not compute; take another file"
        ) from None


def _made(translation: Translation, kinds: Mapping[str, Any], meant: Mapping[str, TensorInfo]) -> Translation:
    """Return the recipe with the file's own computations. Where a tensor is quantized, all are made bf16."""
    if translation.component == "lora":
        raise refusal("a LoRA in GGUF is not merged; take it as .safetensors")
    used = [made for made in translation.made if made.sources[0] in kinds]
    if not used:
        return translation
    names = sorted({kinds[made.sources[0]].name for made in used})
    made = tuple(_dequantized(one, kinds, meant) for one in translation.made)
    note = f"GGUF weights ({', '.join(names)}) dequantized to bf16 by the package gguf: the values that they lost do not come back"
    layout = f"{translation.layout.replace(', fp8', '')}, GGUF {' and '.join(names)}"
    return replace(translation, layout=layout, made=made, notes=(note, *translation.notes[1:]))


def _dequantized(made: Made, kinds: Mapping[str, Any], meant: Mapping[str, TensorInfo]) -> Made:
    kind = kinds.get(made.sources[0])
    if kind is None:
        return made
    assert made.compute is not None
    rows = getattr(made.compute, "rows", None)
    return replace(made, compute=Dequantize(int(kind), meant[made.sources[0]].shape[-1], made.shape, rows))


@dataclass(frozen=True, slots=True)
class Dequantize:
    """Makes bf16 of a tensor that is stored in a GGUF type, or of some of its rows of so many elements."""

    kind: int
    row: int
    shape: tuple[int, ...]
    rows: tuple[int, int] | None

    def __call__(self, sources: "Sequence[torch.Tensor]") -> "torch.Tensor":
        """Return the tensor, in the shape of the tensor to be written."""
        import gguf
        import torch

        [stored] = sources
        stored = stored.reshape(-1, stored.shape[-1])
        begin, end = self.rows or (0, stored.shape[0])
        made = torch.empty((end - begin, self.row), dtype=torch.bfloat16)
        for piece in _steps(end - begin, self.row):
            values = gguf.quants.dequantize(stored[begin:end][piece].numpy(), gguf.GGMLQuantizationType(self.kind))
            made[piece] = torch.from_numpy(values.reshape(-1, self.row))
        return made.reshape(self.shape)


def _steps(rows: int, row: int) -> Iterator[slice]:
    step = max(1, _STEP // max(1, row))
    return (slice(begin, min(begin + step, rows)) for begin in range(0, rows, step))
