"""Lifecycles to survive, with real files, real looks and real engines."""

import asyncio
import os
import shutil
import threading
import time

import numpy as np
import pytest

from tests.rollout.conftest import DEADLINE, HeldFactory
from zwatch.deploy.seal import SEAL_NAME, write_seal
from zwatch.engine.pipeline import GenerationParameters
from zwatch.errors import Rejection
from zwatch.rollout import refusals as refusals_module
from zwatch.rollout import supervisor as supervisor_module
from zwatch.rollout.lifecycle import EngineState, VersionKey
from zwatch.rollout.state import StateFile

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
WANTED = GenerationParameters("a cat", "", 64, 64, 1, 0.0, (1,))


def flip_byte(path, position=-1):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def picture(lease):
    return np.asarray(lease.engine.generate(WANTED).images[0])


async def reached(service, stage, version):
    await service.until(lambda: service.supervisor.factory and (stage, version) in service.factory.reached)


def prove_good(service, alias="current"):
    """Make what serves last-known-good, and have it noted."""
    with service.engines.lease(alias) as lease:
        lease.count_images(supervisor_module.GOOD_IMAGES)


async def noted_good(service, version):
    await service.until(
        lambda: [key.version for key in service.supervisor._memory.fallbacks("current")][:1] == [version]
    )


def make_v3(models):
    shutil.copytree(models / "v2", models / "v3")
    write_seal(models / "v3", "v3")


@pytest.fixture
def quick_retries(monkeypatch):
    monkeypatch.setattr(refusals_module, "BACKOFF_FIRST", 0.05)


# --- a flip


async def test_what_the_link_points_to_serves_after_the_start(service):
    assert service.attempts() == [("v1", "PROMOTED", None)]
    assert service.engines() == {"v1": EngineState.SERVING}


async def test_a_flip_deploys_and_keeps_the_previous_one_warm(service):
    service.link("v2")
    await service.until_serves("v2")
    assert service.engines() == {"v1": EngineState.WARM, "v2": EngineState.SERVING}
    assert service.supervisor.previous("current").version == "v1"
    attempt = service.supervisor.attempt("current")
    assert (attempt.way, sorted(attempt.control.shared)) == ("device", ["text_encoder", "vae"])


async def test_a_flip_is_found_without_a_doorbell(service):
    os.unlink(service.root / "current")
    (service.root / "current").symlink_to("v2")
    await service.until_serves("v2")


async def test_a_flip_to_a_warm_version_promotes_it_without_reading(service, monkeypatch):
    service.link("v2")
    await service.until_serves("v2")
    shutil.rmtree(service.root / "v1/transformer")
    fills = []
    monkeypatch.setattr(service.factory.device.reader, "fill", lambda *arguments: fills.append(arguments))
    service.link("v1")
    await service.until_serves("v1")
    attempt = service.supervisor.attempt("current")
    assert (attempt.way, attempt.control, fills) == ("resident", None, [])
    assert service.engines() == {"v1": EngineState.SERVING, "v2": EngineState.WARM}


async def test_a_request_under_way_keeps_its_engine_and_finishes_on_it(service):
    lease = service.engines.lease("current")
    before = picture(lease)
    service.link("v2")
    await service.until_serves("v2")
    assert service.engines()["v1"] is EngineState.DRAINING
    assert np.array_equal(picture(lease), before)
    with service.engines.lease("current") as new:
        assert new.key.version == "v2"
        assert not np.array_equal(picture(new), before)
    lease.release()
    await service.until(lambda: service.engines()["v1"] is EngineState.WARM)


async def test_only_one_previous_version_is_kept(service):
    make_v3(service.root)
    for version in ("v2", "v3"):
        service.link(version)
        await service.until_serves(version)
    assert service.engines() == {"v2": EngineState.WARM, "v3": EngineState.SERVING}


async def test_unaspire_then_immediately_reaspire(service):
    """v1 -> v2 -> v1 while v2 loads: v2 is abandoned, v1 has served all the time and is not loaded again."""
    resident = service.engines.serving("current")
    service.factory.hold("build", "v2")
    service.link("v2")
    await reached(service, "build", "v2")
    service.link("v1")
    await service.until(lambda: service.attempts() == [("v2", "ABANDONED", None), ("v1", "PROMOTED", None)])
    await service.until_serves("v1")
    assert service.engines.serving("current") is resident
    assert service.engines() == {"v1": EngineState.SERVING}
    assert service.factory.built == ["v1"]


