"""What this machine has: its memory and its processor. Needs no torch."""

import os
from contextlib import suppress
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")


def system_memory() -> tuple[int, int]:
    """Return (available, total) bytes of the host's memory, as Linux counts them. Where `/proc/meminfo` is hidden (systemd's
    `ProcSubset=pid`) or says something else, only what is free counts as available.

    Raises:
        OSError: it cannot be read now, for example for want of file descriptors.
    """
    try:
        fields = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
        available, total = (int(fields[key].split()[0]) * 1024 for key in ("MemAvailable", "MemTotal"))
    except (FileNotFoundError, PermissionError, LookupError, ValueError):
        pages = os.sysconf("SC_AVPHYS_PAGES"), os.sysconf("SC_PHYS_PAGES")
        available, total = (number * os.sysconf("SC_PAGE_SIZE") for number in pages)
    return available, total


def processor() -> str:
    """Return the lines of /proc/cpuinfo that say which processor this is and what it can do."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        return "\n".join(line for line in lines if line.startswith(("model name", "flags", "CPU part", "Features")))
    return ""
