"""The log of a service whose standard error is not read, is closed, or fails."""

import asyncio
import fcntl
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from zwatch import logs
from zwatch.logwriter import PER_SECOND, LineWriter, QueuedHandler

DEADLINE = 60.0


@pytest.fixture
def pipe():
    """A pipe of one page: (descriptor to read, descriptor to write)."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    yield read, write
    for descriptor in (read, write):
        os.close(descriptor)


def read_until(descriptor: int, words: bytes) -> bytes:
    """Read until the words came."""
    found = b""
    while words not in found:
        found += os.read(descriptor, 4096)
    return found


def test_lines_that_nobody_reads_are_dropped_and_the_count_is_logged_when_they_are_read_again(pipe):
    read, write = pipe
    writer = LineWriter(write, most_bytes=10_000)
    handler = QueuedHandler(writer)
    handler.setFormatter(logs.formatter("json"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        for number in range(200):
            writer.put(f"{number} " + "x" * 100)
        dropped = writer.dropped
        assert 0 < dropped < 200
        assert not writer.flush(0.05)
        seen = read_until(read, b"were dropped")
        assert f"{dropped} log lines were dropped".encode() in seen
        kept = [int(one.split()[0]) for one in seen.splitlines() if one.endswith(b"xxx")]
        assert kept == list(range(200 - dropped)), "the oldest lines are kept, in order"
    finally:
        root.removeHandler(handler)


def test_a_line_has_the_request_id_of_where_it_was_logged(pipe):
    read, write = pipe
    handler = QueuedHandler(LineWriter(write))
    handler.setFormatter(logs.formatter("json"))
    token = logs.request_id.set("mine-7")
    try:
        handler.handle(logging.LogRecord("zwatch.x", logging.INFO, "", 1, "hello", (), None))
    finally:
        logs.request_id.reset(token)
    entry = json.loads(read_until(read, b"\n"))
    assert (entry["request_id"], entry["message"]) == ("mine-7", "hello")


def test_one_place_in_the_code_logs_a_limited_number_of_lines_a_second(pipe):
    read, write = pipe
    handler = QueuedHandler(LineWriter(write))
    handler.setFormatter(logs.formatter("text"))
    begun = time.monotonic()
    for number in range(10 * PER_SECOND):
        handler.handle(logging.LogRecord("zwatch.x", logging.INFO, "", 1, "line %d", (number,), None))
    handler.handle(logging.LogRecord("zwatch.y", logging.INFO, "", 2, "the other place", (), None))
    seen = read_until(read, b"the other place").count(b"line ")
    assert PER_SECOND <= seen <= PER_SECOND * (2 + time.monotonic() - begun)
    assert handler.left_out == 10 * PER_SECOND - seen


def test_a_record_that_cannot_be_formatted_is_a_line_that_says_so(pipe, capfd):
    read, write = pipe
    handler = QueuedHandler(LineWriter(write))
    handler.setFormatter(logs.formatter("text"))
    handler.handle(logging.LogRecord("zwatch.x", logging.INFO, "", 7, "%d", ("no number",), None))
    assert b"a log record of zwatch.x:7 cannot be formatted" in read_until(read, b"\n")
    assert capfd.readouterr().err == ""


def test_a_descriptor_that_fails_and_one_that_does_not_block_lose_nothing_else(pipe):
    read, write = pipe
    os.set_blocking(write, False)
    writer = LineWriter(write)
    for _ in range(100):
        writer.put("y" * 100)
    writer.put("end")
    assert read_until(read, b"end").count(b"y" * 100) == 100
    full = LineWriter(os.open("/dev/full", os.O_WRONLY))
    full.put("no room")
    assert full.flush(DEADLINE)
    assert full.dropped == 1


def command(models, tmp_path):
    return [
        sys.executable, "-m", "zwatch", "serve", "--models", str(models), "--state-dir", str(tmp_path / "state"), "--port", "0",
        "--device", "cpu", "--log", "json", "--output-dir", str(tmp_path / "images"),
    ]  # fmt: skip


@asynccontextmanager
async def serving(models, tmp_path, stderr):
    """Run a service with this standard error; yield (process, a function that calls it). Its address is found in /proc."""
    process = subprocess.Popen(command(models, tmp_path), stderr=stderr, stdout=subprocess.DEVNULL)
    try:
        async with asyncio.timeout(DEADLINE), aiohttp.ClientSession() as http:
            while (port := _port(process.pid)) is None:
                assert process.poll() is None
                await asyncio.sleep(0.05)

            async def call(method, path, **options):
                async with http.request(method, f"http://127.0.0.1:{port}{path}", **options) as response:
                    return response.status, await response.read()

            while (await call("GET", "/health/ready"))[0] != 200:
                await asyncio.sleep(0.05)
            yield process, call
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, DEADLINE) == 0
    finally:
        process.kill()
        process.wait()


def _port(pid: int) -> int | None:
    """Return the port that a process listens on."""
    try:
        links = [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return None
    sockets = {found[1] for link in links if (found := re.fullmatch(r"socket:\[(\d+)\]", link))}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and fields[9] in sockets:
            return int(fields[1].rpartition(":")[2], 16)
    return None


@pytest.mark.slow
async def test_a_service_whose_log_nobody_reads_goes_on_and_stops(models, tmp_path, pipe):
    read, write = pipe
    async with serving(models, tmp_path, write) as (_, call):
        for seed in range(40):  # a line each, more than the pipe holds
            status, _ = await call("POST", "/generate", json={"prompt": "x", "seed": seed, "steps": 1})
            assert status == 200
        assert (await call("GET", "/health/live"))[0] == 200
        waiting = bytearray(4)
        fcntl.ioctl(read, 0x541B, waiting)  # FIONREAD
        assert int.from_bytes(waiting, sys.byteorder) > 3000, "the pipe is full"


def test_what_a_thread_or_a_library_writes_to_standard_error_is_a_log_line():
    program = """
