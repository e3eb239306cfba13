"""System calls that fail in a real process, one exactly: see failing_calls.c, which this compiles and steers."""

import ctypes
import errno
import mmap
import os
import shutil
import subprocess
from collections.abc import Iterable
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("failing_calls.c")
SHORT = -1
"""Instead of an errno: a read or a write does half of what it was asked for."""
FOR_EVER = 2**32 - 1


class Call(IntEnum):
    """What can fail, numbered as in failing_calls.c."""

    OPEN = 0
    READ = 1
    STAT = 2
    READLINK = 3
    RENAME = 4
    FSYNC = 5
    MMAP = 6
    GETDENTS = 7
    SYMLINK = 8
    UNLINK = 9
    LINK = 10
    WRITE = 11
    DUP = 12
    CLOSE = 13
    WATCH = 14
    ALLOC = 15
    THREAD = 16


FILES = tuple(call for call in Call if call < Call.WATCH)
"""All calls about files."""


class _Control(ctypes.Structure):
    _fields_ = (
        ("armed", ctypes.c_uint32), ("classes", ctypes.c_uint32), ("error", ctypes.c_int32), ("first", ctypes.c_uint32),
        ("length", ctypes.c_uint32), ("pid", ctypes.c_int32), ("seen", ctypes.c_uint32), ("failed", ctypes.c_uint32),
        ("least", ctypes.c_uint64), ("call", ctypes.c_char * 32), ("path", ctypes.c_char * 512),
        ("roots", (ctypes.c_char * 512) * 2),
    )  # fmt: skip


class FailingCalls:
    """Steers the calls of one process that was started with `environment`. Paths count that are below one of `roots`."""

    def __init__(self, library: Path, file: Path, *roots: Path) -> None:
        file.write_bytes(bytes(ctypes.sizeof(_Control)))
        with open(file, "r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), 0)
        self._control = _Control.from_buffer(self._map)
        for number, root in enumerate(roots):
            self._control.roots[number].value = os.fsencode(root)
        self.environment = {"LD_PRELOAD": str(library), "FAILING_CALLS": str(file)}

    def of(self, pid: int) -> None:
        """Count the calls of this process only."""
        self._control.pid = pid

    @contextmanager
    def fail(self, calls: Iterable[Call], error: int, first: int = 1, length: int = 1, *, least: int = 2**16):
        """Let the `first` of these calls fail from now on, and `length` - 1 more; `least` is in bytes, for `ALLOC`."""
        control = self._control
        control.armed = 0
        control.classes = sum(1 << call for call in set(calls))
        control.error, control.first, control.length, control.least = error, first, length, least
        control.seen = control.failed = 0
        control.call = control.path = b""
        control.armed = 1
        try:
            yield self
        finally:
            control.armed = 0

    @property
    def seen(self) -> int:
        """How many calls have counted since `fail` began."""
        return self._control.seen

    @property
    def failed(self) -> int:
        """How many of them failed."""
        return self._control.failed

    @property
    def first_failed(self) -> str:
        """The first call that failed, with its path."""
        return f"{self._control.call.decode()} {os.fsdecode(self._control.path)}"

    @property
    def path(self) -> Path:
        """What the first call that failed was about."""
        return Path(os.fsdecode(self._control.path))


def text(error: int) -> str:
    """Return how a failed call is to be told."""
    return os.strerror(error) if error > 0 else ""


def name_of(error: int) -> str:
    """Return the usual name of an errno."""
    return errno.errorcode.get(error, "SHORT")


def build_library(directory: Path) -> Path:
    """Compile failing_calls.c; skip the test where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("failing system calls need a C compiler (gcc)")
    library = directory / "failing_calls.so"
    if not library.exists():
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, SOURCE, "-ldl"], check=True)
    return library
