"""The policy file: what it may say, and what is said of one that is wrong."""

import os

import pytest

from tests.signing.made import AS_ROOT, KINDS, allow, certificate, pem, private_pem, write_key, write_policy
from zwatch.errors import UsageError
from zwatch.signing.policy import files_of, read_policy
from zwatch.signing.signers import CertificateSigner, IdentitySigner, KeySigner


def refused(path):
    with pytest.raises(UsageError) as found:
        read_policy(path)
    return str(found.value)


def test_the_sample_of_the_documentation_is_read(tmp_path):
    write_key(tmp_path)
    identity = (
        'versions = ["v*", "lora/*"]\nidentity = "https://github.com/org/train"\nissuer = "https://token.example.org"'
    )
    first, second = read_policy(write_policy(tmp_path, allow(more="not_before = 2026-01-01T00:00:00Z"), identity)).rules
    assert isinstance(first.signer, KeySigner)
    assert (first.versions, first.not_before.isoformat()) == (("v*",), "2026-01-01T00:00:00+00:00")
    assert isinstance(second.signer, IdentitySigner)
    assert second.versions == ("v*", "lora/*")


def test_paths_are_relative_to_the_policy(tmp_path, monkeypatch):
    (tmp_path / "keys").mkdir()
    write_key(tmp_path / "keys")
    policy = write_policy(tmp_path, allow("keys/release.pub"))
    monkeypatch.chdir("/")
    assert read_policy(policy).rules[0].signer.name == "release.pub"
    assert files_of(policy) == [str(policy), str(tmp_path / "keys/release.pub")]


def test_the_files_of_a_policy_are_found_where_its_links_lead(tmp_path):
    """As a ConfigMap of Kubernetes has them: a link to a directory that is replaced as a whole."""
    (tmp_path / "..2026").mkdir()
    write_key(tmp_path / "..2026")
    write_policy(tmp_path / "..2026", allow())
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "policy.toml").symlink_to("..data/policy.toml")
    (tmp_path / "release.pub").symlink_to("..data/release.pub")
    found = files_of(tmp_path / "policy.toml")
    real = [os.path.realpath(tmp_path / "..2026" / name) for name in ("policy.toml", "release.pub")]
    assert [path for path in found if not os.path.islink(path)] == real
    assert {os.path.basename(path) for path in found if os.path.islink(path)} == {
        "policy.toml",
        "..data",
        "release.pub",
    }


