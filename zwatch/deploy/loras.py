"""LoRAs on disk: sealed directories under the LoRA root, each with the factors of one LoRA in one layout.

    loras/ink/lora.safetensors    for each matrix that it changes `<module>.lora_A.weight` (rank, in) and `<module>.lora_B.weight` (out, rank)
    loras/ink/zwatch.json         where it came from
    loras/ink/BLAKE3SUMS          the seal, as a version has it

`<module>` is the name of the transformer's weight without `.weight`, as diffusers has it. A LoRA adds scale * B @ A to the weight:
alpha is in B already. All tensors have one dtype. The header's `version` is the directory's name. `zwatch import FILE NAME --lora`
makes such a directory of what trainers write.
"""

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from zwatch.deploy import header, pipeline_files, provenance, seal, versions
from zwatch.deploy.header import Header
from zwatch.deploy.oserrors import close_quietly, is_missing
from zwatch.deploy.resolving import Directory
from zwatch.deploy.seal import SEAL_NAME, SIGNATURE_NAME, Seal
from zwatch.errors import Rejection, Retry

WEIGHTS = header.LORA
PREFIX = "lora/"
"""What the name of a LoRA begins with where versions have names, too: in a signature's policy."""
DTYPES = ("BF16", "F16", "F32")
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<kind>[AB])\.weight")
_WEIGHT_FILES = (".safetensors", ".gguf", ".bin", ".ckpt", ".pkl", ".pt", ".pth")
_TEXTS = ("readme", "license", "licence", "notice", "copying")
_IMPORT = "`zwatch import FILE NAME --lora` makes a LoRA's directory of a file"
_HINT = "`zwatch import FILE NAME --lora` makes such a file of what trainers write"


@dataclass(frozen=True, slots=True)
class Matrix:
    """What a LoRA has for one matrix of the transformer, of shape (rows, columns): factors of this rank."""

    rank: int
    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class FoundLora:
    """What a look at a LoRA's seal and header tells, without reading its factors. `bytes` counts the factors, `rank` is the
    greatest. `problem` says why requests cannot use it, with the `code` of a rejection; both are None if they can."""

    name: str
    digest: str | None = None
    bytes: int = 0
    rank: int = 0
    modules: int = 0
    sealed_at: datetime | None = None
    code: str | None = None
    problem: str | None = None


