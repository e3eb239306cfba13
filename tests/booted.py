"""A systemd that is really booted, in a container over an overlay of this machine's root: what happens in it stays in it.

Everything that it changes is in a tmpfs of its own mount namespace, which ends with its processes. It needs root,
`systemd-nspawn`, `unshare`, `nsenter`, and a kernel that lets them work; `Unbootable` says what is missing.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
BOOT_SECONDS = 120.0
ROOT = "/srv/zwatch/models"
"""The models root of the unit."""
_STEP = re.compile(r"#   (\S.*)")
"""A line of the unit's comment that is to be typed."""
# Without a network pip can download nothing: what zwatch needs is there already. (0: pip takes the variable for the option it
# negates.)
_OFFLINE = {
    "PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_IGNORE_INSTALLED": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONPATH": "/opt/dependencies",
}  # fmt: skip
_PROGRAMS = ("systemd-nspawn", "unshare", "nsenter", "setpriv", "dbus-daemon")
_HIERARCHIES = [Path("/sys/fs/cgroup"), *map(Path("/sys/fs/cgroup").joinpath, ("systemd", "unified"))]
_UNNEEDED = (
    "apt-daily-upgrade.timer", "apt-daily.timer", "console-getty.service", "getty.target", "systemd-logind.service",
    "systemd-networkd-wait-online.service", "systemd-resolved.service", "systemd-timesyncd.service",
)  # fmt: skip
_BOOT = """
set -e
work=$1; shift
mount -t tmpfs -o mode=755 zwatch-boot "$work"
mkdir "$work/upper" "$work/work" "$work/merged"
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" "$work/merged"
cd "$work/merged"
rm -rf etc/systemd/system/* etc/fstab srv/zwatch opt/zwatch opt/python opt/dependencies opt/source
for unit in $UNNEEDED; do ln -s /dev/null "etc/systemd/system/$unit"; done
mkdir -p opt/python opt/dependencies opt/source
if [ "$PYTHON" != /usr ]; then  # a link would take the libraries of the system's Python
    rm -f usr/bin/python3; printf '#!/bin/sh\nexec /opt/python/bin/python3 "$@"\n' > usr/bin/python3; chmod 755 usr/bin/python3
    echo /opt/python/lib > etc/ld.so.conf.d/00-python.conf
fi
# A group of its own in each hierarchy: two that boot at a time must not share one.
for group in $GROUPS_OF_IT; do mkdir -p "$group"; echo $$ > "$group/cgroup.procs"; done
exec systemd-nspawn --quiet -D "$work/merged" --register=no --keep-unit --private-network --link-journal=no \
    --console=pipe --boot "$@"
"""


class Unbootable(Exception):
    """No systemd can be booted here; the message says why."""


