"""What the benchmarks share: versions to load, the page cache, a served zwatch, facts of the machine, results."""

import argparse
import ctypes
import http.client
import json
import mmap
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any, Self

from blake3 import blake3

from zwatch.deploy import header, seal

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
THREADS = 16
CHUNK = 16 * 2**20
COPIED = 64 * 2**20
"""Bytes copied at a time when a version is made; one bit of each such piece differs from the original."""

Json = dict[str, Any]


# --- numbers


def quantile(values: Iterable[float], part: float) -> float:
    """Return a quantile of some values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def summary(seconds: Sequence[float], nbytes: int | None = None) -> Json:
    """Return all repeats with their median and least, and the median as GB/s (10^9) where bytes were moved."""
    found: Json = {
        "seconds": [round(one, 5) for one in seconds],
        "median": round(statistics.median(seconds), 5),
        "min": round(min(seconds), 5),
    }
    if nbytes is not None:
        found |= {"bytes": nbytes, "gb_per_s": round(nbytes / statistics.median(seconds) / 1e9, 3)}
    return found


# --- the run


class Clock:
    """Seconds since the start, a deadline, and lines that say how far it is."""

    def __init__(self, deadline: float | None) -> None:
        self._begun = time.monotonic()
        self._deadline = deadline or float("inf")

    @property
    def passed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._begun

    @property
    def left(self) -> float:
        """Seconds to the deadline."""
        return self._deadline - self.passed

    def say(self, text: str) -> None:
        """Print a line with the time."""
        print(f"[{self.passed:7.1f} s] {text}", flush=True)


class Results:
    """A result file that is complete JSON at any moment, so that what was measured survives a kill."""

    def __init__(self, path: Path, private: Sequence[Path], **first: Any) -> None:
        self.path = path
        self.data: Json = {**first, "complete": False}
        self._private = sorted({str(one) for one in [*private, Path.home(), ROOT]}, key=len, reverse=True)
        path.parent.mkdir(parents=True, exist_ok=True)

    def save(self) -> None:
        """Write it, under a temporary name first."""
        temporary = self.path.with_suffix(".part")
        temporary.write_text(json.dumps(self.data, indent=2, ensure_ascii=False) + "\n")
        os.replace(temporary, self.path)

    def clean(self, text: str) -> str:
        """Return a message without this machine's paths."""
        for path in self._private:
            text = text.replace(path, "…")
        return re.sub(r"(?<![\w.…])/(?:[\w.+-]+/)+", "…/", text)[:300]


# --- the command line


def command_line(about: str, name: str) -> argparse.ArgumentParser:
    """Return the options that a benchmark of versions has; `name` is its result's."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="where everything is written: on the disk that is to be measured"
    )
    parser.add_argument("--models", type=Path, metavar="DIR", help="where the versions are, or will be (WORK/models)")
    parser.add_argument("--preset", choices=("full", "tiny"), default="full", help="tiny: a smoke test (%(default)s)")
    parser.add_argument("--device", help="cuda or cpu (cuda if nvidia-smi finds one)")
    parser.add_argument("--deadline", type=float, metavar="SECONDS", help="leave out what does not fit any more")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{name}.json", help="the result (%(default)s)")
    parser.add_argument("--draw", type=Path, metavar="JSON", help="only print and draw this result again")
    return parser


def parsed(
    parser: argparse.ArgumentParser, table: Callable[[Json], list[str]], draw: Callable[[Json, Path], None]
) -> argparse.Namespace:
    """Return the options, complete. Where they only ask for an old result again, show that and exit."""
    options = parser.parse_args()
    if options.draw:
        data = json.loads(options.draw.read_text())
        print("\n".join(table(data)))
        draw(data, options.draw.with_suffix(".png"))
        sys.exit()
    if options.work is None:
        parser.error("--work is needed: a folder with room for three versions")
    options.work.mkdir(parents=True, exist_ok=True)
    options.models = options.models or options.work / "models"
    options.device = options.device or ("cuda:0" if machine(HERE)["gpu"] else "cpu")
    return options


# --- facts


def cpu_model() -> str:
    """Return the processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())


def machine(place: Path) -> Json:
    """Return what the machine is, and on what file system `place` lies; nothing that names the host."""
    found: Json = {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "ram_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "filesystem": filesystem(place),
        "gpu": None,
        "bytecode_written": not sys.dont_write_bytecode,
    }
    asked = "name,driver_version,memory.total,pcie.link.gen.max,pcie.link.width.max"
    try:
        told = subprocess.run(
            ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"], capture_output=True, text=True, check=True
        ).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return found
    found["gpu"] = dict(zip(("name", "driver", "memory", "pcie_gen", "pcie_width"), told.split(", "), strict=False))
    return found


