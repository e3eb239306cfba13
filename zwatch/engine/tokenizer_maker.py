"""Making tokenizers in processes of their own, and keeping what they made for the next start."""

import json
import logging
import signal
import subprocess
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path

from blake3 import blake3

from zwatch import __version__
from zwatch.engine import tokenizer_proof
from zwatch.engine.kept_files import KeptFiles
from zwatch.engine.tokenizer import MadeTokenizer, Tokenizer
from zwatch.engine.tokenizer_process import TokenizerProcess
from zwatch.engine.tokenizer_service import TokenizerService
from zwatch.errors import Rejection
from zwatch.lanes import start_thread

_log = logging.getLogger(__name__)

MAX_FILE = 32 * 2**20
"""Largest accepted file of a tokenizer, bytes. Qwen3's has 11 MB."""
LARGE = 2**20
"""Bytes from which on a tokenizer is in a process of its own: less is built in some 50 ms."""
_KEPT = 4
"""Tokenizers that are kept, in memory and on disk: the versions of months share one or two."""
_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP}

Files = Mapping[str, bytes]
"""A tokenizer's files: their bytes by name inside its folder."""


@dataclass(frozen=True, slots=True)
class _Made:
    """A tokenizer as `MadeTokenizer.packed` returns it, and what its first line says."""

    packed: bytes
    has_template: bool
    last_token: tuple[str, int]

    @classmethod
    def of(cls, packed: bytes) -> "_Made":
        """Read the first line.

        Raises:
            ValueError, TypeError, LookupError: it is something else.
        """
        about = json.loads(packed[: packed.index(b"\n")])
        token, number = about["last_token"]
        return cls(packed, about["has_template"], (token, number))


_lock = threading.Lock()
_made: OrderedDict[str, Future[_Made | Rejection]] = OrderedDict()
"""Of this process, by digest: those last made, which a deploy most likely needs again."""


class TokenizerMaker:
    """Makes each tokenizer once. `cache` is the directory in which they are kept; None keeps none."""

    def __init__(self, cache: Path | None = None) -> None:
        self._kept = KeptFiles(cache, ".tokenizer", _KEPT)
        self._spare: list[TokenizerProcess] = []

    def prepare(self) -> None:
        """Start the process that makes the first tokenizer, if none is known: it has to be made, and importing what that needs
        takes seconds."""
        with suppress(OSError):  # tried again when it is needed
            if not _made and self._kept.is_empty:
                self._spare.append(TokenizerProcess())

    def begin(self, files: Files) -> Future[_Made | Rejection]:
        """Begin to make a tokenizer in a thread; the result is the same for equal files.

        Raises:
            Rejection: `config_invalid`, a file is too large.
        """
        digest = _digest(files)
        with _lock:
            found = _made.get(digest)
            if found is not None:
                return found
            future = _made[digest] = Future()
            while len(_made) > _KEPT:
                _made.popitem(last=False)
        making = threading.Thread(target=self._make, args=(future, digest, files), name="zwatch-tokenizer", daemon=True)
        try:
            start_thread(making)
        except OSError as error:
            future.set_result(Rejection("io_error", f"tokenizer: {error.strerror}"))
        return future

    def get(self, files: Files) -> Tokenizer | TokenizerService:
        """Return a tokenizer.

        Raises:
            Rejection: `config_invalid`, it is none, or takes too much time or memory; `stalled`, `out_of_memory` or
                `io_error`, it could not be made now.
            OSError: the process that a large one needs could not be started.
        """
        made = self.begin(files).result()
        if isinstance(made, Rejection):
            with _lock:
                _made.pop(_digest(files), None)  # the next load tries again
            raise Rejection(made.code, made.reason)  # one of its own: its frames hold what was loaded
        if not made.has_template:
            raise Rejection("config_invalid", "tokenizer: it has no chat template, which is needed to encode prompts")
        if len(made.packed) <= LARGE:
            return Tokenizer(MadeTokenizer.unpacked(made.packed))
        return TokenizerService(made.packed, made.last_token)

    def _make(self, future: Future[_Made | Rejection], digest: str, files: Files) -> None:
        try:
            if (made := self._read(digest)) is None:
                made = made_by_process(files, self._taken_spare())
                self._kept.write(digest, made.packed)
            future.set_result(made)
        except Rejection as rejection:
            future.set_result(rejection)
        except OSError as error:
            future.set_result(Rejection("io_error", f"tokenizer: {error.strerror or error}"))
        except BaseException as error:
            _log.exception("making a tokenizer failed unexpectedly")
            future.set_result(Rejection("internal_error", f"tokenizer: {type(error).__name__}: {error}"))

    def _taken_spare(self) -> TokenizerProcess | None:
        with _lock:  # two tokenizers may be made at once
            return self._spare.pop() if self._spare else None

    def _read(self, digest: str) -> _Made | None:
        """Return a tokenizer that was kept, if it can be used."""
        with suppress(ValueError, TypeError, LookupError):
            if (packed := self._kept.read(digest)) is not None:
                return _Made.of(packed)
        return None


