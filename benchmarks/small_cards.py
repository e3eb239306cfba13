"""What a full-size model costs on a card of 24, 16 or 12 GB: what fits, how fast it draws, and whether a swap still works.

    python benchmarks/small_cards.py --work DIR [--models DIR] [--preset full] [--deadline 240] [--rows 24 16 12:fp8 ...]

On a GPU, this process fills the card until as much is free as a card of that size has: what zwatch's process, its CUDA context
included, takes beyond that fails. Without a GPU it is a smoke test of this file: the weights alone are limited, with
`--memory-budget`, to more than the whole model for 24, and to less and less of it for 16 and 12.

Each row is a start of its own of `zwatch serve`, with the state directory of the first: kernels are compiled once. It draws, then the
link is moved to a version with another transformer while a client asks for one picture after the other.
"""

import argparse
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

from common import Clock, Json, Results, command_line, machine, now, packages, parsed, place_line
from served import Server, ServerError
from versions import Version, make_versions

GIB = 2**30
STEPS = 8
SIZES = {"full": (1024, 512), "tiny": (64, 32)}
ROWS = ("24", "16", "12:fp8", "12:int8", "16:fp8", "16:int8", "24:fp8", "24:host")
"""A card's GiB, and how: fp8 and int8 quantize; `host` keeps the text encoder in host memory. The most telling rows first."""
SMALL_PIECE = 16 * 2**20
"""Bytes that torch asks the driver for as they are; it rounds up what is smaller."""
PAUSE = 0.2
"""Seconds between an answer and the next request of the client during a swap."""
ROW_SECONDS = {"cuda": 35.0, "cpu": 20.0}
"""What a row is taken to need before one was measured, to keep a deadline."""


class Card:
    """The GPU's memory, all but so much of it taken."""

    def __init__(self, device: str) -> None:
        import torch

        self._torch, self._device = torch, torch.device(device)
        self._taken: list[Any] = []
        torch.zeros(1, device=self._device)  # what the context of this process takes is taken before it is counted

    @property
    def free(self) -> int:
        """Bytes that are free for any process."""
        return int(self._torch.cuda.mem_get_info(self._device)[0])

    def leave(self, size: int) -> None:
        """Fill the card until at most this many bytes are free."""
        self._taken.clear()
        self._torch.cuda.empty_cache()
        for piece in (GIB, SMALL_PIECE):
            while self.free - piece >= size:
                self._taken.append(self._torch.empty(piece, dtype=self._torch.uint8, device=self._device))


class Traffic:
    """A client that asks for one picture after the other."""

    def __init__(self, server: Server, side: int) -> None:
        self.answers: list[tuple[int, float, str | None]] = []
        """Status, seconds and version of each answer."""
        self._server, self._side = server, side
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._ended.is_set():
            begun = time.monotonic()
            try:
                status, found = self._server.generate(
                    len(self.answers), width=self._side, height=self._side, steps=STEPS
                )
            except OSError:
                status, found = 0, {}
            self.answers.append((status, time.monotonic() - begun, found.get("version")))
            self._ended.wait(PAUSE)


