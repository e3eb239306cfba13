"""The unit file, and the notifications to systemd."""

import asyncio
import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import Server
from zwatch import systemd, unit
from zwatch.cli import main
from zwatch.errors import UsageError

REPOSITORY = Path(__file__).parent.parent
UNIT = REPOSITORY / "systemd" / "zwatch.service"
SOCKET = REPOSITORY / "systemd" / "zwatch.socket"
NODE = REPOSITORY / "systemd" / "zwatch-node.service"
MOST_EXPOSURE = 15
"""In tenths, as `systemd-analyze security` takes its threshold."""
needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@needs_analyze
@pytest.mark.parametrize("takeover", [False, True])
def test_systemd_accepts_the_units(tmp_path, takeover):
    service = tmp_path / ("zwatch@.service" if takeover else "zwatch.service")
    service.write_text(unit.text(Path("/opt/zwatch/bin"), takeover=takeover))
    (tmp_path / "zwatch.socket").write_text(unit.socket_text(takeover=takeover))
    instance = str(service).replace("@", "@a")
    found = subprocess.run(
        ["systemd-analyze", "verify", instance, tmp_path / "zwatch.socket"], capture_output=True, text=True
    )
    assert (found.returncode, found.stderr.strip()) == (0, "")


@needs_analyze
def test_systemd_accepts_the_unit_of_a_node(tmp_path):
    (tmp_path / "zwatch-node.service").write_text(unit.node_text(Path("/opt/zwatch/bin")))
    found = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / "zwatch-node.service"], capture_output=True, text=True
    )
    assert (found.returncode, found.stderr.strip()) == (0, "")


@needs_analyze
@pytest.mark.parametrize("path", [UNIT, NODE], ids=lambda path: path.stem)
def test_the_unit_is_exposed_no_more_than_it_must(path):
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSURE}", "--no-pager", str(path)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-2000:]


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


async def test_the_service_notifies_ready_what_it_does_watchdog_and_stopping(listener, models, tmp_path):
    environment = {"NOTIFY_SOCKET": listener.getsockname(), "WATCHDOG_USEC": "400000"}
    async with Server(models, tmp_path / "state", environment=environment) as server:
        sent = []
        while not any(line.startswith("STATUS=serving v1 at http://") for line in sent):
            sent += listener.recv(1000).decode().split("\n")
        statuses = [line for line in sent if line.startswith("STATUS=")]
        assert sent.index("READY=1") < sent.index(statuses[-1]), "ready as soon as it listens"
        assert statuses[0].startswith("STATUS=serving nothing"), statuses
        assert any(", loading v1" in line for line in statuses), statuses
        assert "WATCHDOG=1" in sent, "the event loop was alive"
        assert (await server.status())["serving"]["version"] == "v1"
        assert server.stop() == 0
        while "STOPPING=1" not in sent:
            sent.append(listener.recv(1000).decode())


async def test_the_watchdog_is_not_reset_while_the_worker_is_stuck(listener, monkeypatch, caplog):
    monkeypatch.setenv("WATCHDOG_USEC", "40000")
    stuck = [None]
    feeding = asyncio.create_task(systemd.keep_alive(lambda: stuck[0]))
    for since in (None, 0.0, None):
        stuck[0] = since
        await asyncio.sleep(0.2)  # several intervals; what was sent before the change is read below
        listener.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while listener.recv(100):
                pass
        listener.settimeout(60 if since is None else 0.5)
        if since is None:
            assert await asyncio.to_thread(listener.recv, 100) == b"WATCHDOG=1"
        else:
            with pytest.raises(TimeoutError):
                await asyncio.to_thread(listener.recv, 100)
    feeding.cancel()
    assert caplog.text.count("a generation has made no progress") == 1


def test_another_process_watchdog_is_not_reset(monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "40000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert systemd.watchdog_seconds() == 0
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert systemd.watchdog_seconds() == 0.04


def test_the_command_prints_the_unit_with_the_path_of_this_installation(capsys):
    assert main(["systemd-unit"]) == 0
    printed = capsys.readouterr().out
    programs = Path(sys.executable).parent
    assert f"\nEnvironment=PATH={programs}:/usr/local/bin:/usr/bin:/bin\n" in printed
    assert printed.replace(str(programs), "/opt/zwatch/bin") == UNIT.read_text()


def test_the_command_prints_the_unit_of_a_node_alone(capsys):
    assert main(["systemd-unit", "--node"]) == 0
    assert capsys.readouterr().out.replace(str(Path(sys.executable).parent), "/opt/zwatch/bin") == NODE.read_text()
    assert main(["systemd-unit", "--node", "--takeover"]) == 2
    assert "--node prints one unit" in capsys.readouterr().err


def test_the_node_shares_with_the_service_what_both_may_do():
    """What one of them was granted after a failure, the other needs too: the lines of the sandbox are the same, but for the models,
    which only the service writes."""
    box = [path.read_text().partition("ProtectSystem=strict")[2].splitlines() for path in (UNIT, NODE)]
    lines = [{line for line in one if line and not line.startswith("#")} for one in box]
    assert lines[0] == lines[1]
    assert "ReadWritePaths" not in NODE.read_text()


def test_a_percent_sign_in_the_path_is_not_a_specifier():
    assert "\nEnvironment=PATH=/opt/100%%/bin:" in unit.text(Path("/opt/100%/bin"))


@pytest.mark.parametrize("path", ["/opt/my programs/bin", "/opt/a:b/bin", '/opt/"a"/bin'])
def test_a_path_that_a_unit_cannot_have_is_refused(path):
    with pytest.raises(UsageError, match=re.escape(repr(path))):
        unit.text(Path(path))


def test_the_wheel_has_the_unit_the_page_and_the_documentation(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(
        REPOSITORY,
        source,
        ignore=shutil.ignore_patterns(".*", "models", "tests", "build", "*.egg-info", "output_image"),
    )
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source], check=True)
    [wheel] = tmp_path.glob("*.whl")
    # Without --ignore-installed, pip would remove zwatch from the environment that the tests run in.
    subprocess.run(
        [*pip, "install", "--no-deps", "--ignore-installed", "--prefix", tmp_path / "installed", wheel], check=True
    )
    share = tmp_path / "installed" / "share"
    assert (share / "doc/zwatch/docs/operations.md").read_bytes() == (REPOSITORY / "docs/operations.md").read_bytes()
    for page in (share / "doc" / "zwatch").rglob("*.md"):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
    [packages] = (tmp_path / "installed").glob("lib/python*/site-packages")
    files = [path for path in (REPOSITORY / "zwatch" / "page").iterdir() if not path.name.startswith(".")]
    assert "index.html" in {path.name for path in files}
    for path in files:
        assert (packages / "zwatch" / "page" / path.name).read_bytes() == path.read_bytes()
    found = subprocess.run(
        [sys.executable, "-m", "zwatch", "systemd-unit"], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(packages)},
    )  # fmt: skip
    assert found.stdout.splitlines()[0] == UNIT.read_text().splitlines()[0]
