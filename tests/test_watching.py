"""A real service whose watching fails in every way that the kernel has: a flip of the link is noticed all the same."""

import asyncio
import ctypes
import os
import select
import shutil
import signal
import struct
import subprocess
import time
from pathlib import Path

import pytest

from tests.harness import Server

LONG = os.environ.get("ZWATCH_LONG") == "1"
WITHIN = 1.0 if LONG else 20.0
"""Seconds within which a flip is noticed. It is one second; beside other tests the machine may be busy."""
REPEATS = 20 if LONG else 2
IN_CREATE, IN_DELETE, IN_MOVE, IN_Q_OVERFLOW = 0x100, 0x200, 0xC0, 0x4000

# Loaded by Python at its start: SIGUSR1 makes the kernel answer the observer's thread with EIO, so that it ends.
KILLS_THE_OBSERVER = """
import os, signal, threading

def kill():
    memory = os.open("/proc/self/mem", os.O_RDONLY)  # its first page is not mapped
    for thread in threading.enumerate():
        if type(thread).__name__ == "_Emitter":
            with thread._using:  # or it ends meanwhile, and closes them
                if thread._inotify >= 0:
                    os.dup2(memory, thread._inotify)
                    os.eventfd_write(thread._wake, 1)
    os.close(memory)

# In a thread of its own: the signal may come while the main thread uses the descriptors.
signal.signal(signal.SIGUSR1, lambda *_: threading.Thread(target=kill).start())
"""


class Limited(Server):
    """A service in a user namespace of its own, in which the kernel's limits can be changed for it alone."""

    def __init__(
        self, models: Path, state: Path, *options: str, environment: dict[str, str] | None = None, **limits: int
    ):
        super().__init__(models, state, *options, environment=environment)
        lines = [f"echo {value} > /proc/sys/user/{name}" for name, value in limits.items()]
        self._command = [
            "unshare",
            "--user",
            "--map-root-user",
            "sh",
            "-ec",
            "\n".join([*lines, 'exec "$@"']),
            "sh",
            *self._command,
        ]

    def limit(self, **limits: int) -> None:
        """Change a limit now."""
        for name, value in limits.items():
            inside = ["nsenter", f"--target={self.process.pid}", "--user", "--preserve-credentials"]
            subprocess.run([*inside, "sh", "-ec", f"echo {value} > /proc/sys/user/{name}"], check=True)

    def watched(self) -> set[int]:
        """Return the inode numbers of the directories that it watches, as the kernel says."""
        found = set()
        for info in Path(f"/proc/{self.process.pid}/fdinfo").iterdir():
            try:
                lines = info.read_text().splitlines()
            except OSError:
                continue  # closed meanwhile
            found |= {int(line.split("ino:")[1].split()[0], 16) for line in lines if line.startswith("inotify ")}
        return found

    async def is_watching(self, *directories: Path) -> None:
        wanted = {path.stat().st_ino for path in directories}
        await self.until(lambda: self.watched() >= wanted, f"it watches {directories}")

    async def notices(self, version: str) -> float:
        """Wait until a version serves; return the seconds."""
        begin = time.monotonic()
        await self.serves_current(version, WITHIN)
        return time.monotonic() - begin


def flip(root: Path, version: str) -> None:
    subprocess.run(["ln", "-sfn", version, "current"], cwd=root, check=True)


def busybox_flip(root: Path, version: str) -> None:
    (root / "current").unlink()
    (root / "current").symlink_to(version)


def typed_without_n(root: Path, version: str) -> None:
    subprocess.run(["ln", "-sf", version, "current"], cwd=root, check=True)


FLIPS = [flip, busybox_flip, typed_without_n]


@pytest.fixture(scope="module")
def root(tiny_versions, tmp_path_factory):
    root = tmp_path_factory.mktemp("watched") / "models"
    shutil.copytree(tiny_versions, root)
    (root / "current").symlink_to("v1")
    return root


