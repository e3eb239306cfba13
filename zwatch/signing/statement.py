"""The signed statement: an in-toto statement of OpenSSF Model Signing that names the files of a version with their digests."""

import hashlib
import json
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from blake3 import blake3

from zwatch.deploy.seal import SEAL_NAME, Seal
from zwatch.errors import Rejection
from zwatch.signing.bundle import invalid, parse_json

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
SIGNED_AT = "signed_at"
"""When it was signed, by the signer's clock. Version 1.0 of the predicate lets verifiers ignore what they do not know."""

_HASHES = {
    "sha256": lambda data: hashlib.sha256(data).hexdigest(),
    "blake2b": lambda data: hashlib.blake2b(data).hexdigest(),
    "blake3": lambda data: blake3(data).hexdigest(),
}
"""The algorithms of model_signing 1.1 for whole files."""
_HEX = re.compile(r"(?:[0-9a-f]{2})+")


@dataclass(frozen=True, slots=True)
class Digest:
    """A digest of a file: the algorithm's name, and lower-case hex."""

    algorithm: str
    hexadecimal: str


@dataclass(frozen=True, slots=True)
class Statement:
    """What a signer vouches for: digests by path, and when that was signed, if the statement says so."""

    files: Mapping[str, Digest]
    signed_at: datetime | None


def format_statement(
    name: str, digests: Mapping[str, str], algorithm: str, ignored: Iterable[str], signed_at: datetime
) -> bytes:
    """Return the payload that vouches for these digests (hex, by path). `ignored` are paths that `model_signing verify` is not
    to miss in it."""
    # model_signing sorts by the parts of a path, and its digest of the whole depends on the order.
    paths = sorted(digests, key=lambda path: PurePosixPath(path).parts)
    resources = [{"name": path, "algorithm": algorithm, "digest": digests[path]} for path in paths]
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": _root(digests[path] for path in paths)}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": algorithm,
                "allow_symlinks": False,
                "ignore_paths": sorted(ignored),
            },
            "resources": resources,
            SIGNED_AT: signed_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        },
    }
    return json.dumps(statement, ensure_ascii=False).encode()


def parse_statement(payload: bytes) -> Statement:
    """Parse a payload of which the signature was verified.

    Raises:
        Rejection: `signature_invalid`, with what is not as Model Signing says.
    """
    whole = parse_json(payload, "the signed statement")
    _expect(whole.get("_type"), STATEMENT_TYPE, "_type")
    _expect(whole.get("predicateType"), PREDICATE_TYPE, "predicateType")
    predicate = _object(whole.get("predicate"), "predicate")
    method = _object(predicate.get("serialization"), "predicate.serialization").get("method")
    if method != "files":
        raise invalid(f"it was signed by {str(method)[:40]!r}, expected 'files': sign whole files, not shards of them")
    resources = predicate.get("resources")
    if not isinstance(resources, list):
        raise invalid("predicate.resources is no list")
    files: dict[str, Digest] = {}
    for number, entry in enumerate(resources):
        name, digest = _resource(_object(entry, f"resource {number}"), number)
        if name in files:
            raise invalid(f"resource {number}: {name[:200]!r} is named a second time")
        files[name] = digest
    _check_subject(whole.get("subject"), files.values())
    return Statement(files, _time(predicate.get(SIGNED_AT)))


def compare(statement: Statement, sealed: Seal, seal_bytes: bytes) -> None:
    """Compare a statement with a seal, without reading any other file.

    Every sealed file must be named. A blake3 digest must be the seal's. Where other algorithms were used, the statement must
    have the digest of the seal itself. Files that are named and not sealed are never read, so nothing is said of them.

    Raises:
        Rejection: `signature_invalid`: the statement is about other files.
    """
    seal_digest = statement.files.get(SEAL_NAME)
    if seal_digest is not None:
        found = _HASHES[seal_digest.algorithm](seal_bytes)
        if found != seal_digest.hexadecimal:
            what = f"{seal_digest.algorithm} of {SEAL_NAME} is {found}, {seal_digest.hexadecimal} was signed"
            raise invalid(f"{what}; it was sealed again after it was signed, or altered")
    for path, expected in sealed.files.items():
        signed = statement.files.get(path)
        if signed is None:
            raise invalid(f"the signed statement does not name {path}, which the seal names")
        if signed.algorithm == "blake3" and signed.hexadecimal != expected:
            raise invalid(f"{path}: blake3 {signed.hexadecimal} was signed, the seal says {expected}")
        if signed.algorithm != "blake3" and seal_digest is None:
            raise invalid(
                f"{path} was signed by its {signed.algorithm}, and {SEAL_NAME} was not signed, so nothing can be compared with "
                "the seal; run `zwatch seal` first and sign then"
            )


def _root(digests: Iterable[str]) -> str:
    """Return model_signing's digest of the whole: sha256 over all digests, in the order of the statement."""
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


def _resource(entry: dict[str, Any], number: int) -> tuple[str, Digest]:
    name, algorithm, digest = entry.get("name"), entry.get("algorithm"), entry.get("digest")
    if not isinstance(name, str) or not name or name.startswith("/") or posixpath.normpath(name) != name:
        raise invalid(f"resource {number}: {str(name)[:200]!r} is not a normalised path below the version")
    if name.split("/")[0] == "..":
        raise invalid(f"resource {number}: {name[:200]!r} leads out of the version")
    if not isinstance(algorithm, str) or algorithm not in _HASHES:
        raise invalid(f"{name[:200]}: algorithm {str(algorithm)[:40]!r}, expected {', '.join(_HASHES)}")
    length = 128 if algorithm == "blake2b" else 64
    if not isinstance(digest, str) or len(digest) != length or not _HEX.fullmatch(digest):
        raise invalid(f"{name[:200]}: expected {length} hex digits of {algorithm}")
    return name, Digest(algorithm, digest)


def _check_subject(subjects: object, digests: Iterable[Digest]) -> None:
    if not isinstance(subjects, list) or len(subjects) != 1:
        raise invalid("subject must have one entry")
    stated = _object(_object(subjects[0], "subject").get("digest"), "subject.digest").get("sha256")
    found = _root(digest.hexadecimal for digest in digests)
    if stated != found:
        raise invalid(f"subject.digest is {str(stated)[:64]!r}, the sha256 over the digests is {found}")


def _time(text: object) -> datetime | None:
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(str(text))
        if found.tzinfo is None:
            raise ValueError
        return found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise invalid(
            f"predicate.{SIGNED_AT} is {str(text)[:40]!r}, expected a time such as 2026-01-31T12:00:00Z"
        ) from None


def _expect(found: object, expected: str, name: str) -> None:
    if found != expected:
        raise invalid(f"{name} is {str(found)[:100]!r}, expected {expected!r}")


def _object(found: object, name: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise invalid(f"{name} is missing or no object")
    return found


def fits(statement_of: bytes, sealed: Seal, seal_bytes: bytes) -> bool:
    """Say whether a payload, signed by anyone, is about this seal."""
    try:
        compare(parse_statement(statement_of), sealed, seal_bytes)
    except Rejection:
        return False
    return True
