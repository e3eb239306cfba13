"""Whichever allocation of a deploy fails, of device memory or of pinned host memory, once or from then on: what served serves
on, the memory returns to its level, and the same deploy works afterwards by itself.

An allocation fails genuinely: it is asked for more bytes than there are. On a GPU the same tests run with CUDA's allocators.
`make chaos` (ZWATCH_LONG=1) fails every allocation, else a sample of them fails.
"""

import asyncio

import pytest

from tests.chaos.driver import LONG
from tests.rollout.conftest import BUDGET, DEADLINE, HeldFactory, make_v3, picture
from zwatch.rollout.lifecycle import LoadWay
from zwatch.shadow.host import plain
from zwatch.shadow.pool import Pool

IMPOSSIBLE = 2**56
"""More bytes than any machine has."""


class Failing:
    """Makes allocations of one pool fail: those numbered from `first` on, `length` of them."""

    def __init__(self, pool):
        self.count, self.failed, self.first, self.length = 0, 0, 0, 0
        self._genuine = pool._new_slab
        pool._new_slab = self._new

    def _new(self, size):
        self.count += 1
        if self.first <= self.count < self.first + self.length:
            self.failed += 1
            return self._genuine(IMPOSSIBLE)
        return self._genuine(size)

    def at(self, first, length):
        self.count, self.failed, self.first, self.length = 0, 0, first, length

    def end(self):
        self.length = 0


def kinds():
    """CPU, and CUDA where there is a GPU."""
    return ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture
def first_pause():
    return 0.05


def pool_of(device):
    """The pool of device memory."""
    return device._pool


async def tried_again(service, version):
    """Wait until a rejected version serves: nobody links it again."""
    await service.until_serves(version)
    await service.until(lambda: len(service.states()) <= 2)


def resident_bytes(service):
    return sum(resident.engine.nbytes for resident in service.engines.residents)


async def deployed_while_memory_fails(service, failing, version, before, first, length):
    """Link a version while allocations fail; return whether one did."""
    old, device = service.serves(), service.factory.device
    device.give_room()  # the pool has nothing left of the load before: this one has to allocate
    attempts = len(service.attempts())
    failing.at(first, length)
    service.link(version)
    await service.until(lambda: service.serves() == version or len(service.attempts()) > attempts + 1)
    await service.until(lambda: service.serves() == version or service.attempts()[0][1] == "REJECTED")
    if service.serves() == old:
        with service.engines.lease("current") as lease:
            assert (picture(lease) == before[old]).all(), "another picture while the next version fails"
    failing.end()
    await tried_again(service, version)
    codes = {code for _, _, code in service.attempts()[: len(service.attempts()) - attempts]}
    assert codes <= {None, "out_of_memory", "insufficient_memory"}, codes
    with service.engines.lease("current") as lease:
        assert lease.key.version == version
        assert (picture(lease) == before[version]).all()
    return failing.failed > 0


@pytest.fixture
async def pooled(services, request, models):
    """A service that has served v1, v2 and v3 from a pool, and what each draws."""
    kind = request.param
    make_v3(models)

    def make_factory():
        return HeldFactory(kind, budget=BUDGET, pool=Pool(plain) if kind == "cpu" else None)

    service = await services(make_factory=make_factory).start()
    before = {}
    for version in ("v1", "v2", "v3", "v1"):
        service.link(version)
        await tried_again(service, version)
        with service.engines.lease("current") as lease:
            before[version] = picture(lease)
    return service, before


@pytest.mark.parametrize("pooled", kinds(), indirect=True)
@pytest.mark.parametrize("length", [1, 10**9], ids=["once", "for-ever"])
async def test_whichever_device_allocation_fails_the_old_version_serves_and_the_same_deploy_works(pooled, length):
    service, before = pooled
    failing = Failing(pool_of(service.factory.device))
    number, level = 0, service.factory.device.weights_bytes
    while True:
        number += 1
        following = f"v{int(service.serves()[1]) % 3 + 1}"
        if not await deployed_while_memory_fails(service, failing, following, before, number, length):
            break
        await service.until(lambda: service.factory.device.weights_bytes == level)
    assert number > 1, "nothing was allocated: the test tests nothing"


@pytest.mark.parametrize("pooled", kinds(), indirect=True)
@pytest.mark.parametrize("length", [1, 10**9], ids=["once", "for-ever"])
async def test_whichever_host_allocation_of_an_exchange_fails_the_old_version_serves(pooled, length):
    service, before = pooled
    device = service.factory.device
    await service.operator.unload()  # only one of them is to be resident
    await asyncio.wait_for(service.operator.load("current"), DEADLINE)
    await service.until_serves("v1")
    await service.until(lambda: not service.supervisor.runner.preparation.is_running)
    device.give_room()
    service.factory.leave_no_room()
    failing = Failing(device.host._pool)
    number, seen = 0, False
    while number < (12 if LONG else 6):
        number += 1
        device.host._pool.trim()
        following = f"v{int(service.serves()[1]) % 3 + 1}"
        if not await deployed_while_memory_fails(service, failing, following, before, number, length):
            break
        seen = True
    assert seen, "no host memory was allocated: the test tests nothing"
    assert LoadWay.HOST in {attempt.way for attempt in service.supervisor.attempts}
