"""Links that are changed while nothing runs: what is known of a share goes with its link, and of a found alias with its name."""

import json
import os

import pytest

from tests.rollout.conftest import make_v3, prove_good
from tests.rollout.test_shares import KEY, link, of_share, sharing
from zwatch.rollout.lifecycle import EngineState

WHY = "the model made NaN or infinite pixels"
PATTERN = ("current", "can*")


@pytest.fixture
async def shared(service):
    """A service in which v1 serves `current`, and v2 a share."""
    await sharing(service, percent=20)
    return service


def saved(service):
    return json.loads((service.state / "state.json").read_bytes())["aliases"]


async def withdraw(service):
    """Withdraw what the share serves, and save that."""
    record = of_share(service)
    record.withdraw(service.supervisor.runner.begin_again(record), WHY)
    service.supervisor.ring()
    await service.supervisor.state.save()
    await service.until(lambda: service.states() == {"v1": EngineState.SERVING})


async def end(service, how="crash"):
    """End a run when what was seen of the links is saved."""
    state = service.supervisor.state
    await service.until(
        lambda: state._links == state.saved.links() and (state._writing is None or state._writing.done())
    )
    await getattr(service, how)()


async def is_still_withdrawn(service, name):
    await service.until(lambda: of_share(service) is not None and service.supervisor.settled_once)
    share = of_share(service)
    assert (share.name, share.serving, share.withdrawn.reason) == (name, None, WHY)
    assert share.refusals.find(share.wish).rejection.code == "withdrawn"
    assert service.factory.built == ["v1"]


@pytest.mark.parametrize("how", ["stop", "crash"])
async def test_a_withdrawn_share_that_is_renamed_meanwhile_is_not_tried_again(shared, services, how):
    await withdraw(shared)
    await end(shared, how)
    os.rename(shared.root / "current@20", shared.root / "current@30")
    again = await services().start()
    await is_still_withdrawn(again, "current@30")
    await end(again, "stop")  # a second crash would set v1 aside
    os.rename(shared.root / "current@30", shared.root / "current@40")
    third = await services().start()
    await is_still_withdrawn(third, "current@40")
    third.link("v2", "current@40")  # made anew
    await third.until_serves("v2", KEY)


@pytest.mark.parametrize("meanwhile", [False, True])
async def test_a_withdrawn_share_that_takes_the_name_of_its_alias_is_a_new_wish(shared, services, meanwhile):
    service = shared
    await withdraw(service)
    if meanwhile:
        await end(service, "stop")
    os.rename(shared.root / "current@20", shared.root / "current")
    if meanwhile:
        service = await services().start()
    service.supervisor.ring()
    await service.until_serves("v2")
    await service.until(lambda: KEY not in service.supervisor.records)
    assert service.supervisor.records["current"].withdrawn is None
    assert service.supervisor.previous("current").version == "v1"


async def test_one_that_is_made_anew_meanwhile_under_another_name_is_tried_again(shared, services):
    await withdraw(shared)
    await end(shared)
    (shared.root / "current@20").unlink()
    (shared.root / "current@30").symlink_to("v2")
    again = await services().start()
    await again.until_serves("v2", KEY)


async def test_a_share_that_was_unloaded_stays_so_when_it_is_renamed_meanwhile(shared, services):
    assert await shared.operator.unload()
    await end(shared, "stop")
    os.rename(shared.root / "current@20", shared.root / "current@30")
    again = await services().start()
    await again.until(lambda: of_share(again) is not None and again.supervisor.settled_once)
    assert again.supervisor.is_unloaded("current@30")
    assert again.states() == {}


async def test_crashes_of_a_share_go_on_to_count_when_it_is_renamed_between_them(shared, services):
    prove_good(shared)
    await shared.supervisor.look_now()
    await end(shared)
    os.rename(shared.root / "current@20", shared.root / "current@30")
    two = await services().start()
    await two.until_serves("v2", KEY)
    prove_good(two)
    await two.supervisor.look_now()
    await end(two)
    os.rename(shared.root / "current@30", shared.root / "current@40")
    three = await services().start()
    await three.until(lambda: of_share(three) is not None and three.supervisor.settled_once)
    share = of_share(three)
    assert share.refusals.find(share.wish).rejection.code == "set_aside"


