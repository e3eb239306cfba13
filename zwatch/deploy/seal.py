"""The seal: the file `BLAKE3SUMS` that names every file of a version with its blake3 hash."""

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from blake3 import blake3

from zwatch.deploy import header
from zwatch.deploy.durable import remove_leftovers, write_durably
from zwatch.errors import Rejection

SEAL_NAME = "BLAKE3SUMS"
SIGNATURE_NAME = "BLAKE3SUMS.sig"
MAX_SEAL = 16 * 2**20
"""Longest accepted seal, bytes: some 100,000 files."""
CHUNK = 8 * 2**20

Progress = Callable[[str, int], None]
"""Called with a file's path and how many more of its bytes are done."""

_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


@dataclass(frozen=True, slots=True)
class Seal:
    """A parsed seal: its own digest, and the hash of every sealed file by its relative path."""

    digest: str
    files: Mapping[str, str]


def parse_seal(data: bytes) -> Seal:
    """Parse the bytes of a seal file.

    Raises:
        Rejection: `seal_invalid`, with the line number.
    """
    if not data:
        raise Rejection("seal_invalid", f"{SEAL_NAME} is empty; run `zwatch seal`")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _bad(data.count(b"\n", 0, error.start) + 1, f"not UTF-8 at byte {error.start}") from None
    if not text.endswith("\n"):
        raise _bad(text.count("\n") + 1, "the last line has no line end; is the copy complete?")
    files: dict[str, str] = {}
    for number, line in enumerate(text[:-1].split("\n"), 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise _bad(number, f"expected 64 hex digits, two spaces and a path, found {line[:120]!r}")
        digest, path = match.groups()
        problem = _path_problem(path)
        if problem is not None:
            raise _bad(number, f"{path[:200]!r} {problem}")
        if path in files:
            raise _bad(number, f"{path[:200]!r} is listed a second time")
        files[path] = digest
    return Seal(blake3(data).hexdigest(), files)


def format_seal(files: Mapping[str, str]) -> bytes:
    """Return the bytes of the seal for these hashes by path, as `b3sum` prints them, sorted by path."""
    return "".join(f"{files[path]}  {path}\n" for path in sorted(files)).encode()


def seal_missing() -> Rejection:
    """Return the rejection of a version without a seal."""
    return Rejection("seal_missing", f"there is no {SEAL_NAME}; run `zwatch seal`")


def read_seal(directory_fd: int) -> Seal:
    """Read and parse the seal of an opened version directory.

    Raises:
        Rejection: `seal_missing` or `seal_invalid`.
        OSError: it could not be read.
    """
    return parse_seal(read_seal_bytes(directory_fd))


def read_seal_bytes(directory_fd: int) -> bytes:
    """Return the seal file's bytes, unparsed.

    Raises:
        Rejection: `seal_missing`, or `seal_invalid` if it is not a regular file or too long.
        OSError: it could not be read.
    """
    try:
        with opened_file(directory_fd, SEAL_NAME) as fd, open(fd, "rb", closefd=False) as file:
            data = file.read(MAX_SEAL + 1)
    except Rejection as rejection:
        if rejection.code == "file_missing":
            raise seal_missing() from None
        raise Rejection("seal_invalid", rejection.reason) from None
    if len(data) > MAX_SEAL:
        raise Rejection("seal_invalid", f"{SEAL_NAME} is longer than {MAX_SEAL} bytes")
    return data


@contextmanager
def opened_file(directory_fd: int, path: str) -> Iterator[int]:
    """Open a regular file below an opened directory, following no symlink on the way.

    Raises:
        Rejection: `file_missing` or `file_not_regular`, naming the path.
        OSError: any other failure.
    """
    *folders, name = path.split("/")
    fd = os.dup(directory_fd)
    try:
        for folder in folders:
            fd = _step(fd, folder, os.O_DIRECTORY, path)
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        fd = _step(fd, name, os.O_NONBLOCK, path)
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            raise Rejection("file_not_regular", f"{path}: expected a regular file, found {_kind(mode)}")
        yield fd
    finally:
        os.close(fd)


@contextmanager
def opened_sealed(directory_fd: int, sealed: Seal, path: str) -> Iterator[int]:
    """Open a sealed file as `opened_file` does; anything but a regular file is rejected with its line of the seal, and a
    read that fails inside names the path.

    Raises:
        Rejection, OSError: as `opened_file`.
    """
    try:
        with opened_file(directory_fd, path) as fd:
            yield fd
    except Rejection as rejection:
        if rejection.code != "file_not_regular":
            raise
        line = list(sealed.files).index(path) + 1
        raise Rejection(rejection.code, f"{SEAL_NAME} line {line}: {rejection.reason}") from None
    except OSError as error:
        if error.filename is None:
            error.filename = path  # not another error: raised through an ExitStack it would hold all frames
        raise


def hash_file(fd: int, advance: Callable[[int], None] = lambda done: None) -> str:
    """Return the blake3 of an open file's bytes as hex. `advance` gets the bytes done since its last call."""
    hasher = blake3(max_threads=blake3.AUTO)
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    position = 0
    while count := os.preadv(fd, [buffer], position):
        hasher.update(view[:count])
        position += count
        advance(count)
    return hasher.hexdigest()


def write_seal(directory: Path, version: str, progress: Progress = lambda path, done: None) -> Seal:
    """Write the version into the transformer's headers, hash every file, and write the seal last. `progress` gets the
    transformer's bytes twice, the others' once.

    Raises:
        Rejection: something in the directory cannot be sealed; nothing is written then but header versions.
        OSError: a file could not be read or written.
    """
    paths = sealable_files(directory)
    weights = [path for path in paths if header.carries_version(path)]
    if not weights:
        raise Rejection(
            "file_missing", f"{directory}: no transformer/*.safetensors to write the version into; is this a pipeline?"
        )
    for path in weights:
        header.write_version(directory / path, version, partial(progress, path))
        header.remove_leftover(directory / path)
    hashes: dict[str, str] = {}
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path in paths:
            with opened_file(fd, path) as file:
                hashes[path] = hash_file(file, partial(progress, path))
        data = format_seal(hashes)
        remove_leftovers(directory, SEAL_NAME)
        write_durably(directory, SEAL_NAME, data, mode=0o644)
    finally:
        os.close(fd)
    return parse_seal(data)


def sealable_files(directory: Path) -> list[str]:
    """Return the relative paths of all files that a seal of this directory covers, sorted.

    A symlink directly in the directory is left out (it may be a wish, see `strays`); one deeper is refused.

    Raises:
        Rejection: a path that a seal cannot name, or not a regular file.
    """
    found = []
    for folder, folders, names in os.walk(directory, onerror=_raise):
        here = Path(folder)
        folders.sort()
        for name in [*folders, *names]:
            path = here / name
            relative = path.relative_to(directory).as_posix()
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode) or (
                here == directory and (name in (SEAL_NAME, SIGNATURE_NAME) or stat.S_ISLNK(mode))
            ):
                continue
            if stat.S_ISLNK(mode):
                text = os.readlink(path)
                raise Rejection(
                    "file_not_regular",
                    f"{relative} -> {text}: a symlink cannot be sealed; if it stands for a file, put the file itself there "
                    f"(cp -L), and if `ln -sf` left it there, remove it: rm {path}",
                )
            if not stat.S_ISREG(mode):
                raise Rejection("file_not_regular", f"{relative}: {_kind(mode)} cannot be sealed; remove it: rm {path}")
            problem = _path_problem(relative)
            if problem is not None:
                raise Rejection("seal_invalid", f"{relative!r} {problem}; rename it")
            if not name.startswith(f".{SEAL_NAME}.") and not name.endswith(header.WRITING_SUFFIX):
                found.append(relative)
    return sorted(found)


