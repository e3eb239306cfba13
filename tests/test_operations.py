"""Operations and machine failures: slow copies, new seals, crashes, restarts, unloading, deployments by HTTP."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
from functools import partial

import pytest

from tests.deploy.factory import next_tick
from tests.harness import Server
from zwatch.deploy.sealing import write_seal
from zwatch.rollout.state import SavedState, StateFile

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def flip(models, version: str) -> None:
    (models / "next").symlink_to(version)
    os.replace(models / "next", models / "current")


def other_weights(models, version: str, source: str) -> None:
    """Copy another version's transformer into a version without sealing it."""
    shutil.copyfile(models / source / WEIGHTS, models / version / WEIGHTS)


@pytest.fixture(scope="module")
def started(tiny_versions, tmp_path_factory):
    """A service for all tests that neither stop it nor need options: a start takes longer than most of them."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "models").mkdir()
    server = Server(folder / "models", folder / "state")
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def shared(started, tiny_versions):
    """That service as after its start: new copies of v1 and v2, and v1 serves."""
    await started.connect()
    await started.post("/api/unload_model")  # 409 if the test before has just made a link: then that is loaded
    for entry in started.models.iterdir():
        entry.unlink() if entry.is_symlink() else shutil.rmtree(entry)
    shutil.copytree(tiny_versions, started.models, dirs_exist_ok=True)
    (started.models / "current").symlink_to("v1")
    assert (await started.post("/api/load_model"))[0] == 200
    await started.serves("v1")
    yield started
    await started.http.close()


async def test_a_version_that_rsync_copies_in_slowly_after_the_flip_deploys_automatically(shared, tmp_path):
    server, models = shared, shared.models
    if shutil.which("rsync") is None:
        pytest.skip("rsync is not installed")
    source = tmp_path / "elsewhere"
    shutil.copytree(models / "v2", source / "v3")
    write_seal(source / "v3", "v3")
    flip(models, "v3")
    await server.until(lambda: _has_fault(server, "dangling"), "the link dangles")
    subprocess.run(["rsync", "-a", "--include=BLAKE3SUMS", "--exclude=*", f"{source}/v3/", models / "v3/"], check=True)
    await server.rejected("file_missing")
    copy = await asyncio.create_subprocess_exec("rsync", "-a", "--bwlimit=300", f"{source}/v3/", f"{models}/v3/")
    while copy.returncode is None:
        assert (await server.generate())[0] in ("v1", "v3")
        await asyncio.sleep(0)
    await server.serves("v3")


async def _has_fault(server, code: str) -> bool:
    fault = (await server.status())["aliases"]["current"]["fault"]
    return fault is not None and fault["code"] == code


async def test_sealing_the_serving_version_again_deploys_the_new_content(shared):
    server, models = shared, shared.models
    _, digest, before = await server.generate(seed=3)
    other_weights(models, "v1", "v2")
    write_seal(models / "v1", "v1")

    async def replaced():
        return (await server.status())["serving"]["digest"] != digest

    await server.until(replaced, "the new content serves")
    version, new_digest, after = await server.generate(seed=3)
    assert (version, after != before, new_digest != digest) == ("v1", True, True)


async def test_an_overwritten_file_is_deployed_by_copy_seal_and_load(shared):
    server, models = shared, shared.models
    before = await server.generate(seed=3)
    assert (await server.post("/api/load_model"))[1]["message"] == "Model loaded successfully"
    other_weights(models, "v1", "v2")
    status, body = await server.post("/api/load_model")
    assert (status, body["error"]["code"], body["reason"]["code"]) == (409, "rejected", "version_mismatch")
    assert await server.generate(seed=3) == before, "what serves is not touched"
    write_seal(models / "v1", "v1")
    status, body = await server.post("/api/load_model")
    assert (status, body["status"], body["version"]) == (200, "success", "v1")
    assert (await server.generate(seed=3))[2] != before[2]


async def test_a_restart_with_a_bad_link_serves_last_known_good(models, tmp_path):
    async with Server(models, tmp_path / "state") as server:
        await server.serves("v1")
        golden = [await server.generate(seed=seed) for seed in range(3)]

        async def remembered():
            state = json.loads((tmp_path / "state" / "state.json").read_text())
            return [one["version"] for one in state["aliases"]["current"]["good"]] == ["v1"]

        await server.until(remembered, "v1 is last-known-good")
        (models / "v2" / WEIGHTS).write_bytes(b"nonsense")
        flip(models, "v2")
        await server.rejected("header_invalid")
    async with Server(models, tmp_path / "state") as server:

        async def fallen_back():
            status = await server.status()
            return status["status"] == "degraded" and status["serving"]["version"] == "v1"

        await server.until(fallen_back, "last-known-good serves")
        assert [await server.generate(seed=seed) for seed in range(3)] == golden
        attempt = (await server.status())["aliases"]["current"]["attempt"]
        assert (attempt["version"], attempt["state"]) == ("v2", "REJECTED")


async def test_a_version_that_served_at_two_crashes_in_a_row_is_set_aside_until_it_is_linked_again(models, tmp_path):
    state = tmp_path / "state"
    async with Server(models, state) as server:
        await server.serves("v1")
        for seed in range(3):
            await server.generate(seed=seed)
        await server.until(lambda: '"good": [\n    {' in (state / "state.json").read_text(), "v1 is good")
    flip(models, "v2")
    for _ in range(2):
        async with Server(models, state) as server:
            await server.serves("v2")
            server.stop(signal.SIGKILL)
    async with Server(models, state) as server:
        attempt = await server.rejected("set_aside")
        assert attempt["version"] == "v2"

        async def fallen_back():
            serving = (await server.status())["serving"]
            return serving is not None and serving["version"] == "v1"

        await server.until(fallen_back, "last-known-good serves")
        flip(models, "v2")
        await server.serves("v2")


async def test_a_stray_link_made_while_the_service_was_down_is_followed_at_start(models, tmp_path):
    next_tick(tmp_path)  # a stray of the tick in which the root changed may be for a link that was removed
    subprocess.run(["ln", "-sf", "v2", "current"], cwd=models, check=True)
    assert (models / "v1" / "v2").is_symlink()
    async with Server(models, tmp_path / "state") as server:
        await server.serves("v2")
        assert os.readlink(models / "current") == "v2"
        assert not (models / "v1" / "v2").is_symlink()


async def test_strict_links_reports_strays_and_repoints_nothing(models, tmp_path):
    async with Server(models, tmp_path / "state", "--strict-links") as server:
        await server.serves("v1")
        subprocess.run(["ln", "-sf", "v2", "current"], cwd=models, check=True)

        async def told():
            return (await server.status())["strays"]

        (stray,) = await server.until(told, "the stray is in the status")
        assert stray["path"] == "v1/v2"
        assert "ln -sfn v2 current" in stray["reason"]
        assert os.readlink(models / "current") == "v1"
        assert (await server.generate())[0] == "v1"


async def test_unloading_lasts_until_a_load_also_across_a_restart(models, tmp_path):
    async with Server(models, tmp_path / "state") as server:
        await server.serves("v1")
        running = asyncio.create_task(server.generate(seed=1, steps=20))
        await server.until(lambda: _is_running(server), "the request runs")
        unloading = asyncio.create_task(server.post("/api/unload_model"))
        assert (await running)[0] == "v1", "an accepted request finishes"
        assert await unloading == (200, {"status": "success", "message": "Model unloaded from memory"})
        assert (await server.status())["engines"] == []
        assert await server.post("/api/unload_model") == (
            200,
            {"status": "success", "message": "Model unloaded from memory"},
        )
        async with server.http.post(server.url + "/generate", json={"prompt": "a cat"}) as response:
            assert (response.status, "Retry-After" in response.headers) == (503, True)
    async with Server(models, tmp_path / "state") as server:

        async def looked():
            return (await server.status())["aliases"]["current"]["unloaded"]

        await server.until(looked, "it stays unloaded")
        assert (await server.status())["status"] == "unavailable"
        status, body = await server.post("/api/load_model")
        assert (status, body["message"]) == (200, "Model loaded successfully")
        await server.post("/api/unload_model")
        flip(models, "v2")
        await server.serves("v2")


async def _is_running(server) -> bool:
    return (await server.status())["queue"]["running"] == 1


async def test_deployments_by_http_wait_and_report_the_outcome(shared):
    server, models = shared, shared.models
    status, body = await server.post("/api/deploy", {"version": "v2"})
    assert (status, body["status"], body["message"], body["version"]) == (200, "success", "v2 is serving", "v2")
    assert os.readlink(models / "current") == "v2"
    status, body = await server.post("/api/rollback")
    assert (status, body["version"]) == (200, "v1")
    attempt = (await server.status())["aliases"]["current"]["attempt"]
    assert (attempt["way"], attempt["bytes"]) == ("resident", 0), "rolling back reads nothing"
    status, body = await server.post("/api/deploy", {"version": "v9"})
    assert (status, body["error"]["param"]) == (404, "version")
    (models / "v2" / WEIGHTS).write_bytes(b"nonsense")
    shutil.copytree(models / "v2", models / "v3")
    status, body = await server.post("/api/deploy", {"version": "v3"})
    assert (status, body["reason"]["state"], body["reason"]["code"]) == (409, "REJECTED", "header_invalid")
    assert (await server.post("/api/verify"))[1]["version"] == "v1"
    listed = {one["name"]: one for one in (await server.get("/versions"))["versions"]}
    assert (listed["v1"]["serving"], listed["v3"]["aliases"], listed["v3"]["resident"]) == (
        True,
        ["current"],
        False,
    )
    states = [(one["version"], one["state"]) for one in (await server.get("/attempts"))["attempts"]]
    assert states[0] == ("v3", "REJECTED")


async def test_two_aliases_serve_two_versions_and_a_request_names_one(models, tmp_path):
    (models / "canary").symlink_to("v2")
    async with Server(models, tmp_path / "state", "--alias", "canary") as server:
        await server.serves("v1")

        async def both():
            return (await server.status())["aliases"]["canary"]["serving"] == "v2"

        await server.until(both, "canary serves")
        assert (await server.generate(model="current"))[0] == "v1"
        assert (await server.generate(model="canary"))[0] == "v2"
        flip(models, "v2")
        await server.serves("v2")
        subprocess.run(["ln", "-sf", "v1", "current"], cwd=models, check=True)
        (stray,) = await server.until(lambda: _strays(server), "the stray is refused")
        assert "current" in stray["reason"]
        assert "canary" in stray["reason"]


async def test_a_stray_that_was_refused_moves_no_link_later_also_after_a_restart_without_the_alias(models, tmp_path):
    (models / "canary").symlink_to("v1")
    async with Server(models, tmp_path / "state", "--alias", "canary") as server:
        await server.serves("v1")
        subprocess.run(["ln", "-sf", "v2", "canary"], cwd=models, check=True)
        await server.until(lambda: _strays(server), "the stray is refused")
        subprocess.run(["ln", "-sfn", "v2", "canary"], cwd=models, check=True)

        async def canary_serves():
            return (await server.status())["aliases"]["canary"]["serving"] == "v2"

        await server.until(canary_serves, "canary serves v2")
        assert os.readlink(models / "current") == "v1"
    (models / "canary").unlink()
    async with Server(models, tmp_path / "state") as server:
        await server.serves("v1")
        (stray,) = await _strays(server)
        assert "it was refused earlier" in stray["reason"]
        assert os.readlink(models / "current") == "v1"


async def _strays(server):
    return (await server.status())["strays"]


async def test_a_terminated_service_finishes_accepted_requests(models, tmp_path):
    async with Server(models, tmp_path / "state") as server:
        await server.serves("v1")
        accepted = [asyncio.create_task(server.generate(seed=seed, steps=10)) for seed in range(4)]
        await server.until(lambda: _is_running(server), "one runs")
        server.process.send_signal(signal.SIGTERM)
        assert [version for version, _, _ in await asyncio.gather(*accepted)] == ["v1"] * 4
        assert server.process.wait(60) == 0


async def test_a_link_made_while_unloaded_is_the_newer_wish(shared):
    """Regression: the unload waited without end, and every request was refused meanwhile."""
    server, models = shared, shared.models
    for number in range(6):
        flip(models, "v2")
        await asyncio.sleep(0.03 + 0.02 * number)
        unloading = asyncio.create_task(server.post("/api/unload_model"))
        # Only a link made after the service began to unload is surely the newer wish.
        await server.until(partial(_unload_begun, server, unloading), "the unload has begun")
        flip(models, "v1")
        status, _ = await asyncio.wait_for(unloading, 30)
        assert status in (200, 409)
        await server.serves("v1")
        assert (await server.generate())[0] == "v1"


async def _unload_begun(server, unloading) -> bool:
    return unloading.done() or (await server.status())["aliases"]["current"]["unloaded"]


async def test_a_link_made_while_an_unload_waits_for_requests_is_the_newer_wish(shared):
    server, models = shared, shared.models
    making = asyncio.create_task(server.generate(steps=100, width=192, height=192))
    await server.until(lambda: _is_running(server), "it runs")
    unloading = asyncio.create_task(server.post("/api/unload_model"))
    await server.until(lambda: _refuses(server), "requests are refused")
    flip(models, "v2")
    await making
    assert (await unloading)[0] == 409
    await server.serves("v2")


async def _refuses(server) -> bool:
    status, _ = await server.post("/generate", {"prompt": "x", "model": "nobody"})
    return status == 503  # 404 while the queue is open


async def test_a_rollback_goes_to_the_previous_version_after_an_unload_or_a_restart(models, tmp_path):
    async with Server(models, tmp_path / "state") as server:
        await server.serves("v1")
        assert (await server.post("/api/deploy", {"version": "v2"}))[0] == 200
        await server.post("/api/unload_model")
        await server.post("/api/load_model")
        assert (await server.post("/api/rollback"))[1]["version"] == "v1"
        assert (await server.post("/api/rollback"))[1]["version"] == "v2"
    flip(models, "v1")  # while it is down
    async with Server(models, tmp_path / "state") as server:
        await server.serves("v1")
        assert (await server.post("/api/rollback"))[1]["version"] == "v2"


async def test_a_second_signal_is_not_a_crash(models, tmp_path):
    for times, numbers in enumerate([(signal.SIGINT, signal.SIGINT), (signal.SIGTERM,)], 1):
        async with Server(models, tmp_path / "state") as server:
            await server.serves("v1")
            making = asyncio.create_task(server.generate(steps=100, width=192, height=192))
            await server.until(lambda: _is_running(server), "it runs")
            server.process.send_signal(numbers[0])
            stopping = "stopping: accepted requests finish first"
            # Two signals at once may be taken for one.
            await server.until(lambda: server.log.read_text().count(stopping) == times, "it stops")  # noqa: B023
            for number in numbers[1:]:
                server.process.send_signal(number)
            await asyncio.to_thread(server.process.wait, 60)
            await asyncio.gather(making, return_exceptions=True)
        assert json.loads((tmp_path / "state/state.json").read_text())["running"] is False
    async with Server(models, tmp_path / "state") as server:
        await server.serves("v1")


async def test_no_request_is_accepted_while_the_service_stops_even_after_a_load(models, tmp_path):
    async with Server(models, tmp_path / "state") as server:
        await server.serves("v1")
        making = asyncio.create_task(server.generate(steps=100, width=192, height=192))
        await server.until(lambda: _is_running(server), "it runs")
        server.process.send_signal(signal.SIGTERM)
        await server.until(lambda: _refuses(server), "requests are refused")
        for probe, expected in (("live", 200), ("ready", 503)):
            async with server.http.get(f"{server.url}/health/{probe}") as response:
                assert response.status == expected
        await server.post("/api/load_model")
        status, body = await server.post("/generate", {"prompt": "a cat"})
        assert (status, body["error"]["code"]) == (503, "shutting_down")
        await making


async def test_links_whose_text_is_not_utf_8_are_in_the_status(shared):
    server, models = shared, shared.models
    os.symlink(b"x", os.fsencode(models / "v1") + b"/\xff")
    await server.until(lambda: _has_strays(server), "the stray is seen")
    os.unlink(models / "current")
    os.symlink(b"\xff", os.fsencode(models / "current"))
    await server.until(lambda: _has_fault(server, "dangling"), "the link dangles")
    assert (await server.get("/health"))["status"] == "degraded"


async def _has_strays(server) -> bool:
    return [stray["path"] for stray in (await server.status())["strays"]] == ["v1/\\udcff"]


HOSTILE = {
    "unhashable": {"aliases": {"current": dict.fromkeys(("trying", "previous", "stamp", "unloaded"))
                               | {"serving": {"version": 5, "digest": []}, "good": []}}, "crashes": []},
    "count": {"aliases": {}, "crashes": [{"key": {"version": "v1", "digest": None}, "count": "x", "stamp": None}]},
    "outside": {"aliases": {"current": dict.fromkeys(("serving", "trying", "previous", "stamp", "unloaded"))
                            | {"good": [{"version": "../v1", "digest": None}]}}, "crashes": []},
}  # fmt: skip


@pytest.mark.parametrize("content", [*HOSTILE.values(), None])
def test_an_invalid_state_file_is_set_aside(tmp_path, content):
    path = tmp_path / "state.json"
    path.write_text("[" * 100_000 if content is None else json.dumps({"format": 1, "running": True, **content}))
    state_file = StateFile(tmp_path)
    try:
        assert state_file.read() == SavedState()
    finally:
        state_file.close()
    assert path.with_name("state.json.bad").exists()