def _digest(files: Files) -> str:
    """Return what a tokenizer is recognized by: its files, and what makes it.

    Raises:
        Rejection: `config_invalid`, a file is too large.
    """
    made_by = [installed(name) for name in ("transformers", "tokenizers")]
    hasher = blake3(json.dumps([__version__, *made_by]).encode())
    for name, data in sorted(files.items()):
        if len(data) > MAX_FILE:
            raise Rejection("config_invalid", f"tokenizer/{name}: found {len(data)} bytes, expected at most {MAX_FILE}")
        hasher.update(f"{name}\0{len(data)}\0".encode(errors="surrogateescape"))
        hasher.update(data)
    return hasher.hexdigest()


def made_by_process(files: Files, spare: TokenizerProcess | None = None) -> _Made:
    """Make a tokenizer in a process of its own: `spare`, if there is one.

    Raises:
        Rejection: as `TokenizerMaker.get`.
        OSError: the process could not be started.
    """
    process = spare if spare is not None and spare.is_alive else TokenizerProcess()
    # The library reads files by path: write it a private copy of the verified bytes.
    with tempfile.TemporaryDirectory(prefix="zwatch-tokenizer-") as folder:
        for name, data in files.items():
            path = Path(folder, "files", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        result = Path(folder, "result.json")
        _run(process, Path(folder, "files"), result)
        found = result.read_bytes()
    if b"\n" not in found:
        raise Rejection("config_invalid", f"tokenizer: {json.loads(found)['error']}")
    return _Made.of(found)


def _run(process: TokenizerProcess, folder: Path, result: Path) -> None:
    try:
        status, said, errors = process.make(folder, result)
    except subprocess.TimeoutExpired as error:
        raise Rejection(
            "stalled",
            f"tokenizer: trying it out took more than {error.timeout:g} s, expected a few; the machine is busy",
        ) from None
    begun = said.split("\n")
    activity = begun[-2] if len(begun) > 1 else "trying it out"  # what follows the last line end is empty
    if (what := _what_is_wrong(status)) is not None:
        raise Rejection(
            "config_invalid",
            f"tokenizer: {activity} was given up: {what}, expected milliseconds and a few megabytes; look for loops and "
            "repetitions in it",
        )
    if status == -signal.SIGKILL:  # by the kernel: our limits end it by other signals
        raise Rejection("out_of_memory", f"tokenizer: {activity} was ended by SIGKILL; the host has too little memory")
    if status != 0:
        last = (errors.strip().splitlines() or [f"status {status}"])[-1]
        raise Rejection("io_error", f"tokenizer: {activity} failed: {last[:300]}")


def _what_is_wrong(status: int) -> str | None:
    """Return what the end of the process says of the tokenizer; None if it says nothing."""
    if status == -signal.SIGXCPU:
        return "it does not end within its processor time"
    if status == tokenizer_proof.TOO_LONG:
        return f"it makes more than {tokenizer_proof.MOST_CHARACTERS} characters of at most {len(tokenizer_proof.PROMPTS[1])}"
    # The tokenizers library ends the process where it gets no memory.
    if status in (tokenizer_proof.TOO_LARGE, -signal.SIGABRT):
        return f"it needs more than {tokenizer_proof.MEMORY} bytes of memory"
    return f"it ended the process by signal {-status}" if -status in _CRASHES else None
