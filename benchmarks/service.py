"""The service's overhead per request over a bare pipeline call, and the rate of small calls that it answers meanwhile.

Run: python benchmarks/service.py [--models DIR] [--rounds N].

Overhead: in each round one bare `Engine.generate` and one `POST /generate` for the same image, in turns, on the same engine
in the same process; the client is a bare socket in a thread, which waits without the interpreter's lock. The difference is
the service: HTTP, validation, queue, lease, threads, the PNG file, the history, the answer. `overhead_ms` compares the time
that each call spent outside the model's phases, so that variation of the model's time does not hide it. The phase `write`
(the PNG and its file) is shown separately, and so is the time between the phases (threads and tasks); the rest is HTTP.
`ratio` is the overhead relative to the bare call; the two total times next to it also vary with the machine's other load.

Calls per second: a client of bare sockets in a separate process; each connection sends its next request when the answer
has arrived.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from common import RESULTS, Json, machine, packages, quantile

from zwatch.app import Running, running
from zwatch.config import Config
from zwatch.generation.job import Job
from zwatch.logs import set_up

CONNECTIONS = 16
STEPS = 8
MODEL = ("encode", "denoise", "decode")
"""The phases that the model itself takes; both ways are timed in the same place."""


class Line:
    """One HTTP connection that is kept."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request: bytes) -> bytes:
        """Send a request; return the answer's body, which must be a 200."""
        self._socket.sendall(request)
        head, _, body = self._more().partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise SystemExit(f"an answer that is no 200: {head!r} {body[:300]!r}")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        pieces, missing = [body], length - len(body)
        while missing:
            pieces.append(self._more())
            missing -= len(pieces[-1])
        return b"".join(pieces)

    def _more(self) -> bytes:
        piece = self._socket.recv(2**20)
        if not piece:
            raise SystemExit("the service closed the connection")
        return piece


def request(method: str, path: str, body: Json | None = None) -> bytes:
    """Return the bytes of a request."""
    data = b"" if body is None else json.dumps(body).encode()
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


def address(service: Running) -> tuple[str, int]:
    """Return where a service listens."""
    host, _, port = service.url.removeprefix("http://").rpartition(":")
    return host, int(port)


async def overhead(service: Running, rounds: int, size: int) -> Json:
    """Return milliseconds of bare calls and of requests, in turns, and what the latter took more."""
    from zwatch.engine.parameters import GenerationParameters

    engine = service.services.engines.serving("current").engine  # type: ignore[union-attr]
    parameters = GenerationParameters("a cat wearing sunglasses", "", size, size, STEPS, 0.0, (0,))
    line = Line(*address(service))
    jobs: list[Job] = []
    service.services.queue.on_end.append(jobs.append)

    def bare(seed: int) -> tuple[float, float]:
        begun = time.perf_counter()
        made = engine.generate(replace(parameters, seeds=(seed,)))
        spent = time.perf_counter() - begun
        return spent, spent - sum(made.timings.values())

    def served(seed: int) -> tuple[float, float]:
        body = {"prompt": parameters.prompt, "width": size, "height": size, "steps": STEPS, "seed": seed}
        begun = time.perf_counter()
        line.ask(request("POST", "/generate", body))
        spent = time.perf_counter() - begun
        return spent, spent - sum(jobs[-1].finished.timings[phase] for phase in MODEL)  # type: ignore[union-attr]

    times: dict[Callable[[int], tuple[float, float]], list[tuple[float, float]]] = {bare: [], served: []}
    for number in range(rounds + 3):
        for call in (bare, served) if number % 2 else (served, bare):
            # Bare calls in the thread that serves: a separate thread would start a second pool of torch's workers.
            run = partial(service.services.bridge.run, "generate") if call is bare else asyncio.to_thread
            spent = await run(call, number)
            if number >= 3:  # the first ones warm caches up
                times[call].append(spent)
    service.services.queue.on_end.remove(jobs.append)
    bare_ms, served_ms = (1e3 * statistics.median(whole for whole, _ in times[call]) for call in (bare, served))
    around = [1e3 * (one[1] - other[1]) for one, other in zip(times[served], times[bare], strict=True)]
    written = [job.finished.timings["write"] for job in jobs[3:]]  # type: ignore[union-attr]
    inside = [2 * job.finished.timings["total"] - sum(job.finished.timings.values()) for job in jobs[3:]]  # type: ignore[union-attr]
    return {
        "size": size,
        "rounds": rounds,
        "bare_ms": round(bare_ms, 2),
        "request_ms": round(served_ms, 2),
        "ratio": round(1 + statistics.median(around) / bare_ms, 3),
        "overhead_ms": round(statistics.median(around), 2),
        "overhead_p90_ms": round(quantile(around, 0.9), 2),
        "of_it_write_ms": round(1e3 * statistics.median(written), 2),
        "of_it_between_phases_ms": round(1e3 * statistics.median(inside), 2),
    }


