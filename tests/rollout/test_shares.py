"""Shares and aliases that come and go, from the links to the engines."""

import json
import os

import pytest

from tests.rollout.conftest import BUDGET, HeldFactory, make_v3, picture, prove_good, quick_retries
from zwatch.deploy.shares import share_key
from zwatch.rollout.lifecycle import EngineState, LoadWay

KEY = share_key("current")


def link(service, version, name):
    """Make a link, as `ln -s` does."""
    (service.root / name).symlink_to(version)
    service.supervisor.ring()


def rename(service, old, new):
    """Rename a link, as `mv -T` does."""
    os.rename(service.root / old, service.root / new)
    service.supervisor.ring()


def remove(service, name):
    (service.root / name).unlink()
    service.supervisor.ring()


async def sharing(service, version="v2", percent=10):
    link(service, version, f"current@{percent}")
    await service.until_serves(version, KEY)
    return service.supervisor.records[KEY]


def of_share(service):
    return service.supervisor.records.share_of("current")


async def held_load(service, version):
    """Begin the load of a version for the share `current@10`; it goes on when the event that is returned is set."""
    held = service.factory.hold("build", version)
    link(service, version, "current@10")
    await service.until(lambda: ("build", version) in service.factory.reached)
    return held


async def test_a_share_is_loaded_beside_its_alias_and_takes_its_clients(service):
    record = await sharing(service, percent=100)
    assert (service.serves(), record.name, record.percent) == ("v1", "current@100", 100)
    with service.supervisor.traffic.lease("current", "somebody") as lease:
        assert (lease.key.version, lease.by_share) == ("v2", "current@100")
    with service.supervisor.traffic.lease("current", None) as lease:
        assert (lease.key.version, lease.by_share) == ("v1", None)
    assert [attempt.link_name for attempt in service.supervisor.attempts][:1] == ["current@100"]


async def test_a_share_of_nothing_is_held_ready_without_traffic(service):
    await sharing(service, percent=0)
    assert service.supervisor.traffic.find("current", "somebody").key.version == "v1"
    assert service.states() == {"v1": EngineState.SERVING, "v2": EngineState.SERVING}


async def test_renaming_a_share_keeps_engine_attempt_and_record(service):
    record = await sharing(service)
    engine, attempt, tries = record.serving.engine, record.attempt, len(service.supervisor.attempts)
    rename(service, "current@10", "current@50")
    await service.until(lambda: record.percent == 50)
    await service.until_serves("v2", KEY)
    assert of_share(service) is record
    assert (record.serving.engine, record.attempt, record.name) == (engine, attempt, "current@50")
    assert attempt.link_name == "current@50"
    assert len(service.supervisor.attempts) == tries


async def test_promotion_by_a_rename_moves_no_byte_and_frees_nothing(service):
    record = await sharing(service, percent=50)
    resident = record.serving
    built = list(service.factory.built)
    with service.supervisor.traffic.lease("current@50", None) as lease:
        rename(service, "current@50", "current")
        await service.until_serves("v2")
        await service.until(lambda: of_share(service) is None)
        assert lease.key.version == "v2"
    assert service.engines.serving("current") is resident
    assert resident.state is EngineState.SERVING
    assert service.supervisor.records["current"].attempt.way is LoadWay.RESIDENT
    assert service.factory.built == built
    assert service.supervisor.previous("current").version == "v1"
    await service.until(lambda: service.states() == {"v1": EngineState.WARM, "v2": EngineState.SERVING})


async def test_removing_the_link_ends_the_share_after_the_grace(service):
    await sharing(service)
    with service.supervisor.traffic.lease("current@10", None):
        remove(service, "current@10")
        await service.until(lambda: of_share(service) is None)
        assert service.states() == {"v1": EngineState.SERVING, "v2": EngineState.DRAINING}
    await service.until(lambda: service.states() == {"v1": EngineState.SERVING})
    await service.until(lambda: KEY not in json.loads((service.state / "state.json").read_bytes())["aliases"])
    assert "current@10" not in service.supervisor.traffic


async def test_a_share_that_is_linked_to_another_version_keeps_the_old_one_until_then(service, models):
    make_v3(models)
    record = await sharing(service)
    service.link("v3", "current@10")
    await service.until_serves("v3", KEY)
    assert of_share(service) is record
    assert service.serves() == "v1"


