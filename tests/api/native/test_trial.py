"""`GET /api/trial`, of a real trial: a share takes a part of the requests, and both sides are counted."""

import asyncio
import os
from contextlib import asynccontextmanager, contextmanager

import pytest

from tests.rollout.conftest import flip_byte
from zwatch.deploy.sealing import write_seal
from zwatch.deploy.shares import side_of

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


async def vote(client, name, value=1):
    status, _, _ = await client.call("POST", f"/history/{name}/vote", json={"vote": value})
    assert status == 200


@contextmanager
def spoiled(client, version):
    """A version raises an error in every request."""
    [transformer] = [
        one.module for one in client.services.engines.find(version).engine.components if one.key[0] == "transformer"
    ]
    weight = transformer.layers[0].feed_forward.w1.weight
    whole = weight.data
    weight.data = whole[:, :1]
    try:
        yield
    finally:
        weight.data = whole


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


async def test_votes_on_pictures_that_nobody_left_to_chance_do_not_count_in_it(tried):
    names = [
        (await draw(tried, TRIED, model=model))["images"][0]["name"] for model in ("current", "v1", "v2", "current@10")
    ]
    names += [image["name"] for image in (await draw(tried, TRIED, model=["v1", "v2"]))["images"]]
    for name in names:
        await vote(tried, name)
    assert [side["votes"]["up"] for side in (await trial(tried))["sides"]] == [0, 0]
    async with tried.http.get(tried.url + "/metrics") as response:
        text = await response.text()
    assert 'zwatch_votes{share="",version="v1",vote="up"} 3.0' in text, "the metric counts all"
    assert 'zwatch_votes{share="",version="v2",vote="up"} 2.0' in text
    assert 'zwatch_votes{share="current@10",version="v2",vote="up"} 1.0' in text


async def test_votes_on_pictures_from_before_the_trial_do_not_count_in_it(start, models):
    async with start() as client:
        await client.serves()
        early = (await draw(client, OWN))["images"][0]["name"]
    async with trying(start, models) as client:
        await vote(client, early)
        during = await draw(client, OWN, format="jpeg")
        await vote(client, during["images"][0]["name"])
        found = await trial(client)
        assert [side["votes"]["up"] for side in found["sides"]] == [1, 0]
        _, _, page = await client.call("GET", "/history")
        assert [(image["name"], image["trial"] is not None) for image in page["images"]] == [
            (during["images"][0]["name"], True), (early, False),
        ]  # fmt: skip


async def test_while_a_share_draws_nothing_nothing_counts(tried, models):
    await draw(tried, OWN)
    os.rename(models / "current@10", models / "current@0")
    while (await trial(tried))["share"] != "current@0":
        await tried.services.supervisor.changes.wait()
    found = await draw(tried, OWN)
    await vote(tried, found["images"][0]["name"])
    own, share = (await trial(tried))["sides"]
    assert (own["requests"], own["votes"]["up"], share["requests"]) == (1, 0, 0)


async def test_a_withdrawal_ends_it_after_the_fault_that_it_was_for(tried):
    with spoiled(tried, "v2"):
        for _ in range(3):
            assert (await draw(tried, TRIED))["version"] == "v1"
    found = await trial(tried)
    assert found["ended"] is not None
    assert [(side["requests"], side["failures"]) for side in found["sides"]] == [(0, 0), (3, 3)]
    await draw(tried, OWN)
    assert (await trial(tried)) == found


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
    with spoiled(tried, "v2"):
        await draw(tried, TRIED, model="current@10")  # nobody left that to chance
        found = await draw(tried, TRIED)
    assert found["version"] == "v1", "the client sees no error"
    own, share = (await trial(tried))["sides"]
    assert (share["requests"], share["failures"]) == (1, 1)
    assert (own["requests"], own["failures"]) == (0, 0), "it got this one only because the other failed"
    await vote(tried, found["images"][0]["name"])
    assert [side["votes"]["up"] for side in (await trial(tried))["sides"]] == [0, 0]


async def test_a_request_that_both_versions_fail_to_draw_counts_for_neither(tried):
    with spoiled(tried, "v1"), spoiled(tried, "v2"):
        assert (await draw(tried, TRIED))["error"]["code"] == "generation_failed"
    assert [side["requests"] for side in (await trial(tried))["sides"]] == [0, 0]


@pytest.mark.parametrize(("both", "drawer", "counted"), [(False, "v1", (1, 1)), (True, "v2", (0, 0))])
async def test_a_picture_of_one_colour_is_a_failure_only_if_the_other_version_draws_another(
    start, models, both, drawer, counted
):
    flip_byte(models / "v2" / "vae" / "diffusion_pytorch_model.safetensors", -2)  # else the decoder is shared with v1
    write_seal(models / "v2", "v2")
    async with trying(start, models) as client:
        for version in ("v1", "v2") if both else ("v2",):
            parts = client.services.engines.find(version).engine.components
            [vae] = [one.module for one in parts if one.key.component == "vae"]
            vae.decoder.conv_out.weight.data.zero_()
        found = await draw(client, TRIED)
        assert found["version"] == drawer
        await vote(client, found["images"][0]["name"])
        own, share = (await trial(client))["sides"]
        assert (own["requests"], own["votes"]["up"]) == (0, 0)
        assert (share["requests"], share["failures"], share["votes"]["up"]) == (*counted, 0)


async def test_a_failure_whose_client_leaves_before_it_is_drawn_again_counts(tried):
    queue = tried.services.queue
    queue.drawer.on_redraw.append(lambda suspicion: queue.cancel(queue.running))
    with spoiled(tried, "v2"):
        body = {"prompt": "a cat", "steps": 1, "user": TRIED}
        _, _, job = await tried.call("POST", "/jobs", json=body)
        found = queue.jobs.find(job["id"])
        async with asyncio.timeout(60):
            while not found.state.is_final:
                await found.changes.wait()
    assert found.state.value == "cancelled"
    own, share = (await trial(tried))["sides"]
    assert (own["requests"], share["requests"], share["failures"]) == (0, 1, 1)


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
