"""Host memory for what the device has no room for: never more than the host has."""

import pytest
import torch

from zwatch.shadow.host import HOST_SPARE, HostShadow
from zwatch.shadow.pool import GRAIN, Pool
from zwatch.shadow.reader import HostReader


class Owner:
    """Something that holds memory."""


class HostMemory:
    """What a host with 10 grains beyond the spare has taken of them."""

    def __init__(self):
        self.taken = []

    def new(self, size):
        self.taken.append(size)
        return torch.empty(size, dtype=torch.uint8)

    def release(self, slabs):
        for slab in slabs:
            self.taken.remove(slab.numel())

    def available(self):
        return HOST_SPARE + 10 * GRAIN - sum(self.taken), 2**40


@pytest.fixture
def memory():
    return HostMemory()


@pytest.fixture
def host(memory):
    return HostShadow(HostReader(), Pool(memory.new, memory.release), memory.available)


def test_what_fits_is_kept_ready_and_counts_as_free(host):
    assert host.reserve([4 * GRAIN, 4 * GRAIN])
    assert host.memory()[0] == 10 * GRAIN
    assert not host.reserve([4 * GRAIN] * 3)


def test_what_is_kept_in_other_sizes_makes_room(host, memory):
    assert host.reserve([2 * GRAIN] * 4)
    assert host.reserve([9 * GRAIN])
    assert memory.taken == [9 * GRAIN]


def test_an_allocation_of_another_size_takes_no_more_than_there_is(host, memory):
    assert host.reserve([2 * GRAIN] * 4)
    owner = Owner()
    host.allocate(owner, 5 * GRAIN)
    assert sum(memory.taken) <= 10 * GRAIN
    with pytest.raises(MemoryError, match=f"no {6 * GRAIN} bytes"):
        host.allocate(owner, 6 * GRAIN)


def test_memory_that_runs_out_during_a_reserve_is_no_reserve(memory):
    def none_left(size):
        raise MemoryError

    host = HostShadow(HostReader(), Pool(none_left), memory.available)
    assert not host.reserve([GRAIN])