def filesystem(place: Path) -> str:
    """Return the type of the file system that a directory lies on."""
    best, kind = "", "unknown"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        point = left.split()[4]
        if (place.resolve() == Path(point) or Path(point) in place.resolve().parents) and len(point) >= len(best):
            best, kind = point, right.split()[0]
    return kind


def packages(*names: str) -> dict[str, str]:
    """Return the installed versions of those packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = installed(name)
        except PackageNotFoundError:
            continue
    return found


def now() -> str:
    """Return the present as ISO 8601 in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- the page cache


def cached_share(paths: Iterable[Path]) -> float:
    """Return how much of some files the page cache holds, 0 to 1, as mincore tells page by page."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    there = pages = 0
    for path in paths:
        size = path.stat().st_size
        count = -(-size // mmap.PAGESIZE)
        with open(path, "rb") as file:
            address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        if address in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), "mmap failed", str(path))
        resident = (ctypes.c_ubyte * count)()
        if libc.mincore(address, size, resident):
            raise OSError(ctypes.get_errno(), "mincore failed", str(path))
        libc.munmap(address, size)
        there += bytes(resident).count(1)
        pages += count
    return there / max(pages, 1)


def drop(paths: Sequence[Path]) -> float:
    """Write files back and drop them from the page cache; return the share that stayed."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    return cached_share(paths)


def read_plainly(paths: Sequence[Path], *, direct: bool = False, threads: int = THREADS) -> float:
    """Return the seconds in which threads read files into memory of their own, 16 MiB a call; `direct` goes round the
    page cache."""
    flags = os.O_RDONLY | (os.O_DIRECT if direct else 0)
    fds = [os.open(path, flags) for path in paths]
    pieces = deque((fd, begin) for fd in fds for begin in range(0, os.fstat(fd).st_size, CHUNK))
    buffers = [mmap.mmap(-1, CHUNK) for _ in range(threads)]
    for buffer in buffers:
        buffer.write(b"\1" * CHUNK)  # faulting its pages in is not the disk's time

    def work(buffer: mmap.mmap) -> None:
        while True:
            try:
                fd, begin = pieces.popleft()
            except IndexError:
                return
            os.preadv(fd, [buffer], begin)

    with ThreadPoolExecutor(threads) as pool:
        begun = time.perf_counter()
        for one in [pool.submit(work, buffer) for buffer in buffers]:
            one.result()
        seconds = time.perf_counter() - begun
    for fd in fds:
        os.close(fd)
    return seconds


class B3sum:
    """The pass that whoever wants verified weights from another loader makes first."""

    def __init__(self) -> None:
        self._program = shutil.which("b3sum")
        if self._program:
            told = subprocess.run([self._program, "--version"], capture_output=True, text=True, check=True).stdout
            self.name = told.strip()
        else:
            self.name = f"blake3 package {installed('blake3')}, mmap, all threads (no b3sum here)"

    def __call__(self, paths: Sequence[Path]) -> float:
        """Hash some files; return the seconds."""
        begun = time.perf_counter()
        if self._program:
            subprocess.run([self._program, *map(str, paths)], stdout=subprocess.DEVNULL, check=True)
        else:
            for path in paths:
                blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()
        return time.perf_counter() - begun


# --- versions


@dataclass(frozen=True, slots=True)
class Version:
    """A sealed version directory."""

    directory: Path

    @property
    def name(self) -> str:
        """Its name."""
        return self.directory.name

    @property
    def weights(self) -> list[Path]:
        """Its weight files."""
        return sorted(self.directory.glob("*/*.safetensors"))

    @property
    def nbytes(self) -> int:
        """Bytes of its weight files."""
        return sum(path.stat().st_size for path in self.weights)

    @property
    def digest(self) -> str:
        """What zwatch calls its content."""
        return blake3((self.directory / seal.SEAL_NAME).read_bytes()).hexdigest()

    def seal(self) -> None:
        """Seal it: as `zwatch seal`, but hashing mapped files, which takes a tenth of the time; the stamps are there."""
        hashes = {
            path: blake3(max_threads=blake3.AUTO).update_mmap(self.directory / path).hexdigest()
            for path in seal.sealable_files(self.directory)
        }
        self._write_seal(seal.format_seal(hashes))

    def change_a_config(self) -> None:
        """Change nothing but the scheduler's config, and seal it anew."""
        name = "scheduler/scheduler_config.json"
        config = json.loads((self.directory / name).read_text())
        config["shift"] = 3.5 if config["shift"] == 3.0 else 3.0
        data = (json.dumps(config, indent=2) + "\n").encode()
        temporary = self.directory / f"{name}.new"
        temporary.write_bytes(data)
        os.replace(temporary, self.directory / name)
        sealed = seal.parse_seal((self.directory / seal.SEAL_NAME).read_bytes())
        self._write_seal(seal.format_seal({**sealed.files, name: blake3(data).hexdigest()}))

    def _write_seal(self, data: bytes) -> None:
        temporary = self.directory / f".{seal.SEAL_NAME}.new"
        temporary.write_bytes(data)
        os.replace(temporary, self.directory / seal.SEAL_NAME)


