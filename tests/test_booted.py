"""The units in a systemd that is really booted: installed by the steps in their own comments, and used as operators do."""

import json
import subprocess
import threading

import pytest

from tests.booted import REPOSITORY, ROOT, Booted, Unbootable, install, serves

URL = "http://127.0.0.1:7860"
TOKEN = "0123456789abcdef-of-the-test"
DROP_IN = """
[Service]
LoadCredential=zwatch-token:/etc/zwatch/token
Environment=OMP_NUM_THREADS=1
WatchdogSec=8s
RestartSec=100ms
"""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def booted(tiny_versions, tmp_path_factory):
    work = tmp_path_factory.mktemp("booted") / "machine"
    try:
        with Booted(work, {"/opt/source": REPOSITORY, "/opt/versions": tiny_versions}) as machine:
            yield machine
    except Unbootable as error:
        pytest.skip(f"no systemd can be booted here: {error}")


@pytest.fixture(scope="module")
def machine(booted):
    """The machine with zwatch installed, v1 linked, and running."""
    booted.shell(f"mkdir -p /etc/zwatch; echo {TOKEN} > /etc/zwatch/token; chmod 600 /etc/zwatch/token")
    install(booted, DROP_IN)
    serves(booted, "v1")
    return booted


def get(machine, path: str, *options: str, token: str | None = TOKEN) -> tuple[int, str]:
    header = ["-H", f"Authorization: Bearer {token}"] if token else []
    found = machine.run("curl", "-s", "-m", "100", "-w", "\n%{http_code}", *header, *options, URL + path, check=False)
    body, _, status = found.rpartition("\n")
    return int(status), body


def draw(machine, *options: str) -> tuple[int, str]:
    return get(
        machine, "/generate", "-H", "Accept: application/json", "-d", '{"prompt": "a cat", "steps": 2}', *options
    )


def main_pid(machine, unit: str = "zwatch") -> str:
    return machine.show(unit, "MainPID")


def test_the_steps_in_the_units_comment_install_a_service_that_runs_as_its_own_user(machine):
    assert machine.run("systemctl", "is-enabled", "zwatch.socket", "zwatch.service") == "enabled\nenabled"
    assert machine.run("stat", "-c", "%U %G %a", ROOT) == "root zwatch 2775"
    assert machine.run("ps", "-o", "user=", "-p", main_pid(machine)) == "zwatch"
    assert machine.run("stat", "-c", "%U %a", "/var/lib/zwatch/state.json") == "zwatch 600"
    assert machine.run("systemctl", "cat", "zwatch.service").count("[Service]") == 2, "the unit and the test's drop-in"


def test_calls_need_the_token_of_the_credential(machine):
    assert get(machine, "/status", token=None)[0] == 401
    assert get(machine, "/status")[0] == 200


def test_the_first_request_starts_a_stopped_service_and_is_answered(machine):
    machine.run("systemctl", "stop", "zwatch.service")
    assert machine.show("zwatch", "ActiveState") == "inactive"
    status, body = draw(machine)
    assert (status, json.loads(body)["version"]) == (200, "v1")
    assert machine.show("zwatch", "ActiveState") == "active"


def test_a_stray_link_is_repointed_from_within_the_sandbox(machine):
    machine.shell(f"cd {ROOT}; ln -sf v2 current; test -L v1/v2")
    serves(machine, "v2")
    assert machine.run("readlink", f"{ROOT}/current") == "v2"


def test_warnings_are_found_by_their_priority_in_the_journal(machine):
    machine.shell(f"cp -r {ROOT}/v2 {ROOT}/v3; echo x >> {ROOT}/v3/model_index.json; cd {ROOT}; ln -sfn v3 current")
    machine.until(lambda: "v3 is rejected" in machine.journal("-t", "zwatch", "-p", "warning"), "the warning is there")
    warnings = [json.loads(line) for line in machine.journal("-t", "zwatch", "-p", "warning").splitlines()]
    assert {one["level"] for one in warnings} == {"warning"}
    assert any("v3 is rejected" in one["message"] for one in warnings)
    everything = machine.journal("-t", "zwatch")
    assert "<4>" not in everything
    assert "current serves v2" in everything, "and the rest has another priority"


