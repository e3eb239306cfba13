"""Device: the memory of weights, of images, and what is kept for the next load."""

import os

import pytest
import torch

from tests.shadow.conftest import BUDGET, weights_bytes
from zwatch.shadow.device import WORKING_ROOM, Device
from zwatch.shadow.host import HOST_SPARE
from zwatch.shadow.pool import GRAIN, Pool


class Owner:
    """Something that holds memory."""


def test_memory_is_held_while_its_owner_lives(device):
    owner, other = Owner(), Owner()
    device.allocate(owner, 1000)
    device.allocate(owner, 24)
    device.allocate(other, 500)
    assert weights_bytes(device) == 1524
    del owner
    assert weights_bytes(device) == 500
    del other
    assert weights_bytes(device) == 0


def test_a_budget_caps_what_is_free_and_what_there_is(device):
    assert device.memory() == (BUDGET, BUDGET)
    owner = Owner()
    device.allocate(owner, BUDGET + 1)
    assert device.memory() == (0, BUDGET)


def test_without_a_budget_the_machines_memory_counts():
    free, total = Device("cpu").memory()
    assert 0 < free <= total
    assert total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_auto_takes_a_gpu_where_there_is_one():
    assert Device("auto").torch_device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_cpu_needs_no_reserve_and_has_no_room_to_give(device):
    assert device.reserve([BUDGET])
    assert device.give_room() == 0
    assert weights_bytes(device) == 0


class FakeMemory:
    """The memory of a device with an allocator and a pool, of which `allocated_now` bytes are allocated."""

    def __init__(self, free=2**40):
        self.free = free
        self.allocated_now = self.most = 0

    def take(self, size):
        self.allocated_now += size
        self.most = max(self.most, self.allocated_now)

    def new_slab(self, size):
        self.take(size)
        return torch.empty(size, dtype=torch.uint8)

    def unused(self):
        return self.free, 2**40

    def allocated(self):
        return self.allocated_now

    def reset_peak(self):
        self.most = self.allocated_now

    def peak(self):
        return self.most

    def release_cached(self):
        pass


@pytest.fixture
def memory():
    return FakeMemory()


@pytest.fixture
def pooled(memory):
    """A CPU with a budget that keeps freed slabs and measures requests, as a GPU does."""
    return Device("cpu", budget=BUDGET, memory=memory, pool=Pool(memory.new_slab))


def test_the_memory_that_a_request_takes_is_measured(pooled, memory):
    memory.take(1000)
    with pooled.measured_request():
        memory.take(50)
    assert pooled.request_peak == 50


def test_memory_reserved_meanwhile_is_not_counted_as_the_requests(pooled, memory):
    with pooled.measured_request():
        memory.take(50)
        assert pooled.reserve([GRAIN])
    assert pooled.request_peak == 0


def test_memory_of_a_load_that_began_before_is_not_counted_as_the_requests(pooled, memory):
    with pooled.beside():
        with pooled.measured_request():
            memory.take(1000)
        with pooled.measured_request():
            memory.take(1000)
    assert pooled.request_peak == 0
    with pooled.measured_request():
        memory.take(50)
    assert pooled.request_peak == 50


def test_what_was_tried_and_did_not_fit_is_not_counted_as_the_requests(pooled, memory):
    with pooled.measured_request():
        memory.take(1000)
        memory.allocated_now -= 1000
        pooled.forget_peak()
        memory.take(50)
    assert pooled.request_peak == 50


def test_the_capacity_counts_what_this_process_holds_as_free_and_what_images_need_as_taken():
    memory = FakeMemory(free=3 * WORKING_ROOM)
    device = Device("cpu", memory=memory)
    assert device.capacity == 2 * WORKING_ROOM
    memory.allocated_now = 1000
    assert device.capacity == 2 * WORKING_ROOM + 1000
    device.request_peak = WORKING_ROOM + 500
    assert device.capacity == 2 * WORKING_ROOM + 500
    device.peak_elsewhere = 100
    assert device.capacity == 2 * WORKING_ROOM + 400
    device.budget = 300
    assert device.capacity == 300


def test_bytes_that_are_no_weights_need_room_but_no_budget():
    device = Device("cpu", budget=1000, memory=FakeMemory(free=1500))
    assert device.has_room([1000], beside=500)
    assert not device.has_room([1000], beside=501)


def test_a_full_device_has_room_for_zero_bytes():
    device = Device("cpu", budget=BUDGET, memory=FakeMemory(free=0))
    device.request_peak = 1
    assert device.has_room([])
    assert device.has_room([0])
    assert not device.has_room([1])


