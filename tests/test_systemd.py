"""The unit file, and the notifications to systemd."""

import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.harness import Server
from zwatch import systemd

UNIT = Path(__file__).parent.parent / "systemd" / "zwatch.service"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_unit():
    found = subprocess.run(["systemd-analyze", "verify", str(UNIT)], capture_output=True, text=True)
    assert (found.returncode, found.stderr.strip()) == (0, "")


def test_a_wrong_configuration_is_not_started_again_and_everything_else_is():
    lines = UNIT.read_text().splitlines()
    assert "Restart=always" in lines
    assert "RestartPreventExitStatus=2" in lines


@pytest.fixture
def listener(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield channel


def test_lines_are_sent_in_one_datagram(listener):
    systemd.notify("READY=1", "STATUS=fine")
    assert listener.recv(1000) == b"READY=1\nSTATUS=fine"


def test_without_a_socket_nothing_happens(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.notify("READY=1")


async def test_the_service_notifies_ready_what_serves_watchdog_and_stopping(listener, models, tmp_path):
    environment = {"NOTIFY_SOCKET": listener.getsockname(), "WATCHDOG_USEC": "400000"}
    async with Server(models, tmp_path / "state", environment=environment) as server:
        sent = [listener.recv(1000).decode() for _ in range(1)]
        while "READY=1" not in sent:
            sent.append(listener.recv(1000).decode())
        assert (await server.status())["serving"]["version"] == "v1"
        assert "WATCHDOG=1" in sent, "the event loop was alive"
        while not sent[-1].startswith("STATUS="):
            sent.append(listener.recv(1000).decode())
        assert sent[-1].endswith("serves v1")
        assert server.stop() == 0
        while "STOPPING=1" not in sent:
            sent.append(listener.recv(1000).decode())