def test_a_reload_looks_again_tries_again_and_changes_neither_the_process_nor_what_serves(machine):
    before = main_pid(machine)
    refused = machine.journal("-t", "zwatch").count("v3 is rejected")
    machine.run("systemctl", "reload", "zwatch")
    machine.until(lambda: machine.journal("-t", "zwatch").count("v3 is rejected") == refused + 1, "v3 is tried again")
    assert "looking again" in machine.journal("-t", "zwatch")
    machine.until(lambda: machine.show("zwatch", "ActiveState") == "active", "the reload has ended")
    assert main_pid(machine) == before
    assert draw(machine)[0] == 200
    machine.shell(f"cd {ROOT}; ln -sfn v1 current")
    serves(machine, "v1")


HALF = """
import socket, sys, time
body = b'{"prompt": "a cat", "steps": 2}'
head = b"POST /generate HTTP/1.1\\r\\nHost: localhost\\r\\nAuthorization: Bearer TOKEN\\r\\n"
def connected():
    one = socket.create_connection(("127.0.0.1", 7860))
    one.settimeout(100)
    return one
def status(one):
    found = b""
    while b"\\r\\n\\r\\n" not in found:
        piece = one.recv(65536)
        if not piece:
            break
        found += piece
    return found[:12].decode()
idle = connected()
idle.sendall(b"GET /health/live HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
print("idle", status(idle), flush=True)
silent, half_head, half_body = connected(), connected(), connected()
half_head.sendall(head)
half_body.sendall(head + b"Content-Length: %d\\r\\n\\r\\n" % len(body) + body[:9])
time.sleep(0.3)
print("ready", flush=True)
sys.stdin.readline()
half_head.sendall(b"Content-Length: %d\\r\\n\\r\\n" % len(body) + body)
half_body.sendall(body[9:])
print("half a head", status(half_head), flush=True)
print("half a body", status(half_body), flush=True)
sys.stdin.readline()
for name, one in (("idle", idle), ("silent", silent)):
    one.sendall(head + b"Content-Length: %d\\r\\n\\r\\n" % len(body) + body)
    print(name, status(one), flush=True)
""".replace("TOKEN", TOKEN)


