"""Trials over HTTP, with real engines: a share is made, moved, ended and promoted."""

import asyncio
import os
import shutil
from itertools import count

import pytest
import torch

from zwatch.deploy.sealing import write_seal
from zwatch.deploy.shares import side_of

DEADLINE = 60


def key_at(side, alias="current"):
    """Return a client's key that stands in this percent of an alias's clients."""
    return next(key for key in map("client-{}".format, count()) if side <= side_of(key, alias) < side + 1)


FIRST, MIDDLE, LAST = key_at(0), key_at(30), key_at(90)


async def post(client, path, **body):
    """Return (status, body) of a call, within a time that no call should take."""
    status, _, answer = await asyncio.wait_for(client.call("POST", path, json=body), DEADLINE)
    return status, answer


async def share(client, version, percent, **fields):
    """Make or move a share, which must succeed; return the answer."""
    status, answer = await post(client, "/api/share", version=version, percent=percent, **fields)
    assert status == 200, answer
    return answer


async def drawn_by(client, *keys):
    """Return which version draws for each of these clients."""
    found = []
    for key in keys:
        body = {"prompt": "a cat", "width": 64, "height": 64, "steps": 1}
        async with client.http.post(client.url + "/generate", json=body, headers={"X-Client-Id": key}) as response:
            assert response.status == 200, await response.text()
            found.append(response.headers["X-Zwatch-Version"])
    return found


def links(client):
    """Return the links in the models root."""
    root = client.services.models
    return {path.name: os.readlink(path) for path in root.iterdir() if path.is_symlink()}


def write_copy(models, name, of="v2"):
    """Write and seal another version."""
    shutil.copytree(models / of, models / name)
    write_seal(models / name, name)


async def test_a_trial_is_started_grown_and_ended(client):
    answer = await share(client, "v2", 10)
    assert answer.pop("seconds") > 0
    assert answer == {
        "status": "success", "message": "v2 gets 10 % of the requests for current", "version": "v2", "percent": 10, "share": "current@10",
    }  # fmt: skip
    assert links(client) == {"current": "v1", "current@10": "v2"}
    assert await drawn_by(client, FIRST, MIDDLE, LAST) == ["v2", "v1", "v1"]
    answer = await share(client, None, 50)
    assert (answer["version"], answer["percent"], answer["share"]) == ("v2", 50, "current@50")
    assert links(client) == {"current": "v1", "current@50": "v2"}
    assert await drawn_by(client, FIRST, MIDDLE, LAST) == ["v2", "v2", "v1"]
    status, answer = await post(client, "/api/share", percent=None)
    assert (status, answer["message"]) == (200, "current@50 is removed: the trial has ended")
    assert (answer["version"], answer["percent"], answer["share"]) == ("v2", None, None)
    assert links(client) == {"current": "v1"}
    assert await drawn_by(client, FIRST, MIDDLE, LAST) == ["v1", "v1", "v1"]


async def test_a_share_of_0_is_held_ready_and_draws_nothing(client):
    answer = await share(client, "v2", 0)
    assert answer["message"] == "v2 is held ready, and gets no requests"
    assert await drawn_by(client, FIRST) == ["v1"]
    assert {one.key.version for one in client.services.engines.residents} == {"v1", "v2"}


async def test_what_is_so_already_is_answered_in_the_same_way_and_changes_nothing(client):
    first = await share(client, "v2", 10)
    made = (client.services.models / "current@10").lstat()
    for version in ("v2", None):
        again = await share(client, version, 10)
        assert {**again, "seconds": 0} == {**first, "seconds": 0}
    assert (client.services.models / "current@10").lstat().st_ctime_ns == made.st_ctime_ns
    for _ in range(2):
        status, answer = await post(client, "/api/share", percent=None)
        assert (status, answer["percent"]) == (200, None)
    assert answer["message"] == "current has no share"


async def test_a_share_is_promoted_without_reading_a_byte(client):
    await share(client, "v2", 50)
    resident = client.services.engines.serving("current@")
    status, answer = await post(client, "/api/promote")
    assert (status, answer["message"], answer["version"]) == (200, "v2 is serving", "v2")
    assert links(client) == {"current": "v2"}
    assert client.services.engines.serving("current") is resident
    _, _, status = await client.call("GET", "/status")
    assert status["aliases"]["current"]["attempt"]["way"] == "resident"
    assert await drawn_by(client, FIRST, LAST) == ["v2", "v2"]
    status, answer = await post(client, "/api/rollback")
    assert (status, answer["version"]) == (200, "v1")


