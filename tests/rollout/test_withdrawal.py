"""A version that fails after its promotion: what its alias serves then, what is remembered, and what ends it."""

import json
import os
import time

import pytest

from tests.rollout.conftest import make_v3, picture
from tests.rollout.test_shares import KEY, link
from zwatch.deploy.sealing import write_seal
from zwatch.errors import Ending, FatalError
from zwatch.rollout.lifecycle import EngineState

WHY = "the model made NaN or infinite pixels"


@pytest.fixture
async def promoted(service):
    """A service in which v1 served, and now v2 does."""
    service.link("v2")
    await service.until_serves("v2")
    return service


def key_of(service, version):
    return next(resident.key for resident in service.engines.residents if resident.key.version == version)


def fail(service, version, times=3, by=None):
    key = key_of(service, version)
    for _ in range(times):
        service.supervisor.withdrawal.note(key, WHY, by)


async def free_the_previous(service):
    """Free v1, as a load that needs its memory does."""
    while service.engines.find("v1") is not None:  # until it is drained
        await service.supervisor.look_now()
        await service.supervisor._closer.free_warm()


async def saved_withdrawal(service, alias="current"):
    """Wait until the state file says that a version was withdrawn, and return that."""
    found = []

    def noted():
        saved = json.loads((service.state / "state.json").read_bytes())
        found[:] = [saved["aliases"][alias].get("withdrawn")]
        return found[0]

    await service.until(noted)
    return found[0]


async def test_an_alias_goes_back_at_once_and_its_link_stays(promoted):
    fail(promoted, "v2", 2)
    assert promoted.serves() == "v2"
    fail(promoted, "v2", 1)
    assert promoted.serves() == "v1", "in the same moment: no request more gets it"
    assert os.readlink(promoted.root / "current") == "v2"
    assert promoted.attempts()[:2] == [("v1", "PROMOTED", None), ("v2", "REJECTED", "withdrawn")]
    refusal = promoted.supervisor.refusal("current")
    expected = f"v2 was withdrawn from current: 3 of its last 3 requests failed; the last one: {WHY}"
    assert (refusal.code, refusal.reason) == ("withdrawn", expected)
    await promoted.supervisor.look_now()
    await promoted.until(lambda: promoted.states() == {"v1": EngineState.SERVING})
    assert (promoted.serves(), promoted.supervisor.previous("current")) == ("v1", None)


async def test_good_requests_keep_it(promoted):
    withdrawal, key = promoted.supervisor.withdrawal, key_of(promoted, "v2")
    for fault in [WHY, WHY, *[None] * 18, WHY, WHY]:
        withdrawal.note(key, fault)
    assert promoted.serves() == "v2"


async def test_it_stays_if_the_version_before_fails_too(promoted):
    fail(promoted, "v1")
    fail(promoted, "v2", 20)
    assert promoted.serves() == "v2"


async def test_after_its_probation_it_is_not_withdrawn(promoted):
    promoted.supervisor.withdrawal.probation = 0.0
    fail(promoted, "v2", 20)
    assert promoted.serves() == "v2"
    assert not promoted.supervisor.withdrawal.is_watched(key_of(promoted, "v2"), "current")


async def test_without_another_version_it_serves_on_and_the_status_says_so(service):
    fail(service, "v1")
    assert (service.serves(), service.supervisor.refusal("current")) == ("v1", None)
    [problem] = service.supervisor.withdrawal.problems()
    assert problem.startswith("current serves v1, which fails: 3 of its last 3 requests failed")
    for _ in range(20):
        service.supervisor.withdrawal.note(key_of(service, "v1"), None)
    assert service.supervisor.withdrawal.problems() == []


@pytest.mark.parametrize("end", ["stop", "crash"])
async def test_the_same_link_is_not_tried_again_also_by_the_next_run(promoted, services, end):
    fail(promoted, "v2")
    assert (await saved_withdrawal(promoted))["key"]["version"] == "v2"
    await getattr(promoted, end)()
    again = await services().start()
    await again.until_serves("v1")
    assert again.factory.built == ["v1"]
    assert again.supervisor.refusal("current").code == "withdrawn"
    assert again.supervisor.records["current"].withdrawn is not None