def test_a_budget_caps_what_is_kept_in_other_sizes_too(pooled):
    """Other programs count on the rest of the card."""
    owner, large, small = Owner(), BUDGET * 5 // 8 // GRAIN * GRAIN, BUDGET // 2 // GRAIN * GRAIN
    pooled.allocate(owner, large)
    del owner
    assert pooled.kept == large
    owner = Owner()
    pooled.allocate(owner, small)
    assert (weights_bytes(pooled), pooled.kept) == (small, 0)


def test_a_reserve_does_not_add_to_what_is_kept_in_other_sizes_beyond_the_budget(pooled):
    owner, large, small = Owner(), BUDGET * 5 // 8 // GRAIN * GRAIN, BUDGET // 2 // GRAIN * GRAIN
    pooled.allocate(owner, large)
    del owner
    assert pooled.reserve([small])
    assert pooled.kept == small


def test_within_a_budget_what_was_reserved_stays_until_it_is_taken(pooled, memory):
    size, owners = BUDGET // 4 // GRAIN * GRAIN, [Owner() for _ in range(4)]
    for owner in owners[:2]:
        pooled.allocate(owner, size)
    assert pooled.reserve([size, size])
    reserved = memory.allocated_now
    for owner in owners[2:]:
        pooled.allocate(owner, size)
    assert memory.allocated_now == reserved
    assert pooled.kept == 0


@pytest.mark.gpu(alone=True)
class TestOnCuda:
    MB = 2**20

    @pytest.fixture
    def device(self):
        device = Device("cuda")
        device.hasher.compiling.result()  # its scratch is allocated too
        yield device
        device.give_room()

    def test_freed_and_reserved_memory_counts_as_free(self, device):
        nearly = {"abs": 256 * self.MB}  # others may use the card too
        owner = Owner()
        before = device.memory()[0]
        device.allocate(owner, 2048 * self.MB)
        assert device.memory()[0] == pytest.approx(before - 2048 * self.MB, **nearly)
        del owner
        assert device.memory()[0] == pytest.approx(before, **nearly)
        assert device.reserve([2048 * self.MB])
        assert device.memory()[0] == pytest.approx(before, **nearly)

    def test_reserved_memory_is_taken_without_a_call_to_cuda(self, device):
        sizes = [96 * self.MB, 33 * self.MB]
        assert device.reserve(sizes)
        owner, before = Owner(), torch.cuda.memory_stats()
        for size in sizes:
            device.allocate(owner, size)
        after = torch.cuda.memory_stats()
        assert [after[name] for name in ("num_device_alloc", "num_device_free")] == [
            before[name] for name in ("num_device_alloc", "num_device_free")
        ]

    def test_no_memory_is_reserved_that_requests_need(self, device):
        free = device.memory()[0]
        assert not device.reserve([free])
        assert device.give_room() == 0
        assert torch.cuda.mem_get_info()[0] > free // 2

    def test_an_allocation_releases_reserved_slabs_of_other_sizes(self, device):
        free = device.memory()[0]
        assert device.reserve([free // 2])
        owner = Owner()
        device.allocate(owner, free * 3 // 4)
        with pytest.raises(torch.OutOfMemoryError):
            device.allocate(Owner(), free * 3 // 4)

    def test_making_images_has_priority_over_loading(self, device):
        with device.serving():
            serving = torch.cuda.current_stream()
        with device.beside():
            beside = torch.cuda.current_stream()
        assert serving.priority < beside.priority  # lower goes first
        assert torch.cuda.current_stream() not in (serving, beside)

    def test_the_memory_of_an_image_is_measured_and_that_of_a_concurrent_load_is_not(self, device):
        with device.serving(), device.measured_request():
            torch.empty(48 * self.MB, dtype=torch.uint8, device=device.torch_device)
        assert 48 * self.MB <= device.request_peak < 64 * self.MB
        before = device.request_peak
        with device.serving(), device.measured_request():
            device.reserve([512 * self.MB])
        with device.beside(), device.measured_request():
            device.allocate(Owner(), 700 * self.MB)
        assert device.request_peak == before


def test_host_memory_that_is_kept_for_the_next_version_is_released_for_a_moments_need():
    device = Device("cpu", host_memory=lambda: (HOST_SPARE + 10 * GRAIN - device.host._pool.free, 2**40))
    assert device.host.reserve([8 * GRAIN])
    assert device.host.memory()[0] == 10 * GRAIN
    owner = Owner()
    device.stopover.allocate(owner, 2 * GRAIN)
    assert device.host._pool.free == 8 * GRAIN
    device.stopover.allocate(owner, 9 * GRAIN)
    assert device.host._pool.free == 0
