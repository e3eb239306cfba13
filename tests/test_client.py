"""The commands that call a service, against a server with answers of every kind."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from zwatch.cli import main
from zwatch.client import Service

VERSION = {
    "name": "v1",
    "bytes": 1,
    "serving": True,
    "resident": True,
    "aliases": [],
    "digest": "0" * 64,
    "sealed": True,
}


class FixedServer(ThreadingHTTPServer):
    """Answers every GET with `body`; holds every POST until `released`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.body, self.missing = 200, b"{}", 0
        self.paths = []
        self.posted, self.released = threading.Event(), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.paths.append(self.path)
        server.sent = self.headers
        self.send_response(server.status)
        self.send_header("Content-Length", str(len(server.body) + server.missing))
        self.end_headers()
        self.wfile.write(server.body)

    def do_POST(self):
        self.server.posted.set()
        self.server.released.wait()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with FixedServer() as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.released.set()
        found.shutdown()
        thread.join()


def start(*arguments, **options):
    """Start a command as a process."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-m", "zwatch", *arguments]
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


@pytest.mark.parametrize(
    ("status", "body", "missing", "words"),
    [
        (200, b"<html>", 0, "is not zwatch"),
        (502, b"<html>Bad Gateway", 0, "is not zwatch"),
        (200, b"[]", 0, "is not zwatch"),
        (200, b"\xff", 0, "is not zwatch"),
        (200, b"{}", 0, "the answer to /status is not zwatch's"),
        (200, b'{"serving": 1}', 0, "the answer to /status is not zwatch's"),
        (200, b"{}", 100, "no service at"),
        (404, b"{}", 100, "no service at"),
    ],
)
def test_an_answer_that_is_not_zwatchs_is_one_line_and_status_2(server, capsys, status, body, missing, words):
    server.status, server.body, server.missing = status, body, missing
    assert main(["status", "--url", server.url]) == 2
    said = capsys.readouterr().err
    assert (words in said, said.count("\n")) == (True, 1), said
    assert said.startswith("zwatch: ")


def test_an_error_answer_is_its_message_and_status_1(server, capsys):
    server.status, server.body = 401, json.dumps({"error": {"message": "the token is missing"}}).encode()
    assert main(["status", "--url", server.url]) == 1
    assert capsys.readouterr().err == "zwatch: the token is missing\n"
    assert main(["status", "--url", server.url, "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == json.loads(server.body)


@pytest.mark.parametrize("token", ["secret", "ключ", "é"])
def test_a_token_is_sent_in_utf_8(server, token):
    assert Service(server.url, token).get("/status") == (200, {})
    assert server.sent["Authorization"].encode("latin-1") == f"Bearer {token}".encode()


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_no_proxy_is_used_for_a_service_on_this_machine(server, monkeypatch, name, host):
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert Service(f"http://{host}:{server.server_port}", None).get("/status") == (200, {})


def test_a_proxy_is_used_for_a_service_elsewhere(server, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.delenv("no_proxy", raising=False)
    assert Service("http://zwatch.example", None).get("/status") == (200, {})
    assert server.paths == ["http://zwatch.example/status"]


@pytest.mark.parametrize("versions", [1, 20_000])
def test_a_reader_that_ends_early_is_no_error_message(server, versions):
    """`zwatch list | head`, with less and with more than fits into a pipe."""
    server.body = json.dumps({"versions": [VERSION] * versions}).encode()
    with start("list", "--url", server.url) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) in (0, 1)


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        ({"versions": []}, ["there are no versions"]),
        ({"versions": [], "problem": "/models: no"}, ["/models: no"]),
        ({"versions": [VERSION], "problem": "/models: no"}, ["/models: no", VERSION["name"]]),
        ({"versions": [VERSION], "problem": None}, [VERSION["name"]]),
    ],
)
def test_the_list_of_versions_says_that_the_models_root_cannot_be_read(server, capsys, body, lines):
    server.body = json.dumps(body).encode()
    assert main(["list", "--url", server.url]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0].strip() if line.startswith(VERSION["name"]) else line for line in printed] == lines


@pytest.mark.parametrize("arguments", [["deploy", "v2"], ["rollback"]])
def test_an_interrupted_change_says_that_it_continues(server, arguments):
    with start(*arguments, "--url", server.url) as process:
        assert server.posted.wait(60)
        process.send_signal(2)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    seen = f"see `zwatch status --url {server.url}`"
    assert err == f"zwatch: interrupted; a {arguments[0]} that has begun goes on without this command: {seen}\n"
