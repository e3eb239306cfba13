"""The status, events and health checks, over HTTP, with real engines."""

import asyncio
import errno
import json
import os
import threading
from itertools import pairwise

import pytest

from zwatch.deploy.look import point
from zwatch.engine.warmup import warm
from zwatch.errors import RepointError


async def test_live_answers_before_anything_is_loaded_and_ready_only_after(start):
    async with start() as client:
        assert client.services.supervisor.factory is None, "nothing was imported yet"
        assert (await client.call("GET", "/health/live"))[0] == 200
        _, _, status = await client.call("GET", "/status")
        attempt = status["aliases"]["current"]["attempt"]
        assert attempt is None or attempt["activity"]
        assert (await client.png(width=64, height=64, steps=1))[0]["X-Zwatch-Version"] == "v1", "it waited for the load"
        _, _, status = await client.call("GET", "/status")
        attempt = status["aliases"]["current"]["attempt"]
        assert attempt["activity"] is None
        assert {"import", "device", "build"} <= attempt["phases"].keys()
        assert (await client.call("GET", "/health/ready"))[0] == 200
        assert (await client.call("GET", "/health"))[2] == {"status": "ok", "version": "v1", "reasons": []}


async def test_the_status_has_every_field_that_the_interface_shows(client):
    _, _, status = await client.call("GET", "/status")
    assert {"status", "serving", "aliases", "engines", "strays", "queue", "device", "uptime"} <= status.keys()
    assert status["serving"].keys() == {"version", "digest", "signer", "since", "images", "default_size", "max_size"}
    attempt = status["aliases"]["current"]["attempt"]
    fields = {
        "version",
        "digest",
        "state",
        "code",
        "reason",
        "started",
        "seconds",
        "bytes",
        "progress",
        "phases",
        "shared",
    }
    assert fields | {"way", "held"} <= attempt.keys()
    assert {"import", "device", "read", "verify", "build", "warm", "promote"} == attempt["phases"].keys()
    assert status["engines"][0].keys() >= {"version", "state", "leases", "bytes"}
    assert status["queue"] == {"waiting": 0, "running": 0, "limit": 64}
    _, _, versions = await client.call("GET", "/versions")
    fields = {
        "name",
        "sealed",
        "digest",
        "header_version",
        "bytes",
        "files",
        "resident",
        "serving",
        "aliases",
        "sealed_at",
        "seal_changed_ns",
    }
    assert all(fields <= one.keys() for one in versions["versions"])
    assert [one["header_version"] for one in versions["versions"]] == ["v1", "v2"]


@pytest.mark.parametrize(
    "instead", ["nothing", "a file", "a dangling link", "a loop", "a directory that cannot be read"]
)
async def test_while_the_models_root_is_away_every_call_answers_and_what_serves_is_listed(
    client, models, tmp_path, monkeypatch, instead
):
    _, _, before = await client.call("GET", "/versions")
    assert before["problem"] is None
    away = tmp_path / "away"
    models.rename(away)
    match instead:
        case "a file":
            models.touch()
        case "a dangling link":
            models.symlink_to("nowhere")
        case "a loop":
            models.symlink_to(models)
        case "a directory that cannot be read":
            models.mkdir()

            def refused(path):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

            monkeypatch.setattr(os, "listdir", refused)
    await client.services.supervisor.look_now()
    status, _, found = await client.call("GET", "/versions")
    assert status == 200
    assert found["problem"].startswith(f"{models}: ")
    [one], [was] = found["versions"], [one for one in before["versions"] if one["serving"]]
    same = ("name", "digest", "header_version", "bytes", "files", "serving", "resident", "sealed")
    assert {field: one[field] for field in same} == {field: was[field] for field in same}
    assert one["problem"] == found["problem"]
    assert (await client.call("GET", "/status"))[0] == 200
    assert (await client.call("POST", "/api/load_model"))[0] in (200, 409)
    if instead == "a directory that cannot be read":  # an empty one
        await client.error("/api/deploy", {"version": "v2"}, 404)
    else:
        assert (
            f"the models root {models} is away"
            in (await client.error("/api/deploy", {"version": "v2"}, 409))["message"]
        )
        with pytest.raises(RepointError, match=f"the models root {models} is away"):
            point(models, "current", "v2")
    body = {"model": "gpt-image-1", "prompt": "x"}
    assert (await client.call("POST", "/v1/images/generations", json=body))[0] == 200
    assert (await client.png())[0]["X-Zwatch-Version"] == "v1"
    monkeypatch.undo()
    if models.is_dir():
        models.rmdir()
    models.unlink(missing_ok=True)
    away.rename(models)
    assert (await client.call("POST", "/api/deploy", json={"version": "v2"}))[0] == 200
    assert (await client.call("GET", "/versions"))[2]["problem"] is None


async def test_a_deploy_tries_again_by_itself_after_an_error_that_passes(client, monkeypatch):
    genuine, failures = os.stat, [errno.EIO, errno.EACCES, errno.ENOMEM]

    def failing(path, **where):
        if path == "v2" and failures:
            raise OSError(code := failures.pop(), os.strerror(code), path)
        return genuine(path, **where)

    monkeypatch.setattr(os, "stat", failing)
    status, _, body = await client.call("POST", "/api/deploy", json={"version": "v2"})
    assert (status, body.get("version"), failures) == (200, "v2", [])


