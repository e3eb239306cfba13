"""What the next run does after a stop or a crash: last-known-good, what is set aside, what stays unloaded."""

import asyncio
import os
import shutil
import time

import pytest

from tests.rollout.conftest import (
    BUDGET,
    DEADLINE,
    TRANSFORMER,
    HeldFactory,
    flip_byte,
    noted_good,
    prove_good,
    quick_retries,
    reached,
)
from zwatch.api.health import health
from zwatch.deploy.sealing import write_seal
from zwatch.errors import FatalError, Rejection, RequestError, UsageError
from zwatch.rollout.lifecycle import VersionKey
from zwatch.rollout.state import StateFile


async def test_last_known_good_serves_after_a_restart_with_a_bad_link(services):
    first = await services().start()
    await first.until_serves("v1")
    prove_good(first)
    await noted_good(first, "v1")
    await first.stop()
    flip_byte(first.root / "v2" / TRANSFORMER)
    first.link("v2")
    second = await services().start()
    await second.until_serves("v1")
    fallback, rejected = list(second.supervisor.attempts)
    assert (fallback.key.version, fallback.fallback, fallback.state.name) == ("v1", True, "PROMOTED")
    assert (rejected.key.version, rejected.fallback, rejected.state.name) == ("v2", False, "REJECTED")
    assert second.supervisor.attempt("current") is rejected
    second.link("v1")
    await second.until(lambda: second.supervisor.wish("current") == second.engines.serving("current").key)


async def test_last_known_good_serves_after_a_restart_without_a_link(services):
    first = await services().start()
    await first.until_serves("v1")
    prove_good(first)
    await noted_good(first, "v1")
    await first.stop()
    os.unlink(first.root / "current")
    second = await services().start()
    await second.until_serves("v1")
    assert second.supervisor.seen.faults["current"].code == "missing"


@quick_retries
async def test_last_known_good_continues_loading_when_the_bad_wish_is_due_again(services):
    first = await services().start()
    await first.until_serves("v1")
    prove_good(first)
    await noted_good(first, "v1")
    await first.stop()
    first.link("v2")
    factory = HeldFactory(budget=10_000)  # too little for any version, until v2 was rejected
    release = factory.hold("build", "v1")
    second = await services(make_factory=lambda: factory).start()
    await reached(second, "build", "v1")
    (refusal,) = second.supervisor.records["current"].refusals.awaiting()
    tried = second.attempts()
    await second.until(lambda: refusal.due(time.monotonic()))
    await second.supervisor.look_now()
    assert second.attempts() == tried
    last, *before = second.supervisor.attempts
    assert (last.key.version, last.fallback, last.running) == ("v1", True, True)
    # A busy machine may take longer than the pause to begin with v1.
    assert {(one.key.version, one.fallback, one.running) for one in before} == {("v2", False, False)}
    factory.device.budget = BUDGET
    release.set()
    await second.until_serves("v2")
    assert ("v1", "PROMOTED", None) in second.attempts()


async def good_v1_without(services, harm, *, first_pause=3600.0):
    """Start a service whose link leads nowhere, and whose last-known-good version cannot be loaded."""
    good = await services().start()
    await good.until_serves("v1")
    prove_good(good)
    await noted_good(good, "v1")
    good.link("nowhere")
    await good.stop()
    harm(good.root)
    service = services()
    service.first_pause = first_pause
    await service.start()
    await service.until(lambda: service.attempts() and service.attempts()[-1][1] == "REJECTED")
    return service


async def test_last_known_good_is_tried_again_when_its_seal_is_back(services):
    service = await good_v1_without(services, lambda root: (root / "v1/BLAKE3SUMS").rename(root / "seal"))
    assert service.attempts()[-1] == ("v1", "REJECTED", "seal_missing")
    (service.root / "seal").rename(service.root / "v1/BLAKE3SUMS")
    await service.until_serves("v1")


async def test_last_known_good_is_tried_again_when_its_whole_directory_was_replaced(services):
    def replace_by_another(root):
        (root / "v1").rename(root / "kept")
        shutil.copytree(root / "kept", root / "v1")
        flip_byte(root / "v1" / TRANSFORMER)

    service = await good_v1_without(services, replace_by_another, first_pause=0.05)
    assert service.attempts()[-1] == ("v1", "REJECTED", "hash_mismatch")
    shutil.move(service.root / "v1", service.root.parent)
    (service.root / "kept").rename(service.root / "v1")
    await service.until_serves("v1")


