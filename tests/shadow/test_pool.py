"""Pool: returned slabs are used again, and nothing else is."""

import gc

import pytest
import torch

from zwatch.shadow.pool import GRAIN, Pool

MB = 2**20


def new_slab(size):
    return torch.empty(size, dtype=torch.uint8)


@pytest.fixture
def allocated():
    """The sizes of the slabs that the pool has allocated."""
    return []


@pytest.fixture
def pool(allocated):
    """Slabs of host memory: the pool's rules do not depend on where they are."""
    return Pool(lambda size: allocated.append(size) or new_slab(size))


def addresses(slabs):
    return {slab.data_ptr() for slab in slabs}


def test_a_slab_is_at_least_as_large_as_asked_and_whole_pages(pool):
    for size in (0, 1, GRAIN, GRAIN + 1):
        slab = pool.take(size)
        assert slab.numel() >= size
        assert slab.numel() % GRAIN == 0
        assert slab.dtype == torch.uint8


def test_a_slab_that_is_given_back_is_free_and_taken_again(pool):
    slab = pool.take(10 * MB)
    assert pool.free == 0
    pool.give_back(slab)
    assert pool.free == 10 * MB
    assert pool.take(10 * MB) is slab
    assert pool.free == 0


def test_two_holders_never_get_the_same_slab(pool):
    first, second = pool.take(4 * MB), pool.take(4 * MB)
    assert len(addresses([first, second])) == 2
    pool.give_back(first)
    third, fourth = pool.take(4 * MB), pool.take(4 * MB)
    assert third is first
    assert len(addresses([second, third, fourth])) == 3


def test_of_several_free_slabs_the_one_that_fits_best_is_taken(pool):
    sizes = [20 * MB, 16 * MB, 18 * MB]
    for slab in [pool.take(size) for size in sizes]:
        pool.give_back(slab)
    assert pool.take(16 * MB).numel() == 16 * MB
    assert pool.take(17 * MB).numel() == 18 * MB


def test_a_small_buffer_does_not_take_a_large_slab(pool):
    large = pool.take(100 * MB)
    pool.give_back(large)
    assert pool.take(10 * MB) is not large
    assert pool.free == 100 * MB


def test_after_a_reserve_the_same_sizes_need_no_allocation(pool, allocated):
    sizes = [8 * MB, 8 * MB, 3 * MB]
    assert pool.lacks(sizes) == 20 * MB
    pool.reserve(sizes)
    assert pool.lacks(sizes) == 0
    assert pool.free == 20 * MB
    allocated.clear()
    assert [pool.take(size).numel() for size in sizes] == [8 * MB, 8 * MB, 4 * MB]
    assert allocated == []


def test_computing_what_a_reserve_lacks_allocates_nothing(pool):
    pool.reserve([8 * MB])
    assert pool.lacks([8 * MB, 8 * MB]) == 8 * MB
    assert pool.free == 8 * MB


def test_reserving_twice_allocates_once(pool):
    pool.reserve([8 * MB])
    pool.reserve([8 * MB])
    assert pool.free == 8 * MB


def test_releasing_free_slabs_leaves_those_in_use(pool):
    held = pool.take(4 * MB)
    pool.reserve([6 * MB])
    held.fill_(7)
    assert pool.trim() == 6 * MB
    assert pool.free == 0
    assert bool((held == 7).all())


def test_where_memory_runs_out_free_slabs_are_released_first():
    limit = 7 * MB

    def short(size):
        if size + pool.free > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return new_slab(size)

    pool = Pool(short)
    pool.reserve([6 * MB])
    assert pool.take(2 * MB).numel() == 2 * MB
    assert pool.free == 0
    with pytest.raises(torch.OutOfMemoryError):
        pool.take(8 * MB)


def test_a_reserve_that_fails_half_way_keeps_what_it_allocated():
    made = []

    def second_fails(size):
        made.append(size)
        if len(made) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return new_slab(size)

    pool = Pool(second_fails)
    with pytest.raises(torch.OutOfMemoryError):
        pool.reserve([4 * MB, 2 * MB])
    assert pool.free == 4 * MB


def test_a_slab_may_come_back_in_the_middle_of_a_take():
    """A garbage collection can run a finalizer anywhere, also while the pool holds its lock."""
    returning = []

    def collected(size):
        if returning:
            pool.give_back(returning.pop())
            gc.collect()
        return new_slab(size)

    pool = Pool(collected)
    returning.append(pool.take(2 * MB))
    pool.take(4 * MB)
    assert pool.free == 2 * MB
