"""Keys that sign and verify: Ed25519, and EC on P-256, P-384 and P-521, by the cryptography package."""

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zwatch.deploy.durable import read_regular
from zwatch.errors import UsageError
from zwatch.signing.library import cryptography_library

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
    from cryptography.x509 import Certificate

    PrivateKey = EllipticCurvePrivateKey | Ed25519PrivateKey
    PublicKey = EllipticCurvePublicKey | Ed25519PublicKey

MAX_PEM = 2**20
"""Longest accepted key or certificate file, bytes."""
_KINDS = "expected Ed25519 or EC on P-256, P-384 or P-521"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key, and the certificates that stood behind it in its file, the signer's first."""

    private: "PrivateKey"
    chain: "tuple[Certificate, ...]"
    path: Path

    @property
    def is_known_to_model_signing(self) -> bool:
        """Whether `model_signing` 1.1 verifies what it signs: EC alone."""
        return hasattr(self.private, "curve")


def read_pem(path: Path, what: str) -> bytes:
    """Return the bytes of a PEM file that a policy names.

    Raises:
        UsageError: it cannot be read, or is none.
    """
    try:
        data = read_regular(path, MAX_PEM)
    except (OSError, ValueError) as error:
        raise UsageError(f"{what} {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return _checked(data, path, what)


def _checked(data: bytes, path: Path, what: str) -> bytes:
    if b"-----BEGIN " not in data:
        raise UsageError(f"{what} {path} is no PEM file: there is no line -----BEGIN …-----")
    return data


def read_public_key(path: Path) -> "PublicKey":
    """Read a public key.

    Raises:
        UsageError: the file is none of these keys; with what to do.
    """
    data = read_pem(path, "the key")
    cryptography_library()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if b"PRIVATE KEY-----" in data:
        raise UsageError(
            f"the key {path} is a private key, expected its public key: openssl pkey -in {path} -pubout prints it, for a file of its own"
        )
    if b"-----BEGIN CERTIFICATE-----" in data:
        raise UsageError(f"the key {path} is a certificate, expected a public key; certificates are named by `roots`")
    try:
        found = load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UsageError(f"the key {path} cannot be used: {_first_line(error)}; {_KINDS}") from None
    if (problem := problem_of(found)) is not None:
        raise UsageError(f"the key {path} is {problem}, {_KINDS}")
    return found  # type: ignore[return-value]  # as just checked


def read_signing_key(path: Path, ask_password: Callable[[], str]) -> SigningKey:
    """Read a private key, and the certificates behind it in the same file. `ask_password` is called where it is encrypted.

    Raises:
        UsageError: the file is none of these keys; with what to do.
    """
    try:
        with path.open("rb") as file:  # it may be a pipe from a program that decrypts it
            data = _checked(file.read(MAX_PEM), path, "the key")
    except OSError as error:
        raise UsageError(f"the key {path} cannot be read: {error.strerror}") from None
    cryptography_library()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from cryptography.x509 import load_pem_x509_certificates

    if b"PRIVATE KEY-----" not in data:
        what = "a public key" if b"PUBLIC KEY-----" in data else "no private key"
        raise UsageError(
            f"the key {path} is {what}, expected a private key: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 prints a new one"
        )
    is_encrypted = b"ENCRYPTED" in data
    if not is_encrypted:
        _check_mode(path)
    try:
        found = load_pem_private_key(data, ask_password().encode() if is_encrypted else None)
        chain = load_pem_x509_certificates(data) if b"-----BEGIN CERTIFICATE-----" in data else []
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        why = "the password is wrong, or it is damaged" if is_encrypted else _first_line(error)
        raise UsageError(f"the key {path} cannot be used: {why}") from None
    if (problem := problem_of(found.public_key())) is not None:
        raise UsageError(f"the key {path} is {problem}, {_KINDS}")
    if chain and chain[0].public_key() != found.public_key():
        raise UsageError(f"the key {path}: its first certificate is of another key, expected the signer's own first")
    return SigningKey(found, tuple(chain), path)  # type: ignore[arg-type]  # as just checked


def sign_bytes(key: "PrivateKey", data: bytes) -> bytes:
    """Return a signature."""
    if (curve := getattr(key, "curve", None)) is None:
        return key.sign(data)  # type: ignore[call-arg]  # Ed25519
    return key.sign(data, _ecdsa(curve))  # type: ignore[call-arg]


def is_signed_by(key: "PublicKey", signature: bytes, data: bytes) -> bool:
    """Say whether this key made this signature."""
    from cryptography.exceptions import InvalidSignature

    try:
        if (curve := getattr(key, "curve", None)) is None:
            key.verify(signature, data)  # type: ignore[call-arg]  # Ed25519
        else:
            key.verify(signature, data, _ecdsa(curve))  # type: ignore[call-arg]
    except InvalidSignature:
        return False
    return True


def fingerprint(key: "PublicKey") -> str:
    """Return the sha256 of a public key's PEM, hex: model_signing's hint, and what `sha256sum release.pub` prints."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _ecdsa(curve: Any) -> Any:
    """Return the way to sign with a curve: the hash has the curve's length, as Sigstore's and model_signing's."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

    lengths: dict[int, type[Any]] = {256: hashes.SHA256, 384: hashes.SHA384, 521: hashes.SHA512}
    return ECDSA(lengths[curve.key_size]())


def problem_of(key: object) -> str | None:
    """Return what a key is that cannot be used, None for one that can."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ed25519.Ed25519PublicKey):
        return None
    if isinstance(key, ec.EllipticCurvePublicKey):
        return None if isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1) else f"EC on {key.curve.name}"
    return "RSA" if isinstance(key, rsa.RSAPublicKey) else f"of the kind {type(key).__name__.removesuffix('PublicKey')}"


def _check_mode(path: Path) -> None:
    """Refuse an unencrypted key that everyone on this machine may read, where its owner could change that.

    Raises:
        UsageError: with the command that mends it.
    """
    status = path.stat()
    if stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IROTH and status.st_uid == os.geteuid():
        raise UsageError(f"the key {path} is not encrypted, and every user may read it: chmod 600 {path}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")