@pytest.mark.parametrize("stage", ["build", "warm"])
async def test_load_after_cancelled_load(service, stage):
    """v2 is abandoned for v3, and then loads all the same."""
    make_v3(service.root)
    service.factory.hold(stage, "v2")
    service.link("v2")
    await reached(service, stage, "v2")
    service.link("v3")
    await service.until_serves("v3")
    service.factory.holding.clear()
    service.link("v2")
    await service.until_serves("v2")
    assert service.attempts() == [
        ("v2", "PROMOTED", None), ("v3", "PROMOTED", None), ("v2", "ABANDONED", None), ("v1", "PROMOTED", None),
    ]  # fmt: skip


async def test_the_last_of_many_flips_serves(service):
    make_v3(service.root)
    for number in range(20):
        service.link(f"v{1 + number % 3}")
        await asyncio.sleep(0)
    service.link("v3")
    await service.until_serves("v3")


@pytest.mark.parametrize("stage", ["build", "warm"])
async def test_an_abandoned_load_gives_its_memory_back(services, stage):
    service = await services(make_factory=lambda: HeldFactory(budget=2**26)).start()
    await service.until_serves("v1")
    free = service.factory.device.memory()[0]
    service.factory.hold(stage, "v2")
    service.link("v2")
    await reached(service, stage, "v2")
    service.link("v1")
    await service.until(lambda: service.attempts()[0] == ("v2", "ABANDONED", None))
    await service.until(lambda: service.factory.device.memory()[0] == free)


# --- what is wrong with a version


async def test_a_bad_version_changes_nothing_that_serves(service):
    flip_byte(service.root / "v2" / TRANSFORMER)
    service.link("v2")
    await service.until_rejected("v2", "hash_mismatch")
    assert service.serves() == "v1"
    assert TRANSFORMER in service.supervisor.attempt("current").rejection.reason
    with service.engines.lease("current") as lease:
        assert picture(lease).shape == (64, 64, 3)


async def test_resources_released_if_load_fails(services):
    service = await services(make_factory=lambda: HeldFactory(budget=2**26)).start()
    await service.until_serves("v1")
    free = service.factory.device.memory()[0]
    flip_byte(service.root / "v2" / TRANSFORMER)
    service.link("v2")
    await service.until_rejected("v2", "hash_mismatch")
    await service.until(lambda: service.supervisor.settled_once)
    assert service.factory.device.memory()[0] == free
    assert service.engines() == {"v1": EngineState.SERVING}


@pytest.mark.parametrize(
    "harm",
    [
        lambda root: os.unlink(root / "current"),
        lambda root: [os.unlink(root / "current"), os.symlink("nowhere", root / "current")],
        lambda root: [os.unlink(root / "current"), os.symlink("/etc", root / "current")],
        lambda root: [os.unlink(root / "current"), os.symlink("current", root / "current")],
    ],
    ids=["missing", "dangling", "outside", "loop"],
)
async def test_a_link_with_a_fault_changes_nothing_but_the_status(service, harm):
    harm(service.root)
    await service.until(lambda: "current" in service.supervisor.seen.faults)
    assert service.serves() == "v1"
    assert service.attempts() == [("v1", "PROMOTED", None)]
    service.link("v2")
    await service.until_serves("v2")
    assert service.supervisor.seen.faults == {}


async def test_one_flip_is_one_try(service):
    flip_byte(service.root / "v2" / TRANSFORMER)
    service.link("v2")
    await service.until_rejected("v2", "hash_mismatch")
    for _ in range(4):
        await service.supervisor.look_now()
    assert service.attempts() == [("v2", "REJECTED", "hash_mismatch"), ("v1", "PROMOTED", None)]
    service.link("v2")
    await service.until(lambda: len(service.attempts()) == 3)


async def test_a_rejected_version_deploys_once_its_files_are_mended(service):
    good = (service.root / "v2" / TRANSFORMER).read_bytes()
    flip_byte(service.root / "v2" / TRANSFORMER)
    service.link("v2")
    await service.until_rejected("v2", "hash_mismatch")
    (service.root / "v2" / TRANSFORMER).write_bytes(good)
    await service.until_serves("v2")


