"""Namespaces in which tests mount, and which end with everything that was started and mounted in them."""

import os
import signal
import subprocess
from pathlib import Path

DEADLINE = 120.0


class Unavailable(Exception):
    """Why such a thing cannot be had here."""


class Namespaces:
    """A new mount namespace, and others by their names (`pid`, `net`). They need root."""

    def __init__(self, *others: str, setup: str = "") -> None:
        """`setup` is a shell script that runs inside first.

        Raises:
            Unavailable: they cannot be made here.
        """
        if os.getuid() != 0:
            raise Unavailable("it needs root")
        self._kinds = ["mount", *others]
        options = [f"--{kind}" for kind in self._kinds] + ["--mount-proc"] * ("pid" in others)
        self._holder = subprocess.Popen(
            ["unshare", *options, "--fork", "--kill-child", "sh", "-ec", f"{setup}\necho ready\nexec sleep infinity"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        if self._holder.stdout.readline() != "ready\n":
            raise Unavailable(f"no namespaces can be made: {self._holder.communicate()[1]}")
        self.pid = int(Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text())

    @property
    def entering(self) -> list[str]:
        """The beginning of a command that runs in them. Without a process namespace it is the same process, so that it can be
        signalled."""
        return ["nsenter", f"--target={self.pid}", *(f"--{kind}" for kind in self._kinds)]

    def run(self, *command, timeout: float = DEADLINE, check: bool = False) -> subprocess.CompletedProcess:
        """Run a command inside."""
        line = [*self.entering, *map(str, command)]
        return subprocess.run(line, capture_output=True, text=True, timeout=timeout, check=check)

    def path(self, path: Path) -> Path:
        """Return where this process finds what a path means inside."""
        return Path(f"/proc/{self.pid}/root{path}")

    def close(self) -> None:
        """End them: the mounts go with the last process inside, and a process namespace ends all of its processes."""
        self._holder.send_signal(signal.SIGKILL)  # --kill-child: the first process inside goes too
        self._holder.wait()
        self._holder.stdout.close()
        self._holder.stderr.close()