@dataclass(slots=True)
class OpenedLora:
    """A LoRA to be loaded: its opened directory, its seal, and the header of its factors. The factors themselves are not
    verified yet: whoever reads them compares their hash with `seal.files[WEIGHTS]`."""

    name: str
    directory: Directory
    seal: Seal
    header: Header
    matrices: Mapping[str, Matrix]
    """By the name of the transformer's weight, without `.weight`."""

    @property
    def digest(self) -> str:
        """The blake3 of the seal: what the LoRA is."""
        return self.seal.digest

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Open the file of the factors.

        Raises:
            Rejection: it is not there, or no regular file.
            OSError: it cannot be opened.
        """
        with seal.opened_sealed(self.directory.fd, self.seal, WEIGHTS) as fd:
            yield fd

    def close(self) -> None:
        """Close the directory; harmless when called again."""
        self.directory.close()


def is_lora_directory(directory: Path) -> bool:
    """Say whether a directory is a LoRA's rather than a version's."""
    return os.path.lexists(directory / WEIGHTS) and not os.path.lexists(directory / pipeline_files.INDEX)


def matrices(found: Header, path: str = WEIGHTS) -> dict[str, Matrix]:
    """Return what a LoRA has for each matrix, from the header of its factors.

    Raises:
        Rejection: `weights_mismatch`: it is not laid out as described above.
    """
    factors: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, info in found.tensors.items():
        match = _FACTOR.fullmatch(name)
        if match is None:
            raise _mismatch(f"{path}: {name[:200]!r} is no factor of a LoRA, expected MODULE.lora_A.weight and MODULE.lora_B.weight; {_HINT}")  # fmt: skip
        factors.setdefault(match["module"], {})[match["kind"]] = info.shape
    if not factors:
        raise _mismatch(f"{path}: it has no tensors, expected the factors of a LoRA; {_HINT}")
    if len(dtypes := sorted({info.dtype for info in found.tensors.values()})) > 1 or dtypes[0] not in DTYPES:
        raise _mismatch(f"{path}: its tensors are {' and '.join(dtypes)}, expected one of {', '.join(DTYPES)}; {_HINT}")
    return {module: _matrix(path, module, shapes) for module, shapes in factors.items()}


def _matrix(path: str, module: str, shapes: Mapping[str, tuple[int, ...]]) -> Matrix:
    down, up = shapes.get("A"), shapes.get("B")
    if down is None or up is None:
        raise _mismatch(f"{path}: {module[:200]!r} has only its lora_{'B' if down is None else 'A'}, the other factor is missing")  # fmt: skip
    if len(down) != 2 or len(up) != 2 or down[0] != up[1] or 0 in (*down, *up):
        raise _mismatch(f"{path}: {module[:200]!r}: lora_A {list(down)} and lora_B {list(up)} do not fit each other, expected (rank, in) and (out, rank)")  # fmt: skip
    return Matrix(down[0], up[0], down[1])


def _mismatch(reason: str) -> Rejection:
    return Rejection("weights_mismatch", reason)


def check_header(found: Header, name: str, path: str = WEIGHTS) -> dict[str, Matrix]:
    """Check the header of a LoRA's factors, and that it has the LoRA's name; return what it has for each matrix.

    Raises:
        Rejection: `weights_mismatch` or `version_mismatch`.
    """
    made = matrices(found, path)
    header.check_version(found, name, path)
    return made


def open_directory(fd: int, name: str) -> OpenedLora:
    """Return a LoRA whose directory is open as `fd`, which belongs to what is returned, or is closed.

    Raises:
        Rejection: it has no valid seal, or its files are not those of a LoRA.
        OSError: something could not be read.
    """
    directory = Directory(fd, name)
    try:
        sealed = seal.read_seal(fd)
        if WEIGHTS not in sealed.files:
            raise _mismatch(f"{SEAL_NAME}: names no {WEIGHTS}, so this is no LoRA; {_HINT}")
        with seal.opened_sealed(fd, sealed, WEIGHTS) as file:
            found = header.read_header(file, WEIGHTS)
        return OpenedLora(name, directory, sealed, found, check_header(found, name))
    except BaseException:
        directory.close()
        raise


class LoraRoot:
    """The directory with the LoRAs. One that is not there has none, which is no error: it may be made later.

    Everything here blocks; run it in a thread. Two threads may look: at worst both read what one would have.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fault: str | None = None
        """Why the LoRA root could not be read at the last look; None if it could, or is not there."""
        self._known: Mapping[str, _Known] = {}
        self._refused: dict[str, _Known] = {}

    def look(self) -> list[FoundLora]:
        """Return all LoRAs, sorted by name, and what seems to be meant as one. Nothing is raised; an unchanged LoRA costs some
        stats, and is not opened."""
        fault, found = None, []
        try:
            with versions.opened(self.path) as root_fd:
                found = self._look(root_fd)
        except OSError as error:
            self._known = {}
            if not isinstance(error, FileNotFoundError):
                fault = f"{self.path}: {error.strerror}; expected the LoRA root, see --loras"
        self.fault = fault
        return found

    def _look(self, root_fd: int) -> list[FoundLora]:
        before, now = self._known, dict[str, _Known]()
        with os.scandir(root_fd) as entries:
            names = sorted(entry.name for entry in entries if _is_meant(entry))
        for name in names:
            stamps = _stamps(root_fd, name)
            known = before.get(name)
            if (
                known is None or known.stamps != stamps or known.lora.code == "io_error"
            ):  # an error may pass without a trace
                # Stamped before it is read: what changes meanwhile is read again at the next look.
                known = _Known(describe(root_fd, name), stamps)
            now[name] = known
        self._known = now
        return [self._judged(name, known) for name, known in now.items()]

    def _judged(self, name: str, known: "_Known") -> FoundLora:
        refused = self._refused.get(name)
        if refused is None or refused.stamps != known.stamps or known.lora.problem is not None:
            self._refused.pop(name, None)
            return known.lora
        return replace(known.lora, code=refused.lora.code, problem=refused.lora.problem)

    def refuse(self, name: str, digest: str, rejection: Rejection) -> None:
        """Note that a LoRA was read and cannot be used; looks say so until one of its files changes."""
        known = self._known.get(name)
        if known is not None and known.lora.digest == digest and rejection.retry is not Retry.BACKOFF:
            self._refused[name] = _Known(
                replace(known.lora, code=rejection.code, problem=rejection.reason), known.stamps
            )

    def open_lora(self, name: str) -> OpenedLora:
        """Open a LoRA by its name.

        Raises:
            Rejection: there is none of that name (`file_missing`), or it cannot be used, with the reason.
            OSError: it could not be read.
        """
        try:
            with versions.opened(self.path) as root_fd:
                return _opened(root_fd, name)
        except OSError as error:
            if is_missing(error):
                raise missing(name, self.path) from None
            raise


