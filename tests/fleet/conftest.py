"""One fleet for all tests of a file: three replicas on the processor, two of which have a models root of their own."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.deploy.loras import write_lora
from zwatch.client import Service

DEADLINE = 90.0


class Fleet:
    """A controller process and its replicas."""

    def __init__(self, root: Path, hosts: dict[str, Path]):
        self.root, self.hosts = root, hosts
        self.models = next(iter(hosts.values()))
        self.log = root / "log"
        self.process = None

    def start(self, *options):
        """Start the controller; replicas of an earlier one are taken over."""
        begin = self.log.stat().st_size if self.log.exists() else 0
        command = [
            sys.executable, "-m", "tests.fleet.controller", *[f"{host[:6]}={root}" for host, root in self.hosts.items()], "--",
            "--models", self.models, "--state-dir", self.root / "state", "--port", "0", "--log", "text",
            "--devices", ",".join(["cpu"] * len(self.hosts)), *options,
        ]  # fmt: skip
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([*map(str, command)], stdout=log, stderr=log, env=os.environ)
        found = self.until(lambda: re.search(r"serving \S+ at (http://\S+)", self.log.read_text()[begin:]))
        self.url = found[1]
        self.service = Service(self.url, None)

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(DEADLINE)

    def until(self, condition, deadline=DEADLINE):
        end = time.monotonic() + deadline
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()[-5000:]
            if found := condition():
                return found
            time.sleep(0.05)
        raise AssertionError(f"{self.get('/status')}\n{self.log.read_text()[-5000:]}")

    def get(self, path):
        status, body = self.service.get(path)
        assert status == 200, body
        return body

    def post(self, path, body):
        return self.service.post(path, body)

    @property
    def replicas(self):
        return {one["name"]: one for one in self.get("/status")["replicas"]}

    def all_have(self, version, states=("READY",)):
        """Wait until every replica is in one of the states and has a version ready."""

        def has(one):
            return one["state"] in states and version in one["versions"]

        return self.until(lambda: len(found := self.replicas) == len(self.hosts) and all(map(has, found.values())))

    def serves(self, version):
        self.until(lambda: (self.get("/status")["serving"] or {}).get("version") == version)

    def attempt(self):
        return self.get("/attempts")["attempts"][0]


@pytest.fixture(scope="module")
def fleet(tiny_versions, tmp_path_factory):
    """Three replicas: two on host-a with one models root, which is the controller's too, and one on host-b with a copy of it."""
    root = tmp_path_factory.mktemp("fleet")
    hosts = {}
    for name in ("a", "b"):
        shutil.copytree(tiny_versions, root / name / "models")
        (root / name / "loras").mkdir()
        write_lora(root / name / "loras", "ink", tiny_versions / "v1/transformer", 4, 1)
    write_lora(root / "a/loras", "here", tiny_versions / "v1/transformer", 4, 2)
    (root / "a/models/current").symlink_to("v1")
    hosts = {"host-a": root / "a/models", "host-a (2)": root / "a/models", "host-b": root / "b/models"}
    made = Fleet(root, hosts)
    made.start()
    try:
        made.all_have("v1")
        yield made
    finally:
        if made.process.poll() is None:
            made.stop()
