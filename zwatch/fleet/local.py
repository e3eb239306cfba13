"""The local cluster of `zwatch serve --devices`: a process of its own, so that the replicas outlive a controller that is killed.

It ends when it is told to, or when no controller has come back for a while. Run as `python -m zwatch.fleet.local`.
"""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from zwatch.errors import FatalError

_BEGIN_SECONDS = 120.0
_END_SECONDS = 30.0
_STORE = 256 * 2**20
_STORE_EACH = 64 * 2**20
"""Bytes of shared memory for pictures on their way: the largest has 12 MB."""
_LOOKS = 50


def patiently_held(path: Path) -> int | None:
    """Return as `held_lock`; another process may look at the lock just now, which takes no time."""
    for _ in range(_LOOKS):
        if (fd := held_lock(path)) is not None:
            return fd
        time.sleep(0.02)
    return None


def held_lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock of a file until it is closed; None if another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


@dataclass(frozen=True, slots=True)
class LocalCluster:
    """A local cluster: its address, the process that keeps it, and the devices that it was begun with."""

    address: str
    pid: int
    devices: tuple[str, ...]


class LocalClusters:
    """The local cluster of one state directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock: int | None = None
        self._is_ended = False

    def hold(self) -> None:
        """Be the controller from now on: the cluster lives as long as there is one."""
        if self._lock is None:
            self._lock = patiently_held(self._folder / "controller.lock")

    def let_go(self) -> None:
        """Be the controller no more."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def token(self) -> dict[str, str]:
        """Return the variables that let a process use the cluster: nobody else on this machine or in its network may, since whoever can
        runs code in it. The token is made when there is none yet."""
        file = self._folder / "token"
        self._folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "w") as made:
                made.write(secrets.token_hex(32))
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(file.absolute())}

    def found(self) -> LocalCluster | None:
        """Return the cluster that runs, if one does."""
        lock = held_lock(self._folder / "cluster.lock")
        if lock is not None:  # nobody keeps one
            os.close(lock)
            return None
        with contextlib.suppress(OSError, ValueError, KeyError):
            read = json.loads((self._folder / "cluster.json").read_text())
            return LocalCluster(read["address"], read["pid"], tuple(read["devices"]))
        return None

    def begin(self, devices: tuple[str, ...], orphaned: float) -> LocalCluster:
        """Begin a cluster for these devices.

        Raises:
            FatalError: it does not begin.
        """
        self._is_ended = False
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "cluster.json").unlink(missing_ok=True)
        log = self._folder / "cluster.log"
        own = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("ZWATCH_") and name != "RAY_ADDRESS"
        }
        own |= self.token()
        if devices[0] not in ("cpu", "all"):
            own["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        command = [sys.executable, "-m", "zwatch.fleet.local", str(self._folder), str(orphaned), *devices]
        with open(log, "wb") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, env=own
            )
        end = time.monotonic() + _BEGIN_SECONDS
        while time.monotonic() < end and not self._is_ended:
            if (found := self.found()) is not None:
                return found
            if process.poll() is not None:
                break
            time.sleep(0.05)
        process.terminate()
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise FatalError(f"no local Ray cluster can be begun; {log} ends with: {lines[-1] if lines else 'nothing'}")

    def end(self) -> None:
        """End the cluster that runs, with all of its replicas, or that is being begun."""
        self._is_ended = True
        found = self.found()
        if found is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(found.pid, signal.SIGTERM)
        end = time.monotonic() + _END_SECONDS
        while self.found() is not None and time.monotonic() < end:
            time.sleep(0.05)


class _Keeper:
    """The process that keeps a cluster."""

    def __init__(self, folder: Path, orphaned: float, devices: Sequence[str]) -> None:
        self._folder, self._orphaned, self._devices = folder, orphaned, list(devices)
        self._is_told = False

    def run(self) -> int:
        """Keep a cluster until it is to end."""
        lock = patiently_held(self._folder / "cluster.lock")
        if lock is None:
            return 1
        signal.signal(signal.SIGTERM, self._told)
        session = self._begin()
        self._write(session["address"])
        try:
            self._keep()
        finally:
            import ray

            ray.shutdown()
            (self._folder / "cluster.json").unlink(missing_ok=True)
            shutil.rmtree(session["session_dir"], ignore_errors=True)
            os.close(lock)
        return 0

    def _begin(self) -> Any:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        import ray

        is_cpu = self._devices[0] == "cpu"
        gpus = 0 if is_cpu else None if self._devices == ["all"] else len(self._devices)
        context: Any = ray.init(
            address="local", num_cpus=max(1, os.cpu_count() or 1), num_gpus=gpus, include_dashboard=False, log_to_driver=False,
            configure_logging=False, _temp_dir=f"/tmp/zwatch-ray-{os.getuid()}",  # noqa: S108 (sockets need a short path)
            object_store_memory=max(_STORE, _STORE_EACH * len(self._devices)),
        )  # fmt: skip
        signal.signal(signal.SIGTERM, self._told)  # Ray has put its own there
        return context.address_info

    def _told(self, number: int, frame: FrameType | None) -> None:
        self._is_told = True

    def _write(self, address: str) -> None:
        temporary = self._folder / "cluster.json.new"
        temporary.write_text(json.dumps({"address": address, "pid": os.getpid(), "devices": self._devices}))
        temporary.rename(self._folder / "cluster.json")

    def _keep(self) -> None:
        alone_since: float | None = None
        while not self._is_told:
            lock = held_lock(self._folder / "controller.lock")
            if lock is None:
                alone_since = None
            else:
                os.close(lock)
                alone_since = alone_since or time.monotonic()
                if time.monotonic() - alone_since > self._orphaned:
                    return
            time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(_Keeper(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]).run())
