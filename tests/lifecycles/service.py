"""A light service as a test sees it: a process that is started, killed and stopped, its HTTP calls, and its log."""

import http.client
import io
import json
import multiprocessing
import os
import signal
import time

from PIL import Image

from tests.deploy.factory import seal_as_it_is
from tests.lifecycles import inside
from tests.lifecycles.light import BAD, colour_of

DEADLINE = 60.0
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"

_context = multiprocessing.get_context("forkserver")


class Gone(Exception):
    """The service ended while it was asked."""


class Light:
    """A light service on a models root and a state directory, of which one run at a time is made."""

    def __init__(self, root, state, aliases=("current",), **options):
        self.root, self.state, self.aliases, self.options = root, state, aliases, options
        self.log = state.with_name(f"{state.name}.log")
        self.images = state.with_name(f"{state.name}.images")
        self.process = self._pipe = self._http = None

    # --- its runs

    def start(self, **options):
        """Start a run, and return when it listens."""
        self.begin(**options)
        self.connect()
        return self

    def begin(self, **options):
        """Start a run, and do not wait for it."""
        _context.set_forkserver_preload(["tests.lifecycles.inside"])  # of a server that is not started yet
        self._pipe, theirs = _context.Pipe()
        self.log_begin = self.log.stat().st_size if self.log.exists() else 0
        self.process = _context.Process(
            target=inside.main, args=(self.root, self.state, self.aliases, theirs, self.log, self.options | options)
        )
        self.process.start()
        theirs.close()
        self.url = None

    def connect(self):
        """Wait until it listens."""
        _, self.url = self._receive()
        self._http = self.new_connection()

    def new_connection(self):
        """Return another HTTP connection to it."""
        return http.client.HTTPConnection("127.0.0.1", int(self.url.rsplit(":", 1)[1]), timeout=DEADLINE)

    def kill(self):
        """End the run as `kill -9` does."""
        self._end(signal.SIGKILL)

    def stop(self):
        """End the run as SIGTERM does; its exit status is 0."""
        status = self._end(signal.SIGTERM)
        assert status == 0, (status, self.new_log())

    def _end(self, number):
        if self.process is None:
            return None
        process, self.process = self.process, None
        try:
            os.kill(process.pid, number)
        except ProcessLookupError:
            pass
        process.join(DEADLINE)
        assert process.exitcode is not None, "the process does not end"
        if self._http is not None:
            self._http.close()
        self._http = None
        self._pipe.close()
        status = process.exitcode
        process.close()
        return status

    def new_log(self):
        """Return the log's entries of the last run."""
        with open(self.log, "rb") as file:
            file.seek(self.log_begin)
            return [json.loads(line) if line.startswith(b"{") else {"level": "raw", "message": line} for line in file]

    # --- what is inside

    def ask(self, command, *arguments):
        """Call a method of `Inside`."""
        try:
            self._pipe.send((command, *arguments))
        except OSError:
            raise Gone from None
        return self._receive()

    def _receive(self):
        try:
            if not self._pipe.poll(DEADLINE):
                raise AssertionError(f"no answer within {DEADLINE} s: {self.new_log()[-20:]}")
            return self._pipe.recv()
        except (EOFError, OSError):
            raise Gone(self.new_log()[-20:]) from None

    def until(self, condition):
        """Look until a condition on what is inside is true, and return that."""
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            seen = self.ask("look")
            if condition(seen):
                return seen
            time.sleep(0.002)
        raise AssertionError(f"the condition did not become true: {seen}, {self.new_log()[-20:]}")

    def is_settled(self):
        """Say whether nothing loads or is about to: what served before may be loaded after a rejected wish."""
        return self.ask("look")["settled"]

    # --- HTTP

    def call(self, method, path, body=None):
        """Return (status, headers, body) of an HTTP call."""
        try:
            self._http.request(method, path, None if body is None else json.dumps(body))
            response = self._http.getresponse()
            data = response.read()
        except (http.client.HTTPException, OSError) as error:
            raise Gone from error
        is_json = response.headers["Content-Type"].startswith("application/json")
        return response.status, response.headers, json.loads(data) if is_json else data

    def post(self, path, **body):
        """Return the status of a POST."""
        return self.call("POST", path, body)[0]

    def draw(self, model="current", user=None):
        """Return ((version, digest), colour) of a picture, or the error's code; without a model the request is moved to a share."""
        wanted = {"prompt": "a cat", "seed": 1, "steps": 1, "model": model, "user": user}
        status, headers, body = self.call(
            "POST", "/generate", {name: value for name, value in wanted.items() if value is not None}
        )
        if status != 200:
            return body["error"]["code"]
        with Image.open(io.BytesIO(body)) as image:
            return (headers["X-Zwatch-Version"], headers["X-Zwatch-Digest"]), image.convert("RGB").getpixel((0, 0))


def in_another_process(function, *arguments):
    """Call a function in another process, and return what it returns; fails if it fails."""
    ours, theirs = _context.Pipe()
    process = _context.Process(target=function, args=(*arguments, theirs))
    process.start()
    theirs.close()
    try:
        found = ours.recv()
    except EOFError:
        found = None
    process.join(DEADLINE)
    assert process.exitcode == 0, process.exitcode
    ours.close()
    process.close()
    return found


# --- versions


def weights_of(content: bytes, version: str) -> bytes:
    """Return a safetensors file that holds these bytes, of a version."""
    table = {"w": {"dtype": "U8", "shape": [len(content)], "data_offsets": [0, len(content)]}}
    header = json.dumps({"__metadata__": {"version": version}, **table}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content


def make_version(directory, content):
    """Write and seal a version that holds some bytes; return (its digest, the colour that it draws)."""
    (directory / "transformer").mkdir(parents=True, exist_ok=True)
    (directory / "model_index.json").write_text("{}")
    (directory / WEIGHTS).write_bytes(weights_of(content, directory.name))
    digest = seal_as_it_is(directory)
    return digest, colour_of((directory / WEIGHTS).read_bytes())


__all__ = ["BAD", "WEIGHTS", "Gone", "Light", "make_version"]
