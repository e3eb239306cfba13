"""Metrics and log lines of requests."""

import asyncio
import logging

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.harness import Server
from zwatch.generation.job import JobState


async def scrape(client):
    """Return {(name, labels): value} of all samples."""
    async with client.http.get(client.url + "/metrics") as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        text = await response.text()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of(found, name, **labels):
    return found.get((name, frozenset(labels.items())))


async def make(client, **fields):
    return await client.call(
        "POST", "/generate", json={"prompt": "x", **fields}, headers={"Accept": "application/json"}
    )


async def test_a_request_is_counted_by_outcome_with_its_phases(client):
    before = await scrape(client)
    assert of(before, "zwatch_requests_total", outcome="ok") == 0, "every series exists from the start"
    await make(client, n=2)
    await make(client, prompt="cat " * 700)
    found = await scrape(client)
    assert of(found, "zwatch_requests_total", outcome="ok") == 2
    assert of(found, "zwatch_images_total") == 3
    assert of(found, "zwatch_truncated_prompts_total") == 1
    assert of(found, "zwatch_request_duration_seconds_count") == 2
    for phase in ("queue", "encode", "denoise", "decode", "write"):
        assert of(found, "zwatch_request_phase_seconds_count", phase=phase) == 2
    assert of(found, "zwatch_request_phase_seconds_sum", phase="denoise") > 0


async def test_a_refused_request_is_counted_once_by_its_code(client):
    client.services.queue.limit = -1
    assert (await make(client))[0] == 429
    client.services.queue.limit = 64
    assert (await make(client, model="v9"))[0] == 404
    assert (await make(client, width=2048))[0] == 400
    found = await scrape(client)
    for code in ("queue_full", "model_not_found", "invalid_value"):
        assert of(found, "zwatch_requests_total", outcome=code) == 1


async def test_cancelled_and_timed_out_requests_are_counted_separately(start):
    async with start(timeout=0.2) as client:
        await client.serves()
        ended = []
        client.services.queue.on_end.append(ended.append)
        assert (await make(client, steps=100, width=512, height=512))[0] == 504
        stream = {"Accept": "text/event-stream"}
        body = {"prompt": "x", "steps": 100, "width": 512, "height": 512}
        async with client.http.post(client.url + "/generate", json=body, headers=stream) as response:
            assert b"event: error" in await response.read()
        _, _, job = await client.call("POST", "/jobs", json=body)
        await client.call("DELETE", f"/jobs/{job['id']}")
        found = await scrape(client)
    assert of(found, "zwatch_requests_total", outcome="timeout") == 2
    assert of(found, "zwatch_requests_total", outcome="cancelled") == 1
    assert [job.state for job in ended] == [JobState.FAILED, JobState.FAILED, JobState.CANCELLED]


async def test_the_gauges_agree_with_the_status(client):
    found, (_, _, status) = await scrape(client), await client.call("GET", "/status")
    serving = status["serving"]
    labels = {"alias": "current", "version": serving["version"], "digest": serving["digest"]}
    assert of(found, "zwatch_serving_info", **labels) == 1
    assert of(found, "zwatch_status", status="ok") == 1
    assert of(found, "zwatch_status", status="degraded") == 0
    assert of(found, "zwatch_alias_as_asked", alias="current") == 1
    assert of(found, "zwatch_alias_fault", alias="current") == 0
    assert of(found, "zwatch_queue_limit") == 64
    engine = {"version": "v1", "digest": serving["digest"], "state": "serving"}
    assert of(found, "zwatch_engine_weights_bytes", **engine) == status["engines"][0]["bytes"]
    assert of(found, "zwatch_device_memory_total_bytes", device="CPU") == status["device"]["total"]
    assert of(found, "zwatch_history_images") == 0
    assert of(found, "zwatch_process_resident_memory_bytes") > 0


async def test_attempts_are_counted_by_outcome_with_phases_and_bytes(client):
    await client.call("POST", "/api/deploy", json={"version": "v2"})
    await client.call("POST", "/api/rollback")
    (client.services.models / "v2" / "vae" / "config.json").unlink()
    await client.call("POST", "/api/unload_model")
    assert (await client.call("POST", "/api/deploy", json={"version": "v2"}))[0] == 409
    found = await scrape(client)
    assert of(found, "zwatch_attempts_total", outcome="promoted") == 3
    assert of(found, "zwatch_attempts_total", outcome="file_missing") == 1
    assert of(found, "zwatch_promotions_total", way="device") == 2
    assert of(found, "zwatch_promotions_total", way="resident") == 1
    assert of(found, "zwatch_attempt_duration_seconds_count") == 4
    assert of(found, "zwatch_attempt_phase_seconds_count", phase="promote") == 2
    assert of(found, "zwatch_attempt_read_bytes_total") > 0


