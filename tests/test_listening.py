"""Sockets that systemd passes: which are used, which are ignored, and what is wrong with the others."""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import subprocess
from pathlib import Path

import aiohttp
import pytest

from tests.api.conftest import tiny_config
from tests.harness import serve_command
from zwatch import listening
from zwatch.errors import UsageError
from zwatch.listening import passed

FIRST = 700
"""A descriptor number that nothing else has."""


@pytest.fixture
def give(monkeypatch):
    """Pass descriptors to this process as systemd does."""
    monkeypatch.setattr(listening, "FIRST_FD", FIRST)
    count = 0

    def pass_on(*given, names: str | None = None, **variables: str) -> None:
        nonlocal count
        for one in given:
            os.dup2(one.fileno(), FIRST + count)
            count += 1
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        monkeypatch.setenv("LISTEN_FDS", str(count))
        if names is not None:
            monkeypatch.setenv("LISTEN_FDNAMES", names)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    yield pass_on
    gc.collect()  # a socket that goes later would close what another test has under its number
    for number in range(count):
        with contextlib.suppress(OSError):
            os.close(FIRST + number)


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as one:
        yield one


def test_without_the_variables_nothing_was_passed(monkeypatch):
    monkeypatch.delenv("LISTEN_PID", raising=False)
    assert passed().sockets == ()


def test_a_socket_is_used_once_and_no_child_gets_it(give, server):
    give(server)
    with passed().sockets[0] as one:
        assert one.getsockname() == server.getsockname()
        assert not os.get_inheritable(one.fileno())
    assert "LISTEN_FDS" not in os.environ
    assert passed().sockets == ()


def test_what_is_meant_for_another_process_is_ignored(give, server):
    give(server, LISTEN_PID="1")
    assert passed().sockets == ()
    assert "LISTEN_PID" not in os.environ


@pytest.mark.parametrize(
    ("name", "value"), [("LISTEN_PID", "me"), ("LISTEN_FDS", "0"), ("LISTEN_FDS", "-1"), ("LISTEN_FDS", "two")]
)
def test_a_variable_that_systemd_does_not_set_so_is_an_error_that_names_it(give, server, name, value):
    give(server, **{name: value})
    with pytest.raises(UsageError, match=f"{name} is '{value}': expected"):
        passed()


def test_a_descriptor_that_is_no_stream_socket_that_listens_is_an_error_that_names_it(give, tmp_path):
    with open(tmp_path / "file", "w") as file:
        give(file, names="web")
        with pytest.raises(UsageError, match=rf"descriptor {FIRST} \(web\) is no socket"):
            passed()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        give(datagrams, LISTEN_FDS="1")
        os.dup2(datagrams.fileno(), FIRST)
        with pytest.raises(UsageError, match="of type SOCK_DGRAM; expected ListenStream="):
            passed()
    with socket.socket() as quiet:
        os.dup2(quiet.fileno(), FIRST)
        give(LISTEN_FDS="1")
        with pytest.raises(UsageError, match="does not listen; expected a socket unit with Accept=no"):
            passed()


def test_connections_of_the_process_before_are_told_from_sockets_by_their_name(give, server, tmp_path):
    with socket.create_connection(server.getsockname()), open(tmp_path / "file", "w") as lost:
        accepted, _ = server.accept()
        with accepted:
            give(server, accepted, lost, names="zwatch.socket:connection:connection")
            found = passed()
    assert [one.getsockname() for one in found.sockets] == [server.getsockname()]
    [connection] = found.connections
    for one in (*found.sockets, connection):
        one.close()


def test_the_options_must_fit_one_of_the_sockets(give, server, tmp_path):
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "http"))
    unix.listen()
    give(unix, server)
    found = passed()
    port = server.getsockname()[1]
    assert found.addresses == ("localhost", "127.0.0.1")
    for host, asked in ((None, None), ("127.0.0.1", None), (None, port), ("localhost", port), (None, 0)):
        assert found.address(host, asked) == ("127.0.0.1", port)
    for host, asked, name in ((None, 7, "--port 7"), ("192.0.2.1", None, "--host 192.0.2.1")):
        with pytest.raises(
            UsageError, match=f"{name}: systemd passed the socket unix:{tmp_path}/http, http://127.0.0.1:{port}"
        ):
            found.address(host, asked)
    for one in (*found.sockets, unix):
        one.close()


def test_a_socket_that_other_hosts_reach_needs_a_token(tmp_path):
    hosts = ("127.0.0.1", "0.0.0.0")
    with pytest.raises(UsageError, match=r"the socket on 0.0.0.0 \(ListenStream= of the socket unit\)"):
        tiny_config(tmp_path, tmp_path, passed_hosts=hosts).check()
    tiny_config(tmp_path, tmp_path, passed_hosts=hosts, token="x" * 20).check()


def activated(models: Path, state: Path, sockets, *options: str) -> subprocess.Popen:
    """Start a service with sockets as systemd passes them."""
    command = serve_command(models, state, "--device", "cpu", "--no-history", *options)
    script = f'LISTEN_PID=$$ LISTEN_FDS={len(sockets)} exec "$@" '
    script += " ".join(f"{3 + number}<&{one.fileno()}" for number, one in enumerate(sockets))
    return subprocess.Popen(
        ["bash", "-c", script, "start", *command],
        pass_fds=[one.fileno() for one in sockets], stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


async def draw(connector: aiohttp.BaseConnector, url: str) -> int:
    async with (
        aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(120)) as http,
        http.post(f"{url}/generate", json={"prompt": "a cat", "steps": 2}) as answer,
    ):
        return answer.status


async def test_requests_to_any_of_the_sockets_wait_for_the_process_after_a_stop(models, tmp_path, server):
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "http"))
        unix.listen()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        for _ in range(2):
            waiting = [  # before the process runs
                asyncio.ensure_future(draw(aiohttp.TCPConnector(), url)),
                asyncio.ensure_future(draw(aiohttp.UnixConnector(str(tmp_path / "http")), "http://localhost")),
            ]
            with activated(models, tmp_path / "state", [unix, server]) as process:
                try:
                    assert [await one for one in waiting] == [200, 200]
                finally:
                    process.send_signal(signal.SIGTERM)
                    _, log = process.communicate(timeout=60)
            assert process.returncode == 0, log
            assert f"at unix:{tmp_path}/http and {url}" in log


def test_a_port_that_no_socket_has_ends_the_start_with_status_2(models, tmp_path, server):
    with activated(models, tmp_path / "state", [server], "--port", "7") as process:
        _, log = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "--port 7: systemd passed the socket http://127.0.0.1:" in log
