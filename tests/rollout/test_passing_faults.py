"""Errors that pass, seen from the service: a good version is deployed in the end, by nobody's hand, and every answer says what
happened."""

import asyncio
import errno
import os
import resource
import time

import pytest

from tests.deploy.faulty import change_inodes, free_descriptors
from tests.rollout.conftest import DEADLINE, TRANSFORMER, flip_byte, quick_retries, reached
from zwatch.rollout import operator


def failing(monkeypatch, call, name, code=errno.EIO):
    """Let a function of `os` fail for every path that ends in this name; return what ends that."""
    genuine, active = getattr(os, call), [True]

    def fail(path, *args, **keywords):
        if active and isinstance(path, str) and path.endswith(name):
            raise OSError(code, os.strerror(code), path)
        return genuine(path, *args, **keywords)

    monkeypatch.setattr(os, call, fail)
    return active.clear


@quick_retries
@pytest.mark.parametrize("count", [1, 3])
async def test_with_few_free_descriptors_for_a_moment_a_flip_is_deployed_in_the_end(service, count):
    before = len(service.attempts())
    service.link("v2")
    with free_descriptors(count):
        for _ in range(3):
            service.supervisor.ring()
            await asyncio.sleep(0.1)
    await service.until_serves("v2")
    codes = {code for _, _, code in service.attempts()[:-before] if code is not None}
    assert codes <= {"io_error"}
    assert service.supervisor.seen.faults == {}


@quick_retries
@pytest.mark.parametrize("name", ["BLAKE3SUMS", TRANSFORMER.rpartition("/")[2]])
@pytest.mark.parametrize("call", ["stat", "open"])
async def test_a_file_that_cannot_be_read_for_a_moment_is_not_called_missing_or_changed(
    service, monkeypatch, call, name
):
    end = failing(monkeypatch, call, name)
    service.link("v2")
    await service.until(lambda: service.supervisor.seen.faults or len(service.attempts()) > 2)
    end()
    await service.until_serves("v2")
    assert {code for _, _, code in service.attempts()} <= {None, "io_error"}


@pytest.mark.parametrize("call", ["stat", "readlink"])
async def test_a_link_that_cannot_be_read_for_a_moment_abandons_no_load(service, monkeypatch, call):
    held = service.factory.hold("build", "v2")
    service.link("v2")
    await reached(service, "build", "v2")
    end = failing(monkeypatch, call, "current")
    await service.until(lambda: "current" in service.supervisor.seen.faults)
    assert service.supervisor.seen.faults["current"].may_pass
    await service.supervisor.look_now()
    assert service.attempts()[0] == ("v2", "LOADING", None)
    end()
    held.set()
    await service.until_serves("v2")


# --- what a call answers


@pytest.mark.parametrize("call", ["stat", "readlink"])
async def test_the_outcome_of_a_link_that_cannot_be_read_for_a_moment_is_that_it_serves(service, monkeypatch, call):
    stamp = service.point("v2")
    end = failing(monkeypatch, call, "current")
    waiting = asyncio.create_task(service.operator.outcome("current", "v2", stamp))
    await service.until(lambda: "current" in service.supervisor.seen.faults)
    end()
    outcome = await asyncio.wait_for(waiting, DEADLINE)
    assert (outcome.serves, outcome.version) == (True, "v2")


async def test_the_outcome_of_a_link_that_cannot_be_read_at_all_says_why(service, monkeypatch):
    monkeypatch.setattr(operator, "PATIENCE", 0.2)
    end = failing(monkeypatch, "open", "current")  # before: a look may come at any time
    stamp = service.point("v2")
    outcome = await asyncio.wait_for(service.operator.outcome("current", "v2", stamp), DEADLINE)
    end()
    assert not outcome.serves
    assert outcome.message.startswith("v2 is linked, but not decided yet: current -> v2")
    assert "Input/output error" in outcome.message


