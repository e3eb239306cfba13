"""`zwatch import`: from what people have to a sealed version, in one rename."""

import os
import platform
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

from zwatch import __version__
from zwatch.deploy import lora_files, provenance
from zwatch.deploy.durable import write_durably
from zwatch.deploy.header import WEIGHTS_SUFFIX
from zwatch.deploy.oserrors import close_quietly
from zwatch.deploy.seal import SEAL_NAME, Seal, format_seal, parse_seal
from zwatch.deploy.signals import Ending
from zwatch.errors import NoRoom
from zwatch.importing import fit, origins, pieces, planning, reading, sources, weights
from zwatch.importing.bases import Base, open_base, share
from zwatch.importing.cloning import clone
from zwatch.importing.converting import importing_torch
from zwatch.importing.pieces import Output
from zwatch.importing.place import Done, Place, status_of
from zwatch.importing.plans import Plan, Wish
from zwatch.importing.room import SPARE, Say, explained, free_bytes
from zwatch.importing.sources import Found
from zwatch.importing.writing import FileWriter
from zwatch.progress import Progress

if TYPE_CHECKING:
    from zwatch.signing.keys import SigningKey


@dataclass(slots=True)
class Imported:
    """What was made: the version's directory, its seal, bytes written, bytes that share blocks with a source, bytes kept of an
    interrupted import, how files came from the base, and remarks."""

    directory: Path
    sealed: Seal
    written: int = 0
    cloned: int = 0
    kept: int = 0
    shared: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    signer: str | None = None
    kind: str = "version"
    """`version` or `lora`."""


def run(
    source: Path,
    root: Path,
    wish: Wish,
    base_name: str | None,
    say: Say,
    ending: Ending,
    key: "SigningKey | None" = None,
) -> Imported:
    """Import a source as a version under the models root, signed with a key if there is one.

    Raises:
        Refused: it cannot be imported, with the reason and what to do.
        OSError: a file could not be read or written.
        KeyboardInterrupt: it was interrupted.
    """
    with Progress("importing") as progress:
        progress.step("looking at the source")
        beside = tuple((sources.find_lora(path).files[0], scale) for path, scale in wish.loras)
        found = watching(replace(sources.find(source, wish.dtype), loras=beside))
        base = None if base_name is None else open_base(root, base_name)
        plan = planning.make(found, base, wish)
    return carry_out(plan, root, found, base, wish, say, ending, key)


def watching(found: Found) -> Found:
    """Return a source with all files that decide about the version without being in it: they must stay as they are, too."""
    own = found.small.get(provenance.NAME)
    beside = [
        path
        for file in (*found.files, *(lora for lora, _ in found.loras))
        if (path := file.path.with_name(weights.ADAPTER_CONFIG)).is_file()
    ]
    more = [*([] if own is None else [own]), *(reading.find(path, path.name) for path in beside)]
    return replace(found, watched=(*found.watched, *more))


def carry_out(
    plan: Plan,
    root: Path,
    found: Found,
    base: Base | None,
    wish: Wish,
    say: Say,
    ending: Ending,
    key: "SigningKey | None",
) -> Imported:
    """Make a version as it is planned.

    Raises:
        Refused, OSError, KeyboardInterrupt: as `run`.
    """
    said = []

    def tell(line: str) -> None:
        said.append(line)
        say(line)

    for note in [*plan.notes, *plan.remarks]:
        tell(note)
    with Place(root, wish.name, "LoRA" if plan.is_lora else "version") as place, explained(place, root, say):
        made = _Import(place, root, plan, found, base, wish, tell, ending, key).run()
    made.notes = said
    return made


