"""Checkpoints, progress and interruption per client."""

import asyncio
import base64
import io
import json
import os
from types import SimpleNamespace

import pytest
from PIL import Image

from zwatch.api.a1111.clients import Client, Clients, client_of
from zwatch.errors import RequestError
from zwatch.rollout.lifecycle import VersionKey

SLOW = {"prompt": "a cat", "steps": 100, "batch_size": 16, "width": 256, "height": 256}
OTHER = {"User-Agent": "another program"}
IDLE = {
    "progress": 0.0,
    "eta_relative": 0.0,
    "state": {
        "skipped": False, "interrupted": False, "stopping_generation": False, "job": "", "job_count": 0,
        "job_timestamp": "0", "job_no": 0, "sampling_step": 0, "sampling_steps": 0,
    },
    "current_image": None,
    "textinfo": None,
}  # fmt: skip


async def choose(client, name, headers=None):
    status, _, body = await client.call(
        "POST", "/sdapi/v1/options", json={"sd_model_checkpoint": name}, headers=headers
    )
    return status, body


async def shown(client, headers=None):
    """Return the checkpoint that the options show, without its digest."""
    _, _, body = await client.call("GET", "/sdapi/v1/options", headers=headers)
    return body["sd_model_checkpoint"].partition(" ")[0]


async def makes(client, headers=None):
    """Return the version that serves a request which names none."""
    sent = {"prompt": "a cat", "steps": 1}
    async with client.http.post(client.url + "/sdapi/v1/txt2img", json=sent, headers=headers) as response:
        assert response.status == 200
        return response.headers["X-Zwatch-Version"]


async def progress(client, query="", headers=None):
    status, _, body = await client.call("GET", f"/sdapi/v1/progress{query}", headers=headers)
    assert status == 200
    return body


async def begun(client, headers=None, **fields):
    """Send a slow request; return its task and its job, when the job is accepted."""
    known = set(client.services.queue.jobs.unsettled)
    task = asyncio.create_task(client.call("POST", "/sdapi/v1/txt2img", json={**SLOW, **fields}, headers=headers))
    while not (new := set(client.services.queue.jobs.unsettled) - known):
        await asyncio.sleep(0.01)
    return task, new.pop()


async def runs(client, job):
    while client.services.queue.running is not job or not job.step:
        await asyncio.sleep(0.01)


async def test_a_choice_affects_only_its_client_and_never_the_link(both):
    assert await choose(both, "v1") == (200, None)
    assert (await shown(both), await makes(both)) == ("v1", "v1")
    assert (await shown(both, OTHER), await makes(both, OTHER)) == ("current", "v2")
    async with both.http.post(both.url + "/generate", json={"prompt": "x"}) as response:
        assert response.headers["X-Zwatch-Version"] == "v2", "other calls are not affected"
    assert os.readlink(both.services.models / "current") == "v2"
    assert await choose(both, "current") == (200, None)
    assert (await shown(both), await makes(both)) == ("current", "v2")


async def test_a_client_that_chooses_the_serving_version_follows_the_next_deploy(client):
    assert await choose(client, "v1") == (200, None)
    await client.call("POST", "/api/deploy", json={"version": "v2"})
    assert (await shown(client), await makes(client)) == ("current", "v2")


async def test_a_client_that_sends_all_options_again_still_follows_and_one_that_chooses_does_not(client):
    """Open WebUI sends the stored checkpoint, with all options that it got, whenever any of its settings is saved."""
    [_, listed] = (await client.call("GET", "/sdapi/v1/sd-models"))[2]
    for stored in ("current", listed["title"]):
        await client.call("POST", "/api/deploy", json={"version": "v1"})
        _, _, options = await client.call("GET", "/sdapi/v1/options")
        assert options["sd_model_checkpoint"] == "current"
        saved = {**options, "sd_model_checkpoint": stored}
        assert (await client.call("POST", "/sdapi/v1/options", json=saved))[0] == 200
        await client.call("POST", "/api/deploy", json={"version": "v2"})
        assert (await client.call("POST", "/sdapi/v1/options", json=saved))[0] == 200
        assert (await shown(client), await makes(client)) == ("current", "v2"), stored
    assert await choose(client, listed["title"]) == (200, None)
    assert (await shown(client), await makes(client)) == ("v1", "v1"), "it named nothing else"


async def test_an_unknown_checkpoint_is_refused_and_other_options_are_ignored(client):
    status, body = await choose(client, "sd_xl_base_1.0")
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    assert "loaded: v1 [" in body["detail"]
    assert (await choose(client, 5))[0] == 400
    assert (await client.call("POST", "/sdapi/v1/options", json={"CLIP_stop_at_last_layers": 2}))[::2] == (200, None)