def test_a_restart_answers_what_has_begun_and_keeps_the_connections_that_are_idle(machine):
    inside = ["nsenter", "-t", str(machine.leader), "-m", "-n", "-p", "-C", "/opt/zwatch/bin/python", "-c", HALF]
    before = main_pid(machine)
    with subprocess.Popen(inside, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert [client.stdout.readline() for _ in range(2)] == ["idle HTTP/1.1 200\n", "ready\n"]
        machine.run("systemctl", "restart", "--no-block", "zwatch")
        machine.until(lambda: machine.show("zwatch", "SubState") == "stop-sigterm", "the old process stops", 20)
        print(file=client.stdin, flush=True)
        assert client.stdout.readline() == "half a head HTTP/1.1 200\n"
        assert client.stdout.readline() == "half a body HTTP/1.1 200\n"
        machine.until(
            lambda: machine.show("zwatch", "SubState") == "running" and main_pid(machine) != before, "it runs again"
        )
        print(file=client.stdin, flush=True)
        assert client.stdout.readline() == "idle HTTP/1.1 200\n"
        assert client.stdout.readline() == "silent HTTP/1.1 200\n"
        # Else the client would not notice that its connection is closed
        assert machine.show("zwatch", "NFileDescriptorStore") == "0"


class Clients:
    """Clients that wait, in the machine; `found` is what they got."""

    def __init__(self, machine, number: int) -> None:
        self._machine = machine
        machine.run("rm", "-f", "/tmp/stop")
        command = [
            "/opt/zwatch/bin/python",
            "/opt/source/tests/waiting_clients.py",
            "--until",
            "/tmp/stop",
            "--token",
            TOKEN,
        ]
        self._thread = threading.Thread(target=self._run, args=([*command, "--clients", str(number)],))
        self.found: dict = {}

    def _run(self, command: list[str]) -> None:
        self.found = json.loads(self._machine.run(*command, timeout=400))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._machine.run("touch", "/tmp/stop")
        self._thread.join()


def test_no_client_that_waits_gets_an_error_over_two_restarts(machine):
    serves(machine, "v1")
    with Clients(machine, 32) as clients:
        for _ in range(2):
            machine.shell("sleep 1; systemctl restart zwatch")
            serves(machine, "v1")
        machine.shell("sleep 1")
    assert (clients.found["failures"], clients.found["served clients"]) == ({}, 32)


def test_the_watchdog_restarts_a_process_that_stands_still(machine):
    before = main_pid(machine)
    machine.run("kill", "-STOP", before)
    machine.until(lambda: main_pid(machine) not in ("0", before), "there is another process")
    assert "Watchdog timeout" in machine.journal("-u", "zwatch", "-n", "200")
    assert draw(machine)[0] == 200


def test_a_wrong_configuration_is_said_and_not_started_again(machine):
    machine.shell(
        "echo ZWATCH_PORT=7000 > /etc/zwatch/environment; systemctl reset-failed zwatch; systemctl stop zwatch.socket zwatch"
    )
    machine.run("systemctl", "start", "zwatch", check=False)
    machine.until(lambda: machine.show("zwatch", "ActiveState") == "failed", "it has failed")
    assert (machine.show("zwatch", "ExecMainStatus"), machine.show("zwatch", "NRestarts")) == ("2", "0")
    said = machine.journal("-t", "zwatch", "-p", "err")
    assert "--port 7000: systemd passed the socket http://127.0.0.1:7860" in said
    machine.shell("rm /etc/zwatch/environment; systemctl reset-failed")


@pytest.fixture
def template(machine):
    """The template in place of the service."""
    machine.shell(
        "systemctl disable --now zwatch.socket zwatch.service; cd /etc/systemd/system; mv zwatch.socket zwatch.service /root; "
        "/opt/zwatch/bin/zwatch systemd-unit --takeover > zwatch@.service; "
        "/opt/zwatch/bin/zwatch systemd-unit --takeover --socket > zwatch.socket; systemctl daemon-reload"
    )
    yield machine
    machine.shell("systemctl stop zwatch.socket zwatch@a zwatch@b; systemctl reset-failed")


def test_an_instance_takes_over_from_another_and_each_unit_keeps_its_own_process(template):
    machine = template
    machine.run("systemctl", "enable", "--now", "zwatch.socket", "zwatch@a.service")
    serves(machine, "v1", "zwatch@a")
    first = main_pid(machine, "zwatch@a")
    with Clients(machine, 8) as clients:
        machine.run("systemctl", "start", "zwatch@b")
        machine.until(lambda: machine.show("zwatch@a", "ActiveState") == "inactive", "the first one has ended")
        machine.shell("sleep 1")  # requests that come now start nothing
    assert (clients.found["failures"], clients.found["served clients"]) == ({}, 8)
    second = main_pid(machine, "zwatch@b")
    assert second not in ("0", first)
    assert machine.run("cat", f"/proc/{second}/cgroup").splitlines()[-1].endswith("zwatch@b.service")
    assert (machine.show("zwatch@a", "ActiveState"), machine.show("zwatch@a", "ExecMainStatus")) == ("inactive", "0")
    assert machine.show("zwatch.socket", "SubState") == "running"
    assert "refusing" not in machine.journal("-b", "_PID=1"), "nobody claims another unit's process"
    machine.run("systemctl", "stop", "zwatch@b")
    assert draw(machine)[0] == 200
    assert machine.show("zwatch@a", "ActiveState") == "active", "the socket starts the first instance"
