"""Load: read every sealed file once, hash the bytes that arrived, and return a candidate only if all of them are right.

A `Candidate` is the proof: `load` alone makes one, so code that has one has verified bytes.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import InitVar, dataclass, field

from blake3 import blake3

from zwatch.deploy import header, seal
from zwatch.deploy.resolving import Directory, FileStamp
from zwatch.errors import Rejection
from zwatch.shadow.buffers import FileBuffer, Footprint
from zwatch.shadow.control import LoadControl
from zwatch.shadow.converted import Buffer, Conversion, ConvertedBuffer, converted_bytes
from zwatch.shadow.hashing import host_view
from zwatch.shadow.host import Shadow
from zwatch.shadow.read_threads import Filling
from zwatch.shadow.verified_files import HashFile, VerifiedFiles

MAX_SMALL_FILE = 256 * 2**20
"""Largest accepted file that is not weights, bytes. Qwen3's tokenizer.json, the largest known, has 11 MB."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The content of a version, known from its seal and headers before anything is allocated.

    Loading checks that each header read for the plan equals the one in the hashed bytes.
    """

    version: str
    seal: seal.Seal
    headers: Mapping[str, header.Header]
    stamps: Mapping[str, FileStamp | None]

    def component_hashes(self, component: str) -> tuple[tuple[str, str], ...]:
        """Return (path, hash) of every sealed file of a component, sorted: equal hashes mean equal components."""
        return tuple(sorted(item for item in self.seal.files.items() if item[0].startswith(f"{component}/")))

    def footprint(self, paths: Sequence[str], conversions: Mapping[str, Conversion]) -> int:
        """Return the most bytes that these weight files take while they are loaded all at once: those that are converted are
        there twice."""
        files = sum(Footprint.of(self.headers[path]).total for path in paths)
        return files + sum(
            converted_bytes(self.headers[path], conversions[path]) for path in paths if path in conversions
        )

    def held(self, paths: Sequence[str], conversions: Mapping[str, Conversion]) -> int:
        """Return the most bytes that these weight files take once they are loaded."""
        return sum(
            converted_bytes(self.headers[path], conversions[path])
            if path in conversions
            else Footprint.of(self.headers[path]).total
            for path in paths
        )


@dataclass(frozen=True, slots=True)
class Lot:
    """Weight files that are loaded together: read into `via` and verified there. Those with a conversion are then converted into
    `into`, one after the other, and their bytes as stored are freed; others stay in `via`."""

    paths: Sequence[str]
    via: Shadow
    into: Shadow
    conversions: Mapping[str, Conversion] = field(default_factory=dict)


_VERIFIED = object()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version of which every byte was verified; made by `load` alone.

    `weights` has the weight files that were loaded, by path, and `small` the bytes of every other sealed file.
    """

    plan: Plan
    small: Mapping[str, bytes] = field(repr=False)
    weights: Mapping[str, Buffer] = field(repr=False)
    proof: InitVar[object] = None

    def __post_init__(self, proof: object) -> None:
        if proof is not _VERIFIED:
            raise TypeError("a Candidate is made by zwatch.shadow.loader.load alone, from verified bytes")


def plan(directory: Directory, digest: str | None, control: LoadControl | None = None) -> Plan:
    """Read a version's seal and weight headers, and check what can be checked from them alone.

    `digest` is the seal's digest when the target was resolved; None if the seal could not be read then.

    Raises:
        Rejection: the seal or a header is wrong, a file is missing, or the seal's digest is not `digest`.
        Abandoned: `control` was told to abandon the load.
        OSError: a file could not be read.
    """
    control = control or LoadControl()
    control.begin(f"reading {seal.SEAL_NAME}")
    sealed = seal.read_seal(directory.fd)
    if sealed.digest != digest:
        found = f"its digest is {sealed.digest}, expected {digest or 'no seal'}"
        raise Rejection("seal_changed", f"{seal.SEAL_NAME} was rewritten after the link was resolved: {found}")
    control.begin(f"looking at the files that {seal.SEAL_NAME} names")
    stamps = directory.file_stamps(list(sealed.files), control.check)
    for path, stamp in stamps.items():
        if stamp is None:
            raise Rejection("file_missing", f"{path}: the seal names it, it is not there")
    headers = {}
    for path in sealed.files:
        if path.endswith(header.WEIGHTS_SUFFIX):
            control.begin(f"reading the header of {path}")
            with seal.opened_sealed(directory.fd, sealed, path) as fd:
                headers[path] = header.read_header(fd, path)
            if header.carries_version(path):
                header.check_version(headers[path], directory.version, path)
    if not any(map(header.carries_version, headers)):
        raise Rejection("file_missing", f"{seal.SEAL_NAME} names no transformer/*.safetensors, expected at least one")
    return Plan(directory.version, sealed, headers, stamps)


