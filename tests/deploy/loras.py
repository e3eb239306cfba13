"""LoRA directories as `zwatch import --lora` leaves them, with factors from a seeded generator. No torch."""

import json
from collections.abc import Callable, Mapping
from math import sqrt
from pathlib import Path

import numpy as np
from blake3 import blake3

from zwatch.deploy import header
from zwatch.deploy.seal import SEAL_NAME, format_seal

WEIGHTS = "lora.safetensors"
DTYPES = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}


def matrices(transformer: Path) -> dict[str, tuple[int, int]]:
    """Return the shapes (out, in) of a transformer's linear layers by module; it is a version's `transformer` directory."""
    found: dict[str, tuple[int, int]] = {}
    for path in sorted(transformer.glob("*.safetensors")):
        with path.open("rb") as file:
            tensors = header.read_header(file.fileno(), path.name).tensors
        for name, info in tensors.items():
            if name.endswith(".weight") and len(info.shape) == 2:
                found[name.removesuffix(".weight")] = (info.shape[0], info.shape[1])
    return dict(sorted(found.items()))


def attention(module: str) -> bool:
    """Say whether a module is one of an attention's, as most LoRAs have them."""
    return ".attention.to_" in module


def stored(values: np.ndarray, dtype: str) -> bytes:
    """Return float32 values as they are stored; bf16 rounds to nearest even."""
    if dtype != "BF16":
        return values.astype(DTYPES[dtype]).tobytes()
    bits = values.astype("<f4").view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def factors(
    shapes: Mapping[str, tuple[int, int]], rank: int, seed: int, strength: float = 1.0
) -> dict[str, np.ndarray]:
    """Return A (rank, in) and B (out, rank) of each module in float32; B @ A has entries of some strength / sqrt(in)."""
    random = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {}
    for module, (rows, columns) in shapes.items():
        made[f"{module}.lora_A.weight"] = random.standard_normal((rank, columns), np.float32) / sqrt(columns)
        made[f"{module}.lora_B.weight"] = random.standard_normal((rows, rank), np.float32) * (strength / sqrt(rank))
    return made


def packed(tensors: Mapping[str, np.ndarray], dtype: str, metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file of these tensors."""
    table: dict[str, object] = {"__metadata__": dict(metadata)}
    data = b""
    for name, values in tensors.items():
        raw = stored(values, dtype)
        table[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + header.LENGTH_BYTES) % 64)
    return len(text).to_bytes(header.LENGTH_BYTES, "little") + text + data


def write_lora(
    root: Path, name: str, transformer: Path, rank: int = 4, seed: int = 0, *, dtype: str = "BF16", strength: float = 1.0,
    of: Callable[[str], bool] = attention,
) -> Path:  # fmt: skip
    """Write and seal a LoRA of this name under the LoRA root, for the modules of a version's `transformer` directory that `of`
    takes; return its directory. The same arguments give the same bytes."""
    shapes = {module: shape for module, shape in matrices(transformer).items() if of(module)}
    directory = root / name
    directory.mkdir(parents=True, exist_ok=True)
    files = {
        WEIGHTS: packed(factors(shapes, rank, seed, strength), dtype, {"format": "pt", "version": name}),
        "zwatch.json": json.dumps({"source": {"kind": "lora", "name": f"{name}.safetensors"}}).encode(),
    }
    for path, data in files.items():
        (directory / path).write_bytes(data)
    (directory / SEAL_NAME).write_bytes(format_seal({path: blake3(data).hexdigest() for path, data in files.items()}))
    return directory
