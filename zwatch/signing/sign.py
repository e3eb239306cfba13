"""Signing a sealed version: `model.sig` is written last, and `model_signing verify` accepts it."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Lock

from blake3 import blake3

from zwatch.deploy import seal
from zwatch.deploy.durable import remove_leftovers, write_durably
from zwatch.deploy.hashing import PIECE, Advance
from zwatch.deploy.seal import SEAL_NAME, SIGNATURE_NAME, Seal
from zwatch.deploy.versions import opened
from zwatch.errors import Abandoned, Rejection
from zwatch.signing import bundle, keys, statement
from zwatch.signing.signers import certificate_text, key_text, names_in

_READERS = 4
"""Files that are hashed at once: sha256 has one thread a file."""


def sign(
    directory: Path,
    key: keys.SigningKey,
    *,
    name: str | None = None,
    digests: Mapping[str, str] | None = None,
    progress: Advance = lambda path, done: None,
) -> str:
    """Sign a sealed version; return the signer as `--require-signature` would name it.

    `name` is what the statement calls it, by default the directory's name. The digests are sha256, because the command line of
    model_signing 1.1 verifies no others: `digests` has those of all sealed files if they are known, otherwise each file is read
    once more, and compared with the seal. `progress` gets the bytes.

    Raises:
        Rejection: there is no valid seal, or a file is not as it was sealed; nothing is written then.
        OSError: a file could not be read, or the signature not be written.
    """
    with opened(directory) as fd:
        seal_bytes = seal.read_seal_bytes(fd)
        sealed = seal.parse_seal(seal_bytes)
        if digests is None or digests.keys() != sealed.files.keys():
            digests = _digests(fd, sealed, progress)
        signed = {**digests, SEAL_NAME: hashlib.sha256(seal_bytes).hexdigest()}
        ignored = {SIGNATURE_NAME, *_left_out(directory, sealed)}
        payload = statement.format_statement(name or directory.name, signed, "sha256", ignored, datetime.now(UTC))
        signature = keys.sign_bytes(key.private, bundle.signed_bytes(payload))
        signer, material = _signer(key)
        remove_leftovers(directory, SIGNATURE_NAME)
        write_durably(directory, SIGNATURE_NAME, bundle.format_bundle(payload, signature, material), mode=0o644)
    return signer


def _signer(key: keys.SigningKey) -> tuple[str, dict[str, object]]:
    """Return how a signer is named, and what the bundle says of it."""
    if not key.chain:
        public = key.private.public_key()
        return key_text(key.path.name, public), bundle.public_key_material(keys.fingerprint(public))
    from cryptography.hazmat.primitives.serialization import Encoding

    name = next(iter(names_in(key.chain[0])), "nobody")
    chain = [one.public_bytes(Encoding.DER) for one in key.chain]
    return certificate_text(name, key.chain[0]), bundle.certificate_material(chain)


def remove_outdated(directory: Path) -> bool:
    """Remove a signature that is not about the present seal, whoever made it; return whether there was one.

    Raises:
        Rejection: there is no valid seal.
        OSError: it could not be read or removed.
    """
    with opened(directory) as fd:
        seal_bytes = seal.read_seal_bytes(fd)
        sealed = seal.parse_seal(seal_bytes)
        try:
            with seal.opened_file(fd, SIGNATURE_NAME) as file:
                payload = bundle.parse_bundle(seal.read_whole(file)).payload
            if statement.fits(payload, sealed, seal_bytes):
                return False
        except Rejection as rejection:
            if rejection.code == "file_missing":
                return False
        os.unlink(SIGNATURE_NAME, dir_fd=fd)
    return True


def _digests(fd: int, sealed: Seal, progress: Advance) -> dict[str, str]:
    """Return the sha256 of every sealed file, from the very bytes of which the blake3 is the seal's."""
    counting, ended = Lock(), Event()

    def advance(path: str, done: int) -> None:
        if ended.is_set():
            raise Abandoned
        with counting:
            progress(path, done)

    with ThreadPoolExecutor(_READERS) as pool:
        try:
            found = pool.map(lambda path: _digest(fd, sealed, path, advance), sealed.files)
            return dict(zip(sealed.files, found, strict=True))
        except BaseException:  # Ctrl-C too: the pool waits for its threads, which must not read gigabytes to their end
            ended.set()
            raise


def _digest(fd: int, sealed: Seal, path: str, progress: Advance) -> str:
    ours, theirs = blake3(), hashlib.sha256()
    with seal.opened_sealed(fd, sealed, path) as file:
        buffer = bytearray(PIECE)
        view, position = memoryview(buffer), 0
        while count := os.preadv(file, [buffer], position):
            ours.update(view[:count])
            theirs.update(view[:count])
            position += count
            progress(path, count)
    seal.check_hash(path, ours.hexdigest(), sealed.files[path])
    return theirs.hexdigest()


def _left_out(directory: Path, sealed: Seal) -> Iterator[str]:
    """Yield what lies in a version and is not sealed: the highest directories without a sealed file, and other files."""
    folders = {
        "/".join(parts[:depth]) for path in sealed.files for parts in [path.split("/")] for depth in range(len(parts))
    }
    for where, names, files in os.walk(directory):
        here = os.path.relpath(where, directory)
        for name in [*names, *files]:
            path = name if here == "." else f"{here}/{name}"
            if path not in sealed.files and path not in folders and path != SEAL_NAME:
                with suppress(UnicodeEncodeError):  # a name that is not UTF-8 cannot be written into a statement
                    path.encode()
                    yield path
        names[:] = [name for name in names if (name if here == "." else f"{here}/{name}") in folders]