BAD = {
    "empty": (b"", "has no [[allow]] entry"),
    "no TOML": (b"allow", "is no TOML"),
    "not UTF-8": (b"\xff", "is no TOML"),
    "nested too deeply": (b"a = " + b"[" * 100_000, "the policy"),
    "a table instead of entries": (b'[allow]\nversions = "v*"', "has no [[allow]] entry"),
    "a list of texts": (b'allow = ["v*"]', "has no [[allow]] entry"),
    "an entry of another name": (b"[[deny]]\n", "'deny' is not known"),
    "a misspelled field": (allow(more="not_befor = 2026-01-01T00:00:00Z").encode(), "entry 1: 'not_befor' is not known"),
    "no versions": (b'key = "release.pub"', "versions is missing"),
    "no version": (b'versions = []\nkey = "release.pub"', "versions is missing"),
    "an empty pattern": (b'versions = ""\nkey = "release.pub"', "versions is missing"),
    "a number of versions": (b'versions = 1\nkey = "release.pub"', "versions is missing"),
    "no signer": (b'versions = "v*"', "expected who signs"),
    "a key and an identity": (allow(more='identity = "x"\nissuer = "y"').encode(), "found identity and issuer and key"),
    "an identity without its issuer": (b'versions = "v*"\nidentity = "x"', "found identity"),
    "an issuer alone": (b'versions = "v*"\nissuer = "x"', "found issuer"),
    "roots without an identity": (b'versions = "v*"\nroots = "ca.pem"', "found roots"),
    "a key that is a number": (b'versions = "v*"\nkey = 1', "key is 1, expected a text"),
    "a key with a null byte": (b'versions = "v*"\nkey = "a\\u0000b"', "expected a text"),
    "no key there": (allow("nobody.pub").encode(), "nobody.pub cannot be read: No such file"),
    "a directory for a key": (allow(".").encode(), "cannot be read: it is not a regular file"),
    "a day": (allow(more="not_before = 2026-01-01").encode(), "expected a time with its zone"),
    "a time without its zone": (allow(more="not_before = 2026-01-01T00:00:00").encode(), "expected a time with its zone"),
    "a time as a text": (allow(more='not_before = "2026-01-01T00:00:00Z"').encode(), "expected a time with its zone"),
    "no trusted root there": (
        b'versions = "v*"\nidentity = "x"\nissuer = "y"\ntrusted_root = "nothing.json"', "nothing.json is not there",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_policy_is_refused_that_is_or_has(tmp_path, case):
    write_key(tmp_path)
    text, expected = BAD[case]
    path = tmp_path / "policy.toml"
    head = b"" if text.startswith((b"[", b"a")) or text in (b"", b"\xff") else b"[[allow]]\n"
    path.write_bytes(head + text)
    said = refused(path)
    assert str(path) in said
    assert expected in said


def test_a_policy_that_is_not_there_is_refused(tmp_path):
    assert "policy.toml cannot be read: No such file" in refused(tmp_path / "policy.toml")


def test_a_policy_that_is_a_fifo_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "policy.toml")
    assert "it is not a regular file" in refused(tmp_path / "policy.toml")


@pytest.mark.skipif(AS_ROOT, reason="root may read everything")
def test_a_policy_that_may_not_be_read_is_refused(tmp_path):
    write_policy(tmp_path, allow()).chmod(0)
    assert "Permission denied" in refused(tmp_path / "policy.toml")


def keys_that_are_wrong():
    key, rsa = KINDS["P-256"](), KINDS["RSA"]()
    return {
        "a private key": (private_pem(key), "is a private key, expected its public key: openssl pkey -in"),
        "a certificate": (pem(certificate(key, "x")), "is a certificate, expected a public key"),
        "an RSA key": (public(rsa), "is RSA, expected Ed25519 or EC on P-256, P-384 or P-521"),
        "a key on another curve": (public(KINDS["secp256k1"]()), "is EC on secp256k1, expected"),
        "a key of ssh": (b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5", "is no PEM file"),
        "nothing": (b"", "is no PEM file"),
        "half a key": (public(key)[:80], "cannot be used"),
        "something else in PEM": (b"-----BEGIN GREETING-----\nAAAA\n-----END GREETING-----\n", "cannot be used"),
        "too much": (b"-----BEGIN " * 200_000, "at most 1048576 are expected"),
    }


def public(key):
    from tests.signing.made import public_pem

    return public_pem(key)


@pytest.mark.parametrize("case", keys_that_are_wrong())
def test_a_key_is_refused_that_is(tmp_path, case):
    data, expected = keys_that_are_wrong()[case]
    (tmp_path / "release.pub").write_bytes(data)
    said = refused(write_policy(tmp_path, allow()))
    assert "release.pub" in said
    assert expected in said


def test_roots_are_certificates_and_nothing_else(tmp_path):
    key = KINDS["P-256"]()
    root = certificate(key, "CA", authority=True)
    policy = write_policy(tmp_path, 'versions = "v*"\nroots = "ca.pem"\nidentity = "x"')
    (tmp_path / "ca.pem").write_bytes(pem(root) + pem(root))
    assert isinstance(read_policy(policy).rules[0].signer, CertificateSigner)
    (tmp_path / "ca.pem").write_bytes(public(key))
    assert "hold no certificate" in refused(policy)
    (tmp_path / "ca.pem").write_bytes(private_pem(key) + pem(root))
    assert "hold a private key" in refused(policy)


@pytest.mark.parametrize("name", ["a\\u0000b", "x" * 5000, "policy.toml/release.pub"])
def test_a_file_that_cannot_be_looked_at_is_not_waited_for(tmp_path, name):
    policy = write_policy(tmp_path, allow(name))
    assert str(policy) in files_of(policy)
    assert refused(policy)


def test_a_file_that_is_not_there_yet_is_waited_for(tmp_path):
    policy = write_policy(tmp_path, allow("later.pub"))
    assert files_of(policy) == [str(policy), str(tmp_path / "later.pub")]
