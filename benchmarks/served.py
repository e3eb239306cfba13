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
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from common import HERE, ROOT, Json


class ServerError(Exception):
    """The server ended, answered what it should not, or was too slow."""


class Server:
    """`zwatch serve` in a separate process, by default with a new state directory. `counted` gives it a view of CUDA's
    allocation counters."""

    def __init__(
        self, models: Path, work: Path, device: str, *, counted: bool = False, state: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.models = models
        self.log = work / "serve.log"
        self.begun = 0.0
        script = [str(HERE / "counted.py")] if counted else ["-m", "zwatch"]
        state = state or work / f"state-{time.time_ns()}"
        self._environment = {**os.environ, **(env or {})}
        self._command = [
            sys.executable, *script, "serve", "--models", str(models), "--state-dir", str(state), "--port", "0",
            "--device", device, "--log", "text", "--output-dir", str(work / "images"),
        ]  # fmt: skip
        self._counted = counted
        self._process: subprocess.Popen[str] | None = None
        self._address = ("", 0)
        self._local = threading.local()

    def __enter__(self) -> Self:
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        with open(self.log, "ab") as log:
            place = log.tell()
            self.begun = time.monotonic()
            pipe = subprocess.PIPE if self._counted else None
            self._process = subprocess.Popen(
                self._command, stderr=log, stdout=pipe or log, stdin=pipe or subprocess.DEVNULL, text=True,
                env={**self._environment, "PYTHONPATH": paths},
            )  # fmt: skip

        def listens() -> bool:
            found = re.search(rb"serving .+ at http://([^:\s]+):(\d+)", self.log.read_bytes()[place:])
            if found:
                self._address = (found[1].decode(), int(found[2]))
            return bool(found)

        self.wait(listens, "it listens", 120.0, 0.01)
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30.0)
        except subprocess.TimeoutExpired:
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

    @property
    def url(self) -> str:
        """Where it listens."""
        return "http://{}:{}".format(*self._address)

    def last_words(self) -> str:
        """Return the end of its log."""
        return self.log.read_text()[-1500:]

    def call(self, method: str, path: str, body: Json | None = None, **headers: str) -> tuple[int, Any, bytes]:
        """Return (status, headers, body) of a call; each thread keeps a connection open."""
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = http.client.HTTPConnection(*self._address, timeout=120)
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
        process = self._process
        if not self._counted or process is None or process.stdin is None or process.stdout is None:
            return None
        process.stdin.write("\n")
        process.stdin.flush()
        found: Json | None = json.loads(process.stdout.readline())
        return found
