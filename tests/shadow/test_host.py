"""Host memory for what the device has no room for: never more than the host has."""

import pytest

from zwatch.shadow import host as module
from zwatch.shadow.host import HOST_SPARE, HostShadow
from zwatch.shadow.pool import GRAIN


class Owner:
    """Something that holds memory."""


@pytest.fixture
def host(monkeypatch):
    """Host memory of 10 grains, less what is kept of it."""
    shadow = HostShadow(lambda fillings, landed: None, pin=False)
    plain, taken = shadow._pool._new_slab, []

    def new(size):
        taken.append(size)
        return plain(size)

    def release(slabs):
        for slab in slabs:
            taken.remove(slab.numel())

    shadow._pool._new_slab, shadow._pool._release = new, release
    shadow.taken = taken
    monkeypatch.setattr(module, "system_memory", lambda: (HOST_SPARE + 10 * GRAIN - sum(taken), 2**40))
    return shadow


def test_what_fits_is_kept_ready_and_counts_as_free(host):
    assert host.reserve([4 * GRAIN, 4 * GRAIN])
    assert host.memory()[0] == 10 * GRAIN
    assert not host.reserve([4 * GRAIN] * 3)


def test_what_is_kept_in_other_sizes_makes_room(host):
    assert host.reserve([2 * GRAIN] * 4)
    assert host.reserve([9 * GRAIN])
    assert host.taken == [9 * GRAIN]


def test_an_allocation_of_another_size_takes_no_more_than_there_is(host):
    assert host.reserve([2 * GRAIN] * 4)
    owner = Owner()
    host.allocate(owner, 5 * GRAIN)
    assert sum(host.taken) <= 10 * GRAIN
    with pytest.raises(MemoryError, match=f"no {6 * GRAIN} bytes"):
        host.allocate(owner, 6 * GRAIN)


def test_memory_that_runs_out_half_way_is_no_reserve(host):
    def none_left(size):
        raise MemoryError

    host._pool._new_slab = none_left
    assert not host.reserve([GRAIN])