def hammer(report: Connection, host: str, port: int, path: str, seconds: float) -> None:
    """Ask for a path over several connections for a while; report answers a second and latencies. In its own process."""

    async def main() -> None:
        spent: list[float] = []
        wanted, end = request("GET", path), time.perf_counter() + seconds

        async def one() -> None:
            reader, writer = await asyncio.open_connection(host, port)
            while (begun := time.perf_counter()) < end:
                writer.write(wanted)
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]))
                spent.append(time.perf_counter() - begun)
            writer.close()

        begun = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
        report.send(
            {
                "per_second": round(len(spent) / (time.perf_counter() - begun)),
                "median_ms": round(1e3 * statistics.median(spent), 2),
                "p99_ms": round(1e3 * quantile(spent, 0.99), 2),
            }
        )

    asyncio.run(main())


async def calls(service: Running, path: str, seconds: float) -> Json:
    """Return how fast a path is answered."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=hammer, args=(theirs, *address(service), path, seconds)
    )
    process.start()
    found: Json = await asyncio.to_thread(ours.recv)
    process.join()
    return found


async def while_generating(service: Running, path: str, seconds: float) -> Json:
    """Return how fast a path is answered while images are made without a pause, and how many were."""
    line, ended = Line(*address(service)), asyncio.Event()

    async def generate() -> int:
        made = 0
        while not ended.is_set():
            await asyncio.to_thread(line.ask, request("POST", "/generate", {"prompt": "a cat", "steps": STEPS}))
            made += 1
        return made

    making, begun = asyncio.create_task(generate()), time.perf_counter()
    found = await calls(service, path, seconds)
    spent = time.perf_counter() - begun
    ended.set()
    return {**found, "images_per_second": round(await making / spent, 2)}


async def measure(models: Path, rounds: int, sizes: list[int], seconds: float, device: str) -> Json:
    """Run everything."""
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder, "models")
        shutil.copytree(models / "v1", own / "v1")
        (own / "current").symlink_to("v1")
        config = Config(
            models=own, aliases=("current",), strict_links=False, device=device, memory_budget=None,
            state_dir=Path(folder, "state"), host="127.0.0.1", port=0, token=None, insecure_no_token=False,
            allowed_hosts=(), queue=64, timeout=600.0, log="text",
            max_work=600.0, history=True, output_dir=Path(folder, "images"), history_max_images=None, history_max_bytes=None,
        )  # fmt: skip
        async with running(config) as service:
            while service.services.engines.serving("current") is None:
                await service.services.supervisor.changes.wait()
            found: Json = {"overhead": [await overhead(service, rounds, size) for size in sizes]}
            for path in ("/health/live", "/status", "/metrics"):
                found[path] = {
                    "idle": await calls(service, path, seconds),
                    "while generating": await while_generating(service, path, seconds),
                }
    return found


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path(__file__).parent.parent / "models")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 512, 1024])
    parser.add_argument("--seconds", type=float, default=5.0, help="for each of the calls")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=RESULTS / "service.json")
    options = parser.parse_args()
    set_up("text")
    before = os.getloadavg()[0]
    found = asyncio.run(measure(options.models, options.rounds, options.sizes, options.seconds, options.device))
    result = {
        "machine": machine(Path(tempfile.gettempdir())),
        "packages": packages("torch", "diffusers", "aiohttp", "prometheus-client"),
        "load_average_before": round(before, 2),
        "client": f"asyncio streams in a separate process, {CONNECTIONS} connections",
        **found,
    }
    print(json.dumps(found, indent=2))
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
