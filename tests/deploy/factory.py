"""Light versions made by hand: a safetensors header, a few bytes, a seal. No torch."""

import json
import os
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from blake3 import blake3

from zwatch.deploy import header
from zwatch.deploy.durable import write_durably
from zwatch.deploy.hashing import hash_file
from zwatch.deploy.seal import SEAL_NAME, format_seal
from zwatch.deploy.sealing import scan, write_seal
from zwatch.errors import Rejection

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
TEXT_ENCODER = "text_encoder/model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
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
    table = {"__metadata__": metadata, "a": tensor(0, half), "b": tensor(half, len(data))}
    return framed(json.dumps(table, separators=(",", ":")), data)  # as the safetensors package writes it


SMALL = {
    "model_index.json": '{"_class_name": "ZImagePipeline"}',
    "scheduler/scheduler_config.json": "{}",
    "text_encoder/config.json": "{}",
    "tokenizer/tokenizer.json": "{}",
    "tokenizer/tokenizer_config.json": "{}",
    "transformer/config.json": "{}",
    "vae/config.json": "{}",
}
"""The small files of a pipeline: every name that it needs, of no use to an engine."""


def write_files(directory: Path, data: bytes = b"transformer") -> Path:
    """Write an unsealed pipeline whose transformer holds `data`."""
    for path, text in SMALL.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text(text)
    (directory / WEIGHTS).write_bytes(weights(data))
    (directory / TEXT_ENCODER).write_bytes(weights(b"the same text encoder in every version"))
    (directory / VAE).write_bytes(weights(b"the same vae in every version..."))
    return directory


def write_version(root: Path, name: str, data: bytes | None = None) -> Path:
    """Write and seal a version whose transformer holds `data`."""
    directory = write_files(root / name, data or name.encode() * 8)
    write_seal(directory, name)
    return directory


def reseal_by_hand(directory: Path, *lines: str) -> None:
    """Write a seal of these lines, valid or not."""
    (directory / SEAL_NAME).write_text("".join(line + "\n" for line in lines))


def seal_as_it_is(directory: Path) -> str:
    """Write the seal of every file as `b3sum` does, without a look at what they are, for versions that zwatch refuses to seal;
    return its digest."""
    hashes = {}
    for path, status in scan(directory).items():
        if stat.S_ISLNK(status.st_mode):
            continue  # it may be a wish for another version
        with open(directory / path, "rb") as file:
            hashes[path] = hash_file(file.fileno())
    data = format_seal(hashes)
    write_durably(directory, SEAL_NAME, data, mode=0o644)
    return blake3(data).hexdigest()


def stamp_as_it_is(directory: Path) -> None:
    """Write the directory's name into every header of its transformer, whatever else it has."""
    for path in sorted((directory / "transformer").glob("*.safetensors")):
        data = path.read_bytes()
        with open(path, "rb") as file:
            found = header.read_header(file.fileno(), path.name)
        path.write_bytes(header.with_version(found, directory.name, path.name) + data[found.data_start :])


def until(happened: Callable[[], Any], what: str, seconds: float = 60) -> Any:
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


def as_other_user(uid: int, gid: int, folder: Path, code: Callable[[], object]) -> str:
    """Run code in a folder as another user, in a child process; return what it returns, or the reason of its rejection."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.chdir(folder)  # the folders above it may be this user's alone
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
            answer = str(code())
        except Rejection as rejection:
            answer = rejection.reason
        except BaseException as error:
            answer = repr(error)
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answer = pipe.read().decode()
    os.waitpid(child, 0)
    return answer
