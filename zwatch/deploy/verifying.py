"""Verifying a version on the CPU: every file that its seal names, with all cores."""

import os
from functools import partial
from pathlib import Path

from zwatch.deploy import golden, header, lora_files, seal
from zwatch.deploy.hashing import Advance, Hashed, Source, hashed
from zwatch.deploy.oserrors import close_quietly
from zwatch.errors import Rejection


def sealed_bytes(directory: Path) -> int:
    """Return how many bytes `check_directory` will read; those of files that are not there or of a bad seal do not count.

    Raises:
        OSError: the directory could not be opened.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        paths = seal.read_seal(fd).files
    except Rejection:
        return 0
    finally:
        close_quietly(fd)
    return sum(_size(directory / path) for path in paths)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def check_directory(directory: Path, version: str, advance: Advance = lambda path, done: None) -> list[str]:
    """Verify a version on the CPU and return what differs, a sentence each, in the seal's order; nothing means verified.

    Raises:
        OSError: the directory could not be opened.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            sealed = seal.read_seal(fd)
        except Rejection as rejection:
            if rejection.code == "seal_missing":  # it names no file
                return [f"{directory}: {rejection.reason}"]
            return [rejection.reason]
        sources = (Source(path, partial(seal.opened_sealed, fd, sealed, path)) for path in sealed.files)
        findings = []
        for result in hashed(sources, advance):
            try:
                _check(result, sealed, version)
            except Rejection as rejection:
                findings.append(rejection.reason)
            except OSError as error:
                findings.append(f"{result.source.path}: {error.strerror}")
        if not any(map(header.carries_version, sealed.files)):
            findings.append(f"{seal.SEAL_NAME}: names no transformer/*.safetensors")
        return findings or _golden_findings(fd, sealed)
    finally:
        close_quietly(fd)


def _golden_findings(directory_fd: int, sealed: seal.Seal) -> list[str]:
    """Return what is wrong with the golden images of a version whose files are as they were sealed."""
    if golden.NAME not in sealed.files:
        return []
    try:
        with seal.opened_sealed(directory_fd, sealed, golden.NAME) as fd:
            golden.check_files(directory_fd, seal.read_whole(fd), sealed.files)
    except Rejection as rejection:
        return [rejection.reason]
    except OSError as error:
        return [f"{error.filename}: {error.strerror}"]
    return []


def _check(result: Hashed, sealed: seal.Seal, version: str) -> None:
    """Compare a file with its seal, and its header with the version.

    Raises:
        Rejection, OSError: what is wrong with it.
    """
    path = result.source.path
    if result.error is not None:
        raise result.error
    if result.has_changed:
        raise Rejection(
            "hash_mismatch", f"{path}: it changed while it was read; verify again when nothing writes to it"
        )
    seal.check_hash(path, result.digest, sealed.files[path])
    if path.endswith(header.WEIGHTS_SUFFIX):
        parsed = header.read_header(result.fd, path)
        if path == header.LORA:
            lora_files.matrices(parsed)
        if header.carries_version(path):
            header.check_version(parsed, version, path)