async def test_a_link_made_anew_tries_it_again_with_no_outcomes(promoted):
    fail(promoted, "v2")
    promoted.link("v2")
    await promoted.until_serves("v2")
    assert promoted.supervisor.refusal("current") is None
    fail(promoted, "v2", 2)
    assert promoted.serves() == "v2"
    fail(promoted, "v2", 1)
    assert promoted.serves() == "v1"


async def test_a_link_made_anew_before_the_version_is_freed_promotes_it_again(promoted):
    with promoted.engines.lease("v2"):
        fail(promoted, "v2")
        promoted.link("v2")
        await promoted.until_serves("v2")


async def test_a_version_sealed_anew_is_tried_again(promoted):
    fail(promoted, "v2")
    await promoted.supervisor.look_now()
    await promoted.until_serves("v1")
    write_seal(promoted.root / "v2", "v2")
    promoted.supervisor.ring()
    await promoted.until_serves("v2")


async def test_an_operator_may_load_it_again(promoted):
    fail(promoted, "v2")
    outcome = await promoted.operator.load("current")
    assert (outcome.serves, outcome.version) == (True, "v2")


async def test_what_was_freed_is_loaded_again_while_the_withdrawn_version_serves_on(promoted):
    await free_the_previous(promoted)
    held = promoted.factory.hold("build", "v1")
    fail(promoted, "v2")
    await promoted.until(lambda: ("build", "v1") in promoted.factory.reached)
    assert promoted.serves() == "v2"
    assert promoted.supervisor.is_coming("current")
    held.set()
    await promoted.until_serves("v1")
    assert promoted.attempts()[0] == ("v1", "PROMOTED", None)
    assert promoted.supervisor.refusal("current").code == "withdrawn"
    await promoted.until(lambda: list(promoted.states()) == ["v1"])


async def test_the_newest_wish_wins_over_going_back(promoted):
    make_v3(promoted.root)
    held = promoted.factory.hold("build", "v3")
    promoted.link("v3")
    await promoted.until(lambda: ("build", "v3") in promoted.factory.reached)
    fail(promoted, "v2")
    assert promoted.serves() == "v1"
    held.set()
    await promoted.until_serves("v3")
    assert promoted.supervisor.refusal("current") is None
    assert promoted.supervisor.previous("current").version == "v1"
    promoted.link("v2")
    await promoted.until_serves("v2")


async def test_a_newer_wish_that_is_rejected_does_not_bring_the_withdrawn_version_back(promoted):
    await free_the_previous(promoted)
    (promoted.root / "v3").mkdir()
    fail(promoted, "v2")
    promoted.link("v3")
    await promoted.until_serves("v1")
    assert promoted.supervisor.refusal("current").code == "seal_missing"


async def test_an_alias_that_was_unloaded_stays_so(promoted):
    fail(promoted, "v2")
    assert await promoted.operator.unload()
    assert promoted.serves() is None
    promoted.supervisor.ring()
    await promoted.supervisor.look_now()
    assert promoted.engines.residents == []


async def test_another_alias_goes_on_with_the_version(services, models):
    (models / "canary").symlink_to("v2")
    service = await services(aliases=("current", "canary")).start()
    await service.until_serves("v2", "canary")
    await service.until_serves("v1")
    service.link("v2")
    await service.until_serves("v2")
    fail(service, "v2")
    assert (service.serves(), service.serves("canary")) == ("v1", "v2")
    await service.supervisor.look_now()
    assert (service.serves(), service.serves("canary")) == ("v1", "v2")