async def test_an_error_that_stays_is_named_by_a_deploy_which_changes_nothing(client, monkeypatch):
    genuine = os.stat

    def failing(path, **where):
        if path == "v2":
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return genuine(path, **where)

    monkeypatch.setattr(os, "stat", failing)
    monkeypatch.setattr("zwatch.api.native.deploy.PATIENCE", 0)
    error = await client.error("/api/deploy", {"version": "v2"}, 409)
    assert error["message"] == "v2 could not be looked at: Input/output error; nothing was changed, try again"
    assert os.readlink(client.services.models / "current") == "v1"


async def test_the_status_can_be_read_while_the_load_begins_another_phase(client):
    phases = client.services.supervisor.attempt("current").control.phases

    class Begun(float):
        def __round__(self, digits):
            phases["another"] = 0.0
            return round(float(self), digits)

    phases["read"] = Begun(1.0)
    assert (await client.call("GET", "/status"))[0] == 200


async def test_events_begin_with_the_status_and_report_a_deploy(client):
    seen = []
    async with client.http.get(client.url + "/events") as response:
        assert response.content_type == "text/event-stream"
        deploy = asyncio.create_task(client.call("POST", "/api/deploy", json={"version": "v2"}))
        while not (
            any(event == "serving" and data["version"] == "v2" for event, data in seen)
            and any(event == "attempt" and data["state"] == "PROMOTED" for event, data in seen)
            and any(event == "alias" and data["serving"] == "v2" for event, data in seen)
        ):
            event = (await asyncio.wait_for(response.content.readline(), 30)).decode().strip()
            if event.startswith("event: "):
                data = (await response.content.readline()).decode().removeprefix("data: ")
                seen.append((event.removeprefix("event: "), json.loads(data)))
        await deploy
    assert seen[0][0] == "status"
    assert seen[0][1]["serving"]["version"] == "v1"


async def events(response):
    """Give (event, data) of a stream."""
    while line := (await asyncio.wait_for(response.content.readline(), 30)).decode():
        if line.startswith("event: "):
            data = (await response.content.readline()).decode().removeprefix("data: ")
            yield line.removeprefix("event: ").strip(), json.loads(data)


async def test_events_show_how_a_load_gets_on_though_nothing_else_changes(client, monkeypatch):
    go = threading.Event()
    monkeypatch.setattr("zwatch.engine.factory.warm", lambda *given, **options: go.wait(60) and warm(*given, **options))
    async with asyncio.timeout(60), client.http.get(client.url + "/events") as response:
        deploy = asyncio.create_task(client.call("POST", "/api/deploy", json={"version": "v2"}))
        seen = []
        async for event, data in events(response):
            if event == "attempt" and (data["version"], data["state"]) == ("v2", "WARMING"):
                seen.append(data)
                if len(seen) == 2:
                    await client.png()  # changes of something else are no reason for more
                if len(seen) == 5:
                    break
        go.set()
        assert (await deploy)[0] == 200
    assert all(after["seconds"] - before["seconds"] > 0.2 for before, after in pairwise(seen))


async def test_events_report_the_pictures_that_come_and_go(client, tmp_path):
    async with client.http.get(client.url + "/events") as response:
        seen = events(response)

        async def change():
            while (found := await anext(seen))[0] != "history":
                pass
            return found[1]

        _, first = await anext(seen)
        assert (first["history"]["images"], first["history"]["newest"]) == (0, None)
        await client.png(seed=1)
        added = await change()
        assert (added["images"], added.keys()) == (1, {"images", "newest"})
        assert added["newest"].endswith("_seed1.png")
        await client.png(seed=2)
        assert (await change())["images"] == 2
        [newest, older] = [one["name"] for one in (await client.call("GET", "/history"))[2]["images"]]
        await client.call("DELETE", f"/history/{newest}")
        assert await change() == {"images": 1, "newest": older}
        await client.call("DELETE", "/history")
        assert await change() == {"images": 0, "newest": None}


async def test_a_page_of_the_history_tells_the_others_what_another_program_put_there(client, tmp_path):
    async with client.http.get(client.url + "/events") as response:
        seen = events(response)
        await anext(seen)
        file = (await client.png())[1]
        (tmp_path / "output" / "20261121_142231_seed42.png").write_bytes(file)
        client.services.history._index._looked = -60.0  # the next page looks for changes
        await client.call("GET", "/history")
        async with asyncio.timeout(30):
            while (found := await anext(seen))[0] != "history" or found[1]["images"] != 2:
                pass


async def test_events_report_an_unload_as_null(client):
    async with client.http.get(client.url + "/events") as response:
        await response.content.readuntil(b"\n\n")
        unload = asyncio.create_task(client.call("POST", "/api/unload_model"))
        while await asyncio.wait_for(response.content.readline(), 30) != b"event: serving\n":
            pass
        assert await response.content.readline() == b"data: null\n"
        await unload


async def test_the_last_change_is_streamed_immediately(client):
    """What changed while an event was sent, or in the pause after it, used to wait for the next one, or 10 s."""
    async with client.http.get(client.url + "/events") as stream:
        await stream.content.readuntil(b"\n\n")
        await asyncio.sleep(0.3)  # the stream waits for a change now
        await client.png(steps=60)  # longer than the pause between two events
        async with asyncio.timeout(9):
            while b'"running": 1' not in await stream.content.readuntil(b"\n\n"):
                pass
            while b'"running": 0' not in await stream.content.readuntil(b"\n\n"):
                pass