async def test_without_a_model_current_is_listed_alone_and_a_request_is_a_503_with_retry_after(client):
    await client.call("POST", "/api/unload_model")
    assert await shown(client) == "current"
    [listed] = (await client.call("GET", "/sdapi/v1/sd-models"))[2]
    assert (listed["title"], listed["hash"], listed["digest"]) == ("current", None, None)
    assert await choose(client, "current") == (200, None)
    assert "loaded: nothing" in (await choose(client, "v1"))[1]["detail"]
    status, headers, body = await client.call("POST", "/sdapi/v1/txt2img", json={"prompt": "x"})
    assert (status, body["error"]["code"]) == (503, "model_not_loaded")
    assert "Retry-After" in headers


def resident(version, digest):
    return SimpleNamespace(key=VersionKey(version, digest * 64))


class Loaded:
    """Engines of these versions, the first of which serves."""

    def __init__(self, *residents):
        self.residents = list(residents)

    def serving(self, alias):
        return self.residents[0] if alias == "current" and self.residents else None

    def find(self, model):
        return self.serving(model) or next((one for one in self.residents if one.key.version == model), None)


ME = Client("127.0.0.1", "", "me")


def test_a_choice_ends_when_its_version_is_no_longer_loaded():
    clients, engines = Clients(), Loaded(resident("v2", "b"), resident("v1", "a"))
    clients.choose(ME, "v1 [aaaaaaaaaa]", engines, ("current",))
    assert clients.model(ME, engines, ("current", "canary")) == "v1"
    resealed = Loaded(resident("v2", "b"), resident("v1", "c"))
    assert clients.model(ME, resealed, ("current", "canary")) == "current", (
        "the client did not choose the new content of that name"
    )
    assert clients.model(ME, engines, ("current", "canary")) == "current", "a forgotten choice stays forgotten"


def test_a_refused_choice_keeps_the_earlier_one():
    clients, engines = Clients(), Loaded(resident("v2", "b"), resident("v1", "a"))
    clients.choose(ME, "v1", engines, ("current",))
    with pytest.raises(RequestError, match=r"loaded: v2 \[bbbbbbbbbb\], v1 \[aaaaaaaaaa\]; or say 'current'"):
        clients.choose(ME, "v9", engines, ("current",))
    assert clients.model(ME, engines, ("current", "canary")) == "v1"


def test_an_alias_can_be_chosen():
    clients, engines = Clients(), Loaded(resident("v2", "b"), resident("v1", "a"))
    clients.choose(ME, "canary", engines, ("current", "canary"))
    assert clients.model(ME, engines, ("current", "canary")) == "canary"
    assert clients.model(ME, engines, ("current",)) == "current", "an alias that is gone"
    clients.choose(ME, "canary", engines, ("current", "canary"))
    clients.choose(ME, "", engines, ("current", "canary"))
    assert clients.model(ME, engines, ("current", "canary")) == "current"


def test_a_share_that_was_chosen_stays_so_when_its_percentage_is_moved():
    clients, engines = Clients(), Loaded(resident("v2", "b"), resident("v1", "a"))
    clients.choose(ME, "current@50", engines, ("current", "current@50"))
    assert clients.model(ME, engines, ("current", "canary@7", "current@50")) == "current@50"
    clients.choose(ME, "current@50", engines, ("current", "current@51"), among_others=True)
    assert clients.model(ME, engines, ("current", "canary@7", "current@51")) == "current@51"
    assert clients.model(ME, engines, ("current", "canary@7")) == "current", "the trial has ended"
    assert clients.model(ME, engines, ("current", "current@5")) == "current", "a forgotten choice stays forgotten"


def test_the_least_recently_used_choice_is_forgotten_first():
    clients, engines = Clients(max_choices=2), Loaded(resident("v2", "b"), resident("v1", "a"))
    first, second, third = (Client("127.0.0.1", name, "") for name in "abc")
    clients.choose(first, "v1", engines, ("current",))
    clients.choose(second, "v1", engines, ("current",))
    clients.model(first, engines, ("current", "canary"))
    clients.choose(third, "v1", engines, ("current",))
    assert [clients.model(one, engines, ("current", "canary")) for one in (first, second, third)] == [
        "v1",
        "current",
        "v1",
    ]


@pytest.mark.parametrize(
    ("authorization", "user"),
    [
        (None, ""), ("", ""), ("Basic ", ""), ("Basic Og==", ""), ("Basic !!!", ""), ("Bearer YWxpY2U6eA==", ""),
        ("Basic YWxpY2U6c2VzYW1l", "alice"), ("basic YWxpY2U6", "alice"),
    ],
)  # fmt: skip
def test_clients_with_the_same_program_and_address_are_distinguished_by_user_name(authorization, user):
    headers = {"User-Agent": "me"} | ({} if authorization is None else {"Authorization": authorization})
    assert client_of(SimpleNamespace(headers=headers, remote="127.0.0.1")) == Client("127.0.0.1", user, "me")


async def test_without_jobs_the_progress_is_idle(client):
    assert await progress(client) == IDLE
    await makes(client)
    assert await progress(client) == IDLE


async def test_the_progress_has_the_steps_and_a_preview(client):
    client.services.queue.generator.preview_share = float("inf")
    task, job = await begun(client)
    await runs(client, job)
    unseen = await progress(client, "?skip_current_image=true")
    assert unseen["current_image"] is None
    assert not job.is_watched, "no preview is made unless a client wants one"
    while (seen := await progress(client))["current_image"] is None:
        await asyncio.sleep(0.01)
    with Image.open(io.BytesIO(base64.b64decode(seen["current_image"], validate=True))) as image:
        assert image.size == (32, 32)
    state = seen["state"]
    assert unseen["progress"] <= seen["progress"] == max(0.01, state["sampling_step"] / 1600) < 1
    assert seen["eta_relative"] > 0
    assert (state["sampling_steps"], state["job_count"], state["job"]) == (1600, 1, job.id)
    await client.call("POST", "/sdapi/v1/interrupt")
    await task


async def test_the_progress_is_of_the_clients_own_requests_only(client):
    (one, running), (two, waiting) = await begun(client), await begun(client, OTHER)
    await runs(client, running)
    mine = await progress(client)
    assert (mine["state"]["job"], mine["state"]["job_count"]) == (running.id, 1)
    own = await progress(client, headers=OTHER)
    assert (own["state"]["job"], own["state"]["job_count"], own["progress"]) == (waiting.id, 1, 0.01)
    third, another = await begun(client, OTHER)
    assert (await progress(client, headers=OTHER))["state"]["job_count"] == 2
    # Clients choose a checkpoint and send requests only when nothing runs: others' requests must not hold them up.
    assert await progress(client, headers={"User-Agent": "a third"}) == IDLE
    for job in (another, waiting, running):
        client.services.queue.cancel(job)
    assert [status for status, _, _ in await asyncio.gather(one, two, third)] == [200, 200, 200]


async def test_an_interrupted_request_is_answered_without_images(client):
    task, job = await begun(client)
    await runs(client, job)
    assert (await client.call("POST", "/sdapi/v1/interrupt"))[::2] == (200, {})
    status, headers, body = await task
    assert (status, body["images"], headers["X-Zwatch-Job"]) == (200, [], job.id)
    info = json.loads(body["info"])
    key = client.services.engines.serving("current").key
    assert (info["infotexts"], info["sd_model_name"], info["sd_model_hash"]) == ([], "v1", key.digest[:10])
    assert (info["width"], info["height"]) == (256, 256)
    assert body["zwatch"]["state"] == "cancelled"


async def test_a_request_that_is_cancelled_while_it_waits_names_the_version_that_it_waits_for(client):
    (one, running), (two, waiting) = await begun(client), await begun(client, OTHER, width=None)
    await runs(client, running)
    client.services.queue.cancel(waiting)
    status, _, body = await two
    info = json.loads(body["info"])
    assert (status, info["sd_model_name"], info["width"], body["parameters"]["width"]) == (200, "v1", 64, 64)
    client.services.queue.cancel(running)
    await one


async def test_skip_ends_the_clients_own_request_of_one_image_and_no_other(client):
    task, batch = await begun(client)
    await runs(client, batch)
    assert (await client.call("POST", "/sdapi/v1/skip"))[::2] == (200, None)
    assert not batch.is_cancelled
    client.services.queue.cancel(batch)
    await task
    task, job = await begun(client, batch_size=1, width=512, height=512)
    await runs(client, job)
    await client.call("POST", "/sdapi/v1/skip", headers=OTHER)
    assert not job.is_cancelled
    await client.call("POST", "/sdapi/v1/skip")
    assert (await task)[2]["images"] == []


async def test_a_client_cannot_interrupt_another_clients_request(client):
    task, job = await begun(client)
    await runs(client, job)
    assert (await client.call("POST", "/sdapi/v1/interrupt", headers=OTHER))[::2] == (200, {})
    assert not job.is_cancelled
    client.services.queue.cancel(job)
    await task
    _, _, native = await client.call(
        "POST", "/jobs", json={"prompt": "x", "steps": 100, "n": 16, "width": 256, "height": 256}
    )
    job = client.services.queue.jobs.find(native["id"])
    await runs(client, job)
    await client.call("POST", "/sdapi/v1/interrupt")
    assert not job.is_cancelled, "it was sent through another API"
    client.services.queue.cancel(job)