async def test_only_what_is_ready_is_promoted_and_a_deploy_forces_it(client):
    status, answer = await post(client, "/api/promote")
    assert (status, answer["error"]["code"]) == (409, "rejected")
    assert "current has no share to promote; `zwatch deploy VERSION`" in answer["error"]["message"]
    shutil.copytree(client.services.models / "v2", client.services.models / "v3")  # its headers still say v2
    status, answer = await post(client, "/api/share", version="v3", percent=10)
    assert (status, answer["reason"]["state"], answer["reason"]["code"]) == (409, "REJECTED", "version_mismatch")
    assert links(client) == {"current": "v1", "current@10": "v3"}, "as after a deploy, the link stays"
    assert await drawn_by(client, FIRST) == ["v1"]
    status, answer = await post(client, "/api/promote")
    assert (status, answer["reason"]["code"]) == (409, "version_mismatch")
    assert "current@10: v3 is not promoted: " in answer["error"]["message"]
    assert "`zwatch deploy v3` deploys it all the same" in answer["error"]["message"]
    assert links(client) == {"current": "v1", "current@10": "v3"}


async def test_a_rejected_version_is_tried_again_when_it_is_named_again(client):
    models = client.services.models
    write_copy(models, "v3")
    os.truncate(models / "v3/vae/config.json", 1)
    assert (await post(client, "/api/share", version="v3", percent=10))[0] == 409
    made = (models / "current@10").lstat().st_mtime_ns
    assert (await post(client, "/api/share", percent=20))[0] == 409, "only the percentage was asked for"
    assert (models / "current@20").lstat().st_mtime_ns == made
    assert (await post(client, "/api/share", version="v3", percent=20))[0] == 409
    assert (models / "current@20").lstat().st_mtime_ns > made
    shutil.copy(models / "v2/vae/config.json", models / "v3/vae/config.json")
    assert (await share(client, "v3", 20))["version"] == "v3"


async def test_another_version_takes_the_place_of_the_one_on_trial(client):
    write_copy(client.services.models, "v3")
    await share(client, "v2", 10)
    for percent in (10, 50, 5):
        version = "v2" if links(client).get("current@10") == "v3" or percent == 5 else "v3"
        answer = await share(client, version, percent)
        assert (answer["version"], answer["share"]) == (version, f"current@{percent}")
        assert links(client) == {"current": "v1", f"current@{percent}": version}
        assert await drawn_by(client, FIRST) == [version]


async def test_a_deploy_and_a_rollback_move_the_alias_and_leave_the_trial(client):
    write_copy(client.services.models, "v3")
    await share(client, "v2", 10)
    status, answer = await post(client, "/api/deploy", version="v3")
    assert (status, answer["version"]) == (200, "v3")
    assert links(client) == {"current": "v3", "current@10": "v2"}
    assert await drawn_by(client, FIRST, LAST) == ["v2", "v3"]
    status, answer = await post(client, "/api/rollback")
    assert (status, answer["version"]) == (200, "v1")
    assert links(client) == {"current": "v1", "current@10": "v2"}
    assert await drawn_by(client, FIRST, LAST) == ["v2", "v1"]


async def test_a_deploy_of_the_version_on_trial_needs_no_load_and_leaves_its_link(client):
    await share(client, "v2", 10)
    resident = client.services.engines.serving("current@")
    assert (await post(client, "/api/deploy", version="v2"))[0] == 200
    assert client.services.engines.serving("current") is resident
    assert await drawn_by(client, FIRST, LAST) == ["v2", "v2"]
    assert (await post(client, "/api/share", percent=None))[0] == 200
    assert await drawn_by(client, FIRST, LAST) == ["v2", "v2"]
    assert links(client) == {"current": "v2"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"version": "v2"}, "percent"),
        ({}, "percent"),
        ({"version": "v2", "percent": 101}, "percent"),
        ({"version": "v2", "percent": -1}, "percent"),
        ({"version": "v2", "percent": 10.5}, "percent"),
        ({"version": "v2", "percent": "10"}, "percent"),
        ({"version": "v2", "percent": True}, "percent"),
        ({"version": 2, "percent": 10}, "version"),
        ({"version": " ", "percent": 10}, "version"),
        ({"percent": 10, "alias": None}, "alias"),
        ({"percent": 10, "wait": 1}, "wait"),
        ({"percent": 10, "share": "current@10"}, "share"),
    ],
)
async def test_a_wrong_body_is_a_400_that_names_the_field(client, body, param):
    error = await client.error("/api/share", body, 400)
    assert error["param"] == param
    assert links(client) == {"current": "v1"}


async def test_what_is_not_there_is_a_404_and_what_cannot_be_shared_a_409(client):
    assert (await client.error("/api/share", {"version": "v9", "percent": 10}, 404))["param"] == "version"
    for path, body in {"/api/share": {"percent": 10}, "/api/promote": {}, "/api/deploy": {"version": "v2"}}.items():
        assert (await client.error(path, {**body, "alias": "canary"}, 404))["param"] == "alias"
        error = await client.error(path, {**body, "alias": "current@10"}, 404)
        assert (error["param"], "'current@10' is a share of 'current'" in error["message"]) == ("alias", True)
    error = await client.error("/api/share", {"version": "v1", "percent": 10}, 409)
    assert error["message"] == "v1 is what current serves: a trial needs another version"
    error = await client.error("/api/share", {"percent": 10}, 409)
    assert "`zwatch share VERSION 10`" in error["message"]
    await share(client, "v2", 10)
    error = await client.error("/api/share", {"version": "v1", "percent": None}, 409)
    assert error["message"] == "current shares its requests with v2, not with v1: the trial goes on"
    assert links(client) == {"current": "v1", "current@10": "v2"}


