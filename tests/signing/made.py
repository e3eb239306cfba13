"""Keys, certificates, policies and signatures for the tests, made by the cryptography package."""

import base64
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from zwatch.deploy.seal import SIGNATURE_NAME, read_seal
from zwatch.deploy.versions import opened
from zwatch.signing.check import check
from zwatch.signing.keys import read_signing_key
from zwatch.signing.policy import read_policy
from zwatch.signing.sign import sign

KINDS = {
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
}


def private_pem(key, password: str = "") -> bytes:
    encryption = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def public_pem(key) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def write_secret(path: Path, data: bytes) -> Path:
    path.touch(mode=0o600)
    path.write_bytes(data)
    return path


def write_key(folder: Path, name: str = "release", kind: str = "P-256", password: str = "") -> Path:
    """Write NAME.pem and NAME.pub; return the former."""
    key = KINDS[kind]()
    (folder / f"{name}.pub").write_bytes(public_pem(key))
    return write_secret(folder / f"{name}.pem", private_pem(key, password))


def write_policy(folder: Path, *entries: str, name: str = "policy.toml") -> Path:
    path = folder / name
    path.write_text("".join(f"[[allow]]\n{entry}\n" for entry in entries))
    return path


def allow(key: str = "release.pub", versions: str = "v*", more: str = "") -> str:
    return f'versions = "{versions}"\nkey = "{key}"\n{more}'


def signed(directory: Path, key: Path, password: str = "") -> str:
    return sign(directory, read_signing_key(key, lambda: password))


def checked(directory: Path, policy: Path, name: str | None = None) -> str:
    """Return who signed a version, as the service asks."""
    with opened(directory) as fd:
        return check(read_policy(policy), fd, name or directory.name, read_seal(fd).digest)


def statement_in(directory: Path) -> dict:
    bundle = json.loads((directory / SIGNATURE_NAME).read_bytes())
    return json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))


def write_bundle(directory: Path, bundle: dict) -> None:
    (directory / SIGNATURE_NAME).write_text(json.dumps(bundle))


def read_bundle(directory: Path) -> dict:
    return json.loads((directory / SIGNATURE_NAME).read_bytes())


def certificate(
    key,
    name: str,
    issuer=None,
    *,
    authority: bool = False,
    begins: datetime | None = None,
    days: float = 30,
    addresses: tuple[str, ...] = (),
    signs: bool = True,
    for_code: bool | None = True,
    extensions: tuple[tuple[x509.ExtensionType, bool], ...] = (),
):
    """Return a certificate; `issuer` is (certificate, key), None for one that signed itself."""
    begins = begins or datetime.now(UTC) - timedelta(hours=1)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    parent, parent_key = issuer or (None, key)
    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if parent is None else parent.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=signs and not authority, key_cert_sign=authority, crl_sign=authority, **usage
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(parent_key.public_key()), critical=False)
    )
    if addresses:
        builder = builder.add_extension(
            x509.SubjectAlternativeName(list(map(x509.RFC822Name, addresses))), critical=False
        )
    if for_code is not None and not authority:
        purpose = ExtendedKeyUsageOID.CODE_SIGNING if for_code else ExtendedKeyUsageOID.SERVER_AUTH
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(parent_key, hashes.SHA256())


def pem(*certificates) -> bytes:
    return b"".join(one.public_bytes(Encoding.PEM) for one in certificates)


AS_ROOT = os.geteuid() == 0