async def test_a_load_waits_for_a_link_that_cannot_be_read_for_a_moment(service, monkeypatch):
    service.link("v2")
    await service.until_serves("v2")
    end = failing(monkeypatch, "stat", "current")
    await service.until(lambda: "current" in service.supervisor.seen.faults)
    outcome = await asyncio.wait_for(service.operator.load("current"), DEADLINE)
    end()
    assert (outcome.serves, outcome.version) == (True, "v2")


async def test_the_outcome_is_not_that_of_another_link_made_within_the_same_tick(service):
    stamp = service.point("v2")
    service.link("v1")
    outcome = await asyncio.wait_for(service.operator.outcome("current", "v2", stamp), DEADLINE)
    assert not outcome.serves
    assert "superseded" in outcome.message


async def test_the_outcome_of_a_deploy_to_a_link_that_led_through_another_is_its_own(service):
    (service.root / "stable").symlink_to("v1")
    service.link("stable")
    await service.supervisor.look_now()
    outcome = await asyncio.wait_for(service.operator.outcome("current", "v2", service.point("v2")), DEADLINE)
    assert (outcome.serves, outcome.message) == (True, "v2 is serving")
    assert (os.readlink(service.root / "current"), os.readlink(service.root / "stable")) == ("v2", "v1")


# --- unloading


@pytest.mark.parametrize("text", ["v1", "v2"])
async def test_a_link_of_the_chain_that_is_made_again_ends_an_unload(service, text):
    (service.root / "stable").symlink_to("v1")
    service.link("stable")
    await service.supervisor.look_now()
    await asyncio.wait_for(service.operator.unload(), DEADLINE)
    service.link(text, "stable")
    await service.until_serves(text)


@pytest.mark.parametrize("hours", [-1, 1])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_the_newer_of_a_link_and_an_unload_wins_whatever_the_clock_of_the_file_system(
    service, monkeypatch, hours, when
):
    genuine = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: genuine() + hours * 3600 * 10**9)
    if when == "before":
        service.point("v2")
        asked = await service.operator.moment_of_call()
        assert service.operator.moment() == asked
        assert await asyncio.wait_for(service.operator.unload(asked), DEADLINE)
        await service.supervisor.look_now()
        assert service.supervisor.is_unloaded("current")
    else:
        asked = await service.operator.moment_of_call()
        service.link("v2")
        await service.supervisor.look_now()
        assert not await asyncio.wait_for(service.operator.unload(asked), DEADLINE)


async def test_a_link_that_cannot_be_read_or_is_missing_is_no_newer_wish_than_an_unload(service, monkeypatch):
    asked = service.operator.moment()
    end = failing(monkeypatch, "stat", "current")
    await service.until(lambda: "current" in service.supervisor.seen.faults)
    assert service.operator.moment() == asked
    end()
    os.rename(service.root / "current", service.root / "aside")
    await service.until(lambda: "current" in service.supervisor.seen.faults)
    assert service.operator.moment() == asked


# --- inode numbers that change at every look


async def test_with_changing_inodes_a_rejected_version_is_tried_once_and_an_unload_lasts(service, monkeypatch):
    change_inodes(monkeypatch)
    flip_byte(service.root / "v2" / TRANSFORMER)
    service.link("v2")
    await service.until_rejected("v2", "hash_mismatch")
    count = len(service.attempts())
    end = time.monotonic() + 1.0  # files settle within 0.25 s
    while time.monotonic() < end:
        await service.supervisor.look_now()
    assert len(service.attempts()) == count
    assert await asyncio.wait_for(service.operator.unload(await service.operator.moment_of_call()), DEADLINE)
    for _ in range(4):
        await service.supervisor.look_now()
    assert (service.supervisor.is_unloaded("current"), service.states()) == (True, {})


def test_the_limit_of_descriptors_is_as_it_was():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with free_descriptors(3):
        pass
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)