async def test_a_version_that_arrives_seal_first_deploys_when_it_is_complete(service):
    files = [path.relative_to(service.root / "v2") for path in (service.root / "v2").rglob("*") if path.is_file()]
    os.rename(service.root / "v2", service.root / ".whole")
    (service.root / "v2").mkdir()
    shutil.copy(service.root / ".whole" / SEAL_NAME, service.root / "v2")
    service.link("v2")
    await service.until_rejected("v2", "file_missing")
    for path in sorted(files):
        (service.root / "v2" / path).parent.mkdir(exist_ok=True)
        shutil.copy(service.root / ".whole" / path, service.root / "v2" / path)
        await service.supervisor.look_now()
    await service.until_serves("v2")
    assert {code for _, state, code in service.attempts() if state == "REJECTED"} <= {"file_missing", "size_mismatch"}


async def test_a_version_without_a_seal_deploys_when_it_is_sealed(service):
    os.unlink(service.root / "v2" / SEAL_NAME)
    service.link("v2")
    await service.until_rejected("v2", "seal_missing")
    write_seal(service.root / "v2", "v2")
    await service.until_serves("v2")


async def test_sealing_the_serving_version_anew_deploys_its_new_content(service):
    before = service.engines.serving("current").key
    (service.root / "v1/zwatch.json").write_text('{"default_size": 128}')
    write_seal(service.root / "v1", "v1")
    await service.until(lambda: service.engines.serving("current").key != before)
    after = service.engines.serving("current")
    assert (after.key.version, after.engine.default_size) == ("v1", 128)
    assert after.key.digest == service.supervisor.wish("current").digest


async def test_want_of_memory_is_tried_again_until_there_is_enough(services, quick_retries):
    service = await services(make_factory=lambda: HeldFactory(budget=10_000)).start()
    await service.until(lambda: service.attempts().count(("v1", "REJECTED", "insufficient_memory")) >= 2)
    service.factory.device.budget = 2**26
    await service.until_serves("v1")


async def test_a_file_that_changes_ends_the_pause(services, monkeypatch):
    monkeypatch.setattr(refusals_module, "BACKOFF_FIRST", 60.0)
    service = await services().start()
    await service.until_serves("v1")
    unreadable = threading.Event()
    plan = service.factory.plan

    def refusing(directory, digest):
        if not unreadable.is_set():
            raise Rejection("io_error", f"{TRANSFORMER}: Permission denied")
        return plan(directory, digest)

    monkeypatch.setattr(service.factory, "plan", refusing)
    service.link("v2")
    await service.until_rejected("v2", "io_error")
    unreadable.set()
    (service.root / "v2" / TRANSFORMER).chmod(0o640)
    await service.until_serves("v2")


async def test_a_stray_that_is_no_wish_is_logged_once(service, caplog):
    (service.root / "v1" / "v9").symlink_to("v9")
    await service.until(lambda: service.supervisor.seen.strays)
    await service.supervisor.look_now()
    assert caplog.text.count("v1/v9 -> v9 was not followed: no version of that name") == 1


async def test_the_pause_between_tries_doubles(services, quick_retries):
    service = await services(make_factory=lambda: HeldFactory(budget=10_000)).start()
    await service.until(lambda: [state for _, state, _ in service.attempts()].count("REJECTED") >= 3)
    (refusal,) = service.supervisor._states["current"].refusals.awaiting()
    assert refusal.tries >= 3


async def test_a_device_that_cannot_be_opened_rejects_and_is_tried_again(services, quick_retries):
    broken = threading.Event()
    tries = []

    def make_factory():
        tries.append(1)
        if not broken.is_set():
            raise RuntimeError("No CUDA GPUs are available")
        return HeldFactory()

    service = await services(make_factory=make_factory).start()
    await service.until(lambda: service.attempts()[-1:] and service.attempts()[-1][1] == "REJECTED")
    assert "No CUDA GPUs are available" in service.supervisor.attempts[-1].rejection.reason
    broken.set()
    await service.until_serves("v1")
    assert all(state != "LOADING" for _, state, _ in service.attempts())


async def test_a_warm_version_makes_room_for_a_new_one(services):
    service = await services(make_factory=lambda: HeldFactory(budget=2**26)).start()
    await service.until_serves("v1")
    make_v3(service.root)
    service.link("v2")
    await service.until_serves("v2")
    device = service.factory.device
    device.budget = 2**26 - device.memory()[0]
    service.link("v3")
    await service.until_serves("v3")
    assert service.engines() == {"v2": EngineState.WARM, "v3": EngineState.SERVING}


