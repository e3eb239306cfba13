"""`GET /api/trial`, of a real trial: a share takes a part of the requests, and both sides are counted."""

import os
from contextlib import asynccontextmanager

import pytest

from zwatch.deploy.shares import side_of
from zwatch.rollout.lifecycle import VersionKey

JSON = {"Accept": "application/json"}
TRIED = next(name for name in map(str, range(1000)) if side_of(name, "current") < 10)
OWN = next(name for name in map(str, range(1000)) if side_of(name, "current") >= 50)
"""Clients on either side of `current@10` and of `current@50`."""


@asynccontextmanager
async def trying(start, models, percent=10):
    """A service in which v2 is tried on a part of the requests for `current`, which serves v1."""
    if not (models / f"current@{percent}").is_symlink():
        (models / f"current@{percent}").symlink_to("v2")
    async with start() as client:
        await client.serves()
        while (await trial(client))["share"] is None:
            await client.services.supervisor.changes.wait()
        yield client


@pytest.fixture
async def tried(start, models):
    async with trying(start, models) as client:
        yield client


async def trial(client, alias="current"):
    status, _, found = await client.call("GET", f"/api/trial?alias={alias}")
    assert status == 200, found
    return found


async def draw(client, who, **fields):
    body = {"prompt": "a cat", "steps": 1, **fields}
    headers = {**JSON, "X-Client-Id": who}
    _, _, found = await client.call("POST", "/generate", json=body, headers=headers)
    return found


async def test_both_sides_are_counted_with_their_intervals(tried):
    for _ in range(6):
        assert (await draw(tried, TRIED))["version"] == "v2"
    for _ in range(2):
        assert (await draw(tried, OWN))["version"] == "v1"
    found = await trial(tried)
    assert (found["alias"], found["share"], found["ended"]) == ("current", "current@10", None)
    own, share = found["sides"]
    assert (own["version"], own["share"], own["requests"], own["failures"]) == ("v1", None, 2, 0)
    assert (share["version"], share["share"], share["requests"], share["failures"]) == ("v2", "current@10", 6, 0)
    assert own["latency"] == {"median": None, "low": None, "high": None}
    assert 0 < share["latency"]["low"] <= share["latency"]["median"] <= share["latency"]["high"]
    assert share["failure_rate"] == {"value": 0.0, "low": 0.0, "high": 0.3903}
    assert found["difference"]["latency"] is None
    assert found["conclusion"] == "nothing can be concluded yet, from 2 and 6 requests, 0 and 0 votes"


async def test_requests_that_name_a_side_do_not_count(tried):
    for model in ("current", "v1", "v2", "current@10"):
        await draw(tried, TRIED, model=model)
    await draw(tried, TRIED, model=["v1", "v2"])
    assert [side["requests"] for side in (await trial(tried))["sides"]] == [0, 0]


async def test_votes_count_for_the_version_and_stay_when_the_picture_is_deleted(tried):
    mine = (await draw(tried, TRIED))["images"][0]["name"]
    theirs = (await draw(tried, OWN))["images"][0]["name"]
    for name, value in ((mine, 1), (theirs, -1)):
        await tried.call("POST", f"/history/{name}/vote", json={"vote": value})
    own, share = (await trial(tried))["sides"]
    assert (own["votes"]["up"], own["votes"]["down"], own["votes"]["share"]) == (0, 1, 0.0)
    assert (share["votes"]["up"], share["votes"]["down"], share["votes"]["share"]) == (1, 0, 1.0)
    before = await trial(tried)
    assert (await tried.call("DELETE", "/history"))[0] == 200
    assert await trial(tried) == before
    async with tried.http.get(tried.url + "/metrics") as response:
        text = await response.text()
    assert 'zwatch_votes{share="current@10",version="v2",vote="up"} 1.0' in text
    assert 'zwatch_votes{share="",version="v1",vote="down"} 1.0' in text


async def test_a_renamed_share_and_a_restart_go_on_with_the_same_trial(start, models):
    async with trying(start, models) as client:
        await draw(client, TRIED)
        began = (await trial(client))["began"]
        os.rename(models / "current@10", models / "current@50")
        while (await trial(client))["share"] != "current@50":
            await client.services.supervisor.changes.wait()
        await draw(client, TRIED)
    async with trying(start, models, 50) as client:
        found = await trial(client)
        assert (found["share"], found["began"], found["ended"]) == ("current@50", began, None)
        assert [side["requests"] for side in found["sides"]] == [0, 2]


async def test_a_promotion_ends_it_and_its_figures_stay(tried, models):
    await draw(tried, TRIED)
    os.rename(models / "current@10", models / "current")
    await tried.serves("v2")
    while (await trial(tried))["ended"] is None:
        await tried.services.supervisor.changes.wait()
    await draw(tried, TRIED)
    found = await trial(tried)
    assert [(side["version"], side["requests"]) for side in found["sides"]] == [("v1", 0), ("v2", 1)]
    assert not list(tried.services.trials.results.running())


async def test_a_failure_that_the_other_version_drew_again_counts_against_the_one_that_failed(tried):
    key = tried.services.engines.find("v2").key
    resident = tried.services.engines.resident(VersionKey("v2", key.digest))
    [transformer] = [one.module for one in resident.engine.components if one.key[0] == "transformer"]
    weight = transformer.layers[0].feed_forward.w1.weight
    whole = weight.data
    weight.data = whole[:, :1]
    try:
        found = await draw(tried, TRIED)
    finally:
        weight.data = whole
    assert found["version"] == "v1", "the client sees no error"
    own, share = (await trial(tried))["sides"]
    assert (share["requests"], share["failures"]) == (1, 1)
    assert (own["requests"], own["failures"]) == (1, 0)


async def test_without_a_trial_the_answer_says_how_one_begins(client):
    found = await trial(client)
    assert (found["share"], found["sides"], found["began"]) == (None, [], None)
    assert "zwatch share v3 10" in found["conclusion"]
    status, _, answer = await client.call("GET", "/api/trial?alias=nobody")
    assert (status, answer["error"]["code"]) == (404, "not_found")


async def test_a_file_that_is_no_results_is_put_aside(start, models, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "trials.json").write_text('{"schema": 9}')
    async with trying(start, models) as client:
        await draw(client, TRIED)
        assert [side["requests"] for side in (await trial(client))["sides"]] == [0, 1]
    assert (tmp_path / "state" / "trials.json.bad").read_text() == '{"schema": 9}'
