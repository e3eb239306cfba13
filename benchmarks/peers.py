"""One loader in a separate process, so that imports and CUDA's context are not in its time. For load.py.

    python benchmarks/peers.py NAME DEVICE

It prints `{"ready": …}` or `{"error": …}`, then loads what each line on standard input requests, and prints the seconds
after it has released everything again. From the second load on, a library's own memory pools exist already. Torch's are
released after each answer, because all loaders share the device: where that could matter, an order has `again`, and the
faster of two loads counts; the second of them reuses the memory of the first.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

Load = Callable[[Path, list[str], str], Any]
"""Loads (version directory, its weight files, variant); what it returns holds the tensors."""

PIECE = 2**30
PIECES = 8
"""How often the link carries a piece, bytes."""
AGAIN_BELOW = 2.0
"""Loads shorter than this many seconds are measured twice: the time for allocating memory would matter."""


def _safetensors(device: str) -> Load:
    from safetensors.torch import load_file

    def load(directory: Path, files: list[str], variant: str) -> list[Any]:
        if variant == "load_file, then to the device":
            return [tensor.to(device) for file in files for tensor in load_file(file).values()]
        return [load_file(file, device=device) for file in files]

    return load


def _prefetch(device: str) -> Load:
    from safetensors import safe_open

    if not hasattr(safe_open, "prefetch"):
        raise RuntimeError(f"safetensors {installed('safetensors')} has no prefetch")

    def load(directory: Path, files: list[str], variant: str) -> list[Any]:
        tensors = []
        with ExitStack() as stack:
            handles = [stack.enter_context(safe_open(file, framework="pt", device=device)) for file in files]
            if variant == "file by file, 16 threads":
                for handle in handles:
                    with handle.prefetch(threads=16) as loader:
                        tensors += [tensor for _, tensor in loader]
            else:
                loaders = [stack.enter_context(handle.prefetch(threads=8)) for handle in handles]
                tensors = [tensor for loader in loaders for _, tensor in loader]
        return tensors

    return load


def _instanttensor(device: str) -> Load:
    from instanttensor import Backend, BackendPolicy, safe_open

    backends = {"default": None, "mmap": Backend.MMAP, "buffered": BackendPolicy.BUFFERED}

    def load(directory: Path, files: list[str], variant: str) -> list[Any]:
        with safe_open(list(files), framework="pt", device=device, backend=backends[variant]) as opened:
            return [tensor for _, tensor in opened.tensors()]

    return load


def _runai(device: str) -> Load:
    os.environ.setdefault("RUNAI_STREAMER_CONCURRENCY", "16")
    from runai_model_streamer import SafetensorsStreamer

    def load(directory: Path, files: list[str], variant: str) -> list[Any]:
        with SafetensorsStreamer() as streamer:
            streamer.stream_files(list(files), device=device)
            return [tensor for _, tensor in streamer.get_tensors()]

    return load


def _fastsafetensors(device: str) -> Load:
    from fastsafetensors import SafeTensorsFileLoader

    def load(directory: Path, files: list[str], variant: str) -> list[Any]:
        os.environ["FASTSAFETENSORS_ODIRECT"] = "0" if variant == "buffered" else "1"
        loader = SafeTensorsFileLoader(None, device, nogds=True)
        try:
            loader.add_filenames({0: list(files)})
            buffers = loader.copy_files_to_device()
            tensors = [buffers.get_tensor(key) for key in loader.get_keys()]
            buffers.close()  # the tensors own their memory
            return tensors
        finally:
            loader.close()

    return load


def _diffusers(device: str) -> Load:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from diffusers import ZImagePipeline

    def load(directory: Path, files: list[str], variant: str) -> Any:
        options = {"torch_dtype": torch.bfloat16, "local_files_only": True}
        if variant == "device_map":
            return ZImagePipeline.from_pretrained(directory, device_map=device.partition(":")[0], **options)
        return ZImagePipeline.from_pretrained(directory, **options).to(device)

    return load


def _zwatch(device: str) -> Load:
    from zwatch.deploy.look import open_version
    from zwatch.deploy.seal import read_seal
    from zwatch.engine.factory import EngineFactory
    from zwatch.shadow.control import LoadControl
    from zwatch.shadow.device import Device

    factory = EngineFactory(Device(device))

    def load(directory: Path, files: list[str], variant: str) -> "_Held":
        opened = open_version(directory.parent, directory.name)
        control = LoadControl()
        try:
            planned = factory.plan(opened, read_seal(opened.fd).digest)
            before = _allocations(device)
            engine = factory.build(opened, planned, control)
            after = _allocations(device)
            # Other loaders' time includes making the tensors. Here the modules' time does, which is left out of a row.
            for component in engine.components:
                for buffer in component.buffers:
                    buffer.tensors()
        finally:
            opened.close()
        phases = {name: round(seconds, 4) for name, seconds in control.phases.items()}
        made = {name: after[name] - before[name] for name in after}
        return _Held(engine, {"phases": phases, "allocations": made})

    return load


class _Held:
    """A zwatch engine, and the figures of its load."""

    def __init__(self, engine: Any, told: dict[str, Any]) -> None:
        self._engine = engine
        self.nbytes = engine.nbytes
        self.told = told

    def close(self) -> None:
        self._engine.close()


def _allocations(device: str) -> dict[str, int]:
    """Return how often CUDA's memory was allocated and freed; empty without CUDA."""
    import torch

    if not device.startswith("cuda"):
        return {}
    stats, host = torch.cuda.memory_stats(), torch.cuda.host_memory_stats()
    return {
        "cudaMalloc": stats.get("num_device_alloc", 0),
        "cudaFree": stats.get("num_device_free", 0),
        "cudaHostAlloc": host.get("num_host_alloc", 0),
    }


