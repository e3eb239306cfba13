"""A version that passes its warm-up and fails later, on a whole service: no client notices, and the version is withdrawn."""

import asyncio
import base64
import io
import json
import threading
import time

import aiohttp
import pytest
import torch
from PIL import Image

from tests.rollout.conftest import flip_byte, make_v3
from zwatch.deploy.sealing import write_seal
from zwatch.deploy.shares import share_key, side_of
from zwatch.engine.usable import deviation_of

HURT = {"prompt": "a cat", "width": 96, "height": 64, "seed": 7, "steps": 4}
"""What the faulty version cannot draw: this size."""
WELL = {"prompt": "a cat", "width": 64, "height": 64, "seed": 7, "steps": 4}
WIDE = 96 // 8


class Faulty:
    """Makes the transformer of what an alias or a share serves fail for some requests, by hooks of torch."""

    def __init__(self, client, key="current"):
        components = client.services.engines.serving(key).engine.components
        parts = {one.key.component: one.module for one in components}
        self.transformer, self.vae = parts["transformer"], parts["vae"]
        self.met = 0

    def _is_hurt(self, latents):
        found = latents[0].shape[-1] >= WIDE
        self.met += found
        return found

    def nan(self):
        """NaN for one size only."""
        self.transformer.register_forward_hook(
            lambda module, given, made: (
                [torch.full_like(one, float("nan")) for one in made[0]],) if self._is_hurt(given[0]) else made
        )  # fmt: skip

    def error(self, error):
        """An error at one size only."""

        def fail(module, given):
            if self._is_hurt(given[0]):
                raise error

        self.transformer.register_forward_pre_hook(fail)

    def hang(self):
        """A loop without an end at one size only."""

        def fail(module, given):
            if self._is_hurt(given[0]):
                while True:
                    time.sleep(0.01)

        self.transformer.register_forward_pre_hook(fail)

    def one_colour(self):
        """Pixels of one colour at every size."""
        self.vae.decoder.conv_out.weight.data.zero_()


@pytest.fixture
async def promoted(client):
    """A service where v1 served, and now v2 does; v1 is warm."""
    await switch(client, "v2")
    return client


async def switch(client, version):
    status, _, body = await client.call("POST", "/api/deploy", json={"version": version})
    assert status == 200, body


async def draw(client, version, **fields):
    """Draw an image, which this version has to make; return the file."""
    headers, file = await client.png(**fields)
    assert headers["X-Zwatch-Version"] == version
    return file


async def check_withdrawn(client, reason):
    await client.serves("v1")
    _, _, status = await client.call("GET", "/status")
    alias = status["aliases"]["current"]
    assert (status["status"], alias["link"], alias["serving"], alias["target"]) == ("degraded", "v2", "v1", "v2")
    assert alias["fault"]["code"] == "withdrawn"
    assert "v2 was withdrawn from current: 3 of its last" in alias["fault"]["message"]
    assert reason in alias["fault"]["message"]
    assert any(alias["fault"]["message"] in one for one in status["reasons"])
    assert (alias["attempt"]["version"], alias["attempt"]["state"], alias["attempt"]["code"]) == (
        "v2", "REJECTED", "withdrawn",
    )  # fmt: skip


