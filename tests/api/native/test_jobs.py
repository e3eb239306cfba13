"""Jobs and event streams, over real HTTP, with real engines."""

import asyncio
import base64
import io
import json
from itertools import pairwise

import pytest
from PIL import Image

from zwatch.api.services import TimeLimits
from zwatch.errors import RequestError

SLOW = {"prompt": "a cat", "steps": 100, "n": 16, "width": 256, "height": 256}
QUICK = {"prompt": "a cat", "seed": 7}


@pytest.fixture
def _unlimited(client):
    """Make a preview for every step: a step of the tiny pipeline takes hardly longer than a preview."""
    client.services.queue.generator.preview_share = float("inf")


async def submit(client, **fields):
    status, headers, body = await client.call("POST", "/jobs", json={"prompt": "a cat", **fields})
    assert (status, headers["Location"]) == (202, f"/jobs/{body['id']}")
    return body


async def show(client, identity):
    status, _, body = await client.call("GET", f"/jobs/{identity}")
    assert status == 200
    return body


async def reaches(client, identity, *states):
    while (job := await show(client, identity))["state"] not in states:
        await asyncio.sleep(0.01)
    return job


async def events(response):
    """Give (event, data) until the stream ends."""
    while line := (await asyncio.wait_for(response.content.readline(), 60)).decode():
        if line.startswith("event: "):
            data = (await response.content.readline()).decode().removeprefix("data: ")
            yield line.removeprefix("event: ").strip(), json.loads(data)


async def fetch(client, url):
    async with client.http.get(client.url + url) as response:
        return response.status, response.content_type, await response.read()


async def test_a_job_runs_without_its_client_and_stores_its_pictures_in_the_history(client):
    body = await submit(client, seed=7, n=2, format="jpeg")
    assert (body["state"], body["position"]) == ("queued", 0)
    job = await reaches(client, body["id"], "done")
    assert (job["version"], job["model"], job["truncated"], job["step"], job["steps"]) == (
        "v1",
        "current",
        False,
        16,
        16,
    )
    assert job["digest"] == client.services.engines.serving("current").key.digest
    assert job["timings"].keys() == {"queue", "encode", "denoise", "decode", "write", "total"}
    assert [image["seed"] for image in job["images"]] == [7, 8]
    assert [image.keys() for image in job["images"]] == [{"seed", "name", "url"}] * 2
    for image in job["images"]:
        assert image["url"] == f"/history/{image['name']}"
        assert (await fetch(client, image["url"]))[:2] == (200, "image/jpeg")
    assert client.services.queue.jobs.find(job["id"]).kept_bytes == 0, "the history has them"


async def test_waiting_jobs_report_their_position(client):
    running = await submit(client, **SLOW)
    await reaches(client, running["id"], "running")
    first, second = [await submit(client) for _ in range(2)]
    assert (first["position"], second["position"]) == (0, 1)
    async with client.http.get(f"{client.url}/jobs/{second['id']}/events") as response:
        seen = events(response)
        assert await anext(seen) == ("queued", {"position": 1})
        _, _, gone = await client.call("DELETE", f"/jobs/{first['id']}")
        assert gone["state"] == "cancelled"
        assert await anext(seen) == ("queued", {"position": 0})
    await client.call("DELETE", f"/jobs/{running['id']}")
    await reaches(client, second["id"], "done")


async def stream(client, job, last=None):
    """Return the status, and the events of a job's stream as (id, event)."""
    headers = {} if last is None else {"Last-Event-ID": last}
    async with client.http.get(f"{client.url}/jobs/{job}/events", headers=headers) as response:
        blocks = [
            dict(line.split(": ", 1) for line in block.splitlines()) for block in (await response.text()).split("\n\n")
        ]
    return response.status, [(one.get("id"), one["event"]) for one in blocks if "event" in one]


async def test_an_event_source_that_connects_again_gets_what_it_missed_and_204_after_the_end(client):
    job = (await submit(client, steps=3))["id"]
    status, seen = await stream(client, job)
    assert status == 200
    assert all(identity for identity, _ in seen)
    assert seen[-1][1] == "done"
    assert await stream(client, job, last=seen[-1][0]) == (204, [])
    for last in (None, "queued-0", "step-2", "unknown"):
        assert (await stream(client, job, last=last))[1][-1] == seen[-1], "it missed the end"
    with client.failing():
        job = (await submit(client))["id"]
        await reaches(client, job, "failed")
    _, seen = await stream(client, job)
    assert [event for _, event in seen] == ["failed", "error"]
    assert (await stream(client, job, last=seen[0][0]))[0] == 204


