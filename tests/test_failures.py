"""A real service in which something fails for good, crashes, or cannot be written: what it says, and what the next run does."""

import asyncio
import json
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.harness import Server
from tests.test_cli import zwatch
from zwatch.deploy.look import point

FAILING_TORCH = """
import pathlib
marker = pathlib.Path(__file__).with_name("tried")
if not marker.exists():
    marker.touch()
    raise FileNotFoundError("No usable temporary directory found in ['/tmp']")
raise RuntimeError("function '_has_torch_function' already has a docstring")
"""


def serve(models, tmp_path, *options, **environment):
    """Run a service that ends by itself; return the finished process."""
    arguments = ["--models", models, "--state-dir", tmp_path / "state", "--no-history", "--port", 0, "--log", "text"]
    return zwatch("serve", *arguments, *options, env={**os.environ, **environment})


def saved_state(tmp_path):
    return json.loads((tmp_path / "state/state.json").read_bytes())


def test_a_library_that_cannot_be_imported_ends_the_service_with_the_first_reason(models, tmp_path):
    stub = tmp_path / "stub"
    (stub / "torch").mkdir(parents=True)
    (stub / "torch/__init__.py").write_text(FAILING_TORCH)
    ended = serve(models, tmp_path, "--device", "cpu", PYTHONPATH=f"{stub}:{os.getcwd()}")
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("zwatch: torch cannot be imported: FileNotFoundError: No usable temporary directory")
    assert "docstring" not in ended.stderr
    saved = saved_state(tmp_path)
    assert (saved["running"], saved["aliases"]["current"]["trying"]) == (False, None), "it is no crash of v1"


def test_a_library_that_the_server_itself_needs_is_named_in_one_line(models, tmp_path):
    (tmp_path / "aiohttp.py").write_text("raise ImportError('libssl.so.3: cannot open shared object file')")
    ended = serve(models, tmp_path, PYTHONPATH=f"{tmp_path}:{os.getcwd()}")
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert "libssl.so.3: cannot open shared object file" in ended.stderr


@pytest.mark.parametrize("device", ["gpu", "mps", "cuda:-1", "cuda:1:2", "xpu"])
def test_a_device_of_no_known_form_is_refused_before_anything_starts(models, tmp_path, device):
    ended = serve(models, tmp_path, "--device", device)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "state").exists()


def test_a_device_that_is_not_there_ends_the_service_with_status_2_and_one_line(models, tmp_path):
    ended = serve(models, tmp_path, "--device", "cuda:99")
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if "cuda:99" in line]
    assert line.startswith("zwatch: --device cuda:99: ")
    assert line == ended.stderr.splitlines()[-1]
    saved = saved_state(tmp_path)
    assert (saved["running"], saved["aliases"]["current"]["trying"]) == (False, None), "it is no crash of v1"
    checked = zwatch("check", models / "v1", "--device", "cuda:99")
    assert (checked.returncode, len(checked.stderr.splitlines())) == (2, 1)


# --- what cannot be written


async def agreed(server, listener=None):
    """Return the status and its reasons, on which all that tell them agree."""
    health, status = await server.get("/health"), await server.status()
    assert (health["status"], health["reasons"]) == (status["status"], status["reasons"])
    async with server.http.get(server.url + "/metrics") as response:
        assert f'zwatch_status{{status="{status["status"]}"}} 1.0' in await response.text()
    shown = await asyncio.to_thread(zwatch, "status", "--url", server.url)
    assert shown.stdout.startswith(status["status"])
    for reason in status["reasons"]:
        assert reason in shown.stdout
    return status["status"], status["reasons"]


