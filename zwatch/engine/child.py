"""Processes that run a function of this package beside the service, with lines on their standard input and output."""

import json
import os
import subprocess
import sys
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

_PACKAGE_ROOT = str(Path(__file__).parents[2])


def started(module: str, call: str, *, pass_fds: Collection[int] = ()) -> "subprocess.Popen[bytes]":
    """Start a process that runs a call of a module, such as `serve(3)`. It has no threads of libraries, each of which would take
    some of its address space.

    Raises:
        OSError: it could not be started.
    """
    alone = dict.fromkeys(("RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MALLOC_ARENA_MAX"), "1")
    # An editable install is found by an import hook of this process, not on its path.
    program = (
        f"import json, sys; sys.path[:] = json.loads(sys.stdin.readline()); import {module} as module; module.{call}"
    )
    process = subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, pass_fds=pass_fds, env={**os.environ, **alone, "TOKENIZERS_PARALLELISM": "false"},
    )  # fmt: skip
    assert process.stdin is not None  # it was asked for
    with suppress(BrokenPipeError):  # it has ended: whoever reads from it is told
        # Past the buffer, which would keep what cannot be written, and raise again.
        os.write(process.stdin.fileno(), json.dumps([*sys.path, _PACKAGE_ROOT]).encode() + b"\n")
    return process


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a process, whatever it does."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()