async def test_http_requests_are_counted_by_route_and_never_by_path(client):
    for number in range(3):
        await client.call("GET", f"/jobs/j-{number}")
        await client.call("GET", f"/nothing/{number}")
    async with client.http.request("PROPFIND", client.url + "/status") as response:
        assert response.status == 405
    found = await scrape(client)
    assert of(found, "zwatch_http_requests_total", route="/jobs/{id}", method="GET", status="404") == 3
    assert of(found, "zwatch_http_requests_total", route="none", method="GET", status="404") == 3
    assert of(found, "zwatch_http_requests_total", route="none", method="other", status="405") == 1
    assert of(found, "zwatch_http_requests_in_progress") == 1, "the scrape itself"


async def test_no_label_has_a_version_that_is_no_longer_resident_but_in_what_versions_have_drawn(client):
    await client.call("POST", "/api/deploy", json={"version": "v2"})
    await make(client)
    await client.call("POST", "/api/unload_model")
    names = {
        name for name, labels in await scrape(client) for label, value in labels
        if label == "version" and value in ("v1", "v2")
    }  # fmt: skip
    assert names
    assert all(name.startswith("zwatch_version_request") for name in names), names


@pytest.fixture
def lines(caplog):
    """Return a function that returns the log lines of the observer so far, as (level, message, fields)."""
    caplog.set_level(logging.INFO, "zwatch.api.observe")
    return lambda: [
        (record.levelname, record.getMessage(), record.fields)
        for record in caplog.records
        if record.name == "zwatch.api.observe"
    ]


async def test_a_generation_is_one_log_line_and_a_successful_read_is_none(client, lines):
    _, _, body = await make(client)
    for path in ("/status", "/metrics", "/health", "/health/live", "/history"):
        await client.call("GET", path) if path != "/metrics" else await scrape(client)
    [(level, message, fields)] = lines()
    assert level == "INFO"
    assert message.startswith("POST /generate 200 in ")
    assert message.endswith(f"{body['id']} done by v1")
    assert fields.keys() == {"method", "route", "status", "seconds", "job", "state", "version", "images"}
    assert (fields["status"], fields["version"], fields["job"]) == (200, "v1", body["id"])


async def test_a_failure_is_logged_as_a_warning_and_a_refusal_is_not(client, lines):
    with client.failing():
        await make(client)
    await make(client, width=1)
    await client.call("GET", "/nothing\nat all")
    while len(lines()) < 3:  # refusals are one line a second
        await asyncio.sleep(0.02)
    failed, refused, lost = lines()
    assert (failed[0], failed[2]["code"], failed[2]["status"]) == ("WARNING", "generation_failed", 500)
    assert (refused[0], refused[2]["status"]) == ("INFO", 400)
    assert (lost[0], lost[2]["route"], "\n" in lost[1]) == ("INFO", "none", False)


async def test_a_job_without_a_waiting_client_has_its_own_log_line(client, lines, caplog):
    ended = asyncio.Event()
    client.services.queue.on_end.append(lambda job: ended.set())
    _, _, job = await client.call("POST", "/jobs", json={"prompt": "x"}, headers={"X-Request-Id": "mine-7"})
    await ended.wait()
    first, last = lines()
    assert first[1].startswith("POST /jobs 202")
    assert last[1].startswith(f"{job['id']} done by v1 after ")
    assert last[2]["state"] == "done"


async def test_a_client_that_disconnects_is_logged_and_counted_as_499(client, lines):
    leaving = asyncio.create_task(make(client, steps=100, width=512, height=512))
    while client.services.queue.running is None:
        await asyncio.sleep(0.005)
    leaving.cancel()
    while not lines():
        await asyncio.sleep(0.005)
    [(level, _, fields)] = lines()
    assert (level, fields["status"], fields["state"]) == ("INFO", 499, "cancelled")
    found = await scrape(client)
    assert of(found, "zwatch_http_requests_total", route="/generate", method="POST", status="499") == 1


async def test_the_log_line_of_a_request_has_the_request_id_of_its_answer(models, tmp_path):
    async with Server(models, tmp_path / "state") as server:
        await server.serves("v1")
        async with server.http.post(server.url + "/generate", json={"prompt": "x"}) as response:
            identity = response.headers["X-Request-Id"]
    # After the stop: the log is written by a thread of its own.
    [said] = [one for one in server.log.read_text().splitlines() if "POST /generate" in one]
    assert said.endswith(f"[{identity}]")