async def test_a_share_with_the_version_of_its_alias_is_no_fault_and_has_no_effect(service):
    record = await sharing(service, "v1")
    assert record.fault is None
    assert service.states() == {"v1": EngineState.SERVING}
    remove(service, "current@10")
    await service.until(lambda: of_share(service) is None)
    assert service.states() == {"v1": EngineState.SERVING}


async def test_two_shares_of_one_alias_do_not_count_until_one_is_removed(service, models):
    make_v3(models)
    record = await sharing(service, percent=100)
    link(service, "v3", "current@50")
    await service.until(lambda: record.percent == 0)
    assert service.serves() == "v1"
    assert service.supervisor.traffic.find("current", "somebody").key.version == "v1"
    faults = service.supervisor.seen.shares["current"].faults
    assert set(faults) == {"current@50", "current@100"}
    assert "current has 2 shares, current@50 and current@100, and none of them counts" in faults["current@50"].message
    remove(service, "current@50")
    await service.until(lambda: record.percent == 100)
    assert record.serving.key.version == "v2"
    assert "v3" not in service.factory.built


@pytest.mark.parametrize("name", ["current@101", "current@ten", "current@10%", "current@", "current@010"])
async def test_a_bad_name_is_said_and_changes_nothing(service, name):
    link(service, "v2", name)
    await service.until(lambda: name in service.supervisor.seen.shares.get("current", _NONE).faults)
    assert service.supervisor.seen.shares["current"].faults[name].message.startswith(f"{name}: ")
    assert of_share(service) is None
    assert service.states() == {"v1": EngineState.SERVING}


class _NONE:
    faults = ()


async def test_what_cannot_be_loaded_gets_no_traffic_and_the_alias_serves_on(service, models):
    record = await sharing(service, percent=100)
    (models / "v3").mkdir()
    (models / "v3/BLAKE3SUMS").write_text("nonsense\n")
    service.link("v3", "current@100")
    await service.until_rejected("v3", "seal_invalid")
    assert record.serving.key.version == "v2"  # what takes requests goes on
    remove(service, "current@100")
    await service.until(lambda: of_share(service) is None)
    link(service, "v3", "current@100")
    await service.until(
        lambda: of_share(service) is not None and of_share(service).refusals.find(of_share(service).wish)
    )
    assert service.supervisor.traffic.find("current", "somebody").key.version == "v1"
    assert service.supervisor.traffic.lease("current@100", None) is None


async def test_what_an_alias_asks_for_is_loaded_before_what_a_share_does(service, models):
    make_v3(models)
    held = await held_load(service, "v2")
    service.link("v3")
    await service.until(lambda: service.serves() == "v3")
    held.set()
    await service.until_serves("v2", KEY)
    assert [(version, state) for version, state, _ in service.attempts()][:3] == [
        ("v2", "PROMOTED"), ("v3", "PROMOTED"), ("v2", "ABANDONED")
    ]  # fmt: skip


async def test_a_flip_of_the_alias_to_what_is_resident_does_not_end_a_load_for_its_share(service, models):
    make_v3(models)
    for version in ("v2", "v1"):
        service.link(version)
        await service.until_serves(version)
    held = await held_load(service, "v3")
    service.link("v2")
    await service.until(lambda: service.serves() == "v2")
    held.set()
    await service.until_serves("v3", KEY)
    assert service.serves() == "v2"
    assert service.factory.built.count("v3") == 1
    assert "ABANDONED" not in [state for _, state, _ in service.attempts()]


async def test_a_promotion_while_the_share_is_loaded_goes_on_with_that_load(service):
    held = await held_load(service, "v2")
    rename(service, "current@10", "current")
    await service.until(lambda: of_share(service) is None)
    held.set()
    await service.until_serves("v2")
    assert service.attempts()[0] == ("v2", "PROMOTED", None)
    assert service.factory.built.count("v2") == 1
    assert service.supervisor.records["current"].attempt.link_name == "current"


async def test_a_share_that_ends_while_it_is_loaded_is_abandoned(service):
    held = await held_load(service, "v2")
    remove(service, "current@10")
    await service.until(lambda: service.attempts()[0] == ("v2", "ABANDONED", None))
    held.set()
    assert service.states() == {"v1": EngineState.SERVING}


@pytest.mark.parametrize("how", ["stop", "crash"])
async def test_a_share_comes_back_after_a_restart(services, how):
    one = await services().start()
    await one.until_serves("v1")
    await sharing(one, percent=50)
    await getattr(one, how)()
    two = await services().start()
    await two.until_serves("v2", KEY)
    await two.until_serves("v1")
    assert of_share(two).name == "current@50"