def missing(name: str, root: Path) -> Rejection:
    """Return the rejection of a LoRA that is not there."""
    return Rejection(
        "file_missing", f"there is no LoRA {name[:100]!r} in {root}; GET /loras lists those that are there"
    )


def describe(root_fd: int, name: str) -> FoundLora:
    """Look at one entry of the LoRA root; a bad one is described by its `problem`. Nothing is raised."""
    try:
        lora = _opened(root_fd, name)
    except Rejection as rejection:
        return _sized(root_fd, replace(_bare(root_fd, name), code=rejection.code, problem=rejection.reason))
    except OSError as error:
        where = f"{error.filename}: " if isinstance(error.filename, str) and error.filename != name else ""
        return FoundLora(name, code="io_error", problem=f"{where}{error.strerror}; it is looked at again")
    try:
        rank = max(one.rank for one in lora.matrices.values())
        found = FoundLora(name, lora.digest, lora.header.file_size, rank, len(lora.matrices))
        return replace(found, sealed_at=_sealed_at(lora.directory.fd))
    finally:
        lora.close()


def _opened(root_fd: int, name: str) -> OpenedLora:
    if (problem := versions.name_problem(name)) is not None:
        raise Rejection("file_not_regular", f"{name[:100]!r}: {problem}")
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root_fd)
    except OSError as error:
        try:
            mode = os.stat(name, dir_fd=root_fd, follow_symlinks=False).st_mode
        except OSError:
            raise error from None  # what is there is not known: the first error says why
        if stat.S_ISDIR(mode):
            raise
        what = _IMPORT if stat.S_ISREG(mode) else "a LoRA is a directory with its files in it, nothing else is followed"
        raise Rejection("file_not_regular", f"{name}: expected a directory, found {seal.kind(mode)}; {what}") from None
    return open_directory(fd, name)


def _bare(root_fd: int, name: str) -> FoundLora:
    """Return what the seal alone tells of a LoRA that cannot be used."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root_fd)
    except OSError:
        return FoundLora(name)
    try:
        return FoundLora(name, seal.read_seal(fd).digest, sealed_at=_sealed_at(fd))
    except (Rejection, OSError):
        return FoundLora(name)
    finally:
        close_quietly(fd)


def _sized(root_fd: int, lora: FoundLora) -> FoundLora:
    try:
        return replace(lora, bytes=os.stat(f"{lora.name}/{WEIGHTS}", dir_fd=root_fd, follow_symlinks=False).st_size)
    except OSError:
        return lora


def _sealed_at(fd: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(os.stat(SEAL_NAME, dir_fd=fd).st_mtime, UTC)
    except (OSError, OverflowError, ValueError):  # the seal's time is no date
        return None


def _is_meant(entry: os.DirEntry[str]) -> bool:
    """Say whether an entry of the LoRA root is a LoRA, or seems to be meant as one: no text that lies beside them."""
    if entry.name.startswith(".") or not entry.name.isprintable():
        return False
    try:
        is_file = entry.is_file(follow_symlinks=False)
    except OSError:
        return True
    return (
        not is_file
        or entry.name.lower().endswith(_WEIGHT_FILES)
        or not ("." in entry.name or entry.name.lower() in _TEXTS)
    )


_Stamps = Sequence[tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class _Known:
    """What was found of a LoRA, and the stamps of the files that it depends on."""

    lora: FoundLora
    stamps: _Stamps


def _stamps(root_fd: int, name: str) -> _Stamps:
    paths = (name, *(f"{name}/{file}" for file in (SEAL_NAME, WEIGHTS, provenance.NAME, SIGNATURE_NAME)))
    return [_stamp(root_fd, path) for path in paths]


def _stamp(root_fd: int, path: str) -> tuple[int, ...]:
    """Return what changes with a file's content, owner or place, or the error's number."""
    try:
        found = os.stat(path, dir_fd=root_fd, follow_symlinks=False)
    except OSError as error:
        return (error.errno or 0,)
    return found.st_dev, found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns
