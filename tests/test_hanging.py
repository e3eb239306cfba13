"""What never ends holds up nobody: a real service, files of a server that is gone, and templates that loop for ever."""

import asyncio
import shutil
import signal
import sys

import pytest

from tests.harness import Server
from tests.test_operations import flip
from zwatch.deploy.sealing import write_seal

SOON = 40.0
"""Seconds for what takes a moment, on a machine that is busy; what hangs takes for ever."""
NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a %}{% endfor %}{% endfor %}"


@pytest.fixture
def three(models):
    """A models root with v3 too, and the alias canary."""
    shutil.copytree(models / "v2", models / "v3")
    write_seal(models / "v3", "v3")
    (models / "canary").symlink_to("v1")
    return models


async def loading(server, version):
    async def check():
        attempt = (await server.status())["aliases"]["current"]["attempt"]
        return attempt and (attempt["version"], attempt["state"]) == (version, "LOADING")

    await server.until(check, f"{version} is being loaded")


@pytest.mark.slow
async def test_a_read_that_never_returns_holds_up_no_flip_no_unload_and_no_stop(three, tmp_path, hanging_mount):
    mount = hanging_mount(three / "v2")
    async with Server(three, tmp_path / "state", "--alias", "canary") as server:
        await server.serves("v1")
        mount.hangs = "transformer/diffusion_pytorch_model.safetensors"
        flip(three, "v2")
        await asyncio.to_thread(mount.waiting.wait, SOON)
        await loading(server, "v2")
        assert (await server.generate())[0] == "v1"
        async with asyncio.timeout(SOON):
            assert (await server.post("/api/deploy", {"version": "v3", "alias": "canary", "wait": False}))[0] == 202
            flip(three, "v3")
            await server.serves("v3")
        assert (await server.generate(model="canary"))[0] == "v3"
        flip(three, "v2")
        await loading(server, "v2")
        async with asyncio.timeout(SOON):
            assert (await server.post("/api/unload_model"))[0] == 200
            flip(three, "v1")
            await server.serves_current("v1")
        flip(three, "v2")
        await loading(server, "v2")
        assert await asyncio.wait_for(asyncio.to_thread(server.stop), SOON) == 0


@pytest.mark.slow
async def test_a_version_on_a_file_server_that_is_gone_is_a_fault_of_its_alias_alone(three, tmp_path, hanging_mount):
    mount = hanging_mount(three / "v2")
    async with Server(three, tmp_path / "state", "--alias", "canary") as server:
        await server.serves("v1")
        mount.hangs = ""
        (three / "canary").unlink()
        (three / "canary").symlink_to("v2")

        async def is_unreadable():
            fault = (await server.status())["aliases"]["canary"]["fault"]
            return fault and "v2: nothing came back within" in str(fault)

        async def versions():
            async with server.http.get(server.url + "/versions") as response:
                return response.status, await response.json()

        await server.until(is_unreadable, "the fault is seen")
        assert (await server.generate(model="canary"))[0] == "v1"
        async with asyncio.timeout(SOON):
            flip(three, "v3")
            await server.serves_current("v3")
            answers = await asyncio.gather(versions(), server.post("/api/deploy", {"version": "v2"}))
            assert [(status, body["error"]["code"]) for status, body in answers] == [(504, "timeout")] * 2, answers
        mount.heal()

        async def is_healed():
            serving = (await server.status())["aliases"]["canary"]
            return (
                serving["fault"] is None
                and serving["attempt"]["version"] == "v2"
                and serving["attempt"]["state"] == "PROMOTED"
            )

        await server.until(is_healed, "it serves v2 when its files are there again")
        mount.hangs = ""
        assert await asyncio.wait_for(asyncio.to_thread(server.stop), SOON) == 0


ENDLESS = {
    "v2": NESTED,
    "v3": "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "v4": "{{ 'x' * 10**12 }}",
}


@pytest.mark.slow
async def test_a_chat_template_that_never_ends_is_rejected_and_the_serving_version_goes_on(models, tmp_path):
    for version, template in ENDLESS.items():
        if version != "v2":
            shutil.copytree(models / "v2", models / version)
        (models / version / "tokenizer/chat_template.jinja").write_text(template)
        write_seal(models / version, version)
    shutil.copytree(models / "v1", models / "v5")
    at_dogs = models / "v5/tokenizer/chat_template.jinja"
    at_dogs.write_text(f"{{% if 'dog' in messages[0]['content'] %}}{NESTED}{{% endif %}}" + at_dogs.read_text())
    write_seal(models / "v5", "v5")
    # On trial, its faults would be drawn again by the version before.
    async with Server(models, tmp_path / "state", "--probation", "0") as server:
        await server.serves("v1")
        for version in ENDLESS:
            flip(models, version)

            async def is_rejected(version=version):
                attempt = (await server.status())["aliases"]["current"]["attempt"]
                return (
                    attempt["reason"] if (attempt["version"], attempt["code"]) == (version, "config_invalid") else None
                )

            assert "chat_template.jinja" in await server.until(is_rejected, f"{version} is rejected")
            assert (await server.generate())[0] == "v1"
        flip(models, "v5")  # no proof can find what one prompt alone shows
        await server.serves("v5")
        async with asyncio.timeout(SOON):
            status, body = await server.post("/generate", {"prompt": "a dog"})
            assert (status, body["error"]["code"]) == (500, "generation_failed")
            assert "chat template" in body["error"]["message"]
            assert (await server.generate())[0] == "v5"
        assert server.stop() == 0


@pytest.mark.parametrize("module", ["click", "aiohttp", "torch"])
async def test_a_stop_while_the_service_starts_ends_with_0(models, tmp_path, module):
    """A module whose import never ends stands for one that takes long."""
    (tmp_path / "stuck").mkdir()
    (tmp_path / "stuck" / f"{module}.py").write_text(
        f"import time\nopen({str(tmp_path / 'begun')!r}, 'w').close()\nwhile True:\n    time.sleep(0.01)\n"
    )
    path = ":".join([str(tmp_path / "stuck"), *sys.path])
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "zwatch", "serve", "--models", str(models), "--state-dir", str(tmp_path / "state"),
        "--port", "0", "--device", "cpu", "--no-history", env={"PATH": "/usr/bin", "PYTHONPATH": path}, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(SOON):
        while not (tmp_path / "begun").exists():
            await asyncio.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, logged = await process.communicate()
    assert process.returncode == 0, logged
    assert b"Traceback" not in logged
