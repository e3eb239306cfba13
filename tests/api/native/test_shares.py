"""Shares on a real service: which version draws, and that everything says so."""

import asyncio
import io
import os

import pytest
from PIL import Image

from tests.rollout.conftest import make_v3
from zwatch.client import shown
from zwatch.deploy.shares import share_key, side_of

KEY = share_key("current")
ON_SHARE = next(f"c{number}" for number in range(1000) if side_of(f"c{number}", "current") < 10)
ON_OWN = next(f"c{number}" for number in range(1000) if side_of(f"c{number}", "current") > 60)


async def until(client, condition):
    async with asyncio.timeout(60):
        while not condition():
            await client.services.supervisor.changes.wait()


async def serves(client, version, key=KEY):
    engines = client.services.engines
    await until(client, lambda: (found := engines.serving(key)) is not None and found.key.version == version)


@pytest.fixture
async def trial(client, models):
    """A service of which v2 draws a tenth of the requests, and v1 the others."""
    (models / "current@10").symlink_to("v2")
    client.services.supervisor.ring()
    await serves(client, "v2")
    return client


def rename(client, models, old, new):
    os.rename(models / old, models / new)
    client.services.supervisor.ring()


async def draw(client, **fields):
    """Return the version and the share that the headers of a small picture name."""
    headers, file = await client.png(width=64, height=64, steps=1, **fields)
    with Image.open(io.BytesIO(file)) as image:
        assert image.info["zwatch_version"] == headers["X-Zwatch-Version"]
        assert image.info.get("zwatch_share") == headers.get("X-Zwatch-Share")
        assert image.info["parameters"].endswith(
            f", Share: {headers['X-Zwatch-Share']}"
            if "X-Zwatch-Share" in headers
            else f", Model: {headers['X-Zwatch-Version']}"
        )
    return headers["X-Zwatch-Version"], headers.get("X-Zwatch-Share")


async def test_a_client_on_the_share_s_side_is_drawn_for_by_its_version_and_everything_says_so(trial):
    assert await draw(trial, user=ON_SHARE) == ("v2", "current@10")
    assert await draw(trial, user=ON_OWN) == ("v1", None)
    _, _, page = await trial.call("GET", "/history?limit=2")
    assert [(one["version"], one["share"]) for one in page["images"]] == [("v1", None), ("v2", "current@10")]
    _, _, body = await trial.call(
        "POST", "/generate", json={"prompt": "a cat", "user": ON_SHARE, "width": 64, "height": 64, "steps": 1},
        headers={"Accept": "application/json"},
    )  # fmt: skip
    assert (body["version"], body["share"], body["model"]) == ("v2", "current@10", "current")
    async with trial.http.get(trial.url + "/metrics") as response:
        text = await response.text()
    assert 'zwatch_version_requests_total{outcome="ok",share="current@10",version="v2"} 2.0' in text
    assert 'zwatch_version_requests_total{outcome="ok",share="",version="v1"} 1.0' in text
    assert 'zwatch_serving_info{alias="current@10",' in text


async def test_what_names_a_model_is_not_moved(trial, models):
    rename(trial, models, "current@10", "current@100")
    await until(trial, lambda: "current@100" in trial.services.supervisor.traffic)
    assert await draw(trial) == ("v2", "current@100")
    assert await draw(trial, model="current") == ("v1", None)
    assert await draw(trial, model="v1") == ("v1", None)
    assert await draw(trial, model="v2") == ("v2", None)
    assert await draw(trial, model="current@100") == ("v2", "current@100")


async def test_the_header_of_a_client_decides_where_no_user_is_named(trial):
    for client, expected in ((ON_SHARE, "v2"), (ON_OWN, "v1")):
        async with trial.http.post(
            trial.url + "/jobs",
            json={"prompt": "a", "width": 64, "height": 64, "steps": 1},
            headers={"X-Client-Id": client},
        ) as response:
            job = await response.json()
        while (found := (await trial.call("GET", f"/jobs/{job['id']}"))[2])["state"] != "done":
            assert found["state"] in ("queued", "running")
        assert found["version"] == expected


async def test_a_share_s_name_that_is_none_now_is_not_found(trial):
    error = await trial.error("/generate", {"prompt": "a", "model": "current@50"}, 404)
    assert error["code"] == "model_not_found"
    assert "current has no share 'current@50' at present" in error["message"]
    error = await trial.error("/generate", {"prompt": "a", "model": "current@"}, 404)
    assert error["code"] == "model_not_found"


async def test_openai_s_and_a1111_s_clients_are_moved_and_see_the_share(trial, models):
    body = {"prompt": "a", "size": "64x64", "num_inference_steps": 1, "user": ON_SHARE}
    _, headers, answer = await trial.call("POST", "/v1/images/generations", json={**body, "model": "dall-e-3"})
    assert (headers["X-Zwatch-Share"], answer["share"], answer["version"]) == ("current@10", "current@10", "v2")
    _, headers, _ = await trial.call("POST", "/v1/images/generations", json={**body, "model": "current"})
    assert headers["X-Zwatch-Version"] == "v1"
    _, _, answer = await trial.call("GET", "/v1/models")
    assert [(one["id"], one["version"]) for one in answer["data"]][:2] == [("current", "v1"), ("current@10", "v2")]
    _, _, answer = await trial.call("GET", "/sdapi/v1/sd-models")
    assert [one["title"] for one in answer][:2] == ["current", "current@10"]
    wanted = {"prompt": "a", "width": 64, "height": 64, "steps": 1}
    _, headers, answer = await trial.call("POST", "/sdapi/v1/txt2img", json=wanted, headers={"X-Client-Id": ON_SHARE})
    assert headers["X-Zwatch-Share"] == "current@10"
    assert ", Share: current@10" in answer["info"]
    _, headers, _ = await trial.call(
        "POST", "/sdapi/v1/txt2img", json={**wanted, "override_settings": {"sd_model_checkpoint": "current"}},
        headers={"X-Client-Id": ON_SHARE},
    )  # fmt: skip
    assert headers["X-Zwatch-Version"] == "v1"