async def test_a_share_that_went_while_nothing_ran_is_forgotten(services, models):
    one = await services().start()
    await one.until_serves("v1")
    await sharing(one)
    await one.stop()
    (models / "current@10").unlink()
    two = await services().start()
    await two.until_serves("v1")
    assert two.states() == {"v1": EngineState.SERVING}
    await two.until(lambda: KEY not in json.loads((two.state / "state.json").read_bytes())["aliases"])


async def test_unload_frees_a_share_too_and_loading_the_alias_brings_it_back(service):
    await sharing(service)
    assert await service.operator.unload()
    assert service.states() == {}
    assert service.supervisor.is_unloaded("current@10")
    outcome = await service.operator.load("current")
    assert outcome.serves
    await service.until_serves("v2", KEY)


async def test_a_rename_is_no_new_link_for_a_share_that_was_unloaded(service):
    record = await sharing(service)
    assert await service.operator.unload()
    rename(service, "current@10", "current@50")
    await service.until(lambda: record.percent == 50)
    assert record.is_unloaded
    service.link("v2", "current@50")
    await service.until_serves("v2", KEY)
    assert service.serves() is None


async def test_a_rename_keeps_a_refusal(service, models):
    (models / "v3").mkdir()
    (models / "v3/BLAKE3SUMS").write_text("nonsense\n")
    link(service, "v3", "current@10")
    await service.until_rejected("v3", "seal_invalid")
    rename(service, "current@10", "current@50")
    record = of_share(service)
    await service.until(lambda: record.percent == 50)
    await service.supervisor.look_now()
    assert record.refusals.find(record.wish) is not None
    assert [version for version, _, _ in service.attempts()].count("v3") == 1
    service.link("v3", "current@50")
    await service.until(lambda: [version for version, _, _ in service.attempts()].count("v3") == 2)


@pytest.fixture
async def small(services):
    """A service that serves v1, on a device with a budget."""
    started = await services(make_factory=lambda: HeldFactory(budget=BUDGET)).start()
    await started.until_serves("v1")
    return started


@quick_retries
async def test_where_memory_holds_one_version_a_share_is_refused_and_the_alias_serves_on(small, first_pause):
    small.factory.leave_no_room()
    link(small, "v2", "current@10")
    await small.until_rejected("v2", "insufficient_memory")
    reason = small.supervisor.attempts[0].rejection.reason
    assert "bytes" in reason
    assert small.serves() == "v1"
    assert small.states() == {"v1": EngineState.SERVING}
    small.factory.device.budget *= 4
    await small.until_serves("v2", KEY)
    assert all(attempt.way is LoadWay.DEVICE for attempt in small.supervisor.attempts)


async def test_where_two_versions_fit_a_deploy_in_a_trial_exchanges_with_the_alias_s_own_engine(small, models):
    make_v3(models)
    record = await sharing(small)
    small.factory.leave_no_room()
    small.link("v3")
    await small.until_serves("v3")
    assert small.supervisor.records["current"].attempt.way is LoadWay.HOST
    assert record.serving.key.version == "v2"
    assert small.states() == {"v2": EngineState.SERVING, "v3": EngineState.SERVING}


async def test_where_two_versions_fit_another_one_for_the_share_takes_the_place_of_its_own(small, models):
    make_v3(models)
    record = await sharing(small)
    small.factory.leave_no_room()
    with small.supervisor.traffic.lease("current@10", None):
        small.link("v3", "current@10")
        await small.until(lambda: record.serving is None)
        assert small.supervisor.traffic.find("current", "somebody").key.version == "v1"
    await small.until_serves("v3", KEY)
    assert small.states() == {"v1": EngineState.SERVING, "v3": EngineState.SERVING}
    assert record.attempt.way is LoadWay.DEVICE
    assert small.serves() == "v1"


async def test_a_load_for_which_a_share_gave_up_its_version_ends_when_the_alias_serves_that(small, models):
    make_v3(models)
    record = await sharing(small)
    small.factory.leave_no_room()
    with small.supervisor.traffic.lease("current@10", None):
        small.link("v3", "current@10")
        await small.until(lambda: record.serving is None)
        small.link("v2")
        await small.until(lambda: small.serves() == "v2")
        await small.until(lambda: ("v3", "REJECTED", "insufficient_memory") in small.attempts())
    reason = next(one.rejection.reason for one in small.supervisor.attempts if one.rejection is not None)
    assert reason == "v3 does not fit next to v2, which current now also serves"
    small.factory.device.budget *= 4
    await small.until_serves("v3", KEY)
    assert small.serves() == "v2"