async def test_what_an_alias_draws_says_nothing_about_the_trial_of_another(services, models):
    """`canary` serves what is on trial by `current@0`; its requests are neither drawn by another version nor counted."""
    make_v3(models)
    for name, version in (("canary", "v3"), ("current@0", "v3")):
        (models / name).symlink_to(version)
    service = await services(aliases=("current", "canary")).start()
    service.supervisor.withdrawal.probation = 0.0
    for name, version in (("current", "v1"), ("canary", "v3"), (KEY, "v3")):
        await service.until_serves(version, name)
    withdrawal, v3 = service.supervisor.withdrawal, key_of(service, "v3")
    assert not withdrawal.is_watched(v3, "canary")
    fail(service, "v3", 20, by="canary")
    assert (service.serves("canary"), service.serves(KEY)) == ("v3", "v3")
    fail(service, "v3", 2, by=KEY)
    assert withdrawal.reason(KEY) is None
    fail(service, "v3", 1, by=KEY)
    assert (withdrawal.reason("canary"), service.serves("canary"), service.serves(KEY)) == (None, "v3", None)


async def test_a_golden_image_says_something_about_a_version_wherever_it_is_on_trial(services, models):
    (models / "canary").symlink_to("v1")
    service = await services(aliases=("current", "canary")).start()
    for name in ("current", "canary"):
        await service.until_serves("v1", name)
        link(service, "v2", f"{name}@10")
        await service.until_serves("v2", f"{name}@")
    fail(service, "v2")
    assert (service.serves(KEY), service.serves("canary@")) == (None, None)


async def test_it_is_not_last_known_good_any_more(promoted):
    part = promoted.supervisor.state.saved.alias("current")
    promoted.engines.serving("current").images = 3
    await promoted.supervisor.look_now()
    await promoted.until(lambda: [key.version for key in part.good][:1] == ["v2"])
    fail(promoted, "v2")
    assert "v2" not in [key.version for key in [*part.good, *part.promoted]]


async def test_a_restart_does_not_begin_a_probation_again(promoted, services):
    promoted.supervisor.withdrawal.probation = 0.0
    await promoted.stop()
    for end, expected in (("wall clock", False), ("at once", True)):
        again = await services().start(run=False)
        if end == "wall clock":
            again.supervisor.withdrawal._wall_clock = lambda: time.time() + 3600
        again.run()
        await again.until_serves("v2")
        assert again.supervisor.withdrawal.is_watched(key_of(again, "v2"), "current") is expected
        await again.stop()


async def test_last_known_good_is_not_on_trial(promoted, services):
    promoted.engines.serving("current").images = 3
    await promoted.supervisor.look_now()
    await promoted.stop()
    (promoted.root / "v2" / "BLAKE3SUMS").unlink()
    again = await services().start()
    await again.until_serves("v1")
    assert not again.supervisor.withdrawal.is_watched(key_of(again, "v1"), "current")


async def test_what_serves_again_draws_the_same_pictures(promoted):
    with promoted.engines.lease("v1") as lease:
        before = picture(lease)
    fail(promoted, "v2")
    with promoted.engines.lease("current") as lease:
        assert (picture(lease) == before).all()


# --- shares


@pytest.fixture
async def shared(service):
    """A service in which v1 serves `current`, and v2 its share."""
    link(service, "v2", "current@100")
    await service.until_serves("v2", KEY)
    return service


async def share_leaves(service):
    await service.supervisor.look_now()
    await service.until(lambda: list(service.states()) == ["v1"])


async def test_a_share_loses_its_traffic_at_once_and_its_link_stays(shared):
    leased = shared.supervisor.traffic.lease
    with leased("current", "somebody") as lease:
        assert lease.key.version == "v2"
    fail(shared, "v2")
    with leased("current", "somebody") as lease:
        assert (lease.key.version, lease.by_share) == ("v1", None)
    assert leased("current@100", None) is None
    assert os.readlink(shared.root / "current@100") == "v2"
    assert shared.attempts()[0] == ("v2", "REJECTED", "withdrawn")
    reason = shared.supervisor.withdrawal.reason(KEY)
    assert reason.startswith("v2 was withdrawn from current@100: 3 of its last 3 requests failed")
    await share_leaves(shared)
    assert (shared.serves(), shared.supervisor.refusal("current")) == ("v1", None)