def load(
    directory: Directory,
    planned: Plan,
    control: LoadControl,
    *,
    resident: Mapping[str, FileBuffer],
    choose: Callable[[Mapping[str, bytes]], Sequence[Lot]],
    verified: VerifiedFiles,
    hash_file: HashFile,
) -> Candidate:
    """Read and verify all sealed files, and load the weight files of the lots that `choose` returns, lot by lot.

    `choose` gets the verified files that are not weights. The other weight files are verified on disk. `resident` has
    buffers that were loaded before, by digest: a weight file of the same content must have the same header.

    Raises:
        Rejection, Abandoned, OSError, RuntimeError: as `load_weights`; besides, whatever `choose` raises.
    """
    small = load_small(directory, planned, control)
    lots = choose(small)
    control.bytes_total += sum(planned.headers[path].file_size for lot in lots for path in lot.paths)
    weights: dict[str, Buffer] = {}
    for lot in lots:
        weights |= _converted(_read_weights(directory, planned, lot.paths, lot.via, control, verified), lot, control)
    with control.phase("verify"):
        rest = [path for path in planned.headers if path not in weights]
        verified.check(directory, planned.seal, rest, control, hash_file)
        for path in rest:
            if (buffer := resident.get(planned.seal.files[path])) is not None:
                _check_header(path, planned.headers[path], buffer.header.raw)
    return Candidate(planned, small, weights, _VERIFIED)


def _converted(files: dict[str, FileBuffer], lot: Lot, control: LoadControl) -> dict[str, Buffer]:
    """Return verified files with those converted that have to be; as stored, each is freed before the next."""
    made: dict[str, Buffer] = {path: files[path] for path in files if path not in lot.conversions}
    if not lot.conversions:
        return made
    with control.phase("convert"):
        for path in lot.conversions:
            control.begin(f"converting {path}")
            with lot.into.beside():
                made[path] = ConvertedBuffer.of(
                    files.pop(path), lot.conversions[path], lot.into, control.check, is_alone=len(lot.paths) == 1
                )
    return made


def convert(
    candidate: Candidate,
    resident: Mapping[str, FileBuffer],
    conversions: Mapping[str, Conversion],
    control: LoadControl,
) -> Candidate:
    """Return the candidate with resident weight files, by path, that this version alone needs converted.

    Raises:
        Abandoned: `control` was told to abandon the load.
        RuntimeError, MemoryError: the memory ran out, or the device failed.
    """
    if not conversions:
        return candidate
    weights = dict(candidate.weights)
    with control.phase("convert"):
        for path, conversion in conversions.items():
            file = resident[path]
            control.begin(f"converting {path}")
            with file.shadow.beside():
                weights[path] = ConvertedBuffer.of(file, conversion, file.shadow, control.check)
    return Candidate(candidate.plan, candidate.small, weights, _VERIFIED)


