"""Making tokenizers in processes of their own, and keeping what they made for the next start."""

import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from importlib.metadata import version as installed
from pathlib import Path

from blake3 import blake3

from zwatch import __version__
from zwatch.engine import tokenizer_proof
from zwatch.engine.tokenizer import MadeTokenizer, Tokenizer
from zwatch.errors import Rejection

_log = logging.getLogger(__name__)

MAX_FILE = 32 * 2**20
"""Largest accepted file of a tokenizer, bytes. Qwen3's has 11 MB."""
WALL_SECONDS = 120.0
"""Seconds until the process is given up, on a machine that is busy."""
_KEPT = 4
"""Tokenizers that are kept, in memory and on disk: the versions of months share one or two."""
_SUFFIX = ".tokenizer"
_HASH = 64
"""Hexadecimal digits of a hash, with which a kept file begins."""
_PACKAGE_ROOT = str(Path(__file__).parents[2])
_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP}

Files = Mapping[str, bytes]
"""A tokenizer's files: their bytes by name inside its folder."""


_lock = threading.Lock()
_made: OrderedDict[str, Future[MadeTokenizer | Rejection]] = OrderedDict()
"""Of this process, by digest: those last made, which a deploy most likely needs again."""


class TokenizerMaker:
    """Makes each tokenizer once. `cache` is the directory in which they are kept; None keeps none."""

    def __init__(self, cache: Path | None = None) -> None:
        self._cache = cache

    def begin(self, files: Files) -> Future[MadeTokenizer | Rejection]:
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
        threading.Thread(target=self._make, args=(future, digest, files), name="zwatch-tokenizer", daemon=True).start()
        return future

    def get(self, files: Files) -> Tokenizer:
        """Return a tokenizer.

        Raises:
            Rejection: `config_invalid`, it is none, or takes too much time or memory; `stalled`, `out_of_memory` or
                `io_error`, it could not be made now.
        """
        made = self.begin(files).result()
        if isinstance(made, Rejection):
            with _lock:
                _made.pop(_digest(files), None)  # the next load tries again
            raise Rejection(made.code, made.reason)  # one of its own: its frames hold what was loaded
        if not made.template:
            raise Rejection("config_invalid", "tokenizer: it has no chat template, which is needed to encode prompts")
        return Tokenizer(made)

    def _make(self, future: Future[MadeTokenizer | Rejection], digest: str, files: Files) -> None:
        try:
            if (made := self._read(digest)) is None:
                made = made_by_process(files)
                self._write(digest, made)
            future.set_result(made)
        except Rejection as rejection:
            future.set_result(rejection)
        except OSError as error:
            future.set_result(Rejection("io_error", f"tokenizer: {error.strerror or error}"))
        except BaseException as error:
            _log.exception("making a tokenizer failed unexpectedly")
            future.set_result(Rejection("internal_error", f"tokenizer: {type(error).__name__}: {error}"))

    def _read(self, digest: str) -> MadeTokenizer | None:
        """Return a tokenizer that was kept; a file that is not whole is as good as none."""
        if self._cache is None:
            return None
        try:
            data = (self._cache / f"{digest}{_SUFFIX}").read_bytes()
            if blake3(data[_HASH:]).hexdigest().encode() == data[:_HASH]:
                return MadeTokenizer.from_json(data[_HASH:])
        except (OSError, ValueError, TypeError, LookupError):
            pass
        return None

    def _write(self, digest: str, made: MadeTokenizer) -> None:
        if self._cache is None:
            return
        data = made.to_json().encode()
        part = self._cache / f".{secrets.token_hex(8)}.part"
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            part.write_bytes(blake3(data).hexdigest().encode() + data)
            part.replace(self._cache / f"{digest}{_SUFFIX}")
            kept = sorted(self._cache.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime)
            for path in kept[:-_KEPT]:
                path.unlink()
        except OSError as error:
            _log.warning("the tokenizer is made anew at the next start: %s: %s", self._cache, error.strerror or error)
            with suppress(OSError):
                part.unlink()


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


def made_by_process(files: Files) -> MadeTokenizer:
    """Make a tokenizer in a process of its own.

    Raises:
        Rejection: as `TokenizerMaker.get`.
    """
    # The library reads files by path: write it a private copy of the verified bytes.
    with tempfile.TemporaryDirectory(prefix="zwatch-tokenizer-") as folder:
        for name, data in files.items():
            path = Path(folder, "files", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        result = Path(folder, "result.json")
        _run(Path(folder, "files"), result)
        found = json.loads(result.read_bytes())
    if "error" in found:
        raise Rejection("config_invalid", f"tokenizer: {found['error']}")
    return MadeTokenizer.of(found)


def _run(folder: Path, result: Path) -> None:
    # An editable install is found by an import hook of this process, not on its path.
    sent = json.dumps({"path": [*sys.path, _PACKAGE_ROOT], "given": [str(folder), str(result)]})
    program = (
        "import json, sys; sent = json.load(sys.stdin); sys.path[:] = sent['path']; "
        f"from {tokenizer_proof.__name__} import main; main(*sent['given'])"
    )
    # No threads: each would take some of the address space.
    alone = dict.fromkeys(("RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MALLOC_ARENA_MAX"), "1")
    try:
        ended = subprocess.run(
            [sys.executable, "-S", "-E", "-c", program], input=sent, timeout=WALL_SECONDS, capture_output=True, text=True,
            check=False, errors="replace", env={**os.environ, **alone, "TOKENIZERS_PARALLELISM": "false"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Rejection(
            "stalled",
            f"tokenizer: trying it out took more than {WALL_SECONDS:g} s, expected a few; the machine is busy",
        ) from None
    status, begun = ended.returncode, ended.stdout.split("\n")
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
        last = (ended.stderr.strip().splitlines() or [f"status {status}"])[-1]
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
