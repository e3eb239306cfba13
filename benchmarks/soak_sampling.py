"""What a process holds, as the kernel and the process itself count it, for soak.py."""

import os
import subprocess
from collections import Counter
from pathlib import Path

Sample = dict[str, float]


def memory_of(pid: int) -> Sample:
    """Return a process's memory, bytes: RSS, PSS, USS (what would be free without it), and its anonymous part."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split()[:2]
        found[name.rstrip(":")] = int(value) * 1024
    return {
        "rss": found["Rss"], "pss": found["Pss"], "uss": found["Private_Clean"] + found["Private_Dirty"],
        "anonymous": found["Anonymous"],
    }  # fmt: skip


def descriptors_of(pid: int) -> Sample:
    """Return how many descriptors are open, those among them that are no sockets, that are of deleted files, and the inotify watches."""
    found: Counter[str] = Counter(descriptors=0, descriptors_but_sockets=0, deleted_files=0, inotify_watches=0)
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(entry)
            watches = 0
            if target == "anon_inode:inotify":
                watches = Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text().count("inotify wd:")
        except FileNotFoundError:  # closed meanwhile
            continue
        found["descriptors"] += 1
        found["descriptors_but_sockets"] += not target.startswith("socket:")
        found["deleted_files"] += target.endswith(" (deleted)")
        found["inotify_watches"] += watches
    return dict(found)


def children_of(pid: int) -> list[int]:
    """Return the processes that a process started and did not wait for yet."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found += [int(one) for one in (task / "children").read_text().split()]
        except FileNotFoundError:
            continue
    return found


def threads_of(pid: int) -> int:
    """Return how many threads a process has."""
    return len(os.listdir(f"/proc/{pid}/task"))


def tree_size(name: str, root: Path, without: Path | None = None) -> Sample:
    """Return how many files a directory has, and their bytes, those in the folder `without` not counted."""
    files = nbytes = 0
    for folder, folders, names in os.walk(root):
        folders[:] = [one for one in folders if without is None or Path(folder, one) != without]
        for one in names:
            try:
                nbytes += os.lstat(os.path.join(folder, one)).st_size
                files += 1
            except FileNotFoundError:
                continue
    return {f"{name}_files": files, f"{name}_bytes": nbytes}


def gpu_memory() -> Sample:
    """Return the memory in use on the first GPU as nvidia-smi says it, bytes; nothing without one."""
    try:
        told = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, check=True, timeout=20,
        ).stdout.splitlines()[0]  # fmt: skip
    except (OSError, subprocess.SubprocessError, IndexError):
        return {}
    return {"nvidia_smi_used": int(told) * 2**20}


def sample(pid: int, folders: dict[str, Path], *, has_gpu: bool) -> Sample:
    """Return all of it for one process, its children's memory added as `tree_pss`."""
    found = {**memory_of(pid), **descriptors_of(pid), "threads": threads_of(pid)}
    children = children_of(pid)
    found["children"] = len(children)
    found["tree_pss"] = found["pss"]
    for child in children:
        try:
            found["tree_pss"] += memory_of(child)["pss"]
        except (FileNotFoundError, ProcessLookupError, KeyError):  # it ended
            continue
    for name, folder in folders.items():
        found |= tree_size(name, folder, folders["thumbnails"] if name == "state" else None)
    found["load"] = os.getloadavg()[0]
    return {**found, **(gpu_memory() if has_gpu else {})}
