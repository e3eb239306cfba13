"""A real service that requires signatures: who signed is in every answer, and a policy that is wrong ends the start."""

import asyncio
import io
import os
import subprocess

import pytest
from PIL import Image

from tests.harness import Server, serve_command
from tests.signing.made import allow, signed, write_key, write_policy
from zwatch.client import shown
from zwatch.generation.image_details import read_details


@pytest.fixture
def setting(models, tmp_path):
    """The models root with a signed v1, and the policy."""
    key = write_key(tmp_path)
    signed(models / "v1", key)
    return models, write_policy(tmp_path, allow()), key


async def test_the_signer_is_in_the_status_the_versions_the_headers_and_the_pictures(setting, tmp_path):
    models, policy, key = setting
    async with Server(models, tmp_path / "state", "--require-signature", str(policy)) as server:
        await server.serves("v1")
        status = await server.status()
        signer = status["serving"]["signer"]
        assert signer.startswith("key release.pub sha256:")
        assert [engine["signer"] for engine in status["engines"]] == [signer]
        assert status["aliases"]["current"]["attempt"]["signer"] == signer
        versions = {one["name"]: one["signer"] for one in (await server.get("/versions"))["versions"]}
        assert versions == {"v1": signer, "v2": None}
        for path in ("/status", "/versions"):
            assert f"  signed by {signer}" in shown(path, await server.get(path))
        body = {"prompt": "a cat", "steps": 1}
        for kind in ("png", "jpeg", "webp"):
            async with server.http.post(f"{server.url}/generate", json={**body, "format": kind}) as response:
                assert response.headers["X-Zwatch-Signer"] == signer
                file = await response.read()
            assert read_details(file).signer == signer
        with Image.open(io.BytesIO((await generated(server, body))[1])) as image:
            assert image.text["zwatch_signer"] == signer
        async with server.http.post(
            f"{server.url}/generate", json=body, headers={"Accept": "application/json"}
        ) as response:
            assert (await response.json())["signer"] == signer
        async with server.http.post(f"{server.url}/v1/images/generations", json={"prompt": "a cat"}) as response:
            assert response.headers["X-Zwatch-Signer"] == signer
        _, job = await server.post("/jobs", body)
        await server.until(lambda: is_done(server, job["id"]), "the job is done")
        assert (await server.get(f"/jobs/{job['id']}"))["signer"] == signer
        (models / "next").symlink_to("v2")
        os.replace(models / "next", models / "current")
        attempt = await server.rejected("signature_missing")
        assert attempt["signer"] is None
        assert "there is no model.sig" in attempt["reason"]
        status, answer = await server.post("/api/load_model")
        assert (status, answer["reason"]["code"]) == (409, "signature_missing")
        assert (await server.status())["serving"]["version"] == "v1"
        signed(models / "v2", key)
        await server.serves("v2")


async def generated(server, body):
    async with server.http.post(f"{server.url}/generate", json=body) as response:
        return response, await response.read()


async def is_done(server, job):
    return (await server.get(f"/jobs/{job}"))["state"] == "done"


async def test_a_policy_that_changes_is_told_and_judges_anew(setting, tmp_path):
    models, policy, key = setting
    async with Server(models, tmp_path / "state", "--require-signature", str(policy)) as server:
        await server.serves("v1")
        assert (await server.get("/health"))["reasons"] == []
        (models / "next").symlink_to("v2")
        os.replace(models / "next", models / "current")
        await server.rejected("signature_missing")
        (models / "next").symlink_to("v1")
        os.replace(models / "next", models / "current")
        await server.until(lambda: is_ok(server), "v1 is asked for and serves")
        assert (await listed(server))["v2"] == (None, "signature_missing")
        policy.rename(tmp_path / "away.toml")
        await server.until(lambda: tells(server, f"the policy {policy} cannot be read"), "the fault is told")
        assert (await listed(server))["v2"] == (None, "policy_invalid")
        (tmp_path / "away.toml").rename(policy)
        await server.until(lambda: is_ok(server), "the fault is over")
        signed(models / "v2", key)
        signer, rejected = (await listed(server))["v2"]
        assert (signer.startswith("key release.pub "), rejected) == (True, None)


async def listed(server):
    found = (await server.get("/versions"))["versions"]
    return {one["name"]: (one["signer"], one["rejected"] and one["rejected"]["code"]) for one in found}


async def is_ok(server):
    return (await server.get("/health"))["status"] == "ok"


async def tells(server, words):
    status, health = await server.status(), await server.get("/health")
    return status["status"] == health["status"] == "degraded" and any(words in one for one in health["reasons"])


def test_a_policy_that_is_wrong_at_the_start_is_a_wrong_configuration(setting, tmp_path):
    models, policy, _ = setting
    (tmp_path / "release.pub").unlink()
    command = serve_command(models, tmp_path / "state", "--port", 0, "--device", "cpu", "--require-signature", policy)
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert f"the policy {policy}, [[allow]] entry 1: the key" in ended.stderr


async def test_a_process_that_takes_over_asks_for_signatures_itself(setting, tmp_path):
    """It may have been given another policy: if that allows nothing of what is served, the other process goes on."""
    models, policy, _ = setting
    other = write_policy(tmp_path, allow(versions="v2"), name="other.toml")
    async with Server(models, tmp_path / "state", "--require-signature", str(policy)) as first:
        await first.serves("v1")
        options = ("--takeover", "--require-signature", str(other))
        second = Server(models, tmp_path / "state", *options)
        second.log = tmp_path / "second.log"
        second.start()
        assert await asyncio.to_thread(second.process.wait, 120) == 1
        assert "v1 is not loaded beside the other process" in second.log.read_text()
        assert "nothing of what the running zwatch serves can be loaded (v1: " in second.log.read_text()
        assert (await first.generate())[0] == "v1"