def _link(device: str) -> Load:
    import torch

    pinned = torch.empty(PIECE, dtype=torch.uint8, pin_memory=True).fill_(1)
    there = torch.empty(PIECE, dtype=torch.uint8, device=device)

    def load(directory: Path, files: list[str], variant: str) -> list[Any]:
        for _ in range(PIECES):
            there.copy_(pinned, non_blocking=True)
        return [there] * PIECES

    return load


LOADERS: dict[str, tuple[Callable[[str], Load], str | None]] = {
    "zwatch": (_zwatch, None),
    "safetensors": (_safetensors, None),
    "safetensors prefetch": (_prefetch, "safetensors"),
    "InstantTensor": (_instanttensor, "instanttensor"),
    "runai-model-streamer": (_runai, "runai-model-streamer"),
    "fastsafetensors": (_fastsafetensors, "fastsafetensors"),
    "diffusers": (_diffusers, None),
    "link": (_link, None),
}
"""How each loader is made, and the package that has to be installed for it in addition to zwatch's."""
NEED_CUDA = ("safetensors prefetch", "InstantTensor", "runai-model-streamer", "fastsafetensors", "link")
"""Loaders that do not work, or work differently, without a GPU."""


def _tensor_bytes(loaded: Any) -> int:
    """Return the number of bytes loaded, to check that nothing is missing."""
    if hasattr(loaded, "nbytes"):
        return int(loaded.nbytes)
    if hasattr(loaded, "components"):
        return sum(
            _tensor_bytes(part.state_dict()) for part in loaded.components.values() if hasattr(part, "state_dict")
        )
    parts: Iterable[Any] = loaded.values() if isinstance(loaded, dict) else loaded
    return sum(_tensor_bytes(part) for part in parts)


def _answers(name: str, device: str) -> Iterator[dict[str, Any]]:
    """Yield the answers."""
    make, package = LOADERS[name]
    if package is not None:
        try:
            installed(package)
        except PackageNotFoundError:
            yield {"error": f"{package} is not installed"}
            return
    if name in NEED_CUDA and not device.startswith("cuda"):
        yield {"error": "needs a CUDA device"}
        return
    try:
        import torch

        wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
        torch.empty(1, device=device)
        load = make(device)
        wait()
    except Exception as error:
        yield {"error": f"{type(error).__name__}: {error}"}
        return
    yield {"ready": {} if package is None else {package: installed(package)}}
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = _timed(load, order, wait)
            if order["again"] and answer["seconds"] < AGAIN_BELOW:
                gc.collect()
                answer = min(answer, _timed(load, order, wait), key=lambda one: float(one["seconds"]))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        gc.collect()
        if device.startswith("cuda") and name not in ("zwatch", "link"):
            torch.cuda.empty_cache()  # zwatch's pool is part of what it does
        wait()
        yield answer


def _timed(load: Load, order: dict[str, Any], wait: Callable[[], None]) -> dict[str, Any]:
    """Load once, free it, and return its figures."""
    begun = time.perf_counter()
    loaded = load(Path(order["directory"]), order["files"], order["variant"])
    wait()
    seconds = time.perf_counter() - begun
    answer = {"seconds": seconds, "tensor_bytes": _tensor_bytes(loaded), **getattr(loaded, "told", {})}
    if hasattr(loaded, "close"):
        loaded.close()
    return answer


def main() -> None:
    """Answer on the original standard output; output of libraries goes to standard error."""
    name, device = sys.argv[1:]
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for answer in _answers(name, device):
        said.write(json.dumps(answer) + "\n")
        said.flush()
    said.close()
    os._exit(0)  # threads of some libraries would keep the process alive


if __name__ == "__main__":
    main()
