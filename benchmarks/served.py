"""A served zwatch in a separate process, for the benchmarks that look at it from outside."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

from common import HERE, Json, search_path

KERNELS = (
    re.compile(rb"hash kernel is ready|hash kernel does not work|triton is not installed"),
    re.compile(rb"kernels for drawing (are ready|do not work)"),
)
"""What the log says once there is nothing left to compile."""


class ServerError(Exception):
    """The server ended, answered what it should not, or was too slow."""


class Server:
    """`zwatch serve` in a separate process, by default with a new state directory. `counted` gives it a view of CUDA's
    allocation counters; `script` runs it instead, and answers lines on its standard input too. With `has_session` a signal to the
    benchmark's process group (Ctrl-C, timeout(1)) does not reach it."""

    def __init__(
        self, models: Path, work: Path, device: str, *, counted: bool = False, state: Path | None = None,
        env: dict[str, str] | None = None, port: int = 0, more: Sequence[str] = (),
        log: str = "serve.log", script: Path | None = None, has_session: bool = False,
    ) -> None:  # fmt: skip
        self.models = models
        self.log = work / log
        self.begun = 0.0
        script = script or (HERE / "counted.py" if counted else None)
        run = ["-m", "zwatch"] if script is None else [str(script)]
        state = state or work / f"state-{time.time_ns()}"
        self._environment = {**os.environ, **(env or {})}
        self._command = [
            sys.executable, *run, "serve", "--models", str(models), "--state-dir", str(state), "--port", str(port),
            "--device", device, "--log", "text", "--output-dir", str(work / "images"), *more,
        ]  # fmt: skip
        self._answers = script is not None
        self._has_session = has_session
        self._process: subprocess.Popen[str] | None = None
        self.address = ("", 0)
        self._local = threading.local()

    def __enter__(self) -> Self:
        with open(self.log, "ab") as log:
            place = log.tell()
            self.begun = time.monotonic()
            pipe = subprocess.PIPE if self._answers else None
            self._process = subprocess.Popen(
                self._command, stderr=log, stdout=pipe or log, stdin=pipe or subprocess.DEVNULL, text=True,
                env={**self._environment, "PYTHONPATH": search_path()}, start_new_session=self._has_session,
            )  # fmt: skip

        def listens() -> bool:
            found = re.search(rb"serving .+ at http://([^:\s]+):(\d+)", self.log.read_bytes()[place:])
            if found:
                self.address = (found[1].decode(), int(found[2]))
            return bool(found)

        self.wait(listens, "it listens", 120.0, 0.01)
        return self

    def __exit__(self, *error: object) -> None:
        self.terminate()

    def terminate(self) -> None:
        """Let it end, if it runs."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """End it as a crash would, without a word."""
        assert self._process is not None  # it was started
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

    def has_kernels(self, deadline: float = 180.0) -> None:
        """Wait until all kernels for a GPU are compiled: until then files are hashed on the processor, and pictures computed the slower,
        exact way."""
        for kernel in KERNELS:
            self.wait(partial(self._has_logged, kernel), "kernels are compiled", deadline, 0.1)

    def _has_logged(self, what: re.Pattern[bytes]) -> bool:
        return what.search(self.log.read_bytes()) is not None

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return None if self._process is None else self._process.poll()

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None  # it was started
        return self._process.pid

    @property
    def url(self) -> str:
        """Where it listens."""
        return "http://{}:{}".format(*self.address)

    def last_words(self) -> str:
        """Return the end of its log."""
        return self.log.read_text()[-1500:]

    def call(self, method: str, path: str, body: Json | None = None, **headers: str) -> tuple[int, Any, bytes]:
        """Return (status, headers, body) of a call; each thread keeps a connection open."""
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = http.client.HTTPConnection(*self.address, timeout=120)
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
        found: Json | None = json.loads(self.answer("")) if self._answers else None
        return found

    def answer(self, question: str) -> str:
        """Return what the script says to a line on its standard input."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None  # noqa: PT018 (pipes)
        process.stdin.write(f"{question}\n")
        process.stdin.flush()
        return process.stdout.readline()