class Bench:
    """One run."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.clock = Clock(options.deadline)
        self.kind = "cuda" if options.device.startswith("cuda") else "cpu"
        self.card = Card(options.device) if self.kind == "cuda" else None
        self.results = Results(
            options.out, [options.work, options.models], benchmark="small_cards", started=now(), machine=machine(options.work),
            settings={"preset": options.preset, "device": options.device, "steps": STEPS, "repeats": options.repeats},
            versions=packages("torch", "triton"), rows=[], not_run=[],
        )  # fmt: skip

    def run(self) -> None:
        """Measure every row that the deadline leaves time for."""
        versions = make_versions(self.options.models, self.options.preset, self.options.device, self.clock, count=2)
        self.results.data["bytes"] = versions[0].nbytes
        longest = ROW_SECONDS[self.kind]
        for name in self.options.rows:
            if self.clock.left < 1.2 * longest:
                self.results.data["not_run"].append(f"{name}: no time was left")
                continue
            begun = self.clock.passed
            row = self.row(name, versions)
            longest = max(longest, self.clock.passed - begun)
            self.results.data["rows"].append(row)
            self.results.save()
            self.clock.say(line(row))
        self.results.data["complete"] = not self.results.data["not_run"]
        self.results.save()

    def row(self, name: str, versions: list[Version]) -> Json:
        """Serve with one budget and one set of options; return what it costs."""
        size, _, how = name.partition(":")
        row: Json = {"card_gib": float(size), "options": list(_OPTIONS[how])}
        if self.card is not None:
            self.card.leave(int(float(size) * GIB))
            row["free"] = self.card.free
            limit = []
        else:
            row["budget"] = int(versions[0].nbytes * (0.85 + float(size) / 80))
            limit = ["--memory-budget", str(row["budget"])]
        work = self.options.work
        try:
            server = Server(
                self.options.models, work, self.options.device, state=work / "state", more=[*row["options"], *limit],
                log=f"serve-{name.replace(':', '-')}-{time.time_ns()}.log",
            )  # fmt: skip
            server.link(versions[0].name)
            with server:
                self.start(row, server, versions[0])
                self.draw(row, server)
                self.swap(row, server, versions[1])
        except (ServerError, OSError) as error:
            row["failed"] = self.results.clean(str(error))
        return row

    def start(self, row: Json, server: Server, version: Version) -> None:
        """Wait until the version serves; note what it takes."""
        served, attempt = server.serves(version.digest, 180.0)
        row["start_seconds"] = round(served - server.begun, 3)
        row["load_seconds"], row["phases"] = attempt["seconds"], attempt["phases"]
        [engine] = server.get("/status")["engines"]
        row |= {name: engine[name] for name in ("bytes", "host_bytes", "precision", "text_encoder")}
        if self.card is not None:
            begun = time.monotonic()
            server.has_kernels()
            row["compiled_seconds"] = round(time.monotonic() - begun, 3)

    def draw(self, row: Json, server: Server) -> None:
        """Draw each size; note the medians of requests with new prompts and with the same prompt."""
        row["pictures"] = {}
        for side in SIZES[self.options.preset]:
            spent: dict[str, list[float]] = {"new prompt": [], "same prompt": []}
            self.picture(server, side, "a warm-up", row)
            for number in range(self.options.repeats):
                for kind, prompt in (("new prompt", f"a cat, number {number}"), ("same prompt", "a warm-up")):
                    spent[kind].append(self.picture(server, side, prompt, row))
            row["pictures"][str(side)] = {kind: round(statistics.median(seconds), 4) for kind, seconds in spent.items()}
        if self.card is not None:
            row["used"] = row["free"] - self.card.free

    def picture(self, server: Server, side: int, prompt: str, row: Json) -> float:
        """Draw a picture; return the seconds that the client waited."""
        begun = time.monotonic()
        status, found = server.generate(1, prompt=prompt, width=side, height=side, steps=STEPS)
        if status != 200:
            raise ServerError(f"a picture of {side} x {side}: {status} {found.get('error', {}).get('message')}")
        row.setdefault("timings", {})[str(side)] = found["timings"]
        return time.monotonic() - begun

    def swap(self, row: Json, server: Server, version: Version) -> None:
        """Move the link under traffic; note how long it took, how long requests were held, and whether one failed."""
        with Traffic(server, SIZES[self.options.preset][1]) as traffic:
            server.wait(lambda: traffic.answers, "the client has an answer")
            linked = server.link(version.name)
            try:
                served, attempt = server.serves(version.digest, 180.0)
                server.wait(
                    lambda: any(one[2] == version.name for one in traffic.answers), "the client has a picture of it"
                )
            finally:
                row["requests"] = len(traffic.answers)
        row |= {
            "swap_seconds": round(served - linked, 3), "way": attempt["way"], "held": attempt["held"],
            "slowest_request": round(max(seconds for _, seconds, _ in traffic.answers), 3),
            "failed_requests": sum(status != 200 for status, _, _ in traffic.answers), "requests": len(traffic.answers),
        }  # fmt: skip


_OPTIONS = {
    "": (), "fp8": ("--quantize", "fp8"), "int8": ("--quantize", "int8"), "host": ("--text-encoder", "host"),
}  # fmt: skip
_HEAD = (
    f"{'card':>6} {'options':22} {'text enc.':9} {'device':>8} {'host':>7} {'used':>7} {'load':>7} {'pictures: new / same prompt':>34} "
    f"{'swap':>7} {'way':>8} {'held':>6} {'failed':>8}"
)


def line(row: Json) -> str:
    """Return a row of the table; bytes in 10^9."""
    begun = f"{row['card_gib']:3g} GiB {' '.join(row['options']) or 'none':22}"
    if "failed" in row:
        return f"{begun} {row['failed'][:200]}"
    pictures = ", ".join(
        f"{side}: {found['new prompt']:.2f} / {found['same prompt']:.2f} s" for side, found in row["pictures"].items()
    )
    used = f"{row['used'] / 1e9:7.2f}" if "used" in row else f"{'-':>7}"
    return (
        f"{begun} {row['text_encoder']:9} {row['bytes'] / 1e9:8.3f} {row['host_bytes'] / 1e9:7.3f} {used} {row['load_seconds']:5.1f} s "
        f"{pictures:>34} {row['swap_seconds']:5.1f} s {row['way']:>8} {row['held']:4.1f} s {row['failed_requests']:3} of {row['requests']}"
    )


def table(data: Json) -> list[str]:
    """Return the result as lines of text."""
    return [place_line(data["machine"]), _HEAD, *map(line, data["rows"]), *data["not_run"]]


def draw(data: Json, path: Path) -> None:
    """Draw nothing: the table says it all."""


def row_name(text: str) -> str:
    """Return the name of a row: `16` or `16:fp8`."""
    size, _, how = text.partition(":")
    if how not in _OPTIONS or not float(size) > 0:
        raise argparse.ArgumentTypeError(f"expected GiB, or GiB:fp8, GiB:int8, GiB:host, got {text!r}")
    return text


def main() -> None:
    """Run it, or show a result."""
    parser = command_line(__doc__ or "", "small_cards")
    parser.add_argument("--rows", nargs="+", type=row_name, default=ROWS, metavar="GIB[:HOW]", help="the rows (all)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="pictures of each kind (%(default)s)")
    options = parsed(parser, table, draw)
    bench = Bench(options)
    bench.run()
    print("\n".join(table(bench.results.data)))
    sys.exit(any("failed" in row or row["failed_requests"] for row in bench.results.data["rows"]))


if __name__ == "__main__":
    main()