class Booted:
    """A booted systemd. Use as `with Booted(work, mounts) as machine`; `mounts` maps paths in it to directories of this machine,
    which it sees read-only. `/opt/python` is the interpreter's installation, `/opt/dependencies` its libraries."""

    def __init__(self, work: Path, mounts: dict[str, Path]) -> None:
        self._work = work
        self._mounts = {
            "/opt/python": Path(sys.base_prefix), "/opt/dependencies": Path(sysconfig.get_path("purelib")), **mounts
        }  # fmt: skip
        self._groups = [one / f"zwatch-test-{os.getpid()}" for one in _HIERARCHIES if (one / "cgroup.procs").exists()]
        self._process: subprocess.Popen | None = None
        self.leader = 0
        """The process id of its systemd, here."""

    def __enter__(self):
        missing = [name for name in _PROGRAMS if shutil.which(name) is None]
        if os.geteuid() != 0 or missing:
            raise Unbootable(f"missing: {', '.join(missing)}" if missing else "only root can boot one")
        self._work.mkdir()
        environment = {
            **os.environ, "UNNEEDED": " ".join(_UNNEEDED), "PYTHON": sys.base_prefix,
            "GROUPS_OF_IT": " ".join(map(str, self._groups)),
        }  # fmt: skip
        binds = [f"--bind-ro={source}:{target}" for target, source in self._mounts.items()]
        # If this process dies, so does `unshare`, and with it all processes of its namespace, and with them all mounts.
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"]
        command += ["--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
        self.log = self._work.with_suffix(".log")
        try:
            with self.log.open("wb") as log:
                self._process = subprocess.Popen(
                    [*command, "bash", "-c", _BOOT, "boot", self._work, *binds],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                )  # fmt: skip
            self._await_boot()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        """End all its processes; its mounts end with them."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(60)
        for group in self._groups:
            self._remove_group(group)

    @staticmethod
    def _remove_group(group: Path) -> None:
        end = time.monotonic() + 20
        while group.exists() and time.monotonic() < end:
            for folder, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):  # a process in it is about to end
                    os.rmdir(folder)
            time.sleep(0.05)

    def run(self, *command: str, check: bool = True, timeout: float = 120.0, **environment: str) -> str:
        """Run a command in it and return what it prints, without the last line break."""
        inside = ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-n", "-p", "-C"]
        found = subprocess.run(
            [*inside, "env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
             *(f"{name}={value}" for name, value in environment.items()), *command],
            capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert not check or found.returncode == 0, f"{command}: {found.returncode}\n{found.stdout}\n{found.stderr}"
        return found.stdout.rstrip("\n")

    def shell(self, script: str, **options) -> str:
        """Run a shell script in it."""
        return self.run("bash", "-euc", script, **options)

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", unit, "--value", "--property", name)

    def journal(self, *options: str) -> str:
        """Return lines of the journal, their messages only."""
        self.run("journalctl", "--sync")
        return self.run("journalctl", "--no-pager", "--output=cat", *options, check=False)

    def until(self, condition, what: str, deadline: float = 120.0):
        """Wait until a condition is true, and return its value."""
        end = time.monotonic() + deadline
        while time.monotonic() < end:
            if found := condition():
                return found
            time.sleep(0.1)
        raise AssertionError(f"waited {deadline} s until {what}\n{self.journal('-n', '60')}")

    def _await_boot(self) -> None:
        end = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise Unbootable(f"systemd-nspawn ended with {self._process.returncode}: {self._said()}")
            self.leader = self.leader or self._find_leader()
            if self.leader:
                state = self.run("systemctl", "is-system-running", check=False)
                if state in ("running", "degraded"):
                    self.run("ldconfig")
                    return
            time.sleep(0.1)
        raise Unbootable(f"systemd was not up after {BOOT_SECONDS:g} s: {self._said()}")

    def _said(self) -> str:
        return " ".join(self.log.read_text(errors="replace").split())[-300:]

    def _find_leader(self) -> int:
        """Return the first process of the container, once it runs systemd: the child of nspawn, which is the child of unshare."""
        for nspawn in self._children(self._process.pid):
            for process in self._children(nspawn):
                with contextlib.suppress(OSError):
                    numbers = re.search(r"^NSpid:\s+(.*)$", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
                    name = Path(f"/proc/{process}/comm").read_text().strip()
                    if numbers is not None and numbers[1].split()[-1] == "1" and name == "systemd":
                        return process
        return 0

    @staticmethod
    def _children(process: int) -> list[int]:
        try:
            return [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
        except OSError:
            return []


def install(machine: Booted, drop_in: str) -> None:
    """Install zwatch by the steps in the unit's comment, with versions v1 and v2 of `/opt/versions`, and v1 linked. `/opt/source` is
    a checkout; `drop_in` is added to the unit, and to its template."""
    machine.shell(
        "mkdir /root/zwatch; tar -C /opt/source -c --exclude=./.git --exclude=./.venv --exclude=./models --exclude=./build "
        "--exclude='*.egg-info' --exclude=./tests . | tar -C /root/zwatch -x"
    )
    for name in ("zwatch", "zwatch@"):
        folder = f"/etc/systemd/system/{name}.service.d"
        machine.shell(f"mkdir {folder}; cat > {folder}/more.conf << E\n{drop_in}E")
    unit = (REPOSITORY / "systemd" / "zwatch.service").read_text()
    steps = [found[1] for line in unit.splitlines() if (found := _STEP.fullmatch(line))]
    assert len(steps) >= 8, "the comment of the unit has the steps"
    for step in steps:
        if "pip install" in step:
            path = "/opt/zwatch/lib/python3*/site-packages"
            machine.shell(f"for d in {path}; do echo /opt/dependencies > $d/zz.pth; done")
        if step.startswith("systemctl enable"):
            machine.shell(f"cp -r /opt/versions/v1 /opt/versions/v2 {ROOT}; chmod -R a+rX {ROOT}/v*")
            machine.shell(f"ln -s v1 {ROOT}/current")
        machine.shell(f"cd /root/zwatch; {step}", timeout=300, **(_OFFLINE if "pip" in step else {}))


def serves(machine: Booted, version: str, unit: str = "zwatch") -> None:
    """Wait until a unit's status says that it serves a version, and loads nothing."""
    wanted = f"serving {version} at "
    machine.until(lambda: machine.show(unit, "StatusText").startswith(wanted), f"{unit} serves {version}")
