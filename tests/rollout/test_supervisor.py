"""Lifecycles to survive, with real files, real looks and real engines."""

import asyncio
import os
import shutil

import numpy as np
import pytest

from tests.rollout.conftest import TRANSFORMER, flip_byte, make_v3, picture, reached
from zwatch.deploy.look import Looker
from zwatch.deploy.seal import SEAL_NAME
from zwatch.deploy.sealing import write_seal
from zwatch.rollout.lifecycle import EngineState, LoadWay
from zwatch.rollout.state import StateFile

# --- a flip


async def test_what_the_link_points_to_serves_after_the_start(service):
    assert service.attempts() == [("v1", "PROMOTED", None)]
    assert service.states() == {"v1": EngineState.SERVING}


async def test_a_flip_deploys_and_keeps_the_previous_one_warm(service):
    service.link("v2")
    await service.until_serves("v2")
    assert service.states() == {"v1": EngineState.WARM, "v2": EngineState.SERVING}
    assert service.supervisor.previous("current").version == "v1"
    attempt = service.supervisor.attempt("current")
    assert (attempt.way, sorted(attempt.control.shared)) == (LoadWay.DEVICE, ["text_encoder", "vae"])


async def test_a_flip_is_found_without_an_event(service):
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
    assert (attempt.way, attempt.control, fills) == (LoadWay.RESIDENT, None, [])
    assert service.states() == {"v1": EngineState.SERVING, "v2": EngineState.WARM}


async def test_a_running_request_keeps_its_engine_and_finishes_on_it(service):
    lease = service.engines.lease("current")
    before = picture(lease)
    service.link("v2")
    await service.until_serves("v2")
    assert service.states()["v1"] is EngineState.DRAINING
    assert np.array_equal(picture(lease), before)
    with service.engines.lease("current") as new:
        assert new.key.version == "v2"
        assert not np.array_equal(picture(new), before)
    lease.release()
    await service.until(lambda: service.states()["v1"] is EngineState.WARM)


async def test_only_one_previous_version_is_kept(service):
    make_v3(service.root)
    for version in ("v2", "v3"):
        service.link(version)
        await service.until_serves(version)
    assert service.states() == {"v2": EngineState.WARM, "v3": EngineState.SERVING}


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
    assert service.states() == {"v1": EngineState.SERVING}
    assert service.factory.built == ["v1"]


async def test_the_last_of_many_flips_serves(service):
    make_v3(service.root)
    for number in range(20):
        service.link(f"v{1 + number % 3}")
        await asyncio.sleep(0)
    service.link("v3")
    await service.until_serves("v3")


# --- what is wrong with a link or a version


async def test_a_bad_version_changes_nothing_that_serves(service):
    flip_byte(service.root / "v2" / TRANSFORMER)
    service.link("v2")
    await service.until_rejected("v2", "hash_mismatch")
    assert service.serves() == "v1"
    assert TRANSFORMER in service.supervisor.attempt("current").rejection.reason
    with service.engines.lease("current") as lease:
        assert picture(lease).shape == (64, 64, 3)


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
async def test_a_link_with_a_fault_changes_only_the_status(service, harm):
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


async def test_a_rejected_version_deploys_once_its_files_are_repaired(service):
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


async def test_sealing_the_serving_version_again_deploys_its_new_content(service):
    before = service.engines.serving("current").key
    (service.root / "v1/zwatch.json").write_text('{"default_size": 128}')
    write_seal(service.root / "v1", "v1")
    await service.until(lambda: service.engines.serving("current").key != before)
    after = service.engines.serving("current")
    assert (after.key.version, after.engine.default_size) == ("v1", 128)
    assert after.key.digest == service.supervisor.wish("current").digest


async def test_a_stray_link_that_is_not_followed_is_logged_once(service, caplog):
    (service.root / "v1" / "v9").symlink_to("v9")
    await service.until(lambda: service.supervisor.seen.strays)
    await service.supervisor.look_now()
    assert caplog.text.count("v1/v9 -> v9 was not followed: no version of that name") == 1


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
    assert service.supervisor.attempt("current").way is LoadWay.RESIDENT


async def test_a_bad_alias_does_not_delay_the_other(services):
    service = services(aliases=("current", "canary"))
    (service.root / "canary").symlink_to("v2")
    flip_byte(service.root / "v1" / TRANSFORMER)
    await service.start()
    await service.until_serves("v2", "canary")
    assert service.serves() is None
    assert service.supervisor.attempt("current").rejection.code == "hash_mismatch"


# --- the loop


async def test_stopping_abandons_the_running_load_and_saves_a_clean_end(services):
    service = await services().start()
    await service.until_serves("v1")
    service.factory.hold("build", "v2")
    service.link("v2")
    await reached(service, "build", "v2")
    await service.stop()
    assert service.attempts()[0] == ("v2", "ABANDONED", None)
    state = StateFile(service.state)
    saved = state.read()
    state.close()
    assert not saved.running
    assert saved.begin_run() == []


async def test_a_failed_iteration_does_not_stop_the_supervisor(service, monkeypatch):
    genuine, failures = Looker.look, []

    def look(looker, awaited):
        if not failures:
            failures.append(1)
            raise ZeroDivisionError
        return genuine(looker, awaited)

    monkeypatch.setattr(Looker, "look", look)
    service.link("v2")
    await service.until_serves("v2")
    assert failures


async def test_a_look_that_fails_is_told_until_one_succeeds(service, monkeypatch, caplog):
    def fail(awaited):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(service.supervisor._looker, "look", fail)
    await service.until(lambda: service.supervisor.fault)
    assert service.supervisor.fault == "links are not followed: OSError: [Errno 24] Too many open files"
    monkeypatch.undo()
    await service.until(lambda: service.supervisor.fault is None)
    assert caplog.text.count("supervisor iteration failed") == 1
