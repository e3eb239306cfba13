"""Three versions of one pipeline for the benchmarks: one with another transformer, one with all files different."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3
from common import ROOT, Clock
from page_cache import THREADS

from zwatch.deploy import header, seal
from zwatch.deploy.sealing import write_seal

COPIED = 64 * 2**20
"""Bytes copied at a time when a version is made; one bit of each such piece differs from the original."""


@dataclass(frozen=True, slots=True)
class Version:
    """A sealed version directory."""

    directory: Path

    @property
    def name(self) -> str:
        """Its name."""
        return self.directory.name

    @property
    def weights(self) -> list[Path]:
        """Its weight files."""
        return sorted(self.directory.glob("*/*.safetensors"))

    @property
    def nbytes(self) -> int:
        """Bytes of its weight files."""
        return sum(path.stat().st_size for path in self.weights)

    @property
    def digest(self) -> str:
        """What zwatch calls its content."""
        return blake3((self.directory / seal.SEAL_NAME).read_bytes()).hexdigest()

    def seal(self) -> None:
        """Seal it."""
        write_seal(self.directory, self.name)

    def change_a_config(self) -> None:
        """Change nothing but the scheduler's config, and seal it again."""
        name = "scheduler/scheduler_config.json"
        config = json.loads((self.directory / name).read_text())
        config["shift"] = 3.5 if config["shift"] == 3.0 else 3.0
        data = (json.dumps(config, indent=2) + "\n").encode()
        temporary = self.directory / f"{name}.new"
        temporary.write_bytes(data)
        os.replace(temporary, self.directory / name)
        sealed = seal.parse_seal((self.directory / seal.SEAL_NAME).read_bytes())
        self._write_seal(seal.format_seal({**sealed.files, name: blake3(data).hexdigest()}))

    def _write_seal(self, data: bytes) -> None:
        temporary = self.directory / f".{seal.SEAL_NAME}.new"
        temporary.write_bytes(data)
        os.replace(temporary, self.directory / seal.SEAL_NAME)


def make_versions(models: Path, preset: str, device: str, clock: Clock, *, count: int = 3) -> list[Version]:
    """Return v1, v2, v3, v4, or the first `count`, made where they are not there yet, and `current` pointing to v1.

    v2 and v4 have another transformer and v1's other files as hard links, as `cp -al` deploys have; in v3 every weight file
    differs, so that nothing of another version can be shared.
    """
    models.mkdir(parents=True, exist_ok=True)
    versions = [Version(models / name) for name in ("v1", "v2", "v3", "v4")]
    v1, v2, v3, v4 = versions
    if not (v1.directory / seal.SEAL_NAME).exists():
        clock.say(f"writing v1 ({preset}, random weights)")
        make = (
            "import sys; from pathlib import Path; from random_pipeline import PRESETS, write_pipeline; "
            "write_pipeline(Path(sys.argv[1]), PRESETS[sys.argv[2]], 1, sys.argv[3])"
        )
        paths = os.pathsep.join([str(ROOT / "tools"), str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": paths}
        subprocess.run([sys.executable, "-c", make, str(v1.directory), preset, device], check=True, env=environment)
        clock.say("stamping v1")
        for path in v1.weights:
            if path.parent.name == "transformer":
                copy_weights(path, path, stamp="v1", differs=False)
        v1.seal()
    for version, shared in ((v2, True), (v3, False), (v4, True))[: count - 1]:
        if not (version.directory / seal.SEAL_NAME).exists():
            clock.say(f"writing {version.name}")
            _vary(v1, version, share=shared)
            version.seal()
    clock.say("writing back to the disk")
    os.sync()
    (models / "next").symlink_to("v1")
    os.replace(models / "next", models / "current")
    return versions[:count]


def _vary(source: Version, target: Version, *, share: bool) -> None:
    """Make a version whose transformer differs from the source's; the other weights are linked, or differ too."""
    for path in sorted(source.directory.rglob("*")):
        relative = path.relative_to(source.directory)
        there = target.directory / relative
        if path.is_dir() or relative.name == seal.SEAL_NAME:
            continue
        there.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".safetensors":
            shutil.copyfile(path, there)
        elif relative.parts[0] == "transformer":
            copy_weights(path, there, stamp=target.name, differs=True)
        elif share:
            os.link(path, there)
        else:
            copy_weights(path, there, stamp=None, differs=True)


def copy_weights(source: Path, target: Path, *, stamp: str | None, differs: bool) -> None:
    """Copy a weight file with many threads, with another stamp in its header, and with other last mantissa bits."""
    temporary = target.with_name(f".{target.name}.new")
    with open(source, "rb") as file, open(temporary, "wb") as sink:
        found = header.read_header(file.fileno(), source.name)
        head = found.raw if stamp is None else header.with_version(found, stamp, source.name)
        sink.write(head)
        sink.flush()

        def carry(begin: int) -> None:
            piece = bytearray(os.pread(file.fileno(), COPIED, begin))
            piece[0] ^= differs  # little-endian: the lowest bit of a value, which no image depends on
            os.pwrite(sink.fileno(), piece, len(head) + begin - found.data_start)

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(carry, range(found.data_start, source.stat().st_size, COPIED)))
    os.replace(temporary, target)
