"""Device: whose memory is whose."""

import os
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from tests.shadow.conftest import BUDGET, held
from zwatch.shadow.device import Device
from zwatch.shadow.pool import GRAIN, Pool


class Owner:
    """Something that holds memory."""


def test_memory_is_held_while_its_owner_lives(device):
    owner, other = Owner(), Owner()
    device.allocate(owner, 1000)
    device.allocate(owner, 24)
    device.allocate(other, 500)
    assert held(device) == 1524
    del owner
    assert held(device) == 500
    del other
    assert held(device) == 0


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
    assert held(device) == 0


class Accounts:
    """What CUDA's allocator would say of its memory."""

    def __init__(self):
        self.now = self.peak = 0

    def take(self, size):
        self.now += size
        self.peak = max(self.peak, self.now)

    def reset(self, device):
        self.peak = self.now


@pytest.fixture
def accounts(monkeypatch, device):
    """Let the CPU device believe that it is a GPU, as far as measuring goes."""
    found = Accounts()
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: found.now)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: found.peak)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", found.reset)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    device._cuda = SimpleNamespace(
        beside=SimpleNamespace(synchronize=lambda: None),
        pool=Pool(lambda size: found.take(size) or torch.empty(size, dtype=torch.uint8)),
    )
    monkeypatch.setattr(device, "_unused", lambda: (2**40, 2**40))
    return found


def test_what_a_request_took_is_learnt(device, accounts):
    accounts.take(1000)
    with device.measured_request():
        accounts.take(50)
    assert device.request_peak == 50


def test_what_is_reserved_meanwhile_is_not_taken_for_the_requests(device, accounts):
    with device.measured_request():
        accounts.take(50)
        assert device.reserve([GRAIN])
    assert device.request_peak == 0


def test_what_a_load_takes_that_began_before_is_not_taken_for_the_requests(device, accounts):
    with device.beside():
        with device.measured_request():
            accounts.take(1000)
        with device.measured_request():
            accounts.take(1000)
    assert device.request_peak == 0
    with device.measured_request():
        accounts.take(50)
    assert device.request_peak == 50


def test_what_needs_no_memory_has_room_on_a_device_that_is_full(device, monkeypatch):
    monkeypatch.setattr(device, "_unused", lambda: (0, 2**40))
    device.request_peak = 1
    assert device.has_room([])
    assert device.has_room([0])
    assert not device.has_room([1])


def kept(device):
    return device._cuda.pool.free


def test_a_budget_caps_what_is_kept_in_other_sizes_too(device, accounts):
    """Other programs count on the rest of the card."""
    owner, large, small = Owner(), BUDGET * 5 // 8 // GRAIN * GRAIN, BUDGET // 2 // GRAIN * GRAIN
    device.allocate(owner, large)
    del owner
    assert kept(device) == large
    owner = Owner()
    device.allocate(owner, small)
    assert (held(device), kept(device)) == (small, 0)


def test_a_reserve_does_not_add_to_what_is_kept_in_other_sizes_beyond_the_budget(device, accounts):
    owner, large, small = Owner(), BUDGET * 5 // 8 // GRAIN * GRAIN, BUDGET // 2 // GRAIN * GRAIN
    device.allocate(owner, large)
    del owner
    assert device.reserve([small])
    assert kept(device) == small


def test_within_a_budget_what_was_reserved_stays_until_it_is_taken(device, accounts):
    size, owners = BUDGET // 4 // GRAIN * GRAIN, [Owner() for _ in range(4)]
    for owner in owners[:2]:
        device.allocate(owner, size)
    assert device.reserve([size, size])
    reserved = accounts.now
    for owner in owners[2:]:
        device.allocate(owner, size)
    assert accounts.now == reserved
    assert kept(device) == 0


@pytest.mark.gpu
class TestOnCuda:
    MB = 2**20

    @pytest.fixture
    def device(self):
        device = Device("cuda")
        device._cuda.compiled(wait=True)  # its scratch is allocated too
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

    def test_what_was_reserved_is_taken_without_asking_cuda(self, device):
        sizes = [96 * self.MB, 33 * self.MB]
        assert device.reserve(sizes)
        owner, before = Owner(), torch.cuda.memory_stats()
        for size in sizes:
            device.allocate(owner, size)
        after = torch.cuda.memory_stats()
        assert [after[name] for name in ("num_device_alloc", "num_device_free")] == [
            before[name] for name in ("num_device_alloc", "num_device_free")
        ]

    def test_no_shadow_is_reserved_that_requests_would_miss(self, device):
        free = device.memory()[0]
        assert not device.reserve([free])
        assert device.give_room() == 0
        assert torch.cuda.mem_get_info()[0] > free // 2

    def test_an_allocation_takes_what_was_reserved_in_other_sizes(self, device):
        free = device.memory()[0]
        assert device.reserve([free // 2])
        owner = Owner()
        device.allocate(owner, free * 3 // 4)
        with pytest.raises(torch.OutOfMemoryError):
            device.allocate(Owner(), free * 3 // 4)

    def test_making_images_goes_before_loading(self, device):
        with device.serving():
            serving = torch.cuda.current_stream()
        with device.beside():
            beside = torch.cuda.current_stream()
        assert serving.priority < beside.priority  # lower goes first
        assert torch.cuda.current_stream() not in (serving, beside)

    def test_what_an_image_takes_is_learnt_and_what_a_load_takes_meanwhile_is_not(self, device):
        with device.serving(), device.measured_request():
            torch.empty(48 * self.MB, dtype=torch.uint8, device=device.torch_device)
        assert 48 * self.MB <= device.request_peak < 64 * self.MB
        before = device.request_peak
        with device.serving(), device.measured_request():
            device.reserve([512 * self.MB])
        with device.beside(), device.measured_request():
            device.allocate(Owner(), 700 * self.MB)
        assert device.request_peak == before
