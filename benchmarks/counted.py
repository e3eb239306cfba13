"""`zwatch serve` that also reports CUDA's allocation counters, for swap.py.

Each line on standard input is answered on standard output by a line of JSON: how often device and pinned host memory
were allocated and freed so far, or null before CUDA is in use. Nothing is counted in between, so it costs nothing.
"""

import json
import os
import sys
import threading

from zwatch.cli import main


def counters() -> dict[str, int] | None:
    """Return the counters of torch's two allocators."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_initialized():
        return None
    device, host = torch.cuda.memory_stats(), torch.cuda.host_memory_stats()
    return {
        "cudaMalloc": device.get("num_device_alloc", 0),
        "cudaFree": device.get("num_device_free", 0),
        "cudaHostAlloc": host.get("num_host_alloc", 0),
        "cudaFreeHost": host.get("num_host_free", 0),
        "device_bytes": device.get("reserved_bytes.all.current", 0),
    }


def answer(lines: int, answers: int) -> None:
    """Answer every line, until there are no more."""
    with open(lines) as asked, open(answers, "w") as told:
        for _ in asked:
            told.write(json.dumps(counters()) + "\n")
            told.flush()


if __name__ == "__main__":
    threading.Thread(target=answer, args=(os.dup(0), os.dup(1)), daemon=True).start()
    os.dup2(2, 1)  # other output must not mix with the answers
    sys.exit(main())