async def test_what_no_link_asks_for_begins_at_zero_crashes_when_its_seal_is_back(services):
    service = await services().start()
    await service.until_serves("v1")
    service.link("nowhere")
    await service.supervisor.look_now()
    await service.crash()
    (service.root / "v1/BLAKE3SUMS").rename(service.root / "seal")
    second = await services().start()
    await second.until(lambda: ("v1", "REJECTED", "seal_missing") in second.attempts())
    (service.root / "seal").rename(service.root / "v1/BLAKE3SUMS")
    await second.until_serves("v1")
    await second.crash()
    third = await services().start()
    await third.until_serves("v1")


async def test_where_none_has_proved_itself_the_one_that_was_promoted_last_serves(services):
    first = await services().start()
    await first.until_serves("v1")
    await first.stop()
    flip_byte(first.root / "v2" / TRANSFORMER)
    first.link("v2")
    second = await services().start()
    await second.until_serves("v1")
    assert ("v2", "REJECTED", "hash_mismatch") in second.attempts()


async def test_the_previous_version_is_known_after_a_restart(services):
    first = await services().start()
    await first.until_serves("v1")
    first.link("v2")
    await first.until_serves("v2")
    await first.stop()
    second = await services().start()
    await second.until_serves("v2")
    assert second.supervisor.previous("current").version == "v1"


async def crash_while_trying(services, version):
    service = services()
    factory = HeldFactory()
    factory.hold("warm", version)
    service.make_factory = lambda: factory
    await service.start()
    await reached(service, "warm", version)
    await service.crash()


async def test_a_version_that_was_tried_at_two_crashes_is_set_aside_until_it_is_linked_again(services, models):
    good = await services().start()
    await good.until_serves("v1")
    prove_good(good)
    await noted_good(good, "v1")
    good.link("v2")
    await good.stop()
    await crash_while_trying(services, "v2")
    await crash_while_trying(services, "v2")
    service = await services().start()
    await service.until_serves("v1")
    assert service.supervisor.attempt("current").rejection.code == "set_aside"
    assert "v2" not in service.factory.built
    await service.stop()
    again = await services().start()
    await again.until_serves("v1")
    assert again.supervisor.attempt("current").rejection.code == "set_aside"
    again.link("v2")
    await again.until_serves("v2")


async def test_a_version_that_was_set_aside_is_tried_again_when_it_is_sealed_again(services, models):
    await crash_while_trying(services, "v1")
    await crash_while_trying(services, "v1")
    service = await services().start()
    await service.until_rejected("v1", "set_aside")
    (service.root / "v1/zwatch.json").write_text("{}")
    write_seal(service.root / "v1", "v1")
    await service.until_serves("v1")


async def crash_while_it_serves(services, version):
    service = await services().start()
    await service.until_serves(version)
    await service.crash()


async def test_a_link_made_again_to_what_serves_is_not_taken_for_one_made_after_the_crash(services):
    service = await services().start()
    await service.until_serves("v1")
    service.link("v1")
    await service.until_serves("v1")
    await service.supervisor.look_now()
    state = service.supervisor.state
    await service.until(
        lambda: state._links == state.saved.links() and (state._writing is None or state._writing.done())
    )
    await service.crash()
    await crash_while_it_serves(services, "v1")
    third = await services().start()
    await third.until_rejected("v1", "set_aside")


async def test_an_operator_relinks_what_was_set_aside_and_one_crash_does_not_set_it_aside_again(services):
    await crash_while_it_serves(services, "v1")
    await crash_while_it_serves(services, "v1")
    service = await services().start()
    await service.until_rejected("v1", "set_aside")
    service.link("v1")
    await service.until_serves("v1")
    await service.crash()
    await crash_while_it_serves(services, "v1")


async def test_what_was_set_aside_is_tried_again_when_it_is_sealed_again_with_the_same_content(services):
    await crash_while_it_serves(services, "v1")
    await crash_while_it_serves(services, "v1")
    service = await services().start()
    await service.until_rejected("v1", "set_aside")
    write_seal(service.root / "v1", "v1")
    await service.until_serves("v1")


@pytest.mark.parametrize("first_pause", [3600.0])
async def test_a_new_link_of_one_alias_ends_the_setting_aside_for_all(services, models):
    (models / "canary").symlink_to("v1")
    both = {"aliases": ("current", "canary")}
    for _ in range(2):
        service = await services(**both).start()
        await service.until(lambda service=service: service.serves("canary") == service.serves() == "v1")
        await service.crash()
    fails = [Rejection("out_of_memory", "memory was short at the first try")]

    class FailsOnce(HeldFactory):
        def build(self, directory, planned, control):
            if fails:
                raise fails.pop()
            return super().build(directory, planned, control)

    service = await services(make_factory=FailsOnce, **both).start()
    await service.until(lambda: service.attempts() == [("v1", "REJECTED", "set_aside")] * 2)
    service.link("v1")
    await service.until(lambda: service.serves("canary") == service.serves() == "v1")
    assert not fails
    tries = [(one.alias, one.state.name) for one in reversed(service.supervisor.attempts)][2:]
    assert tries == [("current", "REJECTED"), ("canary", "PROMOTED"), ("current", "PROMOTED")]


