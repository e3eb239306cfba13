"""`POST /history/{name}/vote`, over HTTP."""

import os

import pytest

JSON = {"Accept": "application/json"}


@pytest.fixture
async def picture(client):
    """A service with one picture; returns (client, its name)."""
    body = {"prompt": "a cat", "seed": 1, "steps": 1}
    _, _, answer = await client.call("POST", "/generate", json=body, headers=JSON)
    return client, answer["images"][0]["name"]


async def vote(client, name, value, who="ann", **fields):
    headers = {"X-Client-Id": who}
    status, _, found = await client.call(
        "POST", f"/history/{name}/vote", json={"vote": value, **fields}, headers=headers
    )
    return status, found


async def listed(client, who="ann"):
    _, _, page = await client.call("GET", "/history", headers={"X-Client-Id": who})
    return {image["name"]: image["votes"] for image in page["images"]}


async def test_the_last_vote_of_each_client_counts_and_0_takes_it_back(picture):
    client, name = picture
    assert await listed(client) == {name: {"up": 0, "down": 0, "mine": 0}}
    status, found = await vote(client, name, 1)
    assert (status, found["name"], found["version"], found["votes"]) == (
        200, name, "v1", {"up": 1, "down": 0, "mine": 1},
    )  # fmt: skip
    assert (await vote(client, name, -1, "bob"))[1]["votes"] == {"up": 1, "down": 1, "mine": -1}
    assert (await vote(client, name, -1))[1]["votes"] == {"up": 0, "down": 2, "mine": -1}
    assert await listed(client, "cid") == {name: {"up": 0, "down": 2, "mine": 0}}
    assert (await vote(client, name, 0))[1]["votes"] == {"up": 0, "down": 1, "mine": 0}


async def test_a_client_is_known_by_its_user_field_before_its_header(picture):
    client, name = picture
    await vote(client, name, 1, "proxy", user="u1")
    assert (await vote(client, name, 1, "proxy", user="u2"))[1]["votes"]["up"] == 2
    assert (await vote(client, name, -1, "other", user="u1"))[1]["votes"] == {"up": 1, "down": 1, "mine": -1}


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"vote": 2}, "invalid_value", "vote"), ({"vote": "1"}, "invalid_value", "vote"), ({}, "invalid_value", "vote"),
        ({"vote": True}, "invalid_value", "vote"), ({"vote": 1, "who": "ann"}, "unknown_field", "who"),
    ],
)  # fmt: skip
async def test_a_wrong_vote_is_refused_with_the_field(picture, body, code, param):
    client, name = picture
    error = await client.error(f"/history/{name}/vote", body, 400)
    assert (error["code"], error["param"]) == (code, param)
    assert (await listed(client))[name]["up"] == 0


async def test_a_header_that_is_no_name_refuses_a_vote_but_no_list(picture):
    client, name = picture
    status, found = await vote(client, name, 1, "not a name!")
    assert (status, found["error"]["param"]) == (400, "X-Client-Id")
    assert await listed(client, "not a name!") == {name: {"up": 0, "down": 0, "mine": 0}}


async def test_an_unknown_picture_is_404(picture):
    client, name = picture
    for unknown in ("20261121_142231_seed42.png", "..%2fstate.json", name.upper()):
        status, found = await vote(client, unknown, 1)
        assert (status, found["error"]["code"]) == (404, "not_found")


async def test_without_a_history_there_are_no_votes(start):
    async with start(history=False) as client:
        await client.serves()
        status, found = await vote(client, "20261121_142231_seed42.png", 1)
        assert (status, found["error"]["code"]) == (404, "not_found")


async def test_they_survive_a_restart_and_go_with_the_picture(start):
    async with start() as client:
        await client.serves()
        headers, _ = await client.png(seed=1, steps=1)
        name = headers["Content-Disposition"].partition('filename="')[2].rstrip('"')
        await vote(client, name, 1)
    async with start() as client:
        await client.serves()
        assert await listed(client) == {name: {"up": 1, "down": 0, "mine": 1}}
        await client.call("DELETE", f"/history/{name}")
        assert (await vote(client, name, 1))[0] == 404
        assert 'zwatch_votes{share="",version="v1",vote="up"} 1.0' in await metrics(client)
        store = client.services.voting._store
        while await client.services.bridge.run("votes", store.votes, [name], "ann"):
            pass


async def metrics(client):
    async with client.http.get(client.url + "/metrics") as response:
        return await response.text()


async def test_they_are_counted_by_version(start, models):
    os.symlink("v2", models / "canary")
    async with start(aliases=("current", "canary")) as client:
        await client.serves()
        while client.services.engines.serving("canary") is None:
            await client.services.supervisor.changes.wait()
        body = {"prompt": "a cat", "seed": 1, "steps": 1, "model": ["v1", "v2"]}
        _, _, found = await client.call("POST", "/generate", json=body, headers=JSON)
        first, second = (image["name"] for image in found["images"])
        await vote(client, first, 1)
        await vote(client, second, -1)
        await vote(client, second, -1, "bob")
        text = await metrics(client)
        for version, up, down in (("v1", 1.0, 0.0), ("v2", 0.0, 2.0)):
            assert f'zwatch_votes{{share="",version="{version}",vote="up"}} {up}' in text
            assert f'zwatch_votes{{share="",version="{version}",vote="down"}} {down}' in text


async def test_a_disk_that_takes_no_vote_is_said_and_pictures_are_listed_all_the_same(picture, monkeypatch):
    client, name = picture
    store = client.services.voting._store
    store.close()
    monkeypatch.setattr(store, "file", store.file / "nowhere" / "votes.sqlite")
    store.file.parent.parent.unlink()
    store.file.parent.parent.symlink_to("/nowhere/at/all")
    status, found = await vote(client, name, 1)
    assert (status, found["error"]["code"]) == (500, "internal_error")
    assert "the vote cannot be kept" in found["error"]["message"]
    _, _, page = await client.call("GET", "/history")
    assert [image["name"] for image in page["images"]] == [name]
