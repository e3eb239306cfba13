"""The seal: the file `BLAKE3SUMS` that names every file that a version's pipeline needs, with its blake3 hash."""

import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from blake3 import blake3

from zwatch.deploy.oserrors import close_quietly
from zwatch.errors import Rejection

SEAL_NAME = "BLAKE3SUMS"
SIGNATURE_NAME = "model.sig"
MAX_SEAL = 16 * 2**20
"""Longest accepted seal, bytes: some 100,000 files."""

_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


@dataclass(frozen=True, slots=True)
class Seal:
    """A parsed seal: its own digest, and the hash of every sealed file by its relative path."""

    digest: str
    files: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Known:
    """What an earlier seal tells of files that must not change: their hashes by path. Those that are `read` were read and compared
    with it since, and have not changed; they need not be read again."""

    hashes: Mapping[str, str] = field(default_factory=dict)
    read: Collection[str] = ()


NOTHING_KNOWN = Known()


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
        problem = path_problem(path)
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
        with opened_file(directory_fd, SEAL_NAME) as fd:
            if os.fstat(fd).st_size > MAX_SEAL:
                raise Rejection("seal_invalid", f"{SEAL_NAME} is longer than {MAX_SEAL} bytes")
            data = read_whole(fd)
    except Rejection as rejection:
        if rejection.code == "file_missing":
            raise seal_missing() from None
        raise Rejection("seal_invalid", rejection.reason) from None
    return data


def read_whole(fd: int) -> bytes:
    """Return an open file's bytes. It takes as much memory as the file has bytes: `read` with a limit takes as much as the
    limit.

    Raises:
        OSError: it could not be read.
    """
    with open(fd, "rb", closefd=False) as file:
        return file.read(os.fstat(fd).st_size + 1)


@contextmanager
def opened_file(directory_fd: int, path: str) -> Iterator[int]:
    """Open a regular file below an opened directory, following no symlink on the way.

    Raises:
        Rejection: `file_missing` or `file_not_regular`, naming the path.
        OSError: any other failure, naming the path, also of what is done inside.
    """
    *folders, name = path.split("/")
    fd = -1
    try:
        fd = os.dup(directory_fd)
        for folder in folders:
            fd = _step(fd, folder, os.O_DIRECTORY, path)
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        fd = _step(fd, name, os.O_NONBLOCK, path)
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            raise Rejection("file_not_regular", f"{path}: expected a regular file, found {kind(mode)}")
        yield fd
    except OSError as error:
        if not isinstance(error.filename, str):
            error.filename = path  # not another error: raised through an ExitStack it would hold all frames
        raise
    finally:
        if fd >= 0:
            close_quietly(fd)


@contextmanager
def opened_sealed(directory_fd: int, sealed: Seal, path: str) -> Iterator[int]:
    """Open a sealed file as `opened_file` does; anything but a regular file is rejected with its line of the seal.

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


def check_hash(path: str, found: str, expected: str) -> None:
    """Compare a file's hash with its seal.

    Raises:
        Rejection: `hash_mismatch`, with both.
    """
    if found != expected:
        raise Rejection("hash_mismatch", f"{path}: blake3 is {found}, the seal says {expected}")


def _bad(line: int, what: str) -> Rejection:
    return Rejection("seal_invalid", f"{SEAL_NAME} line {line}: {what}")


def path_problem(path: str) -> str | None:
    """Return why a seal cannot have this path, None if it can."""
    if path.startswith("/"):
        return "is absolute; sealed paths are relative to the version"
    if any(part in ("", ".", "..") for part in path.split("/")):
        return "is not a normalised path below the version"
    if any(ord(character) < 32 or character in "\\\x7f" for character in path):
        return "has a control character or a backslash"
    if path == "-":
        return "is what b3sum takes for its standard input"
    if path in (SEAL_NAME, SIGNATURE_NAME):
        return "is the seal itself or its signature"
    if any("\ud800" <= character <= "\udfff" for character in path):
        return "is not UTF-8"
    if "\ufffd" in path:
        return "has the replacement character U+FFFD, which b3sum takes for a name that is not UTF-8"
    return None


def kind(mode: int) -> str:
    """Return what a file is, by its mode."""
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
        error.filename = path
        with suppress(OSError):  # what is there is not known: the first error says why
            mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
            if flags & os.O_DIRECTORY and not stat.S_ISDIR(mode):
                raise Rejection("file_not_regular", f"{path}: {name} is {kind(mode)}, expected a directory") from None
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise Rejection("file_not_regular", f"{path}: expected a regular file, found {kind(mode)}") from None
        raise
    close_quietly(fd)
    return deeper
