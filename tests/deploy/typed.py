"""What an operator types in the models root, and a looker that sees it."""

import os
import subprocess
from pathlib import Path

from zwatch.deploy.links import TEMPORARY_PREFIX
from zwatch.deploy.look import Looker


def relink(root: Path, text: str, alias: str = "current") -> None:
    """Repoint as `ln -sfn` does: a temporary link, renamed over the alias."""
    temporary = root / "operators-own"
    temporary.symlink_to(text)
    temporary.replace(root / alias)


def run(root: Path, line: str) -> None:
    """Run a command line of words in the models root."""
    subprocess.run(line.split(), cwd=root, check=True)


def temporaries(root: Path) -> list[str]:
    """Return the names of zwatch's temporary links."""
    return sorted(name for name in os.listdir(root) if name.startswith(TEMPORARY_PREFIX))


def looking(root: Path, *aliases: str, strict: bool = False, **options) -> Looker:
    """Return a looker that follows `current` and these aliases."""
    return Looker(root, ["current", *aliases], strict_links=strict, **options)
