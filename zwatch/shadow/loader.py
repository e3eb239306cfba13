"""Load: read every sealed file once, hash what landed, and hand out a candidate only if all of it is right.

A `Candidate` is the proof: it can be had from `load` alone, so whoever holds one holds verified bytes.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3

from zwatch.deploy import header, seal
from zwatch.deploy.resolving import Directory, FileStamp
from zwatch.errors import Abandoned, Rejection
from zwatch.shadow.buffers import FileBuffer, Footprint
from zwatch.shadow.hashing import host_view
from zwatch.shadow.host import Shadow
from zwatch.shadow.reader import Filling

WEIGHTS_SUFFIX = ".safetensors"
_REPORT_SECONDS = 0.02  # a report wakes the event loop; a fast load has thousands of chunks a second
_RACY_NS = 10**9  # many times the 4 ms grain of a file's times
MAX_SMALL_FILE = 256 * 2**20
"""Longest accepted file that is not weights, bytes. Qwen3's tokenizer.json, the longest there is, has 11 MB."""


class LoadControl:
    """A load's connection to whoever asked for it: how far it is, and whether it is still wanted."""

    def __init__(self, report: Callable[[], None] = lambda: None) -> None:
        self.phases: dict[str, float] = {}
        self.bytes_total = 0
        self.bytes_done = 0
        self.shared: list[str] = []
        self._report = report
        self._reported = 0.0
        self._abandoned = threading.Event()

    def abandon(self) -> None:
        """Stop the load at its next chunk."""
        self._abandoned.set()

    @property
    def is_abandoned(self) -> bool:
        """Whether somebody asked to stop."""
        return self._abandoned.is_set()

    def check(self) -> None:
        """Raise Abandoned if the load is not wanted any more."""
        if self._abandoned.is_set():
            raise Abandoned("superseded by a newer wish")

    def advance(self, count: int) -> None:
        """Note `count` more bytes, and raise Abandoned if the load is not wanted any more."""
        self.bytes_done += count
        if (now := time.monotonic()) - self._reported >= _REPORT_SECONDS:
            self._reported = now
            self._report()
        self.check()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside to the phase `name`, seconds."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.perf_counter() - begun
            self._report()


@dataclass(frozen=True, slots=True)
class Plan:
    """What a version consists of, known from its seal and headers before anything is allocated.

    A header read for the plan must be in the hashed bytes again; loading checks it.
    """

    version: str
    seal: seal.Seal
    headers: Mapping[str, header.Header]
    stamps: Mapping[str, FileStamp | None]

    def component_hashes(self, component: str) -> tuple[tuple[str, str], ...]:
        """Return (path, hash) of every sealed file of a component, sorted: equal hashes mean equal components."""
        return tuple(sorted(item for item in self.seal.files.items() if item[0].startswith(f"{component}/")))

    def footprint(self, paths: list[str]) -> int:
        """Return the device bytes that these weight files will take."""
        return sum(Footprint.of(self.headers[path]).total for path in paths)


@dataclass(frozen=True, slots=True)
class Candidate:
    """Verified bytes: `weights` on the device by path, every other sealed file in `small`.

    Weights of components that were shared are left out.
    """

    plan: Plan
    small: Mapping[str, bytes] = field(repr=False)
    weights: Mapping[str, FileBuffer] = field(repr=False)


def plan(directory: Directory, digest: str | None) -> Plan:
    """Read a version's seal and weight headers, and check what they alone can tell.

    `digest` is what the seal was seen to be; None if it could not be read then.

    Raises:
        Rejection: the seal or a header is wrong, a file is missing, or the seal is not the one of `digest`.
        OSError: a file could not be read.
    """
    sealed = seal.read_seal(directory.fd)
    if sealed.digest != digest:
        raise Rejection("seal_changed", f"{seal.SEAL_NAME} was rewritten while it was looked at")
    stamps = directory.file_stamps(list(sealed.files))
    for path, stamp in stamps.items():
        if stamp is None:
            raise Rejection("file_missing", f"{path}: the seal names it, it is not there")
    headers = {}
    for path in sealed.files:
        if path.endswith(WEIGHTS_SUFFIX):
            with seal.opened_sealed(directory.fd, sealed, path) as fd:
                headers[path] = header.read_header(fd, path)
            if header.carries_version(path):
                header.check_version(headers[path], directory.version, path)
    if not any(map(header.carries_version, headers)):
        raise Rejection("file_missing", "the seal names no transformer/*.safetensors")
    return Plan(directory.version, sealed, headers, stamps)


def load_small(directory: Directory, planned: Plan, control: LoadControl) -> dict[str, bytes]:
    """Read and verify every sealed file that is not weights.

    Raises:
        Rejection, OSError: as `load_weights`.
    """
    small = {}
    for path, expected in planned.seal.files.items():
        if path.endswith(WEIGHTS_SUFFIX):
            continue
        with (
            control.phase("read"),
            seal.opened_sealed(directory.fd, planned.seal, path) as fd,
            open(fd, "rb", closefd=False) as file,
        ):
            size = os.fstat(fd).st_size
            if size > MAX_SMALL_FILE:
                raise Rejection("size_mismatch", f"{path}: {size} bytes, only weights may exceed {MAX_SMALL_FILE}")
            data = file.read(MAX_SMALL_FILE + 1)
        with control.phase("verify"):
            seal.check_hash(path, blake3(data).hexdigest(), expected)
        small[path] = data
        control.check()
    return small


