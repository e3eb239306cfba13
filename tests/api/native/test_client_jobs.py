"""A client that names itself: its list of jobs and its stream, over real HTTP, with real engines."""

import asyncio
import base64
import io
import json
from contextlib import asynccontextmanager

from PIL import Image

from zwatch.api.services import TimeLimits

SLOW = {"prompt": "a cat", "steps": 100, "n": 16, "width": 256, "height": 256}
NAME = "page-1f6c"


async def submit(client, name=NAME, **fields):
    headers = {} if name is None else {"X-Client-Id": name}
    status, _, body = await client.call("POST", "/jobs", json={"prompt": "a cat", **fields}, headers=headers)
    assert status == 202, body
    return body["id"]


async def listed(client, name=NAME):
    status, _, body = await client.call("GET", f"/jobs?client={name}")
    assert status == 200
    return body["jobs"]


async def reaches(client, identity, *states):
    while (job := (await client.call("GET", f"/jobs/{identity}"))[2])["state"] not in states:
        await asyncio.sleep(0.01)
    return job


class Events:
    """The events of an open stream."""

    def __init__(self, response):
        self.response = response
        self.seen = []

    async def next(self, *names):
        """Return (event, data) of the next event with one of these names, or of any."""
        while line := (await asyncio.wait_for(self.response.content.readline(), 60)).decode():
            if line.startswith("event: "):
                data = (await self.response.content.readline()).decode().removeprefix("data: ")
                self.seen.append((line.removeprefix("event: ").strip(), json.loads(data)))
                if not names or self.seen[-1][0] in names:
                    return self.seen[-1]
        raise AssertionError(f"the stream ended without {names}")

    async def job(self, identity, condition):
        """Return the first event of a job for which a condition holds."""
        while (job := (await self.next("job"))[1])["id"] != identity or not condition(job):
            pass
        return job


@asynccontextmanager
async def following(client, name=NAME):
    """Follow a client's jobs; the stream has begun."""
    async with client.http.get(f"{client.url}/events?client={name}") as response:
        assert response.status == 200
        events = Events(response)
        assert (await events.next())[0] == "status"
        yield events


def is_done(job):
    return job["state"] == "done"


# --- names


async def test_what_is_no_name_is_refused_where_it_is_given(client):
    for name in ("", "a b", "a/b", "a" * 65, "n\u00e4me", "a\\"):
        for path in ("/jobs", "/generate", "/v1/images/generations"):
            status, _, body = await client.call("POST", path, json={"prompt": "x"}, headers={"X-Client-Id": name})
            assert (status, body["error"]["code"], body["error"]["param"]) == (400, "invalid_value", "X-Client-Id")
            assert "1 to 64" in body["error"]["message"]
        for path in ("/jobs", "/events"):
            status, _, body = await client.call("GET", path, params={"client": name})
            assert (status, body["error"]["code"], body["error"]["param"]) == (400, "invalid_value", "client")


async def test_a_list_without_a_name_is_refused(client):
    status, _, body = await client.call("GET", "/jobs")
    assert (status, body["error"]["param"]) == (400, "client")


async def test_a_name_belongs_to_one_request_only(client):
    """The header of an earlier request on the same connection does not count."""
    first = await submit(client)
    other = await submit(client, None)
    await reaches(client, other, "done")
    assert [job["id"] for job in await listed(client)] == [first]


# --- the list


async def test_the_list_has_the_clients_jobs_as_each_is_shown_alone(client):
    first, _ = await submit(client, seed=3, n=2), await submit(client, "another")
    second = await submit(client, prompt="a dog", width=96, format="webp", quality=80)
    for identity in (first, second):
        await reaches(client, identity, "done")
    jobs = await listed(client)
    assert [job["id"] for job in jobs] == [first, second]
    assert jobs == [(await client.call("GET", f"/jobs/{identity}"))[2] for identity in (first, second)]
    assert [image["seed"] for image in jobs[0]["images"]] == [3, 4]
    assert await listed(client, "nobody") == []


async def test_requests_of_the_other_calls_are_listed_too(client):
    for path in ("/generate", "/v1/images/generations"):
        async with client.http.post(
            client.url + path, json={"prompt": "x"}, headers={"X-Client-Id": NAME, "Accept": "application/json"}
        ) as response:
            assert response.status == 200
    assert [job["state"] for job in await listed(client)] == ["done", "done"]


async def test_a_job_says_what_it_was_asked_for_and_when(client):
    running = await submit(client, **SLOW)
    await reaches(client, running, "running")
    waiting = await submit(client, negative_prompt="blurry", guidance_scale=2.5, seed=9)
    job = (await listed(client))[1]
    assert "version" not in job, "it is not known yet which version will draw it"
    seed = {"prompt": "a cat", "negative_prompt": "blurry", "steps": 8, "guidance_scale": 2.5, "seed": 9, "n": 1}
    form = {"format": "png", "quality": 92, "model": "current", "loras": []}
    form |= {"source": None, "mask": False, "strength": None, "mask_blur": None, "control": None, "control_scale": None}
    assert job["request"] == {**seed, **form, "width": None, "height": None}
    assert job["created"].endswith("Z")
    await client.call("DELETE", f"/jobs/{running}")
    done = await reaches(client, waiting, "done")
    assert done["request"] == {**seed, **form, "width": 64, "height": 64}