async def test_the_status_the_versions_and_the_health_show_the_share(trial):
    _, _, status = await trial.call("GET", "/status")
    share = status["shares"]["current@10"]
    assert (share["alias"], share["target"], share["percent"], share["counts"], share["fault"], share["serving"]) == (
        "current", "v2", 10, True, None, "v2"
    )  # fmt: skip
    assert (share["attempt"]["alias"], share["attempt"]["state"]) == ("current@10", "PROMOTED")
    assert status["aliases"]["current"]["share"] == "current@10"
    assert list(status["aliases"]) == ["current"]
    _, _, versions = await trial.call("GET", "/versions")
    assert {one["name"]: one["aliases"] for one in versions["versions"]} == {"v1": ["current"], "v2": ["current@10"]}
    _, _, health = await trial.call("GET", "/health")
    assert health == {"status": "ok", "version": "v1", "reasons": []}


async def test_two_shares_and_a_bad_name_are_faults_of_the_alias(trial, models):
    (models / "current@50").symlink_to("v2")
    (models / "current@x").symlink_to("v2")
    trial.services.supervisor.ring()
    await until(trial, lambda: len(trial.services.supervisor.seen.shares["current"].faults) == 3)
    _, _, status = await trial.call("GET", "/status")
    assert status["status"] == "degraded"
    assert status["aliases"]["current"]["fault"]["code"] == "several_shares"
    assert {name: (one["percent"], one["counts"]) for name, one in status["shares"].items()} == {
        "current@10": (10, False), "current@50": (50, False), "current@x": (None, False)
    }  # fmt: skip
    assert any("current has 2 shares" in reason for reason in status["reasons"])
    assert any(reason.startswith("current@x: ") for reason in status["reasons"])
    assert await draw(trial, user=ON_SHARE) == ("v1", None)


async def test_a_promotion_under_load_loses_no_request(trial, models):
    make_v3(models)
    wanted = {"prompt": "a", "width": 64, "height": 64, "steps": 1}
    statuses = []

    async def ask(number):
        status, _, _ = await trial.call(
            "POST", "/generate", json={**wanted, "user": f"c{number}"}, headers={"Accept": "application/json"}
        )
        statuses.append(status)

    asked = [asyncio.create_task(ask(number)) for number in range(20)]
    rename(trial, models, "current@10", "current@50")
    asked += [asyncio.create_task(ask(number)) for number in range(20, 30)]
    rename(trial, models, "current@50", "current")
    await asyncio.gather(*asked)
    await serves(trial, "v2", "current")
    assert statuses == [200] * 30


async def test_events_tell_of_shares(trial, models):
    async with trial.http.get(trial.url + "/events") as response:
        rename(trial, models, "current@10", "current@50")
        found = b""
        while b'"shares": ["current@50"]' not in found or b'"alias": "current@50"' not in found:
            found += await response.content.readany()


async def test_the_command_shows_shares_with_their_faults(trial, models):
    (models / "current@x").symlink_to("v2")
    trial.services.supervisor.ring()
    await until(trial, lambda: trial.services.supervisor.seen.shares["current"].faults)
    _, _, status = await trial.call("GET", "/status")
    lines = shown("/status", status)
    assert any(line.startswith("  current@10 -> v2, last attempt v2 PROMOTED in ") for line in lines)
    assert any(line.startswith("  current@x: current@x: after @ ") for line in lines)


@pytest.mark.parametrize("name", ["can*", None])
async def test_found_aliases_are_endpoints_of_all_apis_while_their_links_are_there(start, models, name):
    async with start(**({"all_aliases": True} if name is None else {"aliases": ("current", name)})) as client:
        await client.serves()
        (models / "canary").symlink_to("v2")
        await serves(client, "v2", "canary")
        assert await draw(client, model="canary") == ("v2", None)
        _, _, found = await client.call("GET", "/v1/models")
        assert [one["id"] for one in found["data"]][:2] == ["current", "canary"]
        _, _, found = await client.call("GET", "/sdapi/v1/sd-models")
        assert [one["title"] for one in found][:2] == ["current", "canary"]
        status, _, found = await client.call("POST", "/api/deploy", json={"version": "v1", "alias": "canary"})
        assert (status, found["version"]) == (200, "v1")
        status, _, found = await client.call("POST", "/api/rollback", json={"alias": "canary"})
        assert (status, found["version"]) == (200, "v2")
        (models / "canary").unlink()
        await until(client, lambda: client.services.supervisor.aliases == ("current",))
        error = await client.error("/generate", {"prompt": "a", "model": "canary"}, 404)
        assert error["code"] == "model_not_found"
        status, _, _ = await client.call("POST", "/api/deploy", json={"version": "v1", "alias": "canary"})
        assert status == 404