def make_versions(models: Path, preset: str, device: str, clock: Clock) -> list[Version]:
    """Return v1, v2, v3, made where they are not there yet, and `current` pointing to v1.

    v2 has another transformer and v1's other files as hard links, as `cp -al` deploys have; in v3 every weight file
    differs, so that nothing of another version can be shared.
    """
    models.mkdir(parents=True, exist_ok=True)
    versions = [Version(models / name) for name in ("v1", "v2", "v3")]
    v1, v2, v3 = versions
    if not (v1.directory / seal.SEAL_NAME).exists():
        clock.say(f"writing v1 ({preset}, random weights)")
        make = (
            "import sys; from pathlib import Path; from random_pipeline import PRESETS, write_pipeline; "
            "write_pipeline(Path(sys.argv[1]), PRESETS[sys.argv[2]], 1, sys.argv[3])"
        )
        paths = os.pathsep.join([str(ROOT / "tools"), str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": paths}
        subprocess.run([sys.executable, "-c", make, str(v1.directory), preset, device], check=True, env=environment)
        clock.say("stamping v1")
        for path in v1.weights:
            if path.parent.name == "transformer":
                copy_weights(path, path, stamp="v1", differs=False)
        v1.seal()
    for version, shared in ((v2, True), (v3, False)):
        if not (version.directory / seal.SEAL_NAME).exists():
            clock.say(f"writing {version.name}")
            _vary(v1, version, share=shared)
            version.seal()
    clock.say("writing back to the disk")
    os.sync()
    (models / "next").symlink_to("v1")
    os.replace(models / "next", models / "current")
    return versions


def _vary(source: Version, target: Version, *, share: bool) -> None:
    """Make a version whose transformer differs from the source's; the other weights are linked, or differ too."""
    for path in sorted(source.directory.rglob("*")):
        relative = path.relative_to(source.directory)
        there = target.directory / relative
        if path.is_dir() or relative.name == seal.SEAL_NAME:
            continue
        there.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".safetensors":
            shutil.copyfile(path, there)
        elif relative.parts[0] == "transformer":
            copy_weights(path, there, stamp=target.name, differs=True)
        elif share:
            os.link(path, there)
        else:
            copy_weights(path, there, stamp=None, differs=True)


def copy_weights(source: Path, target: Path, *, stamp: str | None, differs: bool) -> None:
    """Copy a weight file with many threads, with another stamp in its header, and with other last mantissa bits."""
    temporary = target.with_name(f".{target.name}.new")
    with open(source, "rb") as file, open(temporary, "wb") as sink:
        found = header.read_header(file.fileno(), source.name)
        head = found.raw if stamp is None else _stamped(found, stamp)
        sink.write(head)
        sink.flush()

        def carry(begin: int) -> None:
            piece = bytearray(os.pread(file.fileno(), COPIED, begin))
            piece[0] ^= differs  # little-endian: the lowest bit of a value, which no image depends on
            os.pwrite(sink.fileno(), piece, len(head) + begin - found.data_start)

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(carry, range(found.data_start, source.stat().st_size, COPIED)))
    os.replace(temporary, target)


def _stamped(found: header.Header, version: str) -> bytes:
    """Return a header with this stamp, as `zwatch.deploy.header.stamp` would write it."""
    table = json.loads(found.raw[header.LENGTH_BYTES :])
    table = {"__metadata__": {**found.metadata, header.VERSION_KEY: version}} | {
        name: entry for name, entry in table.items() if name != "__metadata__"
    }
    text = json.dumps(table).encode()
    text += b" " * (-(header.LENGTH_BYTES + len(text)) % 64)
    return len(text).to_bytes(header.LENGTH_BYTES, "little") + text


# --- a served zwatch


class ServerError(Exception):
    """The server ended, answered what it should not, or was too slow."""


class Server:
    """`zwatch serve` in a process of its own. `counted` gives it a window on CUDA's allocation counters."""

    def __init__(self, models: Path, work: Path, device: str, *, counted: bool = False) -> None:
        self.models = models
        self.log = work / "serve.log"
        self.begun = 0.0
        script = [str(HERE / "counted.py")] if counted else ["-m", "zwatch"]
        state = work / f"state-{time.time_ns()}"
        self._command = [
            sys.executable, *script, "serve", "--models", str(models), "--state-dir", str(state), "--port", "0",
            "--device", device, "--log", "text",
        ]  # fmt: skip
        self._counted = counted
        self._process: subprocess.Popen[str] | None = None
        self._address = ("", 0)
        self._local = threading.local()

    def __enter__(self) -> Self:
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        with open(self.log, "ab") as log:
            place = log.tell()
            self.begun = time.monotonic()
            pipe = subprocess.PIPE if self._counted else None
            self._process = subprocess.Popen(
                self._command, stderr=log, stdout=pipe or log, stdin=pipe or subprocess.DEVNULL, text=True,
                env={**os.environ, "PYTHONPATH": paths},
            )  # fmt: skip

        def listens() -> bool:
            found = re.search(rb"serving .+ at http://([^:\s]+):(\d+)", self.log.read_bytes()[place:])
            if found:
                self._address = (found[1].decode(), int(found[2]))
            return bool(found)

        self.wait(listens, "it listens", 120.0, 0.01)
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def wait(self, condition: Callable[[], Any], what: str, deadline: float = 120.0, pause: float = 0.001) -> Any:
        """Ask until the answer is true, and return it."""
        end = time.monotonic() + deadline
        while time.monotonic() < end:
            if self._process is None or self._process.poll() is not None:
                raise ServerError(f"the server ended: {self.last_words()}")
            if found := condition():
                return found
            time.sleep(pause)
        raise ServerError(f"waited {deadline:.0f} s until {what}: {self.last_words()}")

    def last_words(self) -> str:
        """Return the end of its log."""
        return self.log.read_text()[-1500:]

    def call(self, method: str, path: str, body: Json | None = None, **headers: str) -> tuple[int, Any, bytes]:
        """Return (status, headers, body) of a call; each thread keeps a connection open."""
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = http.client.HTTPConnection(*self._address, timeout=120)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            self._local.connection = None
            raise

    def get(self, path: str) -> Json:
        """Return the JSON of a GET."""
        found: Json = json.loads(self.call("GET", path)[2])
        return found

    def post(self, path: str, body: Json | None = None) -> tuple[int, Json]:
        """Return (status, JSON) of a POST."""
        status, _, raw = self.call("POST", path, body or {})
        return status, json.loads(raw)

    def generate(self, seed: int, **fields: Any) -> tuple[int, Json]:
        """Make an image; return the status and the JSON without its picture."""
        status, _, raw = self.call(
            "POST",
            "/generate",
            {"prompt": "a cat wearing sunglasses", "seed": seed, **fields},
            Accept="application/json",
        )
        found: Json = json.loads(raw)
        found.pop("images", None)
        return status, found

    def link(self, version: str) -> float:
        """`ln -sfn version current`; return the moment before."""
        begun = time.monotonic()
        subprocess.run(["ln", "-sfn", version, str(self.models / "current")], check=True)
        return begun

    def serves(self, digest: str, deadline: float = 120.0, pause: float = 0.02) -> tuple[float, Json]:
        """Wait until /status says that this content serves; return that moment and the attempt.

        Each answer takes the server a fraction of a millisecond: with a short pause between two of them it shows.
        """

        def check() -> Json | None:
            status = self.get("/status")
            attempt = status["aliases"]["current"]["attempt"]
            if attempt and attempt["state"] == "REJECTED":
                raise ServerError(f"{attempt['version']} is rejected: {attempt['reason']}")
            serving = status["serving"]
            return attempt if serving and serving["digest"] == digest else None

        attempt = self.wait(check, "it serves", deadline, pause)
        return time.monotonic(), attempt

    def counters(self) -> Json | None:
        """Return how often CUDA memory was allocated and freed so far; None if that is not counted."""
        process = self._process
        if not self._counted or process is None or process.stdin is None or process.stdout is None:
            return None
        process.stdin.write("\n")
        process.stdin.flush()
        found: Json | None = json.loads(process.stdout.readline())
        return found


# --- figures


def canvas(width: float, heights: Sequence[float]) -> tuple[Any, list[Any]] | None:
    """Return matplotlib's figure and its axes, one above the other, in inches; None where it is not installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        print("no figure: matplotlib is not installed", file=sys.stderr)
        return None
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        len(heights), figsize=(width, sum(heights)), height_ratios=heights, dpi=120, layout="constrained", squeeze=False
    )
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
    return figure, list(axes.flat)


def place_line(facts: Json) -> str:
    """Return the machine in a line, for under a figure or a table."""
    gpu = facts["gpu"]["name"] if facts["gpu"] else "no GPU"
    return f"{gpu}, {facts['cores']} x {facts['cpu']}, Linux {facts['kernel']}, {facts['filesystem']}"