@dataclass(slots=True)
class _Import:
    """One import that has its place."""

    place: Place
    root: Path
    plan: Plan
    found: Found
    base: Base | None
    wish: Wish
    say: Say
    ending: Ending
    key: "SigningKey | None"
    _hashes: dict[str, str] = field(default_factory=dict)
    _of_sources: dict[str, str] = field(default_factory=dict)
    _shared: dict[str, int] = field(default_factory=dict)
    _cloned: dict[str, int] = field(default_factory=dict)

    def run(self) -> Imported:
        """Write, seal and rename."""
        if not self.plan.is_lora:
            fit.check(self.found.path, self.plan.small, self.plan.shapes)
        to_write, kept = self._prepare()
        with importing_torch() if any(output.needs_torch for output in to_write) else nullcontext():
            self._write(sorted(to_write, key=lambda output: output.needs_torch))
        with Progress("importing") as progress:
            progress.step("finishing")
            made = self._finish()
        made.cloned, made.kept, made.shared = sum(self._cloned.values()), kept, self._shared
        made.written = sum(output.size for output in to_write) - made.cloned
        return made

    def _prepare(self) -> tuple[list[Output], int]:
        """Return what is to be written, after what need not be is in its place, and how many bytes an earlier run wrote."""
        outputs = {output.path: output for output in self.plan.outputs}
        copies = {path: pieces.copy_of(path, file) for path, file in self.plan.shared.items()}
        self.place.keep({path: output.key for path, output in (outputs | copies).items()})
        for path in planning.paths_of(self.plan):
            (self.place.version / path).parent.mkdir(parents=True, exist_ok=True)
        copied: dict[str, int] = {}
        for path, file in self.plan.shared.items():
            if path in self.place.done:
                continue
            how, why = share(file, self.place.version / path)
            if how == "copy":
                outputs[path] = copies[path]
                if path.endswith(WEIGHTS_SUFFIX):
                    copied[why] = copied.get(why, 0) + file.identity.size
            else:
                assert file.sealed is not None
                self._hashes[path] = file.sealed
            self._shared[how] = self._shared.get(how, 0) + file.identity.size
        for why, size in copied.items():
            assert self.base is not None
            self.say(f"{size:,} bytes of {self.base.name}'s weights are copied: {why}")
        for path, done in self.place.done.items():
            self._hashes[path] = done.blake3
            self._of_sources |= done.sources
        to_write = [output for path, output in outputs.items() if path not in self.place.done]
        needed, free = sum(output.size for output in to_write) + SPARE, free_bytes(self.root)
        if needed > free:
            needed -= sum(output.size for output in to_write if self._is_shared(output))
        if needed > free:
            raise NoRoom(
                f"{self.root}: {needed:,} bytes are to be written, {free:,} are free; make room, then import again"
            )
        return to_write, sum(self.place.done[path].status[1] for path in self.place.done)

    def _is_shared(self, output: Output) -> bool:
        """Say whether an output will share the blocks of its source but the first, by a trial."""
        if len(output.pieces) != 1 or not output.pieces[0].is_plain:
            return False
        with tempfile.TemporaryFile(dir=self.place.version) as sink, reading.opened(output.pieces[0].source) as fd:
            return clone(fd, sink.fileno())

    def _write(self, outputs: list[Output]) -> None:
        """Write the files one after the other; each is synced to the disk while the next is written."""
        if not outputs:
            return
        with (
            Progress("importing", sum(output.read for output in outputs)) as progress,
            ThreadPoolExecutor(1, "zwatch-import-sync") as syncing,
            FileWriter(partial(self._advance, progress)) as writer,
        ):
            waiting: list[Future[tuple[str, Done]]] = []
            try:
                for output in outputs:
                    sink = os.open(self.place.version / output.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)  # fmt: skip
                    try:
                        digest = writer.write(output, sink)
                    except BaseException:
                        close_quietly(sink)
                        raise
                    of_sources = {str(file.path): writer.hashes[file] for file in output.sources}
                    waiting.append(syncing.submit(_synced, sink, output, digest, of_sources))
                    while waiting and waiting[0].done():
                        self._record(*waiting.pop(0).result())
            finally:  # also when it is interrupted: what is complete need not be written again
                for future in waiting:
                    self._record(*future.result())
            self._cloned = writer.cloned
        self._say_written_anew(outputs)

    def _advance(self, progress: Progress, path: str, count: int) -> None:
        self.ending.check()
        progress.advance(path, count)

    def _say_written_anew(self, outputs: list[Output]) -> None:
        """Say how many bytes of the base were written although none of them changes."""
        if self.base is None:
            return
        files = {file for _, file in self.base.weights("transformer")}
        sizes = [
            output.size
            for output in outputs
            if output.path not in self._cloned and all(one.is_plain and one.source in files for one in output.pieces)
        ]
        if sizes:
            self.say(
                f"transformer: {sum(sizes):,} bytes of {self.base.name} were written again: its headers name the version, and this "
                "file system cannot share blocks between two files"
            )

    def _record(self, path: str, done: Done) -> None:
        self.place.record(path, done)
        self._hashes[path] = done.blake3
        self._of_sources |= done.sources

    def _finish(self) -> Imported:
        """Write what is made here and the seal, look at all sources once more, and rename."""
        texts = {**self.plan.texts, provenance.NAME: self._provenance()}
        for path, data in texts.items():
            write_durably((self.place.version / path).parent, Path(path).name, data, mode=0o666 & ~_umask())
            self._hashes[path] = blake3(data).hexdigest()
        for output in self.plan.outputs:
            for file in output.sources:
                reading.check_unchanged(file)
        for file in [*self.plan.shared.values(), *self.found.watched]:
            reading.check_unchanged(file)
        if self.base is not None:
            self.base.check_unchanged()
        data = format_seal(self._hashes)
        write_durably(self.place.version, SEAL_NAME, data, mode=0o644)
        signer = self._sign(data)  # the version is complete, and nothing has its name yet
        folders = {str(Path(path).parent) for path in self._hashes} - {"."}
        self.ending.put_off()  # after the rename the version is there, and the command must say so
        try:
            self.place.publish(sorted(folders, reverse=True))
        except BaseException:
            self.ending.go_on()
            raise
        return Imported(self.root / self.wish.name, parse_seal(data), signer=signer)

    def _sign(self, seal: bytes) -> str | None:
        """Sign the seal if there is a key; return the signer."""
        if self.key is None:
            return None
        from zwatch.signing import sign

        size = sum((self.place.version / path).stat().st_size for path in parse_seal(seal).files)
        with Progress("signing", size) as progress:
            name = f"{lora_files.PREFIX}{self.wish.name}" if self.plan.is_lora else self.wish.name
            return sign.sign(self.place.version, self.key, name=name, progress=progress.advance)

    def _provenance(self) -> bytes:
        tools = {"zwatch": __version__, "python": platform.python_version()}
        if self.plan.needs_torch:
            from torch import __version__ as torch_version

            tools["torch"] = str(torch_version)
        return provenance.format(
            origins.made(self.plan, self.found, self.base, self.wish, self._of_sources, tools, datetime.now(UTC))
        )


def _synced(sink: int, output: Output, digest: str, of_sources: dict[str, str]) -> tuple[str, Done]:
    """Wait until a file is on the disk, close it, and return what is to be remembered of it."""
    try:
        os.fsync(sink)
        return output.path, Done(output.key, digest, of_sources, status_of(sink))
    finally:
        os.close(sink)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
