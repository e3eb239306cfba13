"""Light versions made by hand: a safetensors header, a few bytes, a seal. No torch."""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zwatch.deploy.seal import SEAL_NAME, write_seal

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
AS_ROOT = os.geteuid() == 0


def framed(text: bytes | str | Mapping[str, Any], data: bytes = b"") -> bytes:
    """Return a safetensors file of this header text, right or wrong, and these tensor bytes."""
    if isinstance(text, Mapping):
        text = json.dumps(text)
    if isinstance(text, str):
        text = text.encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(begin: int, end: int, dtype: str = "U8", shape: list[Any] | None = None) -> dict[str, Any]:
    """Return a header's entry for one tensor; its shape fits unless another is given."""
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def weights(data: bytes = b"0123456789abcdef", version: str | None = None) -> bytes:
    """Return a safetensors file of two tensors, with a header version if one is given."""
    half = len(data) // 2
    metadata = {"format": "pt"} | ({} if version is None else {"version": version})
    return framed({"__metadata__": metadata, "a": tensor(0, half), "b": tensor(half, len(data))}, data)


def write_version(root: Path, name: str, data: bytes | None = None) -> Path:
    """Write and seal a version whose transformer holds `data`."""
    directory = root / name
    (directory / "transformer").mkdir(parents=True)
    (directory / "vae").mkdir()
    (directory / "model_index.json").write_text('{"_class_name": "ZImagePipeline"}')
    (directory / "transformer" / "config.json").write_text("{}")
    (directory / WEIGHTS).write_bytes(weights(data or name.encode() * 8))
    (directory / "vae" / "model.safetensors").write_bytes(weights(b"the same vae in every version..."))
    write_seal(directory, name)
    return directory


def reseal_by_hand(directory: Path, *lines: str) -> None:
    """Write a seal of these lines, valid or not."""
    (directory / SEAL_NAME).write_text("".join(line + "\n" for line in lines))


def until(happened: Callable[[], Any], what: str, seconds: float = 10) -> Any:
    """Ask again and again until the answer is true, and return it; fail when it takes too long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        answer = happened()
        if answer:
            return answer
        time.sleep(0.002)
    raise AssertionError(f"waited {seconds} s for: {what}")


def next_tick(directory: Path) -> None:
    """Wait until the file system's clock has moved on: what is made from now on is younger than what was made before."""
    probe = directory / ".clock"
    probe.touch()
    first = probe.stat().st_ctime_ns

    def ticked() -> bool:
        os.utime(probe)
        return probe.stat().st_ctime_ns > first

    until(ticked, "a tick of the file system's clock")
    probe.unlink()