async def test_a_version_that_a_request_holds_by_its_name_is_not_evicted(services):
    service = await services(make_factory=lambda: HeldFactory(budget=2**26)).start()
    await service.until_serves("v1")
    make_v3(service.root)
    service.link("v2")
    await service.until_serves("v2")
    await service.until(lambda: service.engines()["v1"] is EngineState.WARM)
    lease = service.engines.lease("v1")
    device = service.factory.device
    device.budget = 2**26 - device.memory()[0]
    service.link("v3")
    await service.until_serves("v3")
    assert service.engines() == {"v1": EngineState.WARM, "v3": EngineState.SERVING}
    assert service.supervisor.attempts[0].way == "host"
    assert picture(lease).shape == (64, 64, 3)


# --- restarts and crashes


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


async def test_last_known_good_goes_on_loading_when_the_bad_wish_is_due_again(services, quick_retries):
    first = await services().start()
    await first.until_serves("v1")
    prove_good(first)
    await noted_good(first, "v1")
    await first.stop()
    first.link("v2")
    factory = HeldFactory(budget=10_000)  # too little for anything, until v2 was rejected
    release = factory.hold("build", "v1")
    second = await services(make_factory=lambda: factory).start()
    await reached(second, "build", "v1")
    (refusal,) = second.supervisor._states["current"].refusals.awaiting()
    await second.until(lambda: refusal.due(time.monotonic()))
    await second.supervisor.look_now()
    assert [(attempt.key.version, attempt.fallback, attempt.running) for attempt in second.supervisor.attempts] == [
        ("v1", True, True), ("v2", False, False),
    ]  # fmt: skip
    factory.device.budget = 2**26
    release.set()
    await second.until_serves("v2")
    assert ("v1", "PROMOTED", None) in second.attempts()


async def test_a_version_that_never_proved_itself_is_no_fallback(services):
    first = await services().start()
    await first.until_serves("v1")
    await first.stop()
    flip_byte(first.root / "v2" / TRANSFORMER)
    first.link("v2")
    second = await services().start()
    await second.until_rejected("v2", "hash_mismatch")
    await second.supervisor.look_now()
    assert second.serves() is None


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
    service._make_factory = lambda: factory
    await service.start()
    await reached(service, "warm", version)
    await service.crash()


async def test_a_version_that_was_tried_at_two_crashes_is_set_aside_until_it_is_linked_anew(services, models):
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


async def test_a_version_that_was_set_aside_is_tried_again_when_it_is_sealed_anew(services, models):
    await crash_while_trying(services, "v1")
    await crash_while_trying(services, "v1")
    service = await services().start()
    await service.until_rejected("v1", "set_aside")
    (service.root / "v1/README").write_text("mended")
    write_seal(service.root / "v1", "v1")
    await service.until_serves("v1")


async def test_one_crash_sets_nothing_aside(services, models):
    await crash_while_trying(services, "v1")
    service = await services().start()
    await service.until_serves("v1")


async def test_what_was_unloaded_is_not_accused_of_a_crash(services):
    for _ in range(2):
        service = await services().start()
        outcome = await asyncio.wait_for(service.supervisor.load("current"), DEADLINE)
        assert outcome.serves
        await asyncio.wait_for(service.supervisor.unload(), DEADLINE)
        await service.crash()
    last = await services().start()
    outcome = await asyncio.wait_for(last.supervisor.load("current"), DEADLINE)
    assert (outcome.serves, outcome.version) == (True, "v1")


async def test_a_second_service_cannot_use_the_state_directory(service):
    from zwatch.errors import UsageError

    with pytest.raises(UsageError):
        StateFile(service.state)


# --- at somebody's word


async def test_unloading_frees_everything_and_lasts_across_a_restart_until_a_load(services):
    first = await services(make_factory=lambda: HeldFactory(budget=2**26)).start()
    await first.until_serves("v1")
    first.link("v2")
    await first.until_serves("v2")
    await asyncio.wait_for(first.supervisor.unload(), DEADLINE)
    assert (first.serves(), first.engines()) == (None, {})
    assert first.factory.device.memory()[0] == 2**26
    await first.supervisor.look_now()
    assert first.serves() is None
    await first.stop()
    second = await services().start()
    await second.supervisor.look_now()
    assert second.supervisor.is_unloaded("current")
    assert second.attempts() == []
    outcome = await asyncio.wait_for(second.supervisor.load("current"), DEADLINE)
    assert (outcome.serves, outcome.version, second.serves()) == (True, "v2", "v2")


async def test_a_new_link_ends_an_unload(service):
    await asyncio.wait_for(service.supervisor.unload(), DEADLINE)
    service.link("v1")
    await service.until_serves("v1")
    assert not service.supervisor.is_unloaded("current")


