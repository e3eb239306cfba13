"""Hostile clients beside a good one: how long half-sent requests are kept, and what the good client notices.

Run: python benchmarks/hostile.py [--models DIR] [--count N]. On a machine that has other work: chrt -r 5 python benchmarks/hostile.py

Three processes: the service, the hostile clients, and the good client, which asks for /status at a steady rate, over one kept
connection and over a new one for each request. Each figure of the good client stands beside that of the same client alone,
measured just before in the same run. Clients and service share the cores, so a part of what the good client waits for is the
flood's own work.

half-sent: a fifth each of connections that send nothing, half a head, a head one byte a second, half a body, and a body one byte
a second. They are opened at a steady rate, and none ends by itself; `closed_after_s` is from connecting to the service's close.
at once: half heads, or half bodies, as fast as one process can open the connections.
slow readers: each asks for a picture of 2.5 MB and reads 20 KB a second; all have asked before the first has finished.
"""

import argparse
import json
import multiprocessing
import os
import random
import selectors
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from common import RESULTS, Json, machine, now, packages, quantile

NAME = "20261121_142231_seed1.png"
SIDE = 914
"""Of a picture of random pixels whose file has 2.5 MB."""
HALF_HEAD = b"GET /status HTTP/1.1\r\nHost: localhost\r\nX-Half: "
HALF_BODY = (
    b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n" + b'{"prompt": "' + b"x" * 2000
)
KINDS = {
    "nothing": (b"", b""),
    "half a head": (HALF_HEAD, b""),
    "a head, dripped": (HALF_HEAD, b"x"),
    "half a body": (HALF_BODY, b""),
    "a body, dripped": (HALF_BODY, b"x"),
}
"""What is sent at once, and what each second."""
STATUS = b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n"
MOST_SECONDS = 120.0

Address = tuple[str, int]


# --- the good client


def ask(line: socket.socket) -> None:
    """Ask for /status and read the answer, which must be a 200."""
    line.sendall(STATUS)
    head = line.recv(2**20)
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    missing = length - len(head.partition(b"\r\n\r\n")[2])
    while missing > 0:
        piece = line.recv(2**20)
        missing -= len(piece) if piece else missing
    if not head.startswith(b"HTTP/1.1 200 "):
        raise SystemExit(f"an answer that is no 200: {head!r}")


def good(pipe: Connection, address: Address) -> None:
    """Ask until told to stop; report latencies. In its own process."""
    kept, spent, next_at = _connected(address), {"kept": [], "new": []}, time.perf_counter()  # type: ignore[var-annotated]
    while not pipe.poll():
        for kind, times in spent.items():
            begun = time.perf_counter()
            if kind == "kept":
                ask(kept)
            else:
                with _connected(address) as line:
                    ask(line)
            times.append(1e3 * (time.perf_counter() - begun))
            next_at = max(next_at + 0.01, time.perf_counter())
            time.sleep(max(0.0, next_at - time.perf_counter()))
    pipe.send(
        {
            kind: {
                "requests": len(times),
                "median_ms": round(statistics.median(times), 2),
                "p99_ms": round(quantile(times, 0.99), 2),
                "worst_ms": round(max(times), 2),
            }
            for kind, times in spent.items()
        }
    )


def _connected(address: Address) -> socket.socket:
    line = socket.create_connection(address)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return line


@contextmanager
def beside(address: Address, found: Json) -> Iterator[None]:
    """Run the good client during the block; put its figures into `found`."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=good, args=(theirs, address))
    process.start()
    time.sleep(1.0)  # it has started
    yield
    ours.send(None)
    found.update(ours.recv())
    process.join()


# --- the hostile clients


@dataclass
class Hostile:
    """One connection: what it sends each second, and when it was opened, and closed by the service."""

    kind: str
    line: socket.socket
    first: bytes
    drip: bytes
    opened: float = field(default_factory=time.perf_counter)


def flood(pipe: Connection, address: Address, count: int, per_second: float, kinds: list[str]) -> None:
    """Open connections and wait until the service has closed them all; report how long that took. In its own process."""
    watched, left, closed = selectors.DefaultSelector(), set(), []  # type: ignore[var-annotated]
    begun, drip_at = time.perf_counter(), 1.0
    opened = 0
    while (opened < count or left) and (passed := time.perf_counter() - begun) < MOST_SECONDS:
        while opened < min(count, passed * per_second + 1):
            one = _begin(kinds[opened % len(kinds)], address)
            opened += 1
            left.add(one.line)
            watched.register(one.line, selectors.EVENT_READ | selectors.EVENT_WRITE, one)
            if opened % 50 == 0:
                break
        for key, events in watched.select(0.005):
            one = key.data
            if events & selectors.EVENT_WRITE:
                watched.modify(one.line, selectors.EVENT_READ, one)
                _send(one.line, one.first)
            if events & selectors.EVENT_READ and _is_closed(one.line):
                closed.append((one.kind, time.perf_counter() - one.opened))
                watched.unregister(one.line)
                left.discard(one.line)
                one.line.close()
        if passed > drip_at:
            drip_at = passed + 1.0
            for key in list(watched.get_map().values()):
                _send(key.data.line, key.data.drip)
    times = {kind: [spent for one, spent in closed if one == kind] for kind in kinds}
    pipe.send(
        {
            "connections": opened,
            "opened_within_s": round(count / per_second, 2) if per_second < 1e6 else None,
            "never_closed": len(left),
            "closed_after_s": {
                kind: {"least": round(min(spent), 2), "most": round(max(spent), 2)}
                for kind, spent in times.items()
                if spent
            },
        }
    )


def _begin(kind: str, address: Address) -> Hostile:
    line = socket.socket()
    line.setblocking(False)
    line.connect_ex(address)
    return Hostile(kind, line, *KINDS[kind])


def _send(line: socket.socket, data: bytes) -> None:
    try:
        line.send(data)
    except OSError:
        return  # it is closed, which the next read shows


def _is_closed(line: socket.socket) -> bool:
    try:
        return not line.recv(2**16)
    except BlockingIOError:
        return False
    except OSError:
        return True


def slow(pipe: Connection, address: Address, count: int) -> None:
    """Read the picture slowly over many connections; report how many got all of it. In its own process."""
    lines, whole = [], 0
    for _ in range(count):
        line = socket.socket()
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**14)
        line.connect(address)
        line.sendall(f"GET /history/{NAME} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        line.setblocking(False)
        lines.append(line)
    got = dict.fromkeys(lines, 0)
    end = time.perf_counter() + 15.0
    while lines:
        is_slow = time.perf_counter() < end
        for line in list(lines):
            try:
                piece = line.recv(4096 if is_slow else 2**20)
            except BlockingIOError:
                continue
            except OSError:
                piece = b""
            got[line] += len(piece)
            if not piece:
                lines.remove(line)
                whole += got[line] > 2_500_000
        time.sleep(0.2 if is_slow else 0.001)
    pipe.send({"connections": count, "got_all": whole})


def run(target: object, *given: object) -> Json:
    """Run a function in its own process; return what it reports."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=target, args=(theirs, *given))  # type: ignore[arg-type]
    process.start()
    found: Json = ours.recv()
    process.join()
    return found