async def test_a_share_is_on_trial_for_as_long_as_it_lasts(shared):
    shared.supervisor.withdrawal.probation = 0.0
    withdrawal, v1, v2 = shared.supervisor.withdrawal, key_of(shared, "v1"), key_of(shared, "v2")
    assert withdrawal.other(v2, KEY) == v1
    assert [withdrawal.is_watched(*one) for one in ((v2, KEY), (v2, "current"), (v1, "current"))] == [
        True,
        False,
        False,
    ]


async def test_renaming_a_withdrawn_share_does_not_try_it_again_but_making_it_anew_does(shared):
    fail(shared, "v2")
    await share_leaves(shared)
    os.rename(shared.root / "current@100", shared.root / "current@50")
    await shared.until(lambda: shared.supervisor.records[KEY].percent == 50)
    await shared.until_serves(None, KEY)
    assert shared.supervisor.withdrawal.reason(KEY) is not None
    shared.link("v2", "current@50")
    await shared.until_serves("v2", KEY)
    assert shared.supervisor.withdrawal.reason(KEY) is None


@pytest.mark.parametrize("end", ["stop", "crash"])
async def test_the_same_share_is_not_tried_again_by_the_next_run(shared, services, end):
    fail(shared, "v2")
    await saved_withdrawal(shared, KEY)
    await getattr(shared, end)()
    again = await services().start()
    await again.until_serves("v1")
    await again.until_serves(None, KEY)
    assert again.factory.built == ["v1"]
    assert again.supervisor.withdrawal.reason(KEY) is not None


async def test_a_share_that_is_promoted_keeps_its_outcomes_and_its_probation_begins(shared):
    fail(shared, "v2", 2)
    os.rename(shared.root / "current@100", shared.root / "current")
    shared.supervisor.ring()
    await shared.until_serves("v2")
    await shared.until(lambda: KEY not in shared.supervisor.records)
    for by in ("current", KEY):  # also a request that came by the share just before
        assert shared.supervisor.withdrawal.other(key_of(shared, "v2"), by) == key_of(shared, "v1")
    fail(shared, "v2", 1, by=KEY)
    assert shared.serves() == "v1"


async def test_a_withdrawn_share_may_be_promoted_by_its_operator(shared):
    fail(shared, "v2")
    os.rename(shared.root / "current@100", shared.root / "current")
    shared.supervisor.ring()
    await shared.until_serves("v2")


async def test_a_share_of_a_version_in_its_probation(promoted):
    make_v3(promoted.root)
    link(promoted, "v3", "current@50")
    await promoted.until_serves("v3", KEY)
    other = promoted.supervisor.withdrawal.other
    assert other(key_of(promoted, "v3"), KEY) == key_of(promoted, "v2")
    assert other(key_of(promoted, "v2"), "current") == key_of(promoted, "v1")
    fail(promoted, "v2")
    assert (promoted.serves(), promoted.serves(KEY)) == ("v1", "v3")
    fail(promoted, "v3")
    assert (promoted.serves(), promoted.serves(KEY)) == ("v1", None)


@pytest.mark.parametrize("images", [0, 3])
async def test_a_share_whose_version_loses_the_device_twice_is_not_loaded_a_third_time(shared, services, images):
    run = shared
    for _ in range(2):
        await run.until_serves("v2", KEY)
        for alias in ("current", KEY):
            run.engines.serving(alias).images = 3 if alias == "current" else images
        await run.supervisor.look_now()
        run.supervisor.fail(FatalError("the device is lost", is_crash=True, ending=Ending.DEVICE_LOST))
        run.supervisor.withdrawal.blame(key_of(run, "v2"))
        await run.stop()
        run = await services().start()
    await run.until_serves("v1")
    await run.until_serves(None, KEY)
    assert run.attempts()[0] == ("v2", "REJECTED", "set_aside")