async def test_unloading_waits_for_the_requests_that_hold_a_lease(service):
    lease = service.engines.lease("current")
    unloading = asyncio.create_task(service.supervisor.unload())
    await service.until(lambda: service.engines() == {"v1": EngineState.DRAINING})
    await service.supervisor.look_now()
    assert not unloading.done()
    assert picture(lease).shape == (64, 64, 3)
    lease.release()
    await asyncio.wait_for(unloading, DEADLINE)
    assert service.engines() == {}


async def test_unloading_answers_only_after_the_last_engine_is_closed(services):
    service = await services(make_factory=lambda: HeldFactory(budget=2**26)).start()
    await service.until_serves("v1")
    engine, closing = service.engines.serving("current").engine, threading.Event()
    genuine = engine.close
    engine.close = lambda: (closing.wait(DEADLINE), genuine())
    unloading = asyncio.create_task(service.supervisor.unload())
    await service.until(lambda: service.engines() == {})
    for _ in range(5):
        service.supervisor.changes.fire()
        await asyncio.sleep(0)
    answered_early = unloading.done()
    closing.set()
    await asyncio.wait_for(unloading, DEADLINE)
    assert not answered_early
    assert service.factory.device.memory()[0] == 2**26


async def test_unloading_abandons_what_loads(service):
    service.factory.hold("warm", "v2")
    service.link("v2")
    await reached(service, "warm", "v2")
    await asyncio.wait_for(service.supervisor.unload(), DEADLINE)
    assert service.engines() == {}
    assert service.attempts()[0] == ("v2", "ABANDONED", None)


async def test_unloading_just_as_a_load_ends_frees_it_too(services):
    """The load's end comes after the unload was asked for, and before the supervisor acts on it."""
    factory = HeldFactory()
    release = factory.hold("warm", "v1")
    service = await services(make_factory=lambda: factory).start(run=False)
    await service.supervisor._look()
    await service.supervisor._act()
    await reached(service, "warm", "v1")
    unloading = asyncio.create_task(service.supervisor.unload())
    await service.until(lambda: service.supervisor.is_unloaded("current"))
    release.set()
    await service.until(lambda: service.supervisor._loading is None)
    service.run()
    await asyncio.wait_for(unloading, DEADLINE)
    assert (service.serves(), service.engines()) == (None, {})


async def test_loading_what_serves_answers_at_once(service):
    outcome = await asyncio.wait_for(service.supervisor.load("current"), DEADLINE)
    assert (outcome.serves, outcome.version) == (True, "v1")
    assert len(service.attempts()) == 1


async def test_loading_after_a_rejection_tries_again(service):
    flip_byte(service.root / "v2" / TRANSFORMER)
    service.link("v2")
    await service.until_rejected("v2", "hash_mismatch")
    outcome = await asyncio.wait_for(service.supervisor.load("current"), DEADLINE)
    assert not outcome.serves
    assert TRANSFORMER in outcome.message
    assert [state for _, state, _ in service.attempts()] == ["REJECTED", "REJECTED", "PROMOTED"]


async def test_loading_with_a_fault_says_the_fault(service):
    os.unlink(service.root / "current")
    (service.root / "current").symlink_to("nowhere")
    outcome = await asyncio.wait_for(service.supervisor.load("current"), DEADLINE)
    assert not outcome.serves
    assert "nowhere" in outcome.message


async def test_loading_after_a_file_was_overwritten_in_place_is_rejected_until_it_is_sealed(service):
    from tests.engine.editing import edit_tensors

    before = service.engines.serving("current").key
    with service.engines.lease("current") as lease:
        expected = picture(lease)
        edit_tensors(service.root / "v1" / TRANSFORMER, lambda tensors: {k: t * 1.5 for k, t in tensors.items()})
        outcome = await asyncio.wait_for(service.supervisor.load("current"), DEADLINE)
        assert not outcome.serves
        assert TRANSFORMER in outcome.message
        assert service.attempts()[0] == ("v1", "REJECTED", "hash_mismatch")
        assert service.engines.serving("current").key == before
        assert np.array_equal(picture(lease), expected)
    write_seal(service.root / "v1", "v1")
    outcome = await asyncio.wait_for(service.supervisor.load("current"), DEADLINE)
    assert outcome.serves
    assert service.engines.serving("current").key != before
    with service.engines.lease("current") as lease:
        assert not np.array_equal(picture(lease), expected)