@pytest.mark.parametrize("other", ["current@5", "current@ten"])
async def test_what_is_known_of_a_share_stays_while_other_links_have_such_names(shared, services, other):
    await withdraw(shared)
    await end(shared, "stop")
    if other == "current@5":
        (shared.root / other).symlink_to("v1")
    else:
        os.rename(shared.root / "current@20", shared.root / other)
    again = await services().start()
    await again.until_serves("v1")
    fault = "several_shares" if other == "current@5" else "not_a_share"
    await again.until(lambda: again.supervisor.seen.shares["current"].fault.code == fault)
    await again.until(lambda: KEY not in again.supervisor.records)  # after the grace
    assert saved(again)[KEY]["withdrawn"] is not None
    if other == "current@5":
        (shared.root / other).unlink()
    else:
        os.rename(shared.root / other, shared.root / "current@20")
    again.supervisor.ring()
    await is_still_withdrawn(again, "current@20")


async def test_a_state_file_without_the_marks_of_an_earlier_release_is_used(shared, services):
    await end(shared, "stop")
    path = shared.state / "state.json"
    content = json.loads(path.read_bytes())
    assert content["aliases"][KEY].pop("mark")["name"] == "current@20"
    path.write_text(json.dumps(content))
    again = await services().start()
    await again.until_serves("v2", KEY)
    await again.until(lambda: saved(again)[KEY]["mark"]["name"] == "current@20")


# --- aliases that a pattern found


@pytest.fixture
async def found(services):
    """A service whose `canary`, which a pattern found, serves v2; before it served v1."""
    service = await services(aliases=PATTERN).start()
    await service.until_serves("v1")
    link(service, "v1", "canary")
    await service.until_serves("v1", "canary")
    service.link("v2", "canary")
    await service.until_serves("v2", "canary")
    prove_good(service, "canary")
    await service.supervisor.look_now()
    return service


@pytest.mark.parametrize("how", ["stop", "crash"])
async def test_a_found_alias_with_a_bad_link_is_still_followed_after_a_restart(found, services, tmp_path, how):
    (tmp_path / "elsewhere/v2").mkdir(parents=True)
    found.link("../elsewhere/v2", "canary")
    await found.until(lambda: "canary" in found.supervisor.seen.faults)
    await end(found, how)
    again = await services(aliases=PATTERN).start()
    assert again.supervisor.aliases == ("current", "canary")
    await again.until_serves("v2", "canary")  # last-known-good
    assert again.supervisor.seen.faults["canary"].code == "outside"
    assert saved(again)["canary"]["good"][0]["version"] == "v2"


async def test_a_found_alias_that_is_missing_for_a_moment_at_the_start_is_kept(found, services):
    await end(found, "stop")
    (found.root / "canary").unlink()
    again = await services(aliases=PATTERN).start()
    await again.supervisor.look_now()
    assert again.supervisor.aliases == ("current", "canary")
    (found.root / "canary").symlink_to("v2")
    await again.until_serves("v2", "canary")
    assert again.supervisor.previous("canary").version == "v1"
    assert again.factory.built.count("v2") == 1


async def test_a_found_alias_that_went_meanwhile_is_forgotten_and_nothing_is_loaded_for_it(found, services):
    await end(found, "stop")
    (found.root / "canary").unlink()
    again = await services(aliases=PATTERN).start()
    await again.until(lambda: again.supervisor.aliases == ("current",))
    await again.until(lambda: "canary" not in saved(again))
    await again.until_serves("v1")
    assert again.factory.built == ["v1"]


async def test_a_found_alias_that_is_linked_anew_meanwhile_knows_what_it_served(found, services, models):
    make_v3(models)
    await end(found, "stop")
    found.link("v3", "canary")
    again = await services(aliases=PATTERN).start()
    await again.until_serves("v3", "canary")
    assert again.supervisor.previous("canary").version == "v2"


async def test_an_alias_that_no_pattern_matches_any_more_is_not_followed(found, services):
    await end(found, "stop")
    again = await services().start()
    await again.until_serves("v1")
    assert again.supervisor.aliases == ("current",)