def check_directory(directory: Path, version: str, progress: Progress = lambda path, done: None) -> list[str]:
    """Verify a version on the CPU and return what differs, a sentence each; nothing means verified.

    Raises:
        OSError: the directory could not be opened.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            sealed = read_seal(fd)
        except Rejection as rejection:
            return [rejection.reason]
        findings = []
        for path, expected in sealed.files.items():
            try:
                with opened_sealed(fd, sealed, path) as file:
                    found = hash_file(file, partial(progress, path))
                    check_hash(path, found, expected)
                    if path.endswith(".safetensors"):
                        parsed = header.read_header(file, path)
                        if header.carries_version(path):
                            header.check_version(parsed, version, path)
            except Rejection as rejection:
                findings.append(rejection.reason)
            except OSError as error:
                findings.append(f"{path}: {error.strerror}")
        if not any(map(header.carries_version, sealed.files)):
            findings.append(f"{SEAL_NAME}: names no transformer/*.safetensors")
        return findings
    finally:
        os.close(fd)


def check_hash(path: str, found: str, expected: str) -> None:
    """Compare a file's hash with its seal.

    Raises:
        Rejection: `hash_mismatch`, with both.
    """
    if found != expected:
        raise Rejection("hash_mismatch", f"{path}: blake3 is {found}, the seal says {expected}")


def _bad(line: int, what: str) -> Rejection:
    return Rejection("seal_invalid", f"{SEAL_NAME} line {line}: {what}")


def _path_problem(path: str) -> str | None:
    if path.startswith("/"):
        return "is absolute; sealed paths are relative to the version"
    if any(part in ("", ".", "..") for part in path.split("/")):
        return "is not a normalised path below the version"
    if any(ord(character) < 32 or character in "\\\x7f" for character in path):
        return "has a control character or a backslash"
    if path in (SEAL_NAME, SIGNATURE_NAME):
        return "is the seal itself or its signature"
    if any("\ud800" <= character <= "\udfff" for character in path):
        return "is not UTF-8"
    return None


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFLNK: "a symlink",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFREG: "a regular file",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")


def _step(fd: int, name: str, flags: int, path: str) -> int:
    """Open `name` below `fd` and close `fd` on success."""
    try:
        deeper = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=fd)
    except FileNotFoundError:
        raise Rejection("file_missing", f"{path}: the seal names it, it is not there") from None
    except OSError as error:
        mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
        if flags & os.O_DIRECTORY and not stat.S_ISDIR(mode):
            raise Rejection("file_not_regular", f"{path}: {name} is {_kind(mode)}, expected a directory") from None
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise Rejection("file_not_regular", f"{path}: expected a regular file, found {_kind(mode)}") from None
        raise OSError(error.errno, error.strerror, path) from None
    os.close(fd)
    return deeper


def _raise(error: OSError) -> None:
    raise error