async def test_the_event_that_a_client_has_is_not_sent_again(client):
    running = await submit(client, **SLOW)
    await reaches(client, running["id"], "running")
    waiting = (await submit(client))["id"]
    async with client.http.get(
        f"{client.url}/jobs/{waiting}/events", headers={"Last-Event-ID": "queued-0"}
    ) as response:
        await client.call("DELETE", f"/jobs/{running['id']}")
        names = [name async for name, _ in events(response)]
    assert "queued" not in names
    assert names[-1] == "done"


async def test_a_running_job_is_cancelled_between_two_steps(client):
    body = await submit(client, **SLOW)
    await reaches(client, body["id"], "running")
    status, _, job = await client.call("DELETE", f"/jobs/{body['id']}")
    assert (status, job["state"], job["error"]["code"]) == (200, "cancelled", "cancelled")
    while client.services.queue.running is not None:
        await client.services.supervisor.changes.wait()
    assert client.services.engines.serving("current").leases == 0
    assert (await client.call("GET", "/history"))[2]["images"] == []
    assert (await show(client, body["id"]))["state"] == "cancelled"


async def test_cancelling_a_finished_job_does_not_change_it(client):
    body = await submit(client)
    done = await reaches(client, body["id"], "done")
    assert (await client.call("DELETE", f"/jobs/{body['id']}"))[2] == done


async def test_a_failed_job_reports_its_error(client):
    with client.failing():
        body = await submit(client)
        job = await reaches(client, body["id"], "failed")
    assert job["error"]["code"] == "generation_failed"
    async with client.http.get(f"{client.url}/jobs/{body['id']}/events") as response:
        seen = [event async for event in events(response)]
    assert [(name, data["error"]["code"]) for name, data in seen] == [
        ("failed", "generation_failed"),
        ("error", "generation_failed"),
    ]


@pytest.mark.usefixtures("_unlimited")
async def test_a_stream_reports_steps_with_previews_and_ends_with_the_result(client):
    headers = {"Accept": "text/event-stream"}
    body = {**QUICK, "n": 2, "width": 96, "steps": 30}
    async with client.http.post(client.url + "/generate", json=body, headers=headers) as response:
        assert response.content_type == "text/event-stream"
        seen = [event async for event in events(response)]
    names = [name for name, _ in seen]
    assert names == ["queued"] * names.count("queued") + ["step"] * names.count("step") + ["done"]
    steps = [data for name, data in seen if name == "step"]
    for before, after in pairwise(steps):  # a preview that took longer than a step has the number of the next one
        assert before["step"] < after["step"] or (before["step"] == after["step"] and after["preview"])
    assert steps[-1]["steps"] == 60
    shown = [data["preview"] for data in steps if data["preview"]]
    assert shown
    with Image.open(io.BytesIO(base64.b64decode(shown[-1].removeprefix("data:image/jpeg;base64,")))) as preview:
        assert preview.size == (12, 8)
    done = seen[-1][1]
    assert [image["seed"] for image in done["images"]] == [7, 8]
    for image in done["images"]:
        with Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))) as picture:
            assert picture.size == (96, 64)
        assert (await fetch(client, image["url"]))[2] == base64.b64decode(image["b64_json"])


async def test_a_stream_ends_with_an_error_at_the_timeout(start):
    async with start(timeout=0.2) as client:
        await client.serves()
        async with client.http.post(
            client.url + "/generate", json=SLOW, headers={"Accept": "text/event-stream"}
        ) as sent:
            seen = [event async for event in events(sent)]
        assert (seen[-1][0], seen[-1][1]["error"]["code"]) == ("error", "timeout")
        await client.services.queue.drained()


async def test_a_client_that_does_not_read_its_stream_does_not_occupy_the_device_beyond_the_timeout(start, monkeypatch):
    async def stuck(response, event, data, identity=None):
        await asyncio.Event().wait()

    monkeypatch.setattr("zwatch.api.streams.send", stuck)
    async with start(TimeLimits(last_event=0.05), timeout=0.2) as client:
        await client.serves()
        async with (
            asyncio.timeout(60),
            client.http.post(
                client.url + "/generate",
                json={"prompt": "x", "steps": 100, "width": 512, "height": 512},
                headers={"Accept": "text/event-stream"},
            ) as sent,
        ):
            [job] = client.services.queue.jobs.unsettled
            assert await sent.read() == b""
        assert (job.state.value, job.error.code) == ("failed", "timeout")
        await client.services.queue.drained()


