"""All the ways in which people repoint a link, run in the models root as they are typed."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path


def shell(command):
    def way(root, text, name):
        subprocess.run(
            ["sh", "-ec", command, "sh", text, name], cwd=root, check=True, stdout=subprocess.DEVNULL, close_fds=False
        )

    return way


def run(*command):
    def way(root, text, name):
        words = [{"TEXT": text, "NAME": name}.get(word, word) for word in command]
        subprocess.run(words, cwd=root, check=True, close_fds=False)

    return way


def replace(root, text, name):
    os.symlink(text, root / ".next")
    os.replace(root / ".next", root / name)


def copied(*command, to):
    """Return a way that copies a link which was made elsewhere."""

    def way(root, text, name):
        with tempfile.TemporaryDirectory(dir=root.parent) as elsewhere:
            os.symlink(text, f"{elsewhere}/{name}")
            subprocess.run(
                [*command, f"{elsewhere}/{name}", to.format(root=root, name=name)], check=True, close_fds=False
            )

    return way


def without_slash(root, text, name):
    os.unlink(root / name) if os.path.lexists(root / name) else None
    os.symlink(text, root / name)


WAYS = {
    "ln -sfn": run("ln", "-sfn", "TEXT", "NAME"),
    "ln -sfT": run("ln", "-sfT", "TEXT", "NAME"),
    "mv -T": shell('ln -s "$1" .next; mv -T .next "$2"'),
    "os.replace": replace,
    "rsync -a": copied("rsync", "-a", to="{root}/"),
    "cp -PfT": copied("cp", "-PfT", to="{root}/{name}"),
    "unlink, symlink": without_slash,
    "busybox ln -sfn": run("busybox", "ln", "-sfn", "TEXT", "NAME"),
}
WAYS = {
    name: way
    for name, way in WAYS.items()
    if name.split()[0] not in ("rsync", "busybox") or shutil.which(name.split()[0])
}
STRAY_WAYS = {"ln -sf": run("ln", "-sf", "TEXT", "NAME"), "busybox ln -sf": run("busybox", "ln", "-sf", "TEXT", "NAME")}
STRAY_WAYS = {name: way for name, way in STRAY_WAYS.items() if name[0] == "l" or shutil.which("busybox")}
TEXTS = {
    "relative": lambda root, version: version,
    "with a dot": lambda root, version: f"./{version}",
    "with a slash": lambda root, version: f"{version}/",
    "absolute": lambda root, version: f"{root}/{version}",
    "by way of its parent": lambda root, version: f"../{root.name}/{version}",
}


def clear(path: Path) -> None:
    """Remove whatever has this name."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
