"""The versions of a soak: some that are good, one that is corrupt, one without a seal, and new ones while it runs."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3
from common import ROOT, Clock
from versions import Version, copy_weights, make_versions

SMALL = 2**30
"""Bytes of a version below which a third one is made of two, and new ones are made while it runs."""
BAD = ("corrupt", "unsealed")
"""Versions that cannot serve."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """The versions under a models root."""

    models: Path
    good: tuple[str, ...]
    is_small: bool

    def digest(self, name: str) -> str:
        """Return what zwatch calls a version's content."""
        return Version(self.models / name).digest

    def add(self, name: str, number: int) -> None:
        """Make a version with the first one's weights and another stamp, and therefore another digest. Its tokenizer, too, has other
        bytes than any before, and has to be made."""
        copy_version(self.models / self.good[0], self.models / name)
        config = self.models / name / "tokenizer" / "tokenizer_config.json"
        data = config.read_bytes()
        config.unlink()  # it is the first version's file too
        config.write_bytes(data + b"\n" * number)
        Version(self.models / name).seal()

    def remove(self, name: str) -> None:
        """Delete a version."""
        shutil.rmtree(self.models / name)


def prepare(models: Path, given: Path | None, preset: str | None, device: str, clock: Clock) -> Fleet:
    """Fill a models root from the versions in `given` (the repository's without), or with random ones of a preset."""
    if preset:
        make_versions(models, preset, device, clock)
    else:
        _copy_all(given or ROOT / "models", models)
    names = sorted(one.name for one in models.iterdir() if not one.is_symlink())
    is_small = Version(models / names[0]).nbytes < SMALL
    if len(names) == 2 and is_small:
        names.append("v3" if "v3" not in names else "third")
        clock.say(f"making {names[-1]} of {names[0]} and {names[1]}")
        _mix(models, *names)
    for name in BAD:
        copy_version(models / names[0], models / name, is_stamped=is_small)
    Version(models / "corrupt").seal()
    _flip_a_bit(min(Version(models / "corrupt").weights, key=lambda path: path.stat().st_size))
    return Fleet(models, tuple(names), is_small)


def _copy_all(given: Path, models: Path) -> None:
    """Copy all sealed versions; hard links where that is possible, because nothing changes their files."""
    models.mkdir(parents=True, exist_ok=True)
    for one in sorted(given.iterdir()):
        if one.is_dir() and not one.is_symlink() and (one / "BLAKE3SUMS").is_file():
            shutil.copytree(one, models / one.name, copy_function=_linked)
    if len(os.listdir(models)) < 2:
        raise SystemExit(f"{given}: at least two sealed versions are needed")
    (models / "current").symlink_to(min(os.listdir(models)))


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def copy_version(source: Path, target: Path, *, is_stamped: bool = True) -> None:
    """Copy a version: the transformer with the target's name as its stamp, or like all else as a hard link."""
    for path in sorted(source.rglob("*")):
        there = target / path.relative_to(source)
        if path.is_dir() or path.name == "BLAKE3SUMS" or path.is_symlink():
            continue
        there.parent.mkdir(parents=True, exist_ok=True)
        if is_stamped and path.suffix == ".safetensors" and path.parent.name == "transformer":
            copy_weights(path, there, stamp=target.name, differs=False)
        else:
            os.link(path, there)


def _mix(models: Path, first: str, second: str, third: str) -> None:
    """Make a version whose transformer lies between those of two others, so that it draws other pictures than both."""
    from safetensors.torch import load_file, save_file

    copy_version(models / first, models / third)
    for path in Version(models / third).weights:
        if path.parent.name == "transformer":
            relative = path.relative_to(models / third)
            one, other = (load_file(models / name / relative) for name in (first, second))
            save_file(
                {name: ((one[name].float() + other[name].float()) / 2).to(one[name].dtype) for name in one},
                path, {"version": third},
            )  # fmt: skip
    Version(models / third).seal()


def _flip_a_bit(path: Path) -> None:
    """Change one bit of a file's last byte, in a copy of its own."""
    data = bytearray(path.read_bytes())
    before = blake3(data).digest()
    data[-1] ^= 1
    assert blake3(data).digest() != before
    path.unlink()  # it may be another version's file too
    path.write_bytes(data)