def load_small(directory: Directory, planned: Plan, control: LoadControl) -> dict[str, bytes]:
    """Read and verify every sealed file that is not weights.

    Raises:
        Rejection, OSError: as `load_weights`.
    """
    small = {}
    with control.phase("read"):
        for path in planned.seal.files:
            if path.endswith(header.WEIGHTS_SUFFIX):
                continue
            control.begin(f"reading {path}")
            with seal.opened_sealed(directory.fd, planned.seal, path) as fd:
                size = os.fstat(fd).st_size
                if size > MAX_SMALL_FILE:
                    limit = f"expected at most {MAX_SMALL_FILE} for a file that is not weights"
                    raise Rejection("size_mismatch", f"{path}: {size} bytes, {limit}")
                small[path] = seal.read_whole(fd)
            control.check()
    with control.phase("verify"):
        for path, data in small.items():
            seal.check_hash(path, blake3(data).hexdigest(), planned.seal.files[path])
            control.check()
    return small


def load_weights(
    directory: Directory,
    planned: Plan,
    paths: list[str],
    shadow: Shadow,
    control: LoadControl,
    verified: VerifiedFiles,
) -> dict[str, FileBuffer]:
    """Read weight files into buffers and verify the bytes that arrived there.

    Raises:
        Rejection: a file differs from its seal or from its planned header.
        Abandoned: `control` was told to abandon the load.
        OSError: a read failed.
        RuntimeError: the device failed; torch.OutOfMemoryError if its memory ran out.
    """
    control.bytes_total += sum(planned.headers[path].file_size for path in paths)
    return _read_weights(directory, planned, paths, shadow, control, verified)


def _read_weights(
    directory: Directory,
    planned: Plan,
    paths: Sequence[str],
    shadow: Shadow,
    control: LoadControl,
    verified: VerifiedFiles,
) -> dict[str, FileBuffer]:
    control.check()
    with shadow.beside():
        with control.phase("read"):
            buffers = [FileBuffer(path, planned.headers[path], shadow) for path in paths]
            hashings = [buffer.begin_hash(control.check) for buffer in buffers]
            with ExitStack() as opened:
                fillings, stamps = [], []
                for buffer in buffers:
                    control.begin(f"opening {buffer.path}")
                    fd = opened.enter_context(seal.opened_sealed(directory.fd, planned.seal, buffer.path))
                    stamps.append(verified.stamp(fd))
                    _check_size(buffer, stamps[-1].file.size)
                    fillings.append(Filling(fd, buffer.path, buffer.data, buffer))
                done = [0] * len(buffers)

                def landed(number: int, prefix: int) -> None:
                    control.advance(prefix - done[number])
                    done[number] = prefix
                    control.activity = _reading(buffers, done)
                    hashings[number].advance(prefix)

                control.begin(_reading(buffers, done))
                shadow.reader.fill(fillings, landed)
        with control.phase("verify"):
            control.begin("hashing the weights", is_slow=True)  # the hash kernel may have to be compiled first
            for hashing in hashings:
                hashing.finish()
            for buffer, hashing, stamp in zip(buffers, hashings, stamps, strict=True):
                expected = planned.seal.files[buffer.path]
                _check_landed(buffer, hashing.hexdigest(), expected)
                verified.note(stamp, expected)
    control.check()
    return {buffer.path: buffer for buffer in buffers}


def _reading(buffers: list[FileBuffer], done: list[int]) -> str:
    """Return what is being done while files arrive: the first that is not complete is waited for."""
    waiting = (buffer.path for buffer, count in zip(buffers, done, strict=True) if count < buffer.header.file_size)
    return f"reading {next(waiting, 'the end of the weights')}"


def _check_size(buffer: FileBuffer, size: int) -> None:
    planned = buffer.header.file_size
    if size != planned:
        raise Rejection(
            "size_mismatch", f"{buffer.path}: {size} bytes, expected {planned} as when the load was planned"
        )


def _check_landed(buffer: FileBuffer, digest: str, expected: str) -> None:
    """Compare the bytes that arrived with the seal, and the planned header with the one that arrived."""
    seal.check_hash(buffer.path, digest, expected)
    _check_header(buffer.path, buffer.header, bytes(host_view(buffer.data[: buffer.header.data_start])))
    buffer.digest = digest


def _check_header(path: str, planned: header.Header, verified: bytes) -> None:
    """Compare the header that a plan was made from with the one in verified bytes."""
    if planned.raw != verified:
        raise Rejection("header_invalid", f"{path}: its header changed while it was loaded, expected the planned one")
