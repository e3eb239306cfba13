"""Who may sign: a public key, the holder of a certificate, or an identity that Sigstore certified. Each proves a bundle or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from zwatch.errors import Rejection, UsageError
from zwatch.signing import keys
from zwatch.signing.bundle import Bundle, invalid, printable, signed_bytes
from zwatch.signing.library import sigstore_library
from zwatch.signing.statement import parse_statement

if TYPE_CHECKING:
    from cryptography.x509 import Certificate
    from sigstore.models import TrustedRoot

_CLOCK = timedelta(minutes=5)
"""How far the clocks of a signer and of this machine may differ."""


@dataclass(frozen=True, slots=True)
class Proof:
    """A signature that was verified: by whom, over what, and when where somebody but the signer vouches for that."""

    signer: str
    payload: bytes
    signed_at: datetime | None = None


class Signer(Protocol):
    """Somebody who may sign."""

    def prove(self, bundle: Bundle) -> Proof:
        """Verify a bundle's signature.

        Raises:
            Rejection: `signer_not_allowed`, it is somebody else's, or `signature_invalid`, it is wrong.
            UsageError: a library is missing, or what the policy names cannot be used.
        """


@dataclass(frozen=True, slots=True)
class KeySigner:
    """The holder of a private key; `public` is its public key, `name` the file's name."""

    public: "keys.PublicKey"
    name: str

    @property
    def hint(self) -> str:
        """The key's fingerprint."""
        return keys.fingerprint(self.public)

    def prove(self, bundle: Bundle) -> Proof:
        """Verify a bundle's signature."""
        if bundle.key_hint is None:
            what = "an identity" if bundle.is_keyless else "a certificate"
            raise _other(f"it was signed with {what}, not with the key {self.name}")
        if bundle.key_hint not in ("", self.hint):
            raise _other(f"it was signed with the key sha256:{bundle.key_hint[:64]}, {self.name} is sha256:{self.hint}")
        if not keys.is_signed_by(self.public, bundle.signature, signed_bytes(bundle.payload)):
            if bundle.key_hint == "":
                raise _other(f"it was not signed with the key {self.name}")
            raise invalid(f"the signature is not of this statement by the key {self.name}")
        return Proof(key_text(self.name, self.public), bundle.payload)


@dataclass(frozen=True, slots=True)
class CertificateSigner:
    """The holder of a certificate that leads to one of `roots`, and that is for `identity`: an address, URI or name in it."""

    roots: "tuple[Certificate, ...]"
    identity: str

    def prove(self, bundle: Bundle) -> Proof:
        """Verify a bundle's signature and its certificates, at the time that the statement says; at present if it says none."""
        from cryptography.x509 import load_der_x509_certificate

        if not bundle.certificates or bundle.is_keyless:
            what = "an identity" if bundle.is_keyless else "a key"
            raise _other(f"it was signed with {what}, not with a certificate for {self.identity}")
        try:
            leaf, *others = map(load_der_x509_certificate, bundle.certificates)
            public = leaf.public_key()
            problem = keys.problem_of(public)
            names = names_in(leaf)
        except Exception as error:  # of the parser, on bytes that anybody wrote
            raise invalid(f"a certificate cannot be parsed: {str(error)[:200]}") from None
        if problem is not None:
            raise invalid(f"the certificate's key is {problem}")
        if not keys.is_signed_by(public, bundle.signature, signed_bytes(bundle.payload)):  # type: ignore[arg-type]
            raise invalid("the signature is not of this statement by the certificate's key")
        now = datetime.now(UTC)
        at = parse_statement(bundle.payload).signed_at or now
        if at > now + _CLOCK:
            raise invalid(f"it says that it was signed at {at:%Y-%m-%dT%H:%M:%SZ}, which is in the future")
        if (found := _refused(leaf, others, self.roots, at)) is not None:
            raise _other(f"the certificate for {', '.join(names) or 'nobody'} is not accepted: {found}")
        if self.identity not in names:
            raise _other(f"the certificate is for {', '.join(names) or 'nobody'}, expected {self.identity}")
        return Proof(certificate_text(self.identity, leaf), bundle.payload)


