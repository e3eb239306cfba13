"""`POST /generate` and `POST /jobs` with a list of models, over HTTP, with real engines."""

import asyncio
import base64
import io
import json
import os

import pytest
from PIL import Image

JSON = {"Accept": "application/json"}
STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
async def both(start, models):
    """A service with v1 under `current` and v2 under `canary`."""
    os.symlink("v2", models / "canary")
    async with start(aliases=("current", "canary")) as client:
        supervisor, engines = client.services.supervisor, client.services.engines
        while any(engines.serving(alias) is None for alias in ("current", "canary")):
            await supervisor.changes.wait()
        yield client


def body(**fields):
    return {"prompt": "a cat", "seed": 7, "steps": 2, "model": ["v1", "v2"], **fields}


async def single(client, model, seed):
    fields = {"prompt": "a cat", "seed": seed, "steps": 2, "model": model}
    _, _, found = await client.call("POST", "/generate", json=fields, headers=JSON)
    return pixels(found["images"][0])


def pixels(image):
    with Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))) as opened:
        return opened.tobytes()


async def test_each_model_draws_the_same_prompt_and_seeds_by_itself(both):
    status, _, found = await both.call("POST", "/generate", json=body(n=2), headers=JSON)
    assert status == 200
    digests = {name: both.services.engines.find(name).key.digest for name in ("v1", "v2")}
    assert [(one["model"], one["version"], one["digest"], one["seed"]) for one in found["images"]] == [
        (name, name, digests[name], seed) for name in ("v1", "v2") for seed in (7, 8)
    ]
    assert found["model"] == ["v1", "v2"]
    assert not found["truncated"]
    for image in found["images"]:
        assert pixels(image) == await single(both, image["version"], image["seed"])
        with Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))) as opened:
            assert opened.text["zwatch_version"] == image["version"]
            assert json.loads(opened.text["zwatch_request"])["model"] == image["model"]


async def test_aliases_and_versions_may_be_mixed_and_a_list_of_one_is_answered_as_a_list(both):
    _, _, found = await both.call("POST", "/generate", json=body(model=["canary", "v1", "current"]), headers=JSON)
    assert [(one["model"], one["version"]) for one in found["images"]] == [
        ("canary", "v2"), ("v1", "v1"), ("current", "v1"),
    ]  # fmt: skip
    _, _, one = await both.call("POST", "/generate", json=body(model=["canary"]), headers=JSON)
    assert (one["model"], [image["version"] for image in one["images"]]) == (["canary"], ["v2"])


async def test_a_random_seed_is_the_same_for_all(both):
    _, _, found = await both.call("POST", "/generate", json=body(seed=None), headers=JSON)
    first, second = found["images"]
    assert first["seed"] == second["seed"]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ([], "1 to 4"), (["v1", "v2", "current", "canary", "v3"], "got 5"), (["v1", "v1"], '"v1" twice'), ([1], "must be a string"),
        ([""], "must not be empty"), ({"v1": 1}, "a string or a list of strings, got an object"), (None, "got null"),
    ],
)  # fmt: skip
async def test_a_wrong_list_is_refused_with_the_field(both, model, words):
    for path in ("/generate", "/jobs"):
        status, _, found = await both.call("POST", path, json=body(model=model), headers=JSON)
        assert (status, found["error"]["param"], found["error"]["code"]) == (400, "model", "invalid_value")
        assert words in found["error"]["message"]


async def test_an_unknown_model_refuses_all_of_it(both):
    status, _, found = await both.call("POST", "/generate", json=body(model=["v1", "v9"]), headers=JSON)
    assert (status, found["error"]["code"], found["error"]["param"]) == (404, "model_not_found", "model")
    assert "'v9'" in found["error"]["message"]
    assert both.services.queue.jobs.unsettled == []
    assert both.services.queue.jobs.ended == []


async def test_an_answer_of_one_image_says_what_to_ask_for(both):
    error = await both.error("/generate", body(), 400)
    assert (error["param"], error["code"]) == ("model", "invalid_value")
    assert "Accept: application/json" in error["message"]


async def test_a_form_takes_a_list_as_json_and_a_name_as_text(both):
    fields = {"prompt": "a cat", "steps": "1"}
    for model, expected in (('["v1", "v2"]', ["v1", "v2"]), ("v2", "v2"), ("12", None)):
        status, _, found = await both.call("POST", "/generate", data={**fields, "model": model}, headers=JSON)
        assert (status, found.get("model")) == ((200, expected) if expected else (404, None))


async def test_the_stream_counts_the_steps_of_all_models(both):
    events = []
    async with both.http.post(both.url + "/generate", json=body(), headers=STREAM) as response:
        async for line in response.content:
            if line.startswith(b"event: "):
                kind = line.removeprefix(b"event: ").strip().decode()
            elif line.startswith(b"data: "):
                events.append((kind, json.loads(line.removeprefix(b"data: "))))
    steps = [data for kind, data in events if kind == "step"]
    assert {one["steps"] for one in steps} == {4}
    assert [one["step"] for one in steps] == sorted(one["step"] for one in steps)
    kind, done = events[-1]
    assert kind == "done"
    assert [image["version"] for image in done["images"]] == ["v1", "v2"]
    assert all(image["b64_json"] for image in done["images"])