import sys, threading, warnings
from zwatch import logwriter
with logwriter.queued("json"):
    print("printed", file=sys.stderr)
    sys.stderr.write("in "); sys.stderr.write("parts\\n")
    warnings.warn("warned")
    thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join()
    class Bad:
        def __del__(self): raise ValueError("dropped")
    Bad()
print("after", file=sys.stderr)
"""
    written = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stderr
    *lines, last = written.splitlines()
    assert last == "after"
    entries = [json.loads(line) for line in lines]
    assert [entry["message"] for entry in entries[:2]] == ["printed", "in parts"]
    text = json.dumps(entries)
    for words in ("warned", "ZeroDivisionError", "ValueError: dropped"):
        assert words in text


def test_the_end_of_the_process_waits_a_limited_time_for_its_log(pipe):
    _, write = pipe
    program = """
import logging
from zwatch import logwriter
with logwriter.queued("text"):
    for number in range(200): logging.getLogger(str(number)).warning("x" * 200)
import sys
print("nobody reads this either" * 1000, file=sys.stderr)
raise SystemExit(3)
"""
    done = subprocess.run([sys.executable, "-c", program], stderr=write, timeout=DEADLINE)
    assert done.returncode == 3


def test_a_closed_standard_error_is_not_replaced_by_another_file(tmp_path):
    program = f"""
import os, sys
from zwatch import logwriter
with logwriter.queued("text"):
    file = os.open({str(tmp_path / "file")!r}, os.O_WRONLY | os.O_CREAT)
    assert file > 2
    print("lost", file=sys.stderr)
"""
    subprocess.run(["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", program], check=True, timeout=DEADLINE)
    assert (tmp_path / "file").read_bytes() == b""


async def test_systemd_that_does_not_read_its_socket_holds_up_nothing(tmp_path, monkeypatch):
    from zwatch import systemd

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        calls = threading.Thread(target=lambda: [systemd.notify("WATCHDOG=1") for _ in range(2000)], daemon=True)
        calls.start()
        calls.join(DEADLINE)
        assert not calls.is_alive(), "no call waited"
        assert systemd.notify("READY=1") is False
        telling = asyncio.create_task(systemd.tell("READY=1"))
        await asyncio.sleep(0)
        found = b""
        async with asyncio.timeout(DEADLINE):
            while found != b"READY=1":
                found = await asyncio.to_thread(listener.recv, 100)
            await telling