async def test_of_two_shares_none_is_moved_or_promoted_until_they_are_ended(client):
    for percent in (10, 50):
        (client.services.models / f"current@{percent}").symlink_to("v2")
    for path, body in (("/api/share", {"percent": 20}), ("/api/promote", {})):
        error = await client.error(path, body, 409)
        assert "current@10 and current@50" in error["message"]
        assert "rm current@10" in error["message"]
    assert await drawn_by(client, FIRST) == ["v1"]
    assert (await post(client, "/api/share", percent=None))[0] == 200
    assert links(client) == {"current": "v1"}


async def test_without_waiting_the_link_is_changed_and_answered_with_202(client):
    status, answer = await post(client, "/api/share", version="v2", percent=10, wait=False)
    assert (status, answer) == (
        202,
        {"status": "accepted", "message": "current@10 now points to v2", "version": "v2", "percent": 10, "share": "current@10"},
    )  # fmt: skip
    await share(client, "v2", 10)
    status, answer = await post(client, "/api/promote", wait=False)
    assert (status, answer) == (202, {"status": "accepted", "message": "current now points to v2", "version": "v2"})
    await asyncio.wait_for(client.serves("v2"), DEADLINE)


async def test_the_trial_begins_although_the_client_leaves(client):
    asking = asyncio.create_task(client.call("POST", "/api/share", json={"version": "v2", "percent": 10}))
    async with asyncio.timeout(DEADLINE):
        while "current@10" not in links(client):
            await asyncio.sleep(0.005)
    asking.cancel()
    while (serving := client.services.engines.serving("current@")) is None or serving.key.version != "v2":
        await asyncio.wait_for(client.services.supervisor.changes.wait(), DEADLINE)
    assert await drawn_by(client, FIRST) == ["v2"]


@pytest.mark.parametrize("path", ["/api/share", "/api/promote"])
async def test_a_page_of_another_site_may_not_call_it(client, path):
    headers = {"Origin": "http://elsewhere.example"}
    status, _, answer = await client.call("POST", path, json={"percent": None}, headers=headers)
    assert (status, answer["error"]["code"]) == (403, "forbidden_origin")


async def test_the_list_of_versions_names_the_share_and_what_prune_keeps(client):
    await share(client, "v2", 10)
    _, _, body = await client.call("GET", "/versions")
    [found] = [one for one in body["versions"] if one["name"] == "v2"]
    assert (found["aliases"], found["resident"]) == (["current@10"], True)
    assert found["uses"]


async def test_of_calls_at_the_same_time_the_last_one_holds_and_one_share_is_left(client):
    asked = [post(client, "/api/share", version="v2", percent=percent) for percent in (10, 20, 30, 40)]
    answers = await asyncio.gather(*asked)
    assert {status for status, _ in answers} <= {200, 409}
    for status, answer in answers:
        assert status == 200 or "superseded: " in answer["error"]["message"], answer
    assert 200 in [status for status, _ in answers]
    [name] = links(client).keys() - {"current"}
    assert name in [answer["share"] for status, answer in answers if status == 200]


async def test_a_withdrawn_version_is_not_promoted_and_is_tried_again_when_it_is_named(client):
    await share(client, "v2", 50)
    components = client.services.engines.serving("current@").engine.components
    [transformer] = [one.module for one in components if one.key.component == "transformer"]
    hook = transformer.register_forward_hook(
        lambda module, given, made: ([torch.full_like(one, float("nan")) for one in made[0]],)
    )
    assert await drawn_by(client, FIRST, FIRST, FIRST) == ["v1", "v1", "v1"], "no client notices"
    hook.remove()
    for path, body in (("/api/promote", {}), ("/api/share", {"percent": 60})):
        status, answer = await post(client, path, **body)
        assert (status, answer["error"]["code"]) == (409, "rejected")
        assert "v2 was withdrawn from current@" in answer["error"]["message"]
        assert answer["reason"]["code"] == "withdrawn"
    assert links(client) == {"current": "v1", "current@60": "v2"}
    assert await drawn_by(client, FIRST) == ["v1"]
    assert (await share(client, "v2", 60))["message"] == "v2 gets 60 % of the requests for current"
    assert await drawn_by(client, FIRST) == ["v2"]
    status, answer = await post(client, "/api/promote")
    assert (status, answer["version"]) == (200, "v2")
