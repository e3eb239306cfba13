"""A Sigstore instance in memory: a certificate authority with its log of certificates, and a log of signatures. It certifies
identities and signs statements as Fulcio and Rekor do, without a network."""

import base64
import hashlib
import json
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path

import rfc8785
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.signing.made import KINDS, certificate
from zwatch.deploy.seal import SIGNATURE_NAME
from zwatch.signing.bundle import MEDIA_TYPE, PAYLOAD_TYPE, signed_bytes

ISSUER = "https://token.example.org"
IDENTITY = "https://example.org/train/release.yml@refs/heads/main"
_ISSUER_EXTENSION = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_TIMESTAMPS = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
_SHA256 = ec.ECDSA(hashes.SHA256())


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def der(key) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


class Instance:
    """The instance, with its keys."""

    def __init__(self) -> None:
        self.key, self.certificates, self.signatures = (KINDS["P-256"]() for _ in range(3))
        begins = datetime(2024, 1, 1, tzinfo=UTC)
        self.root = certificate(self.key, "sigstore.test", authority=True, begins=begins, days=3650)

    def trusted_root(self) -> dict:
        since = {"start": "2024-01-01T00:00:00Z"}
        chain = {"certificates": [{"rawBytes": text(self.root.public_bytes(Encoding.DER))}]}
        return {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [self._log(self.signatures, "https://rekor.test", since)],
            "certificateAuthorities": [
                {
                    "subject": {"organization": "test", "commonName": "sigstore.test"},
                    "uri": "https://fulcio.test",
                    "certChain": chain,
                    "validFor": since,
                }
            ],
            "ctlogs": [self._log(self.certificates, "https://ct.test", since)],
            "timestampAuthorities": [],
        }

    def write_trusted_root(self, folder: Path) -> Path:
        path = folder / "trusted_root.json"
        path.write_text(json.dumps(self.trusted_root()))
        return path

    def sign(
        self,
        directory: Path,
        payload: bytes,
        *,
        identity: str = IDENTITY,
        issuer: str = ISSUER,
        at: datetime | None = None,
    ) -> dict:
        """Write `model.sig` over a statement, as signed by an identity at a time; return the bundle."""
        at = (at or datetime.now(UTC)).replace(microsecond=0)
        key = KINDS["P-256"]()
        leaf = self._certified(key, identity, issuer, at)
        signature = key.sign(signed_bytes(payload), _SHA256)
        bundle = {
            "mediaType": MEDIA_TYPE,
            "verificationMaterial": {
                "certificate": {"rawBytes": text(leaf.public_bytes(Encoding.DER))},
                "tlogEntries": [self._entry(leaf, payload, signature, at)],
            },
            "dsseEnvelope": {
                "payload": text(payload),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": text(signature)}],
            },
        }
        (directory / SIGNATURE_NAME).write_text(json.dumps(bundle))
        return bundle

    @staticmethod
    def _log(key, url: str, since: dict) -> dict:
        public = {"rawBytes": text(der(key)), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": since}
        return {
            "baseUrl": url,
            "hashAlgorithm": "SHA2_256",
            "publicKey": public,
            "logId": {"keyId": text(digest(der(key)))},
        }

    def _certified(self, key, identity: str, issuer: str, at: datetime) -> x509.Certificate:
        """Return a certificate of ten minutes with the promise of the log of certificates in it."""
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign",
             "encipher_only", "decipher_only"),
            False,
        )  # fmt: skip
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.root.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(at)
            .not_valid_after(at + timedelta(minutes=10))
            .add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), critical=True)
            .add_extension(x509.UnrecognizedExtension(_ISSUER_EXTENSION, issuer.encode()), critical=False)
        )
        before = builder.sign(self.key, hashes.SHA256()).tbs_certificate_bytes
        when = int(at.timestamp() * 1000)
        entry = struct.pack("!BBQH", 0, 0, when, 1) + digest(der(self.key)) + len(before).to_bytes(3) + before + b"\0\0"
        promise = self.certificates.sign(entry, _SHA256)
        one = struct.pack("!B32sQHBBH", 0, digest(der(self.certificates)), when, 0, 4, 3, len(promise)) + promise
        listed = struct.pack("!HH", len(one) + 2, len(one)) + one
        octets = b"\x04" + (bytes([len(listed)]) if len(listed) < 128 else b"\x81" + bytes([len(listed)])) + listed
        return builder.add_extension(x509.UnrecognizedExtension(_TIMESTAMPS, octets), critical=False).sign(
            self.key, hashes.SHA256()
        )

    def _entry(self, leaf: x509.Certificate, payload: bytes, signature: bytes, at: datetime) -> dict:
        """Return the entry of the log of signatures, which has no other."""
        body = json.dumps(
            {
                "apiVersion": "0.0.1",
                "kind": "dsse",
                "spec": {
                    "envelopeHash": {"algorithm": "sha256", "value": "00" * 32},
                    "payloadHash": {"algorithm": "sha256", "value": digest(payload).hex()},
                    "signatures": [{"signature": text(signature), "verifier": text(leaf.public_bytes(Encoding.PEM))}],
                },
            }
        ).encode()
        log = digest(der(self.signatures))
        when = int(at.timestamp())
        promised = rfc8785.dumps({"body": text(body), "integratedTime": when, "logID": log.hex(), "logIndex": 0})
        root = digest(b"\0" + body)
        note = f"rekor.test - 1\n1\n{text(root)}\n"
        signed = text(log[:4] + self.signatures.sign(note.encode(), _SHA256))
        return {
            "logIndex": "0",
            "logId": {"keyId": text(log)},
            "kindVersion": {"kind": "dsse", "version": "0.0.1"},
            "integratedTime": str(when),
            "inclusionPromise": {"signedEntryTimestamp": text(self.signatures.sign(promised, _SHA256))},
            "inclusionProof": {
                "logIndex": "0",
                "rootHash": text(root),
                "treeSize": "1",
                "hashes": [],
                "checkpoint": {"envelope": f"{note}\n\N{EM DASH} rekor.test {signed}\n"},
            },
            "canonicalizedBody": text(body),
        }