def load_weights(
    directory: Directory,
    planned: Plan,
    paths: list[str],
    shadow: Shadow,
    control: LoadControl,
    verified: "VerifiedFiles",
) -> dict[str, FileBuffer]:
    """Read weight files into buffers and verify what landed there.

    Raises:
        Rejection: a file is not what its seal or its header says.
        Abandoned: the load is not wanted any more.
        OSError: a read failed.
        RuntimeError: the device failed; torch.OutOfMemoryError when its memory ran out.
    """
    control.bytes_total += sum(planned.headers[path].file_size for path in paths)
    control.check()
    with shadow.beside():
        with control.phase("read"):
            buffers = [FileBuffer(path, planned.headers[path], shadow) for path in paths]
            hashings = [buffer.begin_hash(control.check) for buffer in buffers]
            with ExitStack() as opened:
                fillings, stats = [], []
                for buffer in buffers:
                    fd = opened.enter_context(seal.opened_sealed(directory.fd, planned.seal, buffer.path))
                    stats.append((os.fstat(fd), time.time_ns()))
                    _check_size(buffer, stats[-1][0].st_size)
                    fillings.append(Filling(fd, buffer.path, buffer.data))
                done = [0] * len(buffers)

                def landed(number: int, prefix: int) -> None:
                    control.advance(prefix - done[number])
                    done[number] = prefix
                    hashings[number].advance(prefix)

                shadow.fill(fillings, landed)
        with control.phase("verify"):
            for hashing in hashings:
                hashing.finish()
            for buffer, hashing, (status, taken_ns) in zip(buffers, hashings, stats, strict=True):
                expected = planned.seal.files[buffer.path]
                _check_landed(buffer, hashing.hexdigest(), expected)
                verified.note(status, taken_ns, expected)
    control.check()
    return {buffer.path: buffer for buffer in buffers}


HashFile = Callable[[int, str, int, Callable[[int], None]], str]
"""Hashes an open file; see `Device.hash_file`."""


class VerifiedFiles:
    """Which files on disk were hashed already, by what changes when their bytes do.

    So a component that is shared instead of loaded is verified on disk all the same, but read at most once.
    """

    def __init__(self) -> None:
        self._digests: dict[tuple[int, FileStamp], str] = {}

    def note(self, status: os.stat_result, taken_ns: int, digest: str) -> None:
        """Remember a file's hash; `status` was taken at `taken_ns`, before its bytes were read."""
        # Written to within the clock's grain of a stat, a file keeps its stamp: trust only what was older then.
        if taken_ns - status.st_ctime_ns > _RACY_NS:
            self._digests[(status.st_dev, FileStamp.of(status))] = digest

    def check(
        self,
        directory: Directory,
        planned: Plan,
        paths: list[str],
        control: LoadControl,
        hash_file: HashFile,
    ) -> None:
        """Verify weight files on disk, reading those that changed or were never read.

        Raises:
            Rejection: a file is missing or not what the seal says.
            Abandoned: the load is not wanted any more.
            OSError: a read failed.
        """
        for path in paths:
            control.check()
            with seal.opened_sealed(directory.fd, planned.seal, path) as fd:
                status, taken_ns = os.fstat(fd), time.time_ns()
                digest = self._digests.get((status.st_dev, FileStamp.of(status)))
                if digest is None:
                    control.bytes_total += status.st_size
                    digest = hash_file(fd, path, status.st_size, control.advance)
                    self.note(status, taken_ns, digest)
            seal.check_hash(path, digest, planned.seal.files[path])


def _check_size(buffer: FileBuffer, size: int) -> None:
    planned = buffer.header.file_size
    if size != planned:
        raise Rejection("size_mismatch", f"{buffer.path}: {size} bytes, a moment ago {planned}")


def _check_landed(buffer: FileBuffer, digest: str, expected: str) -> None:
    """Hold what landed against the seal, and the header that the plan was made from against what landed."""
    seal.check_hash(buffer.path, digest, expected)
    check_header(buffer.path, buffer.header, bytes(host_view(buffer.data[: buffer.header.data_start])))
    buffer.digest = digest


def check_header(path: str, planned: header.Header, verified: bytes) -> None:
    """Hold the header that a plan was made from against that in verified bytes.

    Raises:
        Rejection: `header_invalid`, it was another one.
    """
    if planned.raw != verified:
        raise Rejection("header_invalid", f"{path}: its header changed while it was loaded")


def config_object(data: bytes, path: str) -> dict[str, Any]:
    """Parse a JSON config from verified bytes.

    Raises:
        Rejection: `config_invalid`.
    """
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Rejection("config_invalid", f"{path}: not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise Rejection("config_invalid", f"{path}: expected a JSON object, found {type(parsed).__name__}")
    return parsed
