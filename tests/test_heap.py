"""Memory that was freed goes back to the system."""

import ctypes
import os
import platform

import pytest

from zwatch import heap
from zwatch.bridge import Bridge
from zwatch.rollout.engines import EngineCloser, EngineRegistry

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps little")
SIZE, COUNT = 64 * 1024, 1024  # below the size from which on malloc maps a block of its own
MOST = SIZE * COUNT * 7 // 8


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Engine:
    """Has blocks, of which one in eight is still in use after its end."""

    version = "v1"

    def __init__(self):
        self._libc = ctypes.CDLL(None)
        self._libc.malloc.restype = ctypes.c_void_p
        self._libc.free.argtypes = [ctypes.c_void_p]
        self._libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
        self._blocks = [self._libc.malloc(SIZE) for _ in range(COUNT)]
        for block in self._blocks:
            self._libc.memset(block, 1, SIZE)

    def close(self):
        self._free([block for number, block in enumerate(self._blocks) if number % 8])
        self._blocks = self._blocks[::8]

    def forget(self):
        self._free(self._blocks)

    def _free(self, blocks):
        for block in blocks:
            self._libc.free(block)


@pytest.fixture
def engine():
    heap.give_back()
    engine = Engine()
    yield engine
    engine.forget()


def test_memory_between_blocks_in_use_is_given_back(engine):
    before = resident()
    engine.close()
    assert before - resident() < MOST / 2, "the C library keeps it"
    assert heap.give_back()
    assert before - resident() > MOST / 2


async def test_memory_that_a_freed_engine_leaves_behind_is_given_back(engine):
    bridge = Bridge()
    before = resident()
    await EngineCloser(bridge, EngineRegistry()).close(engine)
    assert before - resident() > MOST / 2
    bridge.close()