async def test_loading_after_the_same_bytes_were_written_anew_verifies_them_and_goes_on(service):
    resident = service.engines.serving("current")
    data = (service.root / "v1" / TRANSFORMER).read_bytes()
    (service.root / "v1" / TRANSFORMER).write_bytes(data)
    outcome = await asyncio.wait_for(service.supervisor.load("current"), DEADLINE)
    assert outcome.serves
    assert service.engines.serving("current") is resident
    assert service.attempts() == [("v1", "PROMOTED", None)] * 2
    await asyncio.wait_for(service.supervisor.load("current"), DEADLINE)
    assert len(service.attempts()) == 2


async def test_the_outcome_of_a_wish_is_that_it_serves(service):
    stamp = service.point("v2")
    outcome = await asyncio.wait_for(service.supervisor.outcome("current", "v2", stamp), DEADLINE)
    assert (outcome.serves, outcome.version, service.serves()) == (True, "v2", "v2")
    assert outcome.attempt is service.supervisor.attempt("current")


async def test_the_outcome_of_a_bad_wish_is_its_rejection(service):
    flip_byte(service.root / "v2" / TRANSFORMER)
    outcome = await asyncio.wait_for(service.supervisor.outcome("current", "v2", service.point("v2")), DEADLINE)
    assert not outcome.serves
    assert outcome.attempt.rejection.code == "hash_mismatch"
    assert outcome.message == outcome.attempt.rejection.reason


async def test_a_wish_that_was_overtaken_is_superseded(service):
    service.factory.hold("build", "v2")
    waiting = asyncio.create_task(service.supervisor.outcome("current", "v2", service.point("v2")))
    await reached(service, "build", "v2")
    service.link("v1")
    outcome = await asyncio.wait_for(waiting, DEADLINE)
    assert not outcome.serves
    assert "superseded" in outcome.message


@pytest.mark.parametrize("asked", ["outcome", "load"])
async def test_whoever_waits_for_a_load_hears_of_an_unload(service, asked):
    service.factory.hold("build", "v2")
    stamp = service.point("v2")
    waiting = asyncio.create_task(
        service.supervisor.outcome("current", "v2", stamp) if asked == "outcome" else service.supervisor.load("current")
    )
    await reached(service, "build", "v2")
    await asyncio.wait_for(service.supervisor.unload(), DEADLINE)
    done, _ = await asyncio.wait([waiting], timeout=5)
    waiting.cancel()
    assert done, "it still waits for a load that nobody wants any more"
    assert not waiting.result().serves


# --- several aliases


async def test_two_aliases_follow_their_own_links(services):
    service = services(aliases=("current", "canary"))
    (service.root / "canary").symlink_to("v2")
    await service.start()
    await service.until_serves("v1")
    await service.until_serves("v2", "canary")
    service.link("v2")
    await service.until_serves("v2")
    assert service.engines.serving("current") is service.engines.serving("canary")
    assert service.supervisor.attempt("current").way == "resident"


async def test_a_bad_alias_does_not_hold_up_the_other(services):
    service = services(aliases=("current", "canary"))
    (service.root / "canary").symlink_to("v2")
    flip_byte(service.root / "v1" / TRANSFORMER)
    await service.start()
    await service.until_serves("v2", "canary")
    assert service.serves() is None
    assert service.supervisor.attempt("current").rejection.code == "hash_mismatch"


# --- the end


async def test_stopping_abandons_what_loads_and_ends_the_run_in_good_order(services):
    service = await services().start()
    await service.until_serves("v1")
    service.factory.hold("build", "v2")
    service.link("v2")
    await reached(service, "build", "v2")
    await service.stop()
    assert service.attempts()[0] == ("v2", "ABANDONED", None)
    state = StateFile(service.state)
    memory = state.read()
    state.close()
    assert not memory.running
    assert memory.begin_run() == []


async def test_a_stumble_does_not_end_the_following(service, monkeypatch):
    genuine, stumbles = service.supervisor._looker.look, []

    def look(awaited):
        if not stumbles:
            stumbles.append(1)
            raise ZeroDivisionError
        return genuine(awaited)

    monkeypatch.setattr(service.supervisor._looker, "look", look)
    service.link("v2")
    await service.until_serves("v2")
    assert stumbles


async def test_what_is_served_is_remembered_with_its_key(service):
    key = service.engines.serving("current").key
    await service.until(lambda: b'"serving": {\n    "version": "v1"' in (service.state / "state.json").read_bytes())
    assert isinstance(key, VersionKey)
    assert key.digest.encode() in (service.state / "state.json").read_bytes()
