"""Host memory for versions that do not fit on the device: never more than the host has."""

import pytest
import torch

from zwatch.shadow import host as host_module
from zwatch.shadow.host import HOST_SPARE, HostShadow, copy_from_slab, plain
from zwatch.shadow.pool import GRAIN, Pool
from zwatch.shadow.reader import HostReader
from zwatch.shadow.system import system_memory


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


def test_a_reserve_that_fits_counts_as_free(host):
    assert host.reserve([4 * GRAIN, 4 * GRAIN])
    assert host.memory()[0] == 10 * GRAIN
    assert not host.reserve([4 * GRAIN] * 3)


def test_kept_slabs_of_other_sizes_are_released_for_a_reserve(host, memory):
    assert host.reserve([2 * GRAIN] * 4)
    assert host.reserve([9 * GRAIN])
    assert memory.taken == [9 * GRAIN]


def test_an_allocation_of_another_size_stays_within_the_hosts_memory(host, memory):
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


@pytest.mark.parametrize("content", [None, "", "MemTotal: 1 kB\n", "MemTotal: x kB\nMemAvailable: y kB\n", "no table"])
def test_the_hosts_memory_is_known_where_meminfo_is_hidden_or_says_something_else(tmp_path, monkeypatch, content):
    total = system_memory()[1]
    monkeypatch.setattr("zwatch.shadow.system._MEMINFO", tmp_path / "meminfo")
    if content is not None:
        (tmp_path / "meminfo").write_text(content)
    free, found = system_memory()
    assert found == pytest.approx(total, rel=0.01)
    assert 0 < free <= found


def test_a_passing_fault_of_meminfo_is_an_error_that_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr("zwatch.shadow.system._MEMINFO", tmp_path)
    with pytest.raises(OSError, match="directory"):
        system_memory()


def test_a_copy_of_a_tensor_does_not_span_two_pinned_pieces(monkeypatch):
    monkeypatch.setattr(host_module, "PINNED_PIECE", 64)
    copied = []
    slab = plain(1000).random_()
    real = torch.Tensor.copy_

    def noted(to, source, **options):
        copied.append((source.storage_offset(), source.storage_offset() + source.numel()))
        return real(to, source, **options)

    monkeypatch.setattr(torch.Tensor, "copy_", noted)
    tensor = slab[50:290].view(torch.bfloat16).view(10, 12)
    made = copy_from_slab(tensor, torch.device("cpu"))
    assert torch.equal(made.view(torch.int16), tensor.view(torch.int16))
    assert made.data_ptr() != tensor.data_ptr()
    assert copied == [(50, 64), (64, 128), (128, 192), (192, 256), (256, 290)]


def test_memory_for_a_moment_is_not_kept():
    host = HostMemory()
    shadow = HostShadow(
        HostReader(), Pool(host.new, host.release), lambda: (HOST_SPARE + GRAIN, 2**40), for_a_moment=True
    )
    owner = Owner()
    data = shadow.allocate(owner, GRAIN)
    assert (data.numel(), host.taken) == (GRAIN, [])
    with pytest.raises(MemoryError):
        shadow.allocate(owner, GRAIN + 1)
    del data, owner
    assert shadow.memory() == (GRAIN, 2**40)


def test_what_another_pool_keeps_of_the_same_memory_is_released_where_it_is_needed():
    host = HostMemory()
    lender = Pool(host.new, host.release)
    shadow = HostShadow(HostReader(), Pool(plain), host.available, for_a_moment=True, lender=lender)
    owner = Owner()
    lender.reserve([4 * GRAIN, 3 * GRAIN])
    shadow.allocate(owner, 3 * GRAIN)
    assert host.taken == [4 * GRAIN, 3 * GRAIN], "there is room beside it"
    shadow.allocate(owner, 10 * GRAIN)
    assert host.taken == []
    with pytest.raises(MemoryError):
        shadow.allocate(owner, 10 * GRAIN + 1)