async def test_what_cannot_be_written_is_in_every_status_and_heals(models, tmp_path):
    state, images = tmp_path / "state", tmp_path / "state.images"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        sent = []
        async with Server(models, state, environment={"NOTIFY_SOCKET": str(tmp_path / "notify")}) as server:
            await server.serves("v1")
            for directory, words in ((state, "the state directory"), (images, "images cannot be kept")):
                directory.rename(tmp_path / "away")
                directory.write_text("a file")

                async def noticed(state=directory, words=words):
                    if state is images:
                        await server.generate()
                    return any(words in reason for reason in (await server.status())["reasons"])

                await server.until(noticed, f"{words} is in the status")
                status, reasons = await agreed(server)
                assert status == "degraded"
                assert any(str(directory) in reason for reason in reasons)

                async def is_told(words=words):
                    while select.select([listener], [], [], 0)[0]:
                        sent.append(listener.recv(10_000).decode())
                    return any(line.startswith("STATUS=") and "; degraded: " in line and words in line for line in sent)

                await server.until(is_told, f"{words} is in the line of systemctl status")
                directory.unlink()

                async def healed(state=directory):
                    if state is images:
                        await server.generate()
                    return (await server.status())["status"] == "ok"

                await server.until(healed, "it can be written again")
                assert await agreed(server) == ("ok", [])

                async def is_told_to_be_well():
                    await is_told()
                    return "degraded" not in next(line for line in reversed(sent) if line.startswith("STATUS="))

                await server.until(is_told_to_be_well, "the line of systemctl status says that all is well")
                assert directory.is_dir(), "made again"
                shutil.rmtree(tmp_path / "away")
            server.stop()
        while select.select([listener], [], [], 0)[0]:
            sent.append(listener.recv(10_000).decode())
        told = [line for line in sent if line.startswith("STATUS=")]
        assert told[-1].startswith("STATUS=serving v1 at http://")
        assert "degraded" not in told[-1]


async def test_an_output_directory_that_cannot_be_written_is_in_the_status_before_the_first_image(models, tmp_path):
    (tmp_path / "state.images").write_text("a file")
    async with Server(models, tmp_path / "state") as server:

        async def loaded():
            return (await server.status())["serving"] is not None

        await server.until(loaded, "v1 serves")
        status, (reason,) = await agreed(server)
        assert status == "degraded"
        assert "images cannot be kept" in reason


# --- a stop in the middle of a load


async def test_a_stop_in_the_middle_of_a_load_is_answered_as_a_stop(models, tmp_path):
    async with Server(models, tmp_path / "state") as server:
        waiting = asyncio.create_task(server.post("/api/load_model"))

        async def loads():
            status = await server.status()
            assert status["status"] == "unavailable"
            return status["reasons"] == ["current asks for v1, which is being loaded; nothing serves"]

        await server.until(loads, "the load has begun")
        assert await asyncio.to_thread(server.stop) == 0
        status, body = await waiting
        assert (status, body["error"]["code"]) == (503, "shutting_down")
        assert "the next start loads what the link points to" in body["error"]["message"]
        assert "v1 is abandoned" in server.log.read_text()
        assert "the service is stopping" in server.log.read_text()


SLOW_IMPORT = """
import pathlib, time
pathlib.Path(__file__).with_suffix(".begun").touch()
time.sleep(300)
"""


@pytest.mark.parametrize("library", ["click", "aiohttp", "numpy"])  # of the command line, the server, the first load
@pytest.mark.parametrize(("number", "status"), [("SIGTERM", 0), ("SIGINT", 130)])
def test_a_stop_does_not_wait_for_a_library_that_is_being_imported(models, tmp_path, library, number, status):
    (tmp_path / f"{library}.py").write_text(SLOW_IMPORT)
    arguments = ["serve", "--models", models, "--state-dir", tmp_path / "state", "--no-history", "--port", "0"]
    with begun(tmp_path, library, *arguments) as process:
        process.send_signal(getattr(signal, number))
        err = process.communicate(timeout=60)[1]
    # Once the service runs, Ctrl-C is the ordinary way to stop it.
    assert process.returncode == (0 if library == "numpy" else status)
    assert "Traceback" not in err


def test_an_interrupted_command_ends_with_130_although_its_libraries_are_still_being_imported(tmp_path):
    (tmp_path / "click.py").write_text(SLOW_IMPORT)
    with begun(tmp_path, "click", "status") as process:
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 130