# --- the service


class Service:
    """A running `zwatch serve`."""

    def __init__(self, models: Path, folder: Path) -> None:
        own = folder / "models"
        own.mkdir()
        shutil.copytree(models / "v1", own / "v1")
        (own / "current").symlink_to("v1")
        images = folder / "images"
        images.mkdir()
        (images / NAME).write_bytes(_picture())
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address: Address = free.getsockname()
        self._log = open(folder / "log", "wb")  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "zwatch", "serve", "--models", str(own), "--state-dir", str(folder / "state"),
                "--output-dir", str(images), "--port", str(self.address[1]), "--device", "cpu",
            ],
            stderr=self._log,
        )  # fmt: skip
        end = time.monotonic() + 120
        while not self._serves():
            if time.monotonic() > end:
                raise SystemExit("the service does not start")
            time.sleep(0.2)
        time.sleep(3.0)  # its work after the start is done

    def _serves(self) -> bool:
        try:
            with _connected(self.address) as line:
                line.sendall(b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
                return line.recv(100).startswith(b"HTTP/1.1 200")
        except OSError:
            return False

    def memory(self, name: str = "VmRSS") -> int:
        """Return its resident bytes, or with `VmHWM` the most since `forget_peak`."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))

    def forget_peak(self) -> None:
        """Begin to count the peak anew."""
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(60)
        self._log.close()


def _picture() -> bytes:
    """Return a PNG file of random pixels, of 2.5 MB."""
    pixels = random.Random(1)
    rows = zlib.compress(b"".join(b"\0" + pixels.randbytes(3 * SIDE) for _ in range(SIDE)), 0)
    head = SIDE.to_bytes(4) + SIDE.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)
        for kind, body in ((b"IHDR", head), (b"IDAT", rows), (b"IEND", b""))
    )


def measure(models: Path, count: int, at_once: list[int], readers: int) -> Json:
    """Run everything."""
    found: Json = {}
    with tempfile.TemporaryDirectory() as folder:
        service = Service(models, Path(folder))
        try:

            def one(name: str, target: object, *given: object) -> None:
                part: Json = {"good client alone": {}, "good client beside": {}}
                with beside(service.address, part["good client alone"]):
                    time.sleep(8.0)
                before = service.memory()
                service.forget_peak()
                with beside(service.address, part["good client beside"]):
                    part |= run(target, service.address, *given)
                part["memory_mb"] = {
                    "peak": round((service.memory("VmHWM") - before) / 1e6, 1),
                    "after": round((service.memory() - before) / 1e6, 1),
                }
                found[name] = part
                print(json.dumps({name: part}, indent=1), flush=True)

            if count:
                one("half-sent", flood, count, count / 2.0, list(KINDS))
            for number in at_once:
                one(f"{number} half heads at once", flood, number, 1e9, ["half a head"])
            if at_once:
                one(f"{at_once[0]} half bodies at once", flood, at_once[0], 1e9, ["half a body"])
            if readers:
                one("slow readers", slow, readers)
        finally:
            service.stop()
    return found


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path(__file__).parent.parent / "models")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--at-once", type=int, nargs="*", default=[1000, 3000])
    parser.add_argument("--readers", type=int, default=200)
    parser.add_argument("--output", type=Path, default=RESULTS / "hostile.json")
    parser.add_argument("--before", type=Path, help="the result of another revision, to stand beside this one")
    options = parser.parse_args()
    before = os.getloadavg()[0]
    result = {
        "machine": machine(Path(tempfile.gettempdir())),
        "packages": packages("aiohttp"),
        "date": now(),
        "load_average_before": round(before, 2),
        "clients": "in separate processes on the same cores as the service",
        "scheduler": "real time" if os.sched_getscheduler(0) in (os.SCHED_RR, os.SCHED_FIFO) else "ordinary",
        **measure(options.models, options.count, options.at_once, options.readers),
    }
    if options.before is not None:
        result["before"] = json.loads(options.before.read_text())
    options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