async def test_a_job_is_found_by_its_id_and_so_are_its_parts(both):
    status, headers, accepted = await both.call("POST", "/jobs", json=body())
    assert (status, headers["Location"]) == (202, f"/jobs/{accepted['id']}")
    assert accepted["id"] == ".".join(accepted["jobs"])
    async with both.http.get(f"{both.url}/jobs/{accepted['id']}/events") as response:
        assert "event: done" in await response.text()
    _, _, found = await both.call("GET", f"/jobs/{accepted['id']}")
    assert (found["state"], found["step"], found["steps"], found["model"]) == ("done", 4, 4, ["v1", "v2"])
    assert found["request"]["models"] == ["v1", "v2"]
    listed = (await both.call("GET", "/history"))[2]["images"]
    assert [one["name"] for one in listed] == [one["name"] for one in reversed(found["images"])]
    for number, identity in enumerate(accepted["jobs"]):
        _, _, part = await both.call("GET", f"/jobs/{identity}")
        assert part["images"][0]["name"] == found["images"][number]["name"]
    status, _, missing = await both.call("GET", f"/jobs/{accepted['jobs'][0]}.j-0123456789abcdef")
    assert (status, missing["error"]["code"]) == (404, "not_found")


async def test_a_failure_names_its_model_and_keeps_what_the_others_drew(both):
    with both.failing():  # v1, which `current` serves
        status, _, found = await both.call("POST", "/generate", json=body(model=["v2", "v1"]), headers=JSON)
    assert (status, found["error"]["code"]) == (500, "generation_failed")
    assert found["error"]["message"].startswith("v1: ")
    [kept] = (await both.call("GET", "/history"))[2]["images"]
    assert kept["version"] == "v2"


async def test_when_the_first_fails_the_others_are_not_drawn(both):
    with both.failing():
        _, _, accepted = await both.call("POST", "/jobs", json=body())
        async with both.http.get(f"{both.url}/jobs/{accepted['id']}/events") as response:
            assert "event: failed" in await response.text()
    _, _, found = await both.call("GET", f"/jobs/{accepted['id']}")
    assert (found["state"], found["images"]) == ("failed", [])
    assert found["error"]["message"].startswith("v1: ")
    states = [(await both.call("GET", f"/jobs/{one}"))[2]["state"] for one in accepted["jobs"]]
    assert states == ["failed", "cancelled"]


async def test_all_of_it_is_cancelled_together(both):
    _, _, accepted = await both.call("POST", "/jobs", json=body(steps=100, n=4))
    _, _, found = await both.call("DELETE", f"/jobs/{accepted['id']}")
    assert found["state"] == "cancelled"
    _, _, found = await both.call("POST", "/jobs", json=body(steps=100, n=4))
    _, _, part = await both.call("DELETE", f"/jobs/{found['jobs'][1]}")
    assert part["state"] == "cancelled"
    _, _, whole = await both.call("GET", f"/jobs/{found['id']}")
    assert (whole["state"], whole["error"]["code"]) == ("cancelled", "cancelled")
    await both.services.queue.drained()
    assert not any(resident.leases for resident in both.services.engines.residents)


async def test_a_client_that_leaves_cancels_all_of_it(both):
    task = asyncio.create_task(both.call("POST", "/generate", json=body(steps=100, n=4), headers=JSON))
    queue = both.services.queue
    while len(queue.jobs.unsettled) < 2:
        await asyncio.sleep(0.01)
    task.cancel()
    async with asyncio.timeout(60):
        while queue.jobs.unsettled:
            await asyncio.sleep(0.01)
    assert {job.state.value for _, job in queue.jobs.ended} == {"cancelled"}


async def test_the_time_limit_names_who_was_late(start, models):
    os.symlink("v2", models / "canary")
    async with start(aliases=("current", "canary"), timeout=0.5) as client:
        supervisor, engines = client.services.supervisor, client.services.engines
        while any(engines.serving(alias) is None for alias in ("current", "canary")):
            await supervisor.changes.wait()
        fields = body(model=["v1", "v2"], steps=100, n=16, width=64, height=64)
        status, _, found = await client.call("POST", "/generate", json=fields, headers=JSON)
        assert (status, found["error"]["code"]) == (504, "timeout")
        assert "v2 were not done" in found["error"]["message"] or "v2 was not done" in found["error"]["message"]
        await client.services.queue.drained()


async def test_it_counts_as_so_many_requests_and_so_much_work(start, models):
    os.symlink("v2", models / "canary")
    async with start(aliases=("current", "canary"), queue=1, max_work=0.1) as client:
        supervisor, engines = client.services.supervisor, client.services.engines
        while any(engines.serving(alias) is None for alias in ("current", "canary")):
            await supervisor.changes.wait()
        three = body(model=["v1", "v2", "current"])  # one runs, one may wait
        status, headers, found = await client.call("POST", "/generate", json=three, headers=JSON)
        assert (status, found["error"]["code"]) == (429, "queue_full")
        assert int(headers["Retry-After"]) >= 1
        error = (await client.call("POST", "/generate", json=body(steps=16), headers=JSON))[2]["error"]
        assert (error["code"], error["param"]) == ("invalid_value", "model")
        assert "by 2 models it is 0.1311 megapixel-steps" in error["message"]
        status, _, _ = await client.call("POST", "/generate", json=body(steps=8), headers=JSON)
        assert status == 200


async def test_a_version_that_is_named_is_leased_when_it_is_accepted(both):
    _, _, accepted = await both.call("POST", "/jobs", json=body(steps=50, n=4))
    leases = {one.key.version: one.leases for one in both.services.engines.residents}
    assert leases == {"v1": 1, "v2": 1}
    await both.call("DELETE", f"/jobs/{accepted['id']}")
    await both.services.queue.drained()