def begun(directory, library, *arguments):
    """Start a command, and return it while it imports a library from this directory."""
    process = subprocess.Popen(
        [sys.executable, "-m", "zwatch", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": f"{directory}:{os.getcwd()}"},
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (directory / f"{library}.begun").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    if not (directory / f"{library}.begun").exists():
        process.kill()
        pytest.fail(f"it does not import {library}: {process.communicate()}")
    return process


# --- no file descriptors


async def test_no_call_fails_for_want_of_a_detail_while_no_file_descriptor_is_left(models, tmp_path):
    reads = [
        "/status",
        "/health",
        "/metrics",
        "/versions",
        "/attempts",
        "/v1/models",
        "/sdapi/v1/memory",
        "/sdapi/v1/sd-models",
    ]
    posts = {"/generate": {"prompt": "x"}, "/v1/images/generations": {"prompt": "x"}, "/sdapi/v1/txt2img": {"prompt": "x"},
             "/jobs": {"prompt": "x"}, "/api/verify": {}, "/api/load_model": {}, "/api/rollback": {}, "/api/deploy": {"version": "v2"},
             "/sdapi/v1/options": {}, "/sdapi/v1/png-info": {"image": "iVBORw0KGgo="}}  # fmt: skip
    async with Server(models, tmp_path / "state", "--no-history") as server:
        await server.serves("v1")
        await server.get("/health/live")  # the connection stays open: another one could not be made
        limits = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        for path in reads:
            async with server.http.get(server.url + path) as response:
                assert response.status == 200, (path, await response.text())
        statuses = {}
        for path, body in posts.items():
            async with server.http.post(server.url + path, json=body) as response:
                statuses[path] = response.status, (await response.read())[:300]
        failed = {path: found for path, found in statuses.items() if found[0] == 500}
        assert not failed, failed
        assert "Traceback" not in server.log.read_text()
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, limits)


# --- crashes


async def killed_while_it_serves(models, state, *options):
    async with Server(models, state, *options) as server:
        await server.serves("v2")
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()


@pytest.mark.slow
async def test_a_version_to_which_two_aliases_lead_is_set_aside_after_two_crashes(models, tmp_path):
    (models / "canary").symlink_to("v1")
    options = ("--alias", "canary", "--no-history")
    async with Server(models, tmp_path / "state", *options) as server:
        await server.serves("v1")
    for alias in ("current", "canary"):
        point(models, alias, "v2")
    for _ in range(2):
        await killed_while_it_serves(models, tmp_path / "state", *options)
    async with Server(models, tmp_path / "state", *options) as server:
        attempt = await server.rejected("set_aside")
        assert "2 crashes in a row" in attempt["reason"]

        async def both_serve_v1():
            aliases = (await server.status())["aliases"].values()
            return [alias["serving"] for alias in aliases] == ["v1", "v1"]

        await server.until(both_serve_v1, "what was promoted before serves")
        status, reasons = await agreed(server)
        assert (status, len(reasons)) == ("degraded", 2)
        assert "loading v2" not in server.log.read_text().split("previous run crashed")[-1].split("is rejected")[-1]
        assert not any(engine["version"] == "v2" for engine in (await server.status())["engines"])
        await asyncio.to_thread(point, models, "canary", "v2")

        async def both_serve_v2():
            aliases = (await server.status())["aliases"].values()
            return [alias["serving"] for alias in aliases] == ["v2", "v2"]

        await server.until(both_serve_v2, "linked anew, it is tried again")
        assert await agreed(server) == ("ok", [])
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    async with Server(models, tmp_path / "state", *options) as server:
        await server.serves("v2")  # one crash since


@pytest.mark.slow
async def test_crashes_after_good_service_set_nothing_aside(models, tmp_path):
    point(models, "current", "v2")
    for _ in range(2):  # two set a version aside that has not proved itself
        async with Server(models, tmp_path / "state", "--no-history") as server:
            await server.serves("v2")
            for seed in range(3):
                await server.generate(seed=seed)
            await server.until(lambda: saved_state(tmp_path)["proved"], "it has proved itself")
            server.process.send_signal(signal.SIGKILL)
            server.process.wait()
    async with Server(models, tmp_path / "state", "--no-history") as server:
        await server.serves("v2")
        assert (await server.status())["aliases"]["current"]["attempt"]["state"] == "PROMOTED"