FAULTS = {
    "NaN": (lambda faulty: faulty.nan(), "NaN or infinite"),
    "memory": (lambda faulty: faulty.error(torch.OutOfMemoryError("CUDA out of memory")), "memory ran out"),
    "assertion": (lambda faulty: faulty.error(RuntimeError("device-side assert triggered")), "device-side assert"),
    "operator": (lambda faulty: faulty.error(IndexError("index out of range in self")), "index out of range"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_fails_at_one_size_only_is_withdrawn_and_no_client_notices(promoted, fault):
    spoil, reason = FAULTS[fault]
    expected = await draw(promoted, "v1", **HURT, model="v1")
    faulty = Faulty(promoted)
    spoil(faulty)
    for number in range(3):
        assert (promoted.services.engines.serving("current").key.version, number) == ("v2", number)
        await draw(promoted, "v2", **WELL)
        assert pixels(await draw(promoted, "v1", **HURT)) == pixels(expected)
    assert faulty.met >= 3
    await check_withdrawn(promoted, reason)
    await draw(promoted, "v1", **WELL)


async def test_pictures_of_one_colour(start, models):
    weights = models / "v2" / "vae" / "diffusion_pytorch_model.safetensors"
    flip_byte(weights, -2)  # else the decoder is shared with v1
    write_seal(models / "v2", "v2")
    async with start() as promoted:
        await promoted.serves()
        await switch(promoted, "v2")
        await check_one_colour(promoted)


async def check_one_colour(promoted):
    Faulty(promoted).one_colour()
    for _ in range(3):
        file = await draw(promoted, "v1", **WELL)
        with Image.open(io.BytesIO(file)) as image:
            assert deviation_of(image) > 1
    await check_withdrawn(promoted, "one colour")


async def test_a_picture_that_is_plain_by_both_versions_is_answered_and_counts_for_neither(promoted):
    Faulty(promoted).one_colour()  # also v1's: its decoder is shared
    for _ in range(5):
        await draw(promoted, "v2", **WELL)
    await promoted.serves("v2")
    assert not [job for _, job in promoted.services.queue.jobs.ended if job.error]


async def test_what_hangs_is_drawn_again_before_the_time_limit(promoted):
    await draw(promoted, "v1", **HURT, model="v1")  # how long it takes is known then
    faulty = Faulty(promoted)
    faulty.hang()
    promoted.services.queue.drawer.least_patience = 0.5
    for _ in range(3):
        await draw(promoted, "v1", **HURT)
    await check_withdrawn(promoted, "v2 took more than")


async def test_all_images_of_a_request_are_by_one_version_and_none_of_the_other_is_kept(promoted):
    faulty = Faulty(promoted)
    drawn = 0

    def fail_at_the_second(module, given):
        nonlocal drawn
        drawn += 1
        if drawn > 4:
            raise RuntimeError("at the second image")

    faulty.transformer.register_forward_pre_hook(fail_at_the_second)
    status, _, body = await promoted.call(
        "POST", "/generate", json={**WELL, "n": 3}, headers={"Accept": "application/json"}
    )
    assert (status, body["version"], len(body["images"])) == (200, "v1", 3)
    _, _, history = await promoted.call("GET", "/history")
    assert [image["version"] for image in history["images"]] == ["v1"] * 3


async def test_a_stream_begins_again_and_has_no_error(promoted):
    Faulty(promoted).nan()
    async with promoted.http.post(
        promoted.url + "/generate", json=HURT, headers={"Accept": "text/event-stream"}
    ) as response:
        text = await response.text()
    assert "event: error" not in text
    assert "event: failed" not in text
    done = json.loads(text.rpartition("data: ")[2].split("\n")[0])
    assert (done["version"], len(done["images"])) == ("v1", 1)


async def test_a_request_that_names_a_version_gets_its_error(promoted):
    Faulty(promoted).nan()
    error = await promoted.error("/generate", {**HURT, "model": "v2"}, 500)
    assert "NaN" in error["message"]
    await draw(promoted, "v2", **WELL)


async def test_what_neither_can_draw_counts_for_neither(promoted):
    Faulty(promoted).error(torch.OutOfMemoryError("CUDA out of memory"))
    engine = promoted.services.engines.find("v1").engine
    [transformer] = [one.module for one in engine.components if one.key.component == "transformer"]

    def fail(module, given):
        if given[0][0].shape[-1] >= WIDE:
            raise torch.OutOfMemoryError("CUDA out of memory")

    transformer.register_forward_pre_hook(fail)
    for _ in range(4):
        error = await promoted.error("/generate", HURT, 500)
        assert error["code"] == "out_of_memory"
    await draw(promoted, "v2", **WELL)


async def test_clients_mistakes_never_count(promoted):
    wrong = [
        {"prompt": ""}, {"prompt": "a cat", "width": 100}, {"prompt": "a cat", "width": 2048, "height": 2048},
        {"prompt": "a cat", "steps": 0}, {"prompt": "a cat", "n": 2}, {"prompt": "a cat", "model": "v9"},
        {"prompt": "a cat", "nonsense": 1},
    ]  # fmt: skip
    for _ in range(3):
        for body in wrong:
            status, _, _ = await promoted.call("POST", "/generate", json=body)
            assert status in (400, 404)
        _, _, job = await promoted.call("POST", "/jobs", json={**WELL, "steps": 100})
        await promoted.call("DELETE", f"/jobs/{job['id']}")
        with pytest.raises((TimeoutError, aiohttp.ClientError)):  # it disconnects while its image is drawn
            async with asyncio.timeout(0.1):
                await promoted.png(**{**WELL, "steps": 100})
    assert not promoted.services.supervisor.withdrawal._outcomes
    await draw(promoted, "v2", **WELL)


async def test_a_job_that_is_cancelled_while_it_waits_for_the_other_version_is_cancelled(promoted):
    Faulty(promoted).nan()
    queue, cancelled = promoted.services.queue, []

    def cancel(suspicion):
        cancelled.append(queue.running)
        queue.cancel(queue.running)

    queue.drawer.on_redraw.append(cancel)
    _, _, job = await promoted.call("POST", "/jobs", json=HURT)
    found = queue.jobs.find(job["id"])
    async with asyncio.timeout(60):
        while not found.state.is_final:
            await found.changes.wait()
    assert (found.state.value, cancelled) == ("cancelled", [found])
    await draw(promoted, "v2", **WELL)


async def test_what_is_loaded_again_draws_the_request_that_met_the_last_fault(promoted):
    supervisor, engines = promoted.services.supervisor, promoted.services.engines
    while engines.find("v1") is not None:  # until it is drained
        await supervisor.look_now()
        await supervisor._closer.free_warm()
    Faulty(promoted).nan()
    for _ in range(2):
        await promoted.error("/generate", HURT, 500)  # there is nothing that could draw it
    await draw(promoted, "v1", **HURT)
    await check_withdrawn(promoted, "NaN")


async def test_several_requests_that_fail_at_once(promoted):
    Faulty(promoted).nan()
    files = await asyncio.gather(*(draw(promoted, "v1", **HURT) for _ in range(6)))
    assert len({pixels(file) for file in files}) == 1
    await check_withdrawn(promoted, "NaN")
    attempts = [one for one in promoted.services.supervisor.attempts if one.rejection is not None]
    assert len(attempts) == 1


async def test_without_probation_errors_are_answered(start):
    async with start(probation=0.0) as client:
        await client.serves()
        await switch(client, "v2")
        Faulty(client).nan()
        for _ in range(4):
            await client.error("/generate", HURT, 500)
        await draw(client, "v2", **WELL)


async def test_a_device_that_is_lost_on_trial_is_blamed_on_the_version_that_drew(promoted, tmp_path):
    for _ in range(3):  # else good images would acquit it
        await draw(promoted, "v2", **WELL)
    supervisor = promoted.services.supervisor
    Faulty(promoted).error(RuntimeError("CUDA error: device-side assert triggered"))
    supervisor.factory.device.lost = lambda: "CUDA error: device-side assert triggered"
    status, _, _ = await promoted.call("POST", "/generate", json=HURT)
    assert status == 503
    await asyncio.wait_for(supervisor.has_failed.wait(), 60)
    assert supervisor.state.saved.failure.hung.version == "v2"


def pixels(file):
    with Image.open(io.BytesIO(file)) as image:
        return image.convert("RGB").tobytes()


# --- shares

KEY = share_key("current")
ON_SHARE = next(f"c{number}" for number in range(1000) if side_of(f"c{number}", "current") < 50)
ON_OWN = next(f"c{number}" for number in range(1000) if side_of(f"c{number}", "current") >= 50)


@pytest.fixture
async def shared(client, models):
    """A service in which v1 serves `current`, and v2 half of its requests."""
    (models / "current@50").symlink_to("v2")
    supervisor, engines = client.services.supervisor, client.services.engines
    supervisor.ring()
    while engines.serving(KEY) is None:
        await supervisor.changes.wait()
    return client


async def repoint(client, version, name, key):
    """Make or move a link, and wait until it serves."""
    supervisor, engines = client.services.supervisor, client.services.engines
    link = client.services.models / name
    link.unlink(missing_ok=True)
    link.symlink_to(version)
    supervisor.ring()
    async with asyncio.timeout(60):
        while (serving := engines.serving(key)) is None or serving.key.version != version:
            await supervisor.changes.wait()


async def share_of(client, **fields):
    """Draw an image; return the version and the share."""
    headers, _ = await client.png(**fields)
    return headers["X-Zwatch-Version"], headers.get("X-Zwatch-Share")


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_share_that_fails_at_one_size_only_is_withdrawn_and_no_client_notices(shared, fault):
    spoil, reason = FAULTS[fault]
    spoil(Faulty(shared, KEY))
    for _ in range(3):
        assert await share_of(shared, **WELL, user=ON_SHARE) == ("v2", "current@50")
        assert await share_of(shared, **HURT, user=ON_SHARE) == ("v1", None)
        assert await share_of(shared, **HURT, user=ON_OWN) == ("v1", None)
    assert await share_of(shared, **WELL, user=ON_SHARE) == ("v1", None)
    _, _, status = await shared.call("GET", "/status")
    share = status["shares"]["current@50"]
    assert (status["status"], share["fault"]["code"]) == ("degraded", "withdrawn")
    assert reason in share["fault"]["message"]
    assert "v2 was withdrawn from current@50: 3 of its last 6 requests failed" in share["fault"]["message"]
    assert any("v2 was withdrawn from current@50" in one for one in status["reasons"]), status["reasons"]
    async with shared.http.get(shared.url + "/metrics") as response:
        text = await response.text()
    assert 'zwatch_attempts_total{outcome="withdrawn"} 1.0' in text
    assert (
        sum(float(line.split()[1]) for line in text.splitlines() if line.startswith("zwatch_requests_redrawn_total{"))
        == 3
    )


@pytest.mark.parametrize("fault", ["NaN", "memory"])
async def test_an_image_that_a_share_fails_to_change_is_changed_by_the_other_version(shared, fault):
    file = io.BytesIO()
    Image.effect_noise((96, 64), 90).convert("RGB").save(file, "PNG")
    asked = {**HURT, "image": base64.b64encode(file.getvalue()).decode(), "strength": 0.6}
    expected = await draw(shared, "v1", **asked, model="v1")
    assert pixels(expected) != pixels(await draw(shared, "v1", **HURT, model="v1"))
    FAULTS[fault][0](Faulty(shared, KEY))
    assert pixels(await draw(shared, "v1", **asked, user=ON_SHARE)) == pixels(expected)
    assert all(job.source is None for _, job in shared.services.queue.jobs.ended)


async def test_a_share_that_hangs_is_drawn_again_before_the_time_limit(shared):
    assert await share_of(shared, **HURT, user=ON_OWN) == ("v1", None)  # how long it takes is known then
    Faulty(shared, KEY).hang()
    shared.services.queue.drawer.least_patience = 0.5
    for _ in range(3):
        assert await share_of(shared, **HURT, user=ON_SHARE) == ("v1", None)
    assert "v2 took more than" in shared.services.supervisor.withdrawal.reason(KEY)


async def test_what_its_alias_fails_to_draw_is_not_given_to_the_share(shared):
    Faulty(shared).nan()
    for _ in range(3):
        await shared.error("/generate", {**HURT, "user": ON_OWN}, 500)
    assert await share_of(shared, **HURT, user=ON_SHARE) == ("v2", "current@50")


async def test_a_request_that_names_the_share_gets_its_error_and_no_other_version(shared, models, caplog):
    """Also not what the share served before."""
    make_v3(models)
    shared.services.queue.drawer.withdrawal.probation = 0.0
    await repoint(shared, "v3", "current@50", KEY)
    Faulty(shared, KEY).nan()
    async with shared.http.post(shared.url + "/generate", json={**HURT, "model": "current@50"}) as response:
        assert (response.status, response.headers["X-Zwatch-Version"]) == (500, "v3")
        assert response.headers["X-Zwatch-Share"] == "current@50"
    assert any("failed by v3 (current@50) (generation_failed: " in one for one in caplog.messages), caplog.messages
    assert await share_of(shared, **HURT, user=ON_SHARE) == ("v1", None)
    assert any(one.startswith("v3 (current@50) failed (") for one in caplog.messages), caplog.messages


async def test_errors_of_comparisons_and_in_streams_say_the_version_and_the_share(shared):
    Faulty(shared, KEY).nan()
    both = {**HURT, "model": ["v1", "current@50"]}
    accept = {"Accept": "application/json"}
    async with shared.http.post(shared.url + "/generate", json=both, headers=accept) as response:
        headers = response.headers
        assert (response.status, headers["X-Zwatch-Version"], headers["X-Zwatch-Share"]) == (500, "v2", "current@50")
    accept = {"Accept": "text/event-stream"}
    async with shared.http.post(
        shared.url + "/generate", json={**HURT, "model": "current@50"}, headers=accept
    ) as response:
        last = json.loads((await response.text()).strip().rpartition("data: ")[2].splitlines()[0])
    assert (last["version"], last["share"], last["error"]["code"]) == ("v2", "current@50", "generation_failed")


async def test_in_its_probation_what_an_alias_fails_to_draw_goes_to_what_it_served_before(promoted, models):
    """A client on the alias's side keeps it, although the share could draw the request."""
    make_v3(models)
    await repoint(promoted, "v3", "current@50", KEY)
    Faulty(promoted).nan()
    for _ in range(3):
        assert await share_of(promoted, **HURT, user=ON_OWN) == ("v1", None)
    assert promoted.services.supervisor.withdrawal.reason("current") is not None
    assert await share_of(promoted, **HURT, user=ON_SHARE) == ("v3", "current@50")


async def test_a_failed_request_counts_for_the_side_that_failed(shared):
    Faulty(shared, KEY).nan()
    assert await share_of(shared, **HURT, user=ON_SHARE) == ("v1", None)
    async with shared.http.get(shared.url + "/metrics") as response:
        text = await response.text()
    assert 'zwatch_version_requests_total{outcome="redrawn",share="current@50",version="v2"} 1.0' in text
    assert 'zwatch_requests_redrawn_total{fault="not_finite"} 1.0' in text


async def test_a_rollback_points_the_link_to_what_serves_again(promoted, models):
    Faulty(promoted).nan()
    for _ in range(3):
        await draw(promoted, "v1", **HURT)
    status, _, body = await promoted.call("POST", "/api/rollback")
    assert (status, body["version"], (models / "current").readlink().name) == (200, "v1", "v1")
    _, _, status = await promoted.call("GET", "/status")
    assert (status["status"], status["aliases"]["current"]["fault"]) == ("ok", None)


async def test_a_time_limit_that_passes_while_it_draws_counts(start):
    async with start(timeout=2.0) as client:
        await client.serves()
        await switch(client, "v2")
        supervisor, engines, queue = client.services.supervisor, client.services.engines, client.services.queue
        queue.generator.stall_after_end = 0.1  # its thread is interrupted then
        while engines.find("v1") is not None:  # nothing else could draw it
            await supervisor.look_now()
            await supervisor._closer.free_warm()
        Faulty(client).hang()
        for _ in range(3):
            error = await client.error("/generate", HURT, 504)
            assert error["code"] == "timeout"
        await client.serves("v1")
        assert "until the time limit of 2 s passed" in supervisor.withdrawal.reason("current")


async def test_a_thread_that_does_not_come_back_ends_the_service_and_is_blamed_on_the_version(promoted):
    faulty, supervisor = Faulty(promoted), promoted.services.supervisor
    generator, forever = promoted.services.queue.generator, threading.Event()
    generator.grace, generator.is_on_gpu = 0.1, lambda: True
    await draw(promoted, "v1", **HURT, model="v1")
    promoted.services.queue.drawer.least_patience = 0.5
    faulty.transformer.register_forward_pre_hook(lambda module, given: forever.wait(600) and None)
    try:
        status, _, body = await promoted.call("POST", "/generate", json=HURT)
        assert (status, body["error"]["code"]) == (500, "generation_failed")
        await asyncio.wait_for(supervisor.has_failed.wait(), 60)
        failure = supervisor.state.saved.failure
        assert (failure.hung.version, failure.on_trial) == ("v2", True)
    finally:
        forever.set()
