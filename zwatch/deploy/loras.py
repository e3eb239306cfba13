"""The LoRA root: what a look tells of each LoRA in it, and opening one. `lora_files` has what they are made of."""

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from zwatch.deploy import header, provenance, seal, versions
from zwatch.deploy.header import Header
from zwatch.deploy.lora_files import HINT, PREFIX, WEIGHTS, Matrix, check_header
from zwatch.deploy.oserrors import close_quietly, is_missing
from zwatch.deploy.resolving import Directory
from zwatch.deploy.seal import SEAL_NAME, SIGNATURE_NAME, Seal
from zwatch.errors import Rejection, Retry

__all__ = [
    "PREFIX",
    "WEIGHTS",
    "FoundLora",
    "LoraRoot",
    "Matrix",
    "OpenedLora",
    "describe",
    "missing",
    "open_directory",
]
_WEIGHT_FILES = (".safetensors", ".gguf", ".bin", ".ckpt", ".pkl", ".pt", ".pth")
_TEXTS = ("readme", "license", "licence", "notice", "copying")
_IMPORT = "`zwatch import FILE NAME --lora` makes a LoRA's directory of a file"

MOST_HELD = 16
"""Files beside the factors that are held open."""

Stamp = tuple[int, ...]


def stamp_of(found: os.stat_result) -> Stamp:
    """Return what changes with a file's content, owner or place."""
    return found.st_dev, found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns


SignerOf = Callable[[int, str, str], str]
"""Returns who signed an opened directory that has this name in a policy, and this digest; it raises a Rejection if nobody did who
may."""


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
    signer: str | None = None


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
    signer: str | None = None
    """Who signed it, where signatures are required."""
    files: dict[str, int] = field(default_factory=dict)
    """Descriptors of its sealed files by path: what was opened can be read though it is removed. The factors' is always there,
    that of another file only if it is one of the first `MOST_HELD` and was there."""
    stamps: tuple[Stamp, ...] = ()
    """What changes with the directory and with the content of the factors, as they were when they were opened."""

    @property
    def digest(self) -> str:
        """The blake3 of the seal: what the LoRA is."""
        return self.seal.digest

    @contextmanager
    def opened(self, path: str = WEIGHTS) -> Iterator[int]:
        """Open a sealed file, that of the factors if no other is named; inside it is at its beginning.

        Raises:
            Rejection: it is not there, or no regular file.
            OSError: it cannot be opened.
        """
        if (held := self.files.get(path)) is not None:
            os.lseek(held, 0, os.SEEK_SET)
            yield held
            return
        with seal.opened_sealed(self.directory.fd, self.seal, path) as fd:
            yield fd

    def close(self) -> None:
        """Close the directory and the files; harmless when called again."""
        self.directory.close()
        while self.files:
            close_quietly(self.files.popitem()[1])


def open_directory(fd: int, name: str, signer_of: SignerOf | None = None) -> OpenedLora:
    """Return a LoRA whose directory is open as `fd`, which belongs to what is returned, or is closed.

    Raises:
        Rejection: it has no valid seal, or its files are not those of a LoRA.
        OSError: something could not be read.
    """
    directory, files = Directory(fd, name), dict[str, int]()
    try:
        sealed = seal.read_seal(fd)
        signer = None if signer_of is None else signer_of(fd, f"{PREFIX}{name}", sealed.digest)
        if WEIGHTS not in sealed.files:
            raise Rejection("weights_mismatch", f"{SEAL_NAME}: names no {WEIGHTS}, so this is no LoRA; {HINT}")
        with seal.opened_sealed(fd, sealed, WEIGHTS) as file:
            files[WEIGHTS] = os.dup(file)
        stamps = (stamp_of(os.fstat(fd)), stamp_of(os.fstat(files[WEIGHTS])))
        found = header.read_header(files[WEIGHTS], WEIGHTS)
        matrices = check_header(found, name)
        for path in [path for path in sealed.files if path != WEIGHTS][:MOST_HELD]:
            with (
                suppress(Rejection, OSError),
                seal.opened_sealed(fd, sealed, path) as file,
            ):  # whoever reads it says what is wrong
                files[path] = os.dup(file)
        return OpenedLora(name, directory, sealed, found, matrices, signer, files, stamps)
    except BaseException:
        directory.close()
        for held in files.values():
            close_quietly(held)
        raise


class LoraRoot:
    """The directory with the LoRAs. One that is not there has none, which is no error: it may be made later.

    Everything here blocks; run it in a thread. Two threads may look: at worst both read what one would have.
    """

    def __init__(self, path: Path, signer_of: SignerOf | None = None) -> None:
        """`signer_of` is asked where signatures are required, before anything but the seal is read."""
        self.path = path
        self._signer_of = signer_of
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

    def refuse(self, lora: OpenedLora, rejection: Rejection) -> None:
        """Note that a LoRA was read and cannot be used; looks say so until one of its files changes. Nothing is noted of one that
        is no longer what has its name."""
        name, known = lora.name, self._known.get(lora.name)
        if known is None or known.lora.digest != lora.digest or rejection.retry is Retry.BACKOFF:
            return
        if (known.stamps[0], known.stamps[_OF_WEIGHTS]) == lora.stamps:
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
                return _opened(root_fd, name, self._signer_of)
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


def _opened(root_fd: int, name: str, signer_of: SignerOf | None = None) -> OpenedLora:
    if (problem := versions.name_problem(name, "a LoRA's")) is not None:
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
    return open_directory(fd, name, signer_of)


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


_Stamps = Sequence[Stamp]
_OF_WEIGHTS = 2
"""Where the stamp of the factors is among those of a LoRA; that of the directory is the first."""


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
    return stamp_of(found)