async def test_a_version_that_crashes_as_a_share_is_set_aside(services, models):
    one = await services().start()
    await one.until_serves("v1")
    prove_good(one)
    await sharing(one)
    await one.crash()
    two = await services().start()
    await two.until_serves("v2", KEY)
    prove_good(two)
    await two.crash()
    three = await services().start()
    await three.until(lambda: three.supervisor.settled_once)
    assert three.attempts()[0][0] == "v2"
    assert of_share(three).refusals.find(of_share(three).wish).rejection.code == "set_aside"
    assert "`ln -sfn v2 current@10`" in of_share(three).refusals.find(of_share(three).wish).rejection.reason
    assert three.serves() == "v1"


async def test_pictures_of_a_share_are_those_of_its_version(service):
    await sharing(service, percent=100)
    with service.supervisor.traffic.lease("current", "x") as ours, service.engines.lease("v2") as named:
        assert (picture(ours) == picture(named)).all()


# --- aliases that come and go


async def test_a_link_that_a_pattern_matches_is_followed_and_withdrawn_when_it_goes(services):
    service = await services(aliases=("current", "can*")).start()
    await service.until_serves("v1")
    link(service, "v2", "canary")
    await service.until_serves("v2", "canary")
    assert service.supervisor.aliases == ("current", "canary")
    link(service, "v1", "other")
    remove(service, "canary")
    await service.until(lambda: service.supervisor.aliases == ("current",))
    await service.until(lambda: service.states() == {"v1": EngineState.SERVING})
    await service.until(lambda: "canary" not in json.loads((service.state / "state.json").read_bytes())["aliases"])


async def test_all_links_to_versions_can_be_followed_and_nothing_else_is(services, models, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for name, text in (
        ("backup", "v2"), ("docs", str(tmp_path / "elsewhere")), ("deep", "v1/transformer"), ("soon", "v9"), ("note", "notes.txt"),
    ):  # fmt: skip
        (models / name).symlink_to(text)
    (models / "notes.txt").write_text("x")
    service = await services(aliases=("current", "*")).start()
    await service.until_serves("v2", "backup")
    assert service.supervisor.aliases == ("current", "backup", "soon")
    assert service.supervisor.seen.faults["soon"].code == "dangling"


async def test_a_dynamic_alias_has_shares_and_comes_back_after_a_restart(services):
    one = await services(aliases=("current", "*")).start()
    await one.until_serves("v1")
    link(one, "v1", "canary")
    link(one, "v2", "canary@10")
    await one.until_serves("v2", share_key("canary"))
    await one.crash()
    two = await services(aliases=("current", "*")).start()
    await two.until_serves("v2", share_key("canary"))
    remove(two, "canary")
    await two.until(lambda: two.supervisor.aliases == ("current",))
    await two.until(lambda: two.states() == {"v1": EngineState.SERVING})


async def test_a_share_of_an_alias_that_is_not_followed_is_none_of_our_business(service):
    link(service, "v2", "canary")
    link(service, "v2", "canary@10")
    await service.supervisor.look_now()
    assert list(service.supervisor.records) == ["current"]
    assert service.supervisor.seen.shares == {}


async def test_while_the_models_root_is_away_shares_and_found_aliases_serve_on(services, models):
    service = await services(aliases=("current", "c*")).start()
    await service.until_serves("v1")
    link(service, "v1", "canary")
    await sharing(service)
    await service.until_serves("v1", "canary")
    models.rename(models.with_name("away"))
    await service.until(lambda: not service.supervisor.seen.has_root)
    assert set(service.supervisor.records) == {"current", "canary", KEY}
    assert service.serves(KEY) == "v2"
    models.with_name("away").rename(models)
    await service.until(lambda: service.supervisor.seen.has_root)
    await service.until_serves("v2", KEY)


async def test_an_operator_waits_for_the_outcome_of_a_share(service):
    stamp = service.point("v2", "current@10")
    outcome = await service.operator.outcome(KEY, "v2", stamp)
    assert (outcome.serves, outcome.version) == (True, "v2")
