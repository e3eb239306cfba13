"""SIGHUP: it looks again, unless it tells that the terminal was closed."""

import fcntl
import json
import os
import pty
import signal
import subprocess
import termios

import aiohttp
import pytest

from tests.harness import Server, serve_command

OLD, NEW = "the first token of the test", "the second token of the test"


@pytest.fixture(autouse=True)
def _without_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and the server leaves it so
    yield
    signal.signal(signal.SIGHUP, before)


async def admitted(server, token: str) -> bool:
    async with server.http.get(server.url + "/versions", headers={"Authorization": f"Bearer {token}"}) as answer:
        return answer.status == 200


async def test_it_looks_again_tries_again_what_was_rejected_and_reads_the_token_again(models, tmp_path):
    token, file = tmp_path / "token", models / "v2" / "model_index.json"
    token.write_text(OLD)
    whole = file.read_bytes()
    file.write_bytes(b"x")
    async with Server(models, tmp_path / "state", "--token-file", str(token)) as server:
        server.http = await with_token(server)
        await server.serves("v1")
        (models / "next").symlink_to("v2")
        os.replace(models / "next", models / "current")
        await server.rejected("hash_mismatch")

        def rejections():
            return server.log.read_text().count("v2 is rejected")

        before = rejections()
        token.write_text(NEW)
        server.process.send_signal(signal.SIGHUP)
        await server.until(lambda: rejections() == before + 1, "it is tried again")
        await server.until(lambda: admitted(server, NEW), "the new token is accepted")
        assert not await admitted(server, OLD)
        token.write_text("\n")
        server.process.send_signal(signal.SIGHUP)
        await server.until(lambda: "is empty; the token stays as it was" in server.log.read_text(), "it is said")
        assert await admitted(server, NEW)
        file.write_bytes(whole)
        token.write_text(OLD)
        server.process.send_signal(signal.SIGHUP)
        await server.until(lambda: admitted(server, OLD), "the old one again")
        await server.serves("v2")


async def with_token(server) -> aiohttp.ClientSession:
    await server.http.close()
    return aiohttp.ClientSession(headers={"Authorization": f"Bearer {OLD}"})


def test_a_service_stops_in_order_when_its_terminal_is_closed(models, tmp_path):
    ours, theirs = pty.openpty()
    log = tmp_path / "log"
    with log.open("wb") as opened:
        process = subprocess.Popen(
            serve_command(models, tmp_path / "state", "--port", "0", "--device", "cpu", "--no-history"), stdin=theirs, stdout=opened, stderr=opened,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
        )  # fmt: skip
    os.close(theirs)
    try:
        while b"serving " not in log.read_bytes():
            assert process.poll() is None, log.read_text()
        process.send_signal(signal.SIGHUP)  # the terminal is there: this one is somebody's wish
        while b"looking again" not in log.read_bytes():
            assert process.poll() is None, log.read_text()
        os.close(ours)  # the kernel sends the next one
        assert process.wait(60) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
    assert "stopping: accepted requests finish first" in log.read_text()
    assert json.loads((tmp_path / "state/state.json").read_text())["running"] is False
