"""Containers on a bare machine: podman in namespaces of its own, and a base image of this machine's own files.

No registry is needed: the base image has the directories only; the machine's `/usr`, Python and libraries are mounted into each
build step and each container, read-only. Everything that is started or mounted ends with the namespaces.
"""

import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from tests.namespaces import DEADLINE, Namespaces, Unavailable

REPOSITORY = Path(__file__).parent.parent
LIBRARIES = next(Path(path) for path in sys.path if path.endswith("site-packages"))
PYTHON = Path(sys.base_prefix)
_SETUP = """
ip link set lo up
# crun refuses a machine that mounts the old control groups beside the new ones.
if [ -d /sys/fs/cgroup/unified ]; then mount --bind /sys/fs/cgroup/unified /sys/fs/cgroup; fi
"""


class Podman:
    """podman with its own storage, in mount, process and network namespaces that end with it."""

    def __init__(self, directory: Path) -> None:
        """Raises:
        Unavailable: no container can be run here.
        """
        self._directory = directory
        self._run = tempfile.TemporaryDirectory(prefix="zw-")
        """podman allows no long path for what it keeps while it runs."""
        missing = [name for name in ("podman", "crun", "conmon", "curl", "ip") if shutil.which(name) is None]
        if missing:
            raise Unavailable(f"not installed: {', '.join(missing)}")
        self.namespaces = Namespaces("pid", "net", setup=_SETUP)
        self.inside = self.namespaces.run

    def close(self) -> None:
        """End everything that runs in the namespaces."""
        self.namespaces.close()
        self._run.cleanup()

    def podman(self, *arguments, timeout: float = DEADLINE, check: bool = True) -> str:
        """Run podman; return what it printed.

        Raises:
            AssertionError: it failed, and `check` is true.
        """
        done = self.inside(*self.command, *arguments, timeout=timeout)
        assert done.returncode == 0 or not check, f"podman {arguments}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    @property
    def command(self) -> list[str]:
        """podman with its own storage."""
        return [
            "podman", "--root", str(self._directory / "storage"), "--runroot", self._run.name,
            "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs",
        ]  # fmt: skip

    def import_base(self, name: str = "base") -> str:
        """Make the base image; return its name."""
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w") as tar:
            _add_directories(tar)
        path = self._directory / "base.tar"
        path.write_bytes(raw.getvalue())
        environment = {
            "PATH": f"{PYTHON}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": "/libraries",
        }
        changes = [f"--change=ENV {key}={value}" for key, value in environment.items()]
        self.podman("import", "--quiet", *changes, path, name)
        return f"localhost/{name}"

    def build(self, base: str, *options, tag: str = "zwatch") -> str:
        """Build the repository's Containerfile on that base; return what was printed."""
        return self.podman(
            "build", "--format=docker", "--isolation=chroot", "--network=host", "--layers=false", f"--build-arg=BASE={base}",
            "--build-arg=TORCH=torch", *_mounts(), *options, f"--tag={tag}",
            f"--file={REPOSITORY}/Containerfile", REPOSITORY, timeout=600,
        )  # fmt: skip

    def run(self, *options, image: str = "zwatch", arguments=(), check: bool = True) -> str:
        """Run a container, as compose.yaml does: without a writable root, without capabilities."""
        return self.podman(
            "run", "--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges",
            "--network=host", "--cgroups=disabled", "--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096",
            "--no-healthcheck=false", *_mounts(), *options, image, *arguments, check=check,
        )  # fmt: skip

    def inspect(self, image: str) -> dict:
        """Return the configuration of an image."""
        return json.loads(self.podman("image", "inspect", image))[0]

    def until(self, condition, what: str, deadline: float = DEADLINE):
        """Wait for a condition and return its value."""
        end = time.monotonic() + deadline
        while time.monotonic() < end:
            if found := condition():
                return found
            time.sleep(0.1)
        raise AssertionError(f"waited {deadline} s until {what}")


def _mounts() -> list[str]:
    """The machine's files, read-only."""
    places = {"/usr": "/usr", str(LIBRARIES): "/libraries"}
    if not PYTHON.is_relative_to("/usr"):
        places[str(PYTHON)] = str(PYTHON)
    return [f"--volume={source}:{target}:ro" for source, target in places.items()]


def _add_directories(tar: tarfile.TarFile) -> None:
    """Add what a root file system needs beside `/usr`."""
    folders = [*reversed(PYTHON.relative_to("/").parents), PYTHON.relative_to("/")][1:]
    for folder in dict.fromkeys(
        [*map(str, folders), "usr", "etc", "proc", "sys", "dev", "run", "libraries", "var", "var/lib"]
    ):
        entry = tarfile.TarInfo(folder)
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(entry)
    entry = tarfile.TarInfo("tmp")
    entry.type, entry.mode = tarfile.DIRTYPE, 0o1777
    tar.addfile(entry)
    for name in ("bin", "sbin", "lib", "lib64"):
        if os.path.islink(f"/{name}"):
            tar.add(f"/{name}", name)
    for name in ("passwd", "group", "shadow", "gshadow", "nsswitch.conf", "ld.so.cache", "login.defs", "alternatives"):
        if os.path.lexists(f"/etc/{name}"):
            tar.add(f"/etc/{name}", f"etc/{name}")