@dataclass(frozen=True, slots=True)
class IdentitySigner:
    """An identity that an OpenID issuer certified to Sigstore. `trusted_root` is the file with Sigstore's own keys; None: the one
    in the sigstore package. The network is never asked."""

    identity: str
    issuer: str
    trusted_root: Path | None

    def prove(self, bundle: Bundle) -> Proof:
        """Verify a bundle by the sigstore package: its certificate and the log that the certificate is in, its identity, the
        log entry of the signature, and the signature."""
        if not bundle.is_keyless:
            what = "a key" if bundle.key_hint is not None else "a certificate"
            raise _other(f"it was signed with {what}, not by {self.identity}")
        sigstore_library()
        from sigstore.models import Bundle as Theirs
        from sigstore.verify import Verifier

        verifier = Verifier(trusted_root=read_trusted_root(self.trusted_root))
        pinned = _Pinned(self.identity, self.issuer)
        try:
            theirs = Theirs.from_json(bundle.raw)
            kind, payload = verifier.verify_dsse(theirs, pinned)
            begins = theirs.signing_certificate.not_valid_before_utc
        except Exception as error:  # not only its own: these are bytes that anybody wrote
            if pinned.found is not None:
                raise _other(f"it was signed by {pinned.found}, expected {self.identity} of {self.issuer}") from None
            raise invalid(f"sigstore does not verify it: {str(error)[:300] or type(error).__name__}") from None
        if payload != bundle.payload:
            raise invalid(f"what was signed ({kind}) is not the envelope's payload")
        # The log's time lies within the certificate's ten minutes, as was just verified.
        return Proof(_text(f"identity {self.identity} issuer {self.issuer}"), payload, begins)


def key_text(name: str, public: "keys.PublicKey") -> str:
    """Return how the holder of a key is named everywhere."""
    return _text(f"key {name} sha256:{keys.fingerprint(public)}")


def certificate_text(identity: str, certificate: "Certificate") -> str:
    """Return how the holder of a certificate is named everywhere."""
    from cryptography.hazmat.primitives.hashes import SHA256

    return _text(f"certificate {identity} sha256:{certificate.fingerprint(SHA256()).hex()}")


def read_trusted_root(path: Path | None) -> "TrustedRoot":
    """Read the keys and certificates of a Sigstore instance.

    Raises:
        UsageError: the file cannot be used.
    """
    from importlib import resources

    from sigstore.models import TrustedRoot

    try:
        if path is not None:
            return TrustedRoot.from_file(str(path))
        embedded = resources.files("sigstore._store") / "https%3A%2F%2Ftuf-repo-cdn.sigstore.dev" / "trusted_root.json"
        with resources.as_file(embedded) as file:
            return TrustedRoot.from_file(str(file))
    except Exception as error:  # pydantic's among others
        where = path or "in the sigstore package"
        raise UsageError(f"the trusted root {where} cannot be used: {str(error)[:300]}; give trusted_root") from None


class _Pinned:
    """Sigstore's check of an identity, which keeps what was found where it does not fit."""

    def __init__(self, identity: str, issuer: str) -> None:
        self.found: str | None = None
        self._identity, self._issuer = identity, issuer

    def verify(self, cert: "Certificate") -> None:
        from sigstore.errors import VerificationError
        from sigstore.verify.policy import Identity

        try:
            Identity(identity=self._identity, issuer=self._issuer).verify(cert)
        except VerificationError as error:
            self.found = f"{', '.join(names_in(cert)) or 'nobody'} ({str(error).strip()[:200]})"
            raise


def _refused(
    leaf: "Certificate", others: "Sequence[Certificate]", roots: "Sequence[Certificate]", at: datetime
) -> str | None:
    """Return why a certificate is not accepted for signatures at a time; None if it is."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID
    from cryptography.x509.verification import Criticality, ExtensionPolicy, PolicyBuilder, Store

    # Instead of what a TLS client's certificate must have: what a signer's must.
    authorities = ExtensionPolicy.webpki_defaults_ca().may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, None)
    signers = (
        ExtensionPolicy.webpki_defaults_ee()
        .may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, None)
        .may_be_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)
    )
    try:
        verifier = PolicyBuilder().store(Store(list(roots))).time(at)
        verifier.extension_policies(ca_policy=authorities, ee_policy=signers).build_client_verifier().verify(
            leaf, list(others)
        )
        usage = leaf.extensions
        wide = [one.value for one in usage if isinstance(one.value, x509.KeyUsage)]
        narrow = [one.value for one in usage if isinstance(one.value, x509.ExtendedKeyUsage)]
    except Exception as error:  # what a certificate holds may be anything
        return f"{str(error)[:200] or type(error).__name__} (judged at {at:%Y-%m-%dT%H:%M:%SZ})"
    if wide and not wide[0].digital_signature:
        return "its key usage is not digitalSignature"
    if narrow and not {ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(narrow[0]):
        return "its extended key usage is not codeSigning"
    return None if wide or narrow else "it has no key usage, expected digitalSignature"


def names_in(certificate: "Certificate") -> list[str]:
    """Return whom a certificate is for: its alternative names, or where it has none its common name."""
    from cryptography import x509

    kinds = (x509.RFC822Name, x509.UniformResourceIdentifier, x509.DNSName)
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return [str(one.value) for one in certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    return [name for kind in kinds for name in found.get_values_for_type(kind)]


def _other(what: str) -> Rejection:
    return Rejection("signer_not_allowed", printable(what))


def _text(signer: str) -> str:
    """Return a signer as it may stand in a header: printable ASCII."""
    escaped = signer.encode("unicode_escape").decode()
    return "".join(character if 32 <= ord(character) < 127 else "?" for character in escaped)
