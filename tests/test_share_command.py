"""`zwatch share`: what its words ask a service for, and what it prints of the answers."""

import asyncio
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.harness import Server
from zwatch import client
from zwatch.cli import main

ENDED = {"status": "success", "message": "current@10 is removed: the trial has ended", "seconds": 0.01}
SIDES = [
    {"version": "v1", "share": None, "requests": 1900, "failures": 0, "latency": {"median": 1.21, "low": 1.19, "high": 1.24},
     "votes": {"up": 8, "down": 4, "share": 0.667, "low": 0.39, "high": 0.86}},
    {"version": "v3", "share": "current@10", "requests": 211, "failures": 3, "latency": {"median": None, "low": None, "high": None},
     "votes": {"up": 0, "down": 0, "share": None, "low": None, "high": None}},
]  # fmt: skip


class Service(ThreadingHTTPServer):
    """Answers every call with `body`, and keeps what was asked."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.body, self.asked = 200, ENDED, []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self._answer(None)

    def do_POST(self):
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body):
        self.server.asked.append((self.path, body))
        answer = json.dumps(self.server.body).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def service(monkeypatch):
    with Service() as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        monkeypatch.setenv("ZWATCH_URL", found.url)
        yield found
        found.shutdown()


@pytest.mark.parametrize(
    ("words", "path", "body"),
    [
        (["v3", "10"], "share", {"version": "v3", "percent": 10}),
        (["v3", "0"], "share", {"version": "v3", "percent": 0}),
        (["./v3/", "10%"], "share", {"version": "v3", "percent": 10}),
        (["50", "10"], "share", {"version": "50", "percent": 10}),
        (["end", "10"], "share", {"version": "end", "percent": 10}),
        (["50"], "share", {"percent": 50}),
        (["100%"], "share", {"percent": 100}),
        (["end"], "share", {"percent": None}),
        (["promote"], "promote", {}),
    ],
)
def test_the_words_are_one_call(service, words, path, body):
    assert main(["share", *words]) == 0
    assert service.asked == [(f"/api/{path}", {**body, "alias": "current", "wait": True})]
    service.asked.clear()
    assert main(["share", *words, "--alias", "canary", "--no-wait"]) == 0
    assert service.asked == [(f"/api/{path}", {**body, "alias": "canary", "wait": False})]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["v3"], "`zwatch share v3 10`"),
        (["101"], "a whole number from 0 to 100, got '101'"),
        (["-1"], "-1"),
        (["v3", "ten"], "a whole number from 0 to 100, got 'ten'"),
        (["10", "v3"], "a whole number from 0 to 100, got 'v3'"),
        (["v3", "10.5"], "got '10.5'"),
        (["v3", "10", "canary"], "expected a version and a percentage, got 'v3 10 canary'"),
        (["v3", "10", "--alias", "current@10"], "'current@10' is a share of current"),
    ],
)
def test_words_that_ask_for_nothing_are_a_wrong_call(service, capsys, words, said):
    assert main(["share", *words]) == 2
    assert said in capsys.readouterr().err
    assert service.asked == []


@pytest.mark.parametrize("command", [["deploy", "v4"], ["rollback"], ["import", "models", "v4"]])
def test_a_share_named_as_an_alias_is_answered_with_what_to_type(service, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert main([*command, "--alias", "canary@10"]) == 2
    said = "--alias: 'canary@10' is a share of canary; `zwatch share VERSION 10 --alias canary` points it to a version"
    assert said in capsys.readouterr().err
    assert service.asked == []


def test_a_change_prints_the_answer_and_a_refusal_its_reason(service, capsys):
    assert main(["share", "end"]) == 0
    assert capsys.readouterr().out == "current@10 is removed: the trial has ended after 0.01 s\n"
    service.status, service.body = 409, {"error": {"message": "v3 needs 7 bytes, 3 are free"}, "reason": None}
    assert main(["share", "v3", "10"]) == 1
    assert capsys.readouterr().err == "zwatch: v3 needs 7 bytes, 3 are free\n"
    assert main(["share", "v3", "10", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == service.body


def test_without_words_both_sides_of_the_trial_are_shown(service, capsys):
    service.body = {"alias": "current", "share": "current@10", "ended": None, "sides": SIDES, "conclusion": "too few"}
    assert main(["share"]) == 0
    assert service.asked == [("/api/trial?alias=current", None), ("/status", None)]
    assert capsys.readouterr().out.splitlines() == [
        "current@10: the trial of v3",
        "            v1 (current)                 v3 (current@10)",
        "  requests  1,900                        211",
        "  failures  0                            3",
        "  latency   1.21 s [1.19 s - 1.24 s]     -",
        "  votes     8 of 12 up, 67% [39% - 86%]  -",
        "  in brackets: 95 % confidence",
        "too few",
    ]
    assert main(["share", "--json", "--alias", "canary"]) == 0
    assert service.asked[-1] == ("/api/trial?alias=canary", None)
    assert json.loads(capsys.readouterr().out) == service.body


def test_without_a_trial_it_says_how_to_begin_one_and_an_ended_one_says_when_it_ended(service, capsys):
    service.body = {"alias": "current", "share": None, "sides": [], "conclusion": "current has no trial: begin one"}
    assert main(["share"]) == 0
    assert capsys.readouterr().out == "current has no trial: begin one\n"
    service.body |= {"share": "current@10", "ended": "2026-11-30T15:00:00Z", "sides": SIDES}
    assert main(["share"]) == 0
    assert capsys.readouterr().out.startswith("current@10: the trial of v3, which ended 2026-11-30T15:00:00Z\n")


async def test_a_trial_by_command_on_a_service(models, tmp_path, monkeypatch, capsys):
    async with Server(models, tmp_path / "state") as server:
        await server.serves("v1")
        monkeypatch.setenv("ZWATCH_URL", server.url)

        async def run(*arguments):
            """Run a command; return its exit status and what it printed."""
            status = await asyncio.to_thread(main, list(arguments))
            found = capsys.readouterr()
            return status, found.out + found.err

        status, said = await run("share", "v2", "100")
        assert (status, said.startswith("v2 gets 100 % of the requests for current after ")) == (0, True), said
        assert (await server.generate(width=64, height=64, steps=1))[0] == "v2"
        assert "  current@100 -> v2" in (await run("status"))[1]
        assert "serving <- current@100" in (await run("list"))[1]
        assert "<- current@100" in (await run("list", "--models", str(models)))[1]
        status, said = await run("prune", "--keep", "1", "--models", str(models), "--yes")
        assert (status, "there is nothing to delete" in said) == (0, True), said
        status, said = await run("share")
        first = "current@100 -> v2: draws 100 % of the requests for current\ncurrent@100: the trial of v2\n"
        assert (status, said.startswith(first)) == (0, True), said
        assert re.search(r"requests +0 +1\n", said)
        assert await run("share", "v1", "10") == (
            1,
            "zwatch: v1 is what current serves: a trial needs another version\n",
        )
        status, said = await run("share", "promote")
        assert (status, said.startswith("v2 is serving after ")) == (0, True), said
        status, said = await run("share", "promote")
        assert (status, "`zwatch deploy VERSION`" in said) == (1, True)
        assert (await run("share", "v1", "5", "--no-wait")) == (0, "current@5 now points to v1\n")
        assert (await run("share", "end"))[0] == 0
        assert sorted(path.name for path in models.iterdir()) == ["current", "v1", "v2"]


def test_check_takes_the_link_of_a_share(models, capsys):
    (models / "current@10").symlink_to("v2")
    (models / "v2" / "BLAKE3SUMS").unlink()
    assert main(["check", str(models / "current@10"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["version"] == "v2"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "current@10 -> v3: draws 10 % of the requests for current"),
        ({"percent": 0}, "current@10 -> v3: is held ready"),
        ({"serving": None}, "current@10 -> v3: is not ready yet"),
        ({"serving": None, "attempt": None}, "current@10 -> v3: is not ready yet"),
        ({"serving": None, "attempt": {"version": "v3", "state": "LOADING", "reason": None}}, "current@10 -> v3: LOADING"),
        ({"serving": None, "attempt": {"version": "v3", "state": "REJECTED", "reason": "7 bytes"}}, "current@10 -> v3: REJECTED 7 bytes"),
        (
            {"serving": "v2", "attempt": {"version": "v3", "state": "REJECTED", "reason": "7 bytes"}},
            "current@10 -> v3: REJECTED 7 bytes; v2 still draws 10 %",
        ),
        ({"serving": "v2", "attempt": None}, "current@10 -> v3: is not ready yet; v2 still draws 10 %"),
        ({"serving": "v2", "attempt": None, "percent": 0}, "current@10 -> v3: is not ready yet"),
        (
            {"link": "v9", "target": None, "serving": "v2", "fault": {"code": "x", "message": "no"}},
            "current@10 -> v9: no; v2 still draws 10 %",
        ),
        ({"target": None, "serving": "v2", "fault": {"code": "x", "message": "two"}, "counts": False}, "current@10 -> v3: two"),
        ({"fault": {"code": "withdrawn", "message": "v3 was withdrawn"}}, "current@10 -> v3: v3 was withdrawn"),
        ({"link": None, "target": None, "serving": None, "fault": {"code": "x", "message": "no"}}, "current@10 -> ?: no"),
    ],
)  # fmt: skip
def test_the_state_of_the_share_is_said_first(changes, said):
    share = {
        "alias": "current", "link": "v3", "target": "v3", "percent": 10, "serving": "v3", "fault": None, "counts": True,
        "attempt": {"version": "v3", "state": "PROMOTED", "reason": None},
    }  # fmt: skip
    status = {"shares": {"current@10": {**share, **changes}, "canary@5": {**share, "alias": "canary"}}}
    assert client.share_lines(status, "current") == [said]
    status["engines"] = [
        {"version": "v1", "golden": None},
        {"version": "v3", "golden": {"checked": 3, "of": 3, "missed": 0}},
    ]
    assert client.share_lines(status, "current") == [said]
    status["engines"][1]["golden"]["missed"] = 2
    serves = status["shares"]["current@10"]["serving"] == "v3"
    missed = "; v3 missed 2 of 3 golden images" if serves else ""
    assert client.share_lines(status, "current") == [said + missed]
    assert client.share_lines({}, "current") == []