async def test_disconnecting_from_a_generate_stream_cancels_it_and_from_a_jobs_stream_does_not(client):
    queue = client.services.queue
    body = await submit(client, **SLOW)
    async with client.http.get(f"{client.url}/jobs/{body['id']}/events") as response:
        await anext(events(response))
        job = queue.jobs.find(body["id"])
        assert job.is_watched
    while job.is_watched:
        await asyncio.sleep(0.01)
    assert not job.state.is_final
    await client.call("DELETE", f"/jobs/{job.id}")
    async with client.http.post(
        client.url + "/generate", json=SLOW, headers={"Accept": "text/event-stream"}
    ) as response:
        seen = events(response)
        while (await anext(seen))[0] != "step":
            pass
        leaving = queue.running
    while not leaving.state.is_final:
        await asyncio.sleep(0.01)
    assert leaving.is_cancelled


async def test_a_quiet_stream_sends_a_comment(start):
    async with start(TimeLimits(heartbeat=0.02)) as client:
        await client.serves()
        running, waiting = await submit(client, **SLOW), await submit(client)
        async with client.http.get(f"{client.url}/jobs/{waiting['id']}/events") as response:
            while not (await asyncio.wait_for(response.content.readline(), 30)).startswith(b": "):
                pass
        await client.call("DELETE", f"/jobs/{running['id']}")


async def test_the_job_of_a_generate_request_can_be_queried_and_cancelled(client):
    waiting = asyncio.create_task(client.call("POST", "/generate", json={"prompt": "x", "steps": 100, "width": 512}))
    while client.services.queue.running is None:
        await client.services.supervisor.changes.wait()
    identity = client.services.queue.running.id
    await client.call("DELETE", f"/jobs/{identity}")
    status, headers, body = await waiting
    assert (status, body["error"]["code"], headers["x-should-retry"]) == (409, "cancelled", "false")
    assert (await show(client, identity))["state"] == "cancelled"


async def test_without_a_history_a_job_keeps_its_pictures_up_to_a_limit(start):
    async with start(history=False) as client:
        await client.serves()
        body = await submit(client, seed=7, format="webp")
        job = await reaches(client, body["id"], "done")
        [image] = job["images"]
        assert (image["name"], image["url"]) == (None, f"/jobs/{job['id']}/images/0")
        assert (await fetch(client, image["url"]))[:2] == (200, "image/webp")
        for odd in ("1", "-1", "x", "\u0661", "9" * 30):
            assert (await fetch(client, f"/jobs/{job['id']}/images/{odd}"))[0] == 404
        client.services.queue.jobs.keep_bytes = 1
        await reaches(client, (await submit(client))["id"], "done")
        assert (await show(client, job["id"]))["images"] == [{"seed": 7, "name": None, "url": None}]
        assert (await fetch(client, image["url"]))[0] == 404
        status, _, body = await client.call("POST", "/generate", json=QUICK, headers={"Accept": "application/json"})
        assert (status, body["images"][0]["name"], body["images"][0]["url"]) == (200, None, None)
        assert client.services.queue.jobs.find(body["id"]).kept_bytes == 0, "the client has received it"


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_an_unknown_job_is_a_404(client, method):
    status, _, body = await client.call(method, "/jobs/j-nothing")
    assert (status, body["error"]["code"]) == (404, "not_found")


async def test_jobs_wait_in_the_same_bounded_queue(start):
    async with start(queue=1) as client:
        await client.serves()
        running = await submit(client, **SLOW)
        await reaches(client, running["id"], "running")
        await submit(client)
        status, headers, body = await client.call("POST", "/jobs", data=b"not even JSON")
        assert (status, body["error"]["code"]) == (429, "queue_full"), "the body is not read if the queue is full"
        assert int(headers["Retry-After"]) >= 1
        await client.call("DELETE", f"/jobs/{running['id']}")


async def test_too_much_work_is_refused_before_it_is_queued(start):
    async with start(max_work=1.0) as client:
        await client.serves()
        error = await client.error("/jobs", {"prompt": "x", "n": 16, "steps": 100}, 400)
        assert (error["code"], error["param"]) == ("invalid_value", "n")
        assert "--max-work" in error["message"]


async def test_jobs_that_still_wait_when_the_service_stops_fail_with_shutting_down(start):
    async with start(TimeLimits(drain=0.1)) as client:
        await client.serves()
        running, waiting = await submit(client, **SLOW), await submit(client)
        jobs = [client.services.queue.jobs.find(body["id"]) for body in (running, waiting)]
        ends = asyncio.create_task(jobs[1].result())
        asyncio.get_running_loop().call_later(0.5, jobs[0].cancel)  # so that its thread ends
    with pytest.raises(RequestError) as caught:
        await ends
    assert caught.value.code == "shutting_down"
