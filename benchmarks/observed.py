"""`zwatch serve` that also says what it holds inside, for soak.py.

Each line on standard input is a question, answered on standard output by a line of JSON: `sizes` are counts and bytes that
cost a few milliseconds, `trim` gives back what malloc keeps, `types` counts the garbage collector's objects by type, `trace` names the lines of code that hold the
most memory (only with ZWATCH_SOAK_TRACE=1, which slows everything). Nothing is counted in between.
"""

import asyncio
import collections
import ctypes
import gc
import json
import os
import signal
import sys
import threading
import tracemalloc
from typing import Any

from zwatch.cli import main

_MALLOC = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class _Mallinfo(ctypes.Structure):
    """What glibc's `mallinfo2` returns: sums over all arenas, bytes."""

    _fields_ = [(name, ctypes.c_size_t) for name in _MALLOC]


def heap() -> dict[str, int]:
    """Return the bytes that malloc gave out, and those that it keeps without having given them out; nothing without glibc. Of what
    it keeps, a part may have gone back to the system."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        return {}
    library.mallinfo2.restype = _Mallinfo
    found = library.mallinfo2()
    return {"heap_used": found.uordblks + found.hblkhd, "heap_free": found.fordblks}


def tasks() -> int:
    """Return how many tasks the event loop has: it is the one that runs in the main thread."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)  # noqa: SLF001
    while frame is not None:
        loop = frame.f_locals.get("self") if frame.f_code.co_name == "run_forever" else None
        if isinstance(loop, asyncio.AbstractEventLoop):
            return len(asyncio.all_tasks(loop))
        frame = frame.f_back
    return 0


def cuda() -> dict[str, int]:
    """Return torch's device memory, and the device's own count, bytes; nothing where CUDA is not in use."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_initialized():
        return {}
    free, total = torch.cuda.mem_get_info()
    return {
        "cuda_allocated": torch.cuda.memory_allocated(),
        "cuda_reserved": torch.cuda.memory_reserved(),
        "device_used": total - free,
    }


def sizes() -> dict[str, int]:
    """Return Python's and malloc's allocations, and what is alive."""
    return {
        "blocks": sys.getallocatedblocks(), "objects": len(gc.get_objects()), "tasks": tasks(),
        "python_threads": threading.active_count(), **heap(), **cuda(),
    }  # fmt: skip


def types() -> dict[str, int]:
    """Return how many objects of each type there are, the 300 most frequent. Those of before the import are not counted."""
    gc.collect()
    found = collections.Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.get_objects())
    return dict(found.most_common(300))


def trace() -> dict[str, int]:
    """Return the bytes by line of code, the 400 largest."""
    if not tracemalloc.is_tracing():
        return {}
    found = tracemalloc.take_snapshot().statistics("lineno")[:400]
    return {f"{one.traceback[0].filename}:{one.traceback[0].lineno}": one.size for one in found}


def trim() -> dict[str, int]:
    """Return all free memory that malloc keeps to the system, so that what remains is held by somebody."""
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return {"gave_back": 0 if give_back is None else int(give_back(0))}


QUESTIONS: dict[str, Any] = {"trim": trim, "sizes": sizes, "types": types, "trace": trace}


def answer(lines: int, answers: int) -> None:
    """Answer every line, until there are no more; then end the service."""
    with open(lines) as asked, open(answers, "w") as told:
        for line in asked:
            told.write(json.dumps(QUESTIONS[line.strip()]()) + "\n")
            told.flush()
    os.kill(os.getpid(), signal.SIGTERM)  # whoever asked is gone


def keep_tokenizers_in_processes() -> None:
    """Treat every tokenizer as a large one, as Qwen3's is."""
    from zwatch.engine import tokenizer_maker

    tokenizer_maker.LARGE = 0


if __name__ == "__main__":
    if os.environ.get("ZWATCH_SOAK_PROCESSES") == "1":
        keep_tokenizers_in_processes()
    if os.environ.get("ZWATCH_SOAK_TRACE") == "1":
        tracemalloc.start(1)
    threading.Thread(target=answer, args=(os.dup(0), os.dup(1)), daemon=True).start()
    os.dup2(2, 1)  # other output must not mix with the answers
    sys.exit(main())