@pytest.fixture(scope="module")
def started(root, tmp_path_factory):
    """A service that starts without any inotify instance."""
    if subprocess.run(["unshare", "--user", "--map-root-user", "true"], capture_output=True).returncode:
        pytest.skip("user namespaces are not allowed here")
    directory = tmp_path_factory.mktemp("service")
    (directory / "sitecustomize.py").write_text(KILLS_THE_OBSERVER)
    path = ":".join([str(directory), str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    server = Limited(root, directory / "state", environment={"PYTHONPATH": path}, max_inotify_instances=0)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def server(started):
    await started.connect()
    yield started
    await started.http.close()


async def both_resident(server, root):
    """Deploy both versions once; from then on a flip loads nothing."""
    for version in ("v1", "v2", "v1"):
        flip(root, version)
        await server.serves(version)


@pytest.mark.slow
async def test_without_any_inotify_instance_every_form_of_a_flip_is_noticed(server, root):
    await both_resident(server, root)
    assert server.watched() == set()
    assert "inotify is not available (Too many open files)" in server.log.read_text()
    for _ in range(REPEATS):
        for change in FLIPS:
            for version in ("v2", "v1"):
                change(root, version)
                await server.notices(version)


@pytest.mark.slow
async def test_when_there_are_instances_again_it_watches_and_when_no_watches_are_left_it_notices_flips(server, root):
    server.limit(max_inotify_watches=0, max_inotify_instances=8)
    for version in ("v2", "v1"):
        flip(root, version)
        await server.notices(version)
    assert server.watched() == set()
    server.limit(max_inotify_watches=100)
    await server.is_watching(root, root / "v1")
    assert server.log.read_text().count("inotify is not available") == 1


class Unread:
    """An inotify instance that nobody reads: it tells afterwards whether so many events overflow a queue."""

    def __init__(self, directory: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._libc.inotify_add_watch(self._fd, os.fsencode(directory), IN_CREATE | IN_DELETE | IN_MOVE) > 0

    def overflowed(self) -> bool:
        found = False
        while select.select([self._fd], [], [], 0)[0]:
            data = os.read(self._fd, 2**20)
            while data:
                _, mask, _, length = struct.unpack_from("iIII", data)
                found = found or bool(mask & IN_Q_OVERFLOW)
                data = data[16 + length :]
        os.close(self._fd)
        return found


@pytest.mark.slow
@pytest.mark.parametrize("change", FLIPS)
async def test_a_flip_whose_event_did_not_fit_into_the_queue_is_noticed(server, root, change):
    await both_resident(server, root)
    await server.is_watching(root, root / "v1")
    unread = Unread(root)
    server.process.send_signal(signal.SIGSTOP)
    try:
        for number in range(9000):  # two events each: 16,384 fit by default
            os.symlink("v1", root / f".noise{number % 5}")
            os.unlink(root / f".noise{number % 5}")
        change(root, "v2")
    finally:
        server.process.send_signal(signal.SIGCONT)
    await server.notices("v2")
    assert unread.overflowed()
    change(root, "v1")
    await server.notices("v1")


@pytest.mark.slow
async def test_flips_are_noticed_after_the_observer_s_thread_died_and_it_is_replaced(server, root):
    await both_resident(server, root)
    for times in range(1, REPEATS + 1):
        await server.is_watching(root)
        server.process.send_signal(signal.SIGUSR1)
        await server.until(lambda: not server.watched(), "the thread has ended")
        for version in ("v2", "v1"):
            flip(root, version)
            await server.notices(version)
        await server.is_watching(root, root / "v1")
        assert times > 1 or "ended; replacing it" in server.log.read_text()


def moved_and_copied_back(root: Path) -> None:
    away = root.with_name("away")
    root.rename(away)
    shutil.copytree(away, root, symlinks=True)
    shutil.rmtree(away)


def moved_back(root: Path) -> None:
    root.rename(root.with_name("away"))
    time.sleep(0.6)  # more than two looks: it is seen to be away
    root.with_name("away").rename(root)


@pytest.mark.slow
@pytest.mark.parametrize("change", [moved_and_copied_back, moved_back])
async def test_flips_are_noticed_in_a_root_that_was_moved_away_and_is_there_again(server, root, change):
    await both_resident(server, root)
    for _ in range(REPEATS):
        await asyncio.to_thread(change, root)
        flip(root, "v2")
        await server.notices("v2")
        await server.is_watching(root, root / "v2")
        flip(root, "v1")
        await server.notices("v1")
    assert (await server.generate())[0] == "v1"
