"""A large tokenizer in a process of its own: the service only sends it prompts.

To build Qwen3's tokenizer of 151,643 tokens takes the tokenizers library half a second to a second, in which it does not let go of
the interpreter's lock: no request would be answered, and no image made.
"""

import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from typing import Any

from zwatch.engine import child
from zwatch.engine.tokenizer import EncodedPrompt, MadeTokenizer, Tokenizer

_log = logging.getLogger(__name__)

WALL_SECONDS = 60.0
"""Seconds until the process is given up: it encodes a prompt in milliseconds, and needs a second or two after its start."""


class TokenizerFailed(RuntimeError):
    """The process could not encode a prompt."""


class _Ended(Exception):
    """The process has ended."""


class TokenizerService:
    """Encodes prompts as `Tokenizer` does; `packed` is what `MadeTokenizer.packed` returned. A process that has ended is
    started again."""

    def __init__(self, packed: bytes, last_token: tuple[str, int]) -> None:
        """Start the process; it is not waited for.

        Raises:
            OSError: it could not be started.
        """
        self.last_token = last_token
        self._file = os.memfd_create("zwatch-tokenizer")
        self._lock = threading.Lock()
        self._held: list[subprocess.Popen[bytes]] = []
        weakref.finalize(self, _release, self._file, self._held)
        with open(self._file, "wb", closefd=False) as file:
            file.write(packed)
        self._held.append(self._started())

    def _started(self) -> "subprocess.Popen[bytes]":
        return child.started(__name__, f"serve({self._file})", pass_fds=[self._file])

    def encode(self, prompt: str) -> EncodedPrompt:
        """Encode a prompt, in its chat, as `ZImagePipeline` does.

        Raises:
            TokenizerFailed: the chat template cannot be rendered with this prompt, or the process does not answer, or ends again
                and again.
            OSError: the process could not be started again.
        """
        with self._lock:
            for _ in range(2):
                if not self._held:
                    self._held.append(self._started())
                try:
                    found = self._asked(self._held[0], prompt)
                    break
                except _Ended as ended:
                    _log.warning("the tokenizer's process has ended (%s); starting it again", ended)
                    self._end()
                except BaseException:  # a later prompt must not get this one's answer
                    self._end()
                    raise
            else:
                raise TokenizerFailed("the tokenizer's process ends whenever it is started, see the log")
        if "error" in found:
            raise TokenizerFailed(found["error"])
        return EncodedPrompt(found["tokens"], found["mask"], found["is_truncated"])

    def _asked(self, process: "subprocess.Popen[bytes]", prompt: str) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(prompt).encode() + b"\n")
            process.stdin.flush()
        except OSError:
            raise _Ended(_last_words(process)) from None
        answers = select.poll()  # not `select`, which takes no descriptor over 1,023
        answers.register(process.stdout, select.POLLIN)
        if not answers.poll(1000 * WALL_SECONDS):
            raise TokenizerFailed(f"the tokenizer's process did not answer within {WALL_SECONDS:g} s")
        if not (line := process.stdout.readline()):
            raise _Ended(_last_words(process))
        found: dict[str, Any] = json.loads(line)
        return found

    def _end(self) -> None:
        while self._held:
            child.end(self._held.pop())


def _release(file: int, held: "list[subprocess.Popen[bytes]]") -> None:
    while held:
        child.end(held.pop())
    os.close(file)


def _last_words(process: "subprocess.Popen[bytes]") -> str:
    """Return why a process ended, as far as it tells."""
    assert process.stderr is not None
    with suppress(subprocess.TimeoutExpired):
        process.wait(1.0)
    if process.poll() is None:
        return "it closed its output"
    lines = process.stderr.read().decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else f"status {process.returncode}"


def serve(file: int) -> None:
    """Encode prompts, each a JSON string on a line, with the tokenizer in an open file, until there are no more; to be called in
    a process of its own."""
    # The service ends it by closing its input, after the last request: not the terminal, and not systemd.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    packed = os.pread(file, os.fstat(file).st_size, 0)
    os.close(file)
    tokenizer = Tokenizer(MadeTokenizer.unpacked(packed))
    del packed
    for line in sys.stdin:
        try:
            found = tokenizer.encode(json.loads(line))
            answer: dict[str, Any] = {"tokens": found.tokens, "mask": found.mask, "is_truncated": found.is_truncated}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
