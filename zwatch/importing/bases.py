"""The version that gives what a source lacks, and how its files come without being copied."""

import errno
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from zwatch.deploy import golden, header, pipeline_files, provenance
from zwatch.deploy.oserrors import close_quietly, user_name
from zwatch.deploy.seal import SEAL_NAME, opened_file, read_seal, read_whole
from zwatch.deploy.versions import is_version_name, opened
from zwatch.errors import Refused, Rejection
from zwatch.importing import reading
from zwatch.importing.cloning import clone
from zwatch.importing.reading import SourceFile

_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True, slots=True)
class Base:
    """A sealed version: its name, digest, and those of its files that another version can have, by path. Their hashes are the
    seal's: what is linked is not read, and every load compares it with the seal. `golden` are its golden.json and its images."""

    name: str
    directory: Path
    digest: str
    files: Mapping[str, SourceFile]
    stated: provenance.Provenance
    golden: Mapping[str, SourceFile] = field(default_factory=dict)

    def weights(self, component: str) -> tuple[tuple[str, SourceFile], ...]:
        """Return a component's weight files with their names in its folder."""
        prefix = f"{component}/"
        paths = [path for path in self.files if path.startswith(prefix) and path.endswith(pipeline_files.WEIGHTS_SUFFIX)]  # fmt: skip
        return tuple((path.removeprefix(prefix), self.files[path]) for path in paths)

    def check_unchanged(self) -> None:
        """Check that the seal is still the one that was read.

        Raises:
            Refused: it was sealed again, or is gone.
        """
        with suppress(Rejection, OSError), opened(self.directory) as fd:
            if read_seal(fd).digest == self.digest:
                return
        raise Refused(f"{self.directory}: the base was sealed again or removed while it was imported; import again")


def open_base(root: Path, name: str) -> Base:
    """Open the version, or the alias, of this name.

    Raises:
        Refused: it is no sealed version.
        OSError: it cannot be read.
    """
    directory = (root / name).resolve()
    if not directory.is_dir():
        raise Refused(f"{root / name}: there is no such version, expected one of {_versions(root)}")
    if directory.parent != root.resolve():
        raise Refused(f"{root / name}: leads to {directory}, which is not directly in {root}")
    with opened(directory) as fd:
        try:
            sealed = read_seal(fd)
            own = b""
            if provenance.NAME in sealed.files:
                with opened_file(fd, provenance.NAME) as file:
                    own = read_whole(file)
            stated = provenance.parse(own) if own else provenance.Provenance()
            needed = pipeline_files.select(sealed.files, lambda path: (directory / path).read_bytes()).needed
            files = {}
            for path in [path for path in needed if path != provenance.NAME]:
                with opened_file(fd, path):  # no links on the way: a hard link to one would lead elsewhere
                    files[path] = reading.find(directory / path, path, sealed.files[path])
            of_golden = _golden(files)
        except Rejection as rejection:
            raise Refused(f"{root / name}: {rejection.reason}") from None
    _check_name(directory, files)
    return Base(directory.name, directory, sealed.digest, files, stated, of_golden)


def _golden(files: dict[str, SourceFile]) -> dict[str, SourceFile]:
    """Take golden.json and the images that it names out of a version's files, and return them."""
    if golden.NAME not in files:
        return {}
    pictures = golden.parse(reading.read_whole(files[golden.NAME]))
    return {path: files.pop(path) for path in (golden.NAME, *(picture.image for picture in pictures))}


def _check_name(directory: Path, files: Mapping[str, SourceFile]) -> None:
    """Check that a version is the one that its transformer's headers name, as every load does: not a copy under another name."""
    for path, file in files.items():
        if header.carries_version(path):
            try:
                header.check_version(reading.read_header(file), directory.name, path)
            except Rejection as rejection:
                raise Refused(f"{directory}: {rejection.reason}") from None


def _versions(root: Path) -> str:
    names = sorted(path.name for path in root.iterdir() if is_version_name(path.name) and (path / SEAL_NAME).is_file())
    return ", ".join(names[:20]) or "none: nothing is sealed there yet"


def share(file: SourceFile, path: Path) -> tuple[str, str]:
    """Let a new path have a base's file without copying it. Return `reflink` or `hard link`; where neither is possible nothing is
    made, and it is `copy` and why.

    A reflink comes first: its blocks are its own once somebody writes to either file. Only weights are linked, which nobody edits:
    sealing writes to the transformer's alone, and these are never shared.

    Raises:
        Refused: the base's file changed.
        OSError: it failed otherwise.
    """
    with reading.opened(file) as source:
        sink = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            if clone(source, sink):
                os.fsync(sink)
                return "reflink", ""
        finally:
            close_quietly(sink)
        path.unlink()
        if not path.name.endswith(pipeline_files.WEIGHTS_SUFFIX):
            return "copy", "small files are not linked"
        try:
            os.link(file.path, path, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            return "copy", _why_no_link(file.path, error)
        if (path.stat().st_dev, path.stat().st_ino) != (file.identity.device, file.identity.inode):
            path.unlink()
            raise Refused(f"{file.path}: changed while it was imported: it is another file now; import again")
    return "hard link", ""


def _why_no_link(path: Path, error: OSError) -> str:
    """Return why a file can get no further hard link."""
    owner = path.stat().st_uid
    if error.errno == errno.EXDEV:
        return "it is on another file system, or behind another mount, than the new version"
    if error.errno == errno.EMLINK:
        return "a file has as many hard links as its file system allows"
    if error.errno in (errno.EPERM, errno.EACCES) and owner != os.geteuid():  # fs.protected_hardlinks
        return f"its files belong to {user_name(owner)}, so the system does not let {user_name()} link them"
    return f"this file system can neither share blocks nor link here ({error.strerror})"