async def test_with_nothing_else_good_a_proven_version_is_tried_after_a_pause_and_not_called_rejected(
    services, monkeypatch
):
    monkeypatch.setattr("zwatch.rollout.crashes.FIRST_PAUSE", 1.0)
    good = await services().start()
    await good.until_serves("v1")
    prove_good(good)
    await noted_good(good, "v1")
    await good.crash()
    await crash_while_it_serves(services, "v1")
    await crash_while_it_serves(services, "v1")
    service = await services().start()
    await service.until(service.attempts)
    assert service.attempts()[-1] == ("v1", "REJECTED", "set_aside")
    assert (
        "If nothing else can serve, it is tried 1 s after the start" in service.supervisor.attempts[-1].rejection.reason
    )
    await service.until_serves("v1")
    assert service.supervisor.attempt("current").state.name == "PROMOTED"
    assert health(service.supervisor, service.engines) == ("ok", [])


# --- what fails for good


async def test_a_library_that_cannot_be_imported_is_tried_once_and_is_no_crash(services):
    calls = []

    def fail():
        calls.append(1)
        raise FatalError("torch cannot be imported: ImportError: no such file")

    service = await services(make_factory=fail).start()
    waiting = asyncio.create_task(service.operator.load("current"))
    await asyncio.wait_for(service.supervisor.has_failed.wait(), DEADLINE)
    with pytest.raises(RequestError, match=r"the service stops \(torch cannot be imported"):
        await asyncio.wait_for(waiting, DEADLINE)
    for _ in range(3):
        await service.supervisor.look_now()
    assert len(calls) == 1
    assert service.attempts() == [("v1", "ABANDONED", None)]
    await service.stop()
    again = await services().start()
    await again.until_serves("v1")
    assert again.supervisor.state.saved.crashes == []


@quick_retries
async def test_memory_that_is_short_when_the_device_is_opened_heals(services):
    calls = []

    def make():
        calls.append(1)
        if len(calls) < 3:
            raise Rejection("out_of_memory", "--device cuda: memory ran out when it was opened")
        return HeldFactory()

    service = await services(make_factory=make).start()
    await service.until_serves("v1")
    assert service.supervisor.failure is None
    assert len(calls) == 3


async def test_a_load_that_loses_the_device_stops_the_service_and_counts_as_a_crash(services):
    factory = HeldFactory()
    factory.device.lost = lambda: "CUDA error: device-side assert triggered"

    def warm(engine, control):
        raise Rejection("device_error", "CUDA error: device-side assert triggered")

    factory.warm = warm
    for _ in range(2):
        service = await services(make_factory=lambda: factory).start()
        await asyncio.wait_for(service.supervisor.has_failed.wait(), DEADLINE)
        await service.until(lambda service=service: service.supervisor.runner.running is None)
        await service.stop()
    last = await services().start()
    await last.until_rejected("v1", "set_aside")


async def test_one_crash_sets_nothing_aside(services, models):
    await crash_while_trying(services, "v1")
    service = await services().start()
    await service.until_serves("v1")


async def test_a_crash_does_not_count_for_an_unloaded_version(services):
    for _ in range(2):
        service = await services().start()
        outcome = await asyncio.wait_for(service.operator.load("current"), DEADLINE)
        assert outcome.serves
        await asyncio.wait_for(service.operator.unload(), DEADLINE)
        await service.crash()
    last = await services().start()
    outcome = await asyncio.wait_for(last.operator.load("current"), DEADLINE)
    assert (outcome.serves, outcome.version) == (True, "v1")


async def test_a_load_that_is_requested_before_the_saved_state_is_read_ends_the_unload_in_it(services):
    service = await services().start()
    await service.until_serves("v1")
    await asyncio.wait_for(service.operator.unload(), DEADLINE)
    await service.crash()
    service = services()
    service.wire()  # HTTP answers from here on
    loading = asyncio.create_task(service.operator.load("current"))
    await asyncio.sleep(0)
    await service.supervisor.start()
    service.run()
    assert (await asyncio.wait_for(loading, DEADLINE)).serves
    assert service.supervisor.state.saved.alias("current").unloaded is None


async def test_a_second_service_cannot_use_the_state_directory(service):
    with pytest.raises(UsageError):
        StateFile(service.state)


async def test_what_serves_is_saved_with_its_key(service):
    key = service.engines.serving("current").key
    await service.until(lambda: b'"serving": {\n    "version": "v1"' in (service.state / "state.json").read_bytes())
    assert isinstance(key, VersionKey)
    assert key.digest.encode() in (service.state / "state.json").read_bytes()