async def test_a_running_job_says_how_long_it_will_take(client):
    identity = await submit(client, **SLOW)
    while (job := (await listed(client))[0])["step"] == 0:
        assert job.get("remaining") is None
        await asyncio.sleep(0.01)
    assert job["remaining"] > 0
    await client.call("DELETE", f"/jobs/{identity}")
    assert "remaining" not in (await reaches(client, identity, "cancelled"))


# --- the stream


async def test_the_stream_begins_with_the_jobs_and_then_has_each_change_of_one(client):
    old, _ = await submit(client), await submit(client, "another")
    await reaches(client, old, "done")
    async with following(client) as events:
        name, data = await events.next()
        assert (name, [job["id"] for job in data["jobs"]]) == ("jobs", [old])
        assert data["jobs"] == await listed(client)
        new = await submit(client, n=2, steps=20)
        other = await submit(client, "another")
        done = await events.job(new, is_done)
        assert done == (await listed(client))[1]
        await reaches(client, other, "done")
        seen = [data for name, data in events.seen if name == "job"]
        assert {job["id"] for job in seen} == {new}
        steps = [job["step"] for job in seen]
        assert steps == sorted(steps)
        assert {job["state"] for job in seen} >= {"running", "done"}


async def test_positions_in_the_queue_are_followed(client):
    running = await submit(client, **SLOW)
    await reaches(client, running, "running")
    first, second = await submit(client), await submit(client)
    async with following(client) as events:
        _, data = await events.next("jobs")
        assert [job.get("position") for job in data["jobs"]] == [None, 0, 1]
        await client.call("DELETE", f"/jobs/{first}")
        assert (await events.job(first, lambda job: True))["state"] == "cancelled"
        await events.job(second, lambda job: job.get("position") == 0)
        await client.call("DELETE", f"/jobs/{running}")
        await events.job(second, is_done)


async def test_previews_are_made_for_a_follower_and_each_is_sent_once(client):
    # A step of the tiny pipeline takes hardly longer than a preview.
    client.services.queue.generator.preview_share = float("inf")
    async with following(client) as events:
        identity = await submit(client, n=1, steps=20, width=256, height=256)
        job = await events.job(identity, lambda job: job.get("preview"))
        with Image.open(io.BytesIO(base64.b64decode(job["preview"].removeprefix("data:image/jpeg;base64,")))) as shown:
            assert shown.size == (32, 32)
        await events.job(identity, is_done)
        sent = sum(bool(data.get("preview")) for name, data in events.seen if name == "job")
        assert 1 <= sent <= client.services.queue.jobs.find(identity).previews


async def test_pictures_of_one_job_appear_one_by_one_and_stay_when_it_is_cancelled(client):
    async with following(client) as events:
        identity = await submit(client, **{**SLOW, "steps": 10, "seed": 3})
        job = await events.job(identity, lambda job: len(job["images"]) >= 2)
        key = client.services.engines.serving("current").key
        assert (job["state"], job["version"], job["digest"]) == ("running", "v1", key.digest)
        assert [image["seed"] for image in job["images"]][:2] == [3, 4]
        async with client.http.get(client.url + job["images"][0]["url"]) as response:
            assert (response.status, response.content_type) == (200, "image/png")
        await client.call("DELETE", f"/jobs/{identity}")
        await events.job(identity, lambda job: job["state"] == "cancelled")
    await client.services.queue.drained()
    [job] = await listed(client)
    names = [image["name"] for image in job["images"]]
    assert 2 <= len(names) < 16
    history = (await client.call("GET", "/history"))[2]["images"]
    assert sorted(image["name"] for image in history) == sorted(names)


async def test_without_a_history_a_running_job_itself_has_the_pictures_it_made(start):
    async with start(history=False) as client:
        await client.serves()
        async with following(client) as events:
            identity = await submit(client, **{**SLOW, "steps": 10})
            job = await events.job(identity, lambda job: job["images"])
            [image] = job["images"][:1]
            assert (image["name"], image["url"]) == (None, f"/jobs/{identity}/images/0")
            await client.call("DELETE", f"/jobs/{identity}")
            async with client.http.get(client.url + image["url"]) as response:
                assert (response.status, response.content_type) == (200, "image/png")


async def test_two_followers_get_the_same_jobs(client):
    async with following(client) as one, following(client) as two:
        identity = await submit(client)
        assert await one.job(identity, is_done) == await two.job(identity, is_done)


async def test_a_follower_that_leaves_is_no_longer_counted(client):
    identity = await submit(client, **SLOW)
    job = client.services.queue.jobs.find(identity)
    async with following(client) as events:
        await events.next("jobs")
        assert job.is_watched
    while job.audience.followers:
        await asyncio.sleep(0.01)
    assert not job.is_watched
    assert not job.state.is_final, "a job goes on when the page is closed"
    await client.call("DELETE", f"/jobs/{identity}")


async def test_without_a_name_the_stream_has_no_jobs(client):
    async with client.http.get(client.url + "/events") as response:
        events = Events(response)
        await events.next("status")
        await submit(client)
        await events.next("history")
        assert {name for name, _ in events.seen}.isdisjoint({"jobs", "job"})


async def test_a_stream_of_a_client_ends_when_the_service_stops(start):
    async with start(TimeLimits(drain=0.1)) as client:
        await client.serves()
        reader, writer = await client.connect()
        writer.write(f"GET /events?client={NAME} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await asyncio.wait_for(reader.readuntil(b"event: jobs"), 30)
    rest = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    assert rest.endswith(b"0\r\n\r\n"), "the stream has an end, it is not cut off"
