"""The Sigstore bundle in `model.sig`: a DSSE envelope around the signed statement, and who signed it. Parsed, not yet believed."""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zwatch.deploy.seal import SIGNATURE_NAME
from zwatch.errors import Rejection

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
"""What is written, as model_signing 1.1 does: it reads no other for keys and certificates."""
MEDIA_TYPES = (MEDIA_TYPE, *(f"application/vnd.dev.sigstore.bundle+json;version=0.{number}" for number in (1, 2, 3)))
PAYLOAD_TYPE = "application/vnd.in-toto+json"
MAX_SIGNATURE = 4 * 2**20
"""Longest accepted signature file, bytes: some 15,000 files. Parsing one takes up to 25 times that in memory."""

MOST_CERTIFICATES = 16
"""In a chain: four are usual."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A parsed bundle. One of three: `key_hint` (the sha256 of a public key's PEM, or "" if the signer named none),
    `certificates` (DER, the signer's first), or `is_keyless` (a certificate of Sigstore's, with entries of a transparency log)."""

    raw: bytes
    payload: bytes
    signature: bytes
    key_hint: str | None = None
    certificates: tuple[bytes, ...] = ()
    is_keyless: bool = False


def parse_bundle(raw: bytes) -> Bundle:
    """Parse the bytes of a signature file.

    Raises:
        Rejection: `signature_invalid`, with the field.
    """
    whole = parse_json(raw, SIGNATURE_NAME)
    media_type = _field(whole, "mediaType", str)
    if media_type not in MEDIA_TYPES:
        raise invalid(f"mediaType is {media_type[:100]!r}, expected {MEDIA_TYPE!r}")
    envelope = _field(whole, "dsseEnvelope", dict)
    if (kind := _field(envelope, "payloadType", str)) != PAYLOAD_TYPE:
        raise invalid(f"payloadType is {kind[:100]!r}, expected {PAYLOAD_TYPE!r}")
    signatures = _field(envelope, "signatures", list)
    if len(signatures) != 1 or not isinstance(signatures[0], dict):
        raise invalid(f"signatures has {len(signatures)} entries, expected one")
    payload = _bytes(_field(envelope, "payload", str), "payload")
    signature = _bytes(_field(signatures[0], "sig", str), "sig")
    material = _field(whole, "verificationMaterial", dict)
    entries = material.get("tlogEntries") or []
    if not isinstance(entries, list):
        raise invalid("tlogEntries is no list")
    kinds = [name for name in ("publicKey", "x509CertificateChain", "certificate") if material.get(name) is not None]
    if len(kinds) != 1:
        raise invalid(
            "verificationMaterial has " + (" and ".join(kinds) or "no key and no certificate") + ", expected one"
        )
    if kinds == ["publicKey"]:
        hint = _field(material, "publicKey", dict).get("hint") or ""
        if not isinstance(hint, str):
            raise invalid("publicKey.hint is no text")
        return Bundle(raw, payload, signature, key_hint=hint)
    if kinds == ["certificate"]:
        chain: Sequence[object] = [_field(material, "certificate", dict)]
    else:
        chain = _field(_field(material, "x509CertificateChain", dict), "certificates", list)
    if not 0 < len(chain) <= MOST_CERTIFICATES:
        raise invalid(f"the chain has {len(chain)} certificates, expected 1 to {MOST_CERTIFICATES}")
    certificates = tuple(_certificate(one) for one in chain)
    return Bundle(raw, payload, signature, certificates=certificates, is_keyless=bool(entries))


def format_bundle(payload: bytes, signature: bytes, material: Mapping[str, object]) -> bytes:
    """Return the bytes of a signature file; `material` is `public_key_material` or `certificate_material`."""
    envelope = {
        "payload": _text(payload),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"sig": _text(signature), "keyid": ""}],
    }
    whole = {
        "mediaType": MEDIA_TYPE, "verificationMaterial": {**material, "tlogEntries": []}, "dsseEnvelope": envelope,
    }  # fmt: skip
    return json.dumps(whole).encode()


def public_key_material(hint: str) -> dict[str, object]:
    """Return what a bundle says of the key that signed it."""
    return {"publicKey": {"hint": hint}}


def certificate_material(chain: Sequence[bytes]) -> dict[str, object]:
    """Return what a bundle says of the certificate that signed it: DER, the signer's first."""
    return {"x509CertificateChain": {"certificates": [{"rawBytes": _text(one)} for one in chain]}}


def signed_bytes(payload: bytes) -> bytes:
    """Return what a signature of an envelope is over: DSSE's pre-authentication encoding, version 1."""
    return b"DSSEv1 %d %b %d %b" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def parse_json(data: bytes, what: str) -> dict[str, Any]:
    """Parse a JSON object in which no name occurs twice: two readers of it must not see two things.

    Raises:
        Rejection: `signature_invalid`.
    """
    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise invalid(f"{what} is nested too deeply") from None
    except ValueError as error:  # also UnicodeDecodeError and JSONDecodeError
        raise invalid(f"{what} cannot be parsed: {str(error)[:200]}") from None
    if not isinstance(found, dict):
        raise invalid(f"{what} is no JSON object")
    return found


def invalid(what: str) -> Rejection:
    """Return the rejection of a signature that is no valid one."""
    return Rejection("signature_invalid", f"{SIGNATURE_NAME}: {printable(what)}")


def printable(text: str) -> str:
    """Return a text with all that a terminal, a log or UTF-8 would not take as it is escaped: anybody wrote what is in it."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name[:100]!r} occurs twice in one object")
        found[name] = value
    return found


def _no_constant(text: str) -> object:
    raise ValueError(f"{text} is no JSON")


def _field(of: dict[str, Any], name: str, kind: type) -> Any:
    found = of.get(name)
    if not isinstance(found, kind):
        raise invalid(f"{name} is missing or has a wrong type")
    return found


def _certificate(entry: object) -> bytes:
    if not isinstance(entry, dict):
        raise invalid("a certificate is no object")
    return _bytes(_field(entry, "rawBytes", str), "rawBytes")


def _bytes(text: str, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise invalid(f"{name} is not base64") from None


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
