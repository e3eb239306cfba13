"""Identities that Sigstore certified, verified offline by the sigstore package against a pinned instance."""

import base64
import json
import os
import socket
import subprocess
import sys
from datetime import UTC, datetime

import pytest

pytest.importorskip("sigstore", reason="the extra `signing` is not installed")

from tests.signing.instance import IDENTITY, ISSUER, Instance
from tests.signing.made import allow, checked, signed, statement_in, write_bundle, write_policy
from tests.signing.test_check import rejected
from zwatch.deploy.seal import SIGNATURE_NAME
from zwatch.errors import UsageError
from zwatch.signing.signers import read_trusted_root

RULE = f'versions = "v*"\nidentity = "{IDENTITY}"\nissuer = "{ISSUER}"\ntrusted_root = "trusted_root.json"'


@pytest.fixture(scope="module")
def instance():
    return Instance()


@pytest.fixture
def pinned(tmp_path, instance):
    instance.write_trusted_root(tmp_path)
    return write_policy(tmp_path, RULE, name="identity.toml")


@pytest.fixture
def payload(version, key):
    """What is signed: the statement about the version."""
    signed(version, key)
    return json.dumps(statement_in(version)).encode()


def test_an_identity_that_the_policy_names_is_accepted(version, instance, pinned, payload):
    instance.sign(version, payload)
    assert checked(version, pinned) == f"identity {IDENTITY} issuer {ISSUER}"


def test_the_network_is_not_asked(version, instance, pinned, payload, monkeypatch):
    def refuse(*given):
        raise AssertionError(f"the network was asked: {given}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    instance.sign(version, payload)
    assert checked(version, pinned)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"identity": "https://example.org/train/other.yml@refs/heads/main"}, "it was signed by https://example.org/train/other.yml"),
        ({"identity": IDENTITY + "x"}, f"expected {IDENTITY} of {ISSUER}"),
        ({"issuer": "https://evil.example.org"}, f"expected {IDENTITY} of {ISSUER}"),
    ],
)  # fmt: skip
def test_another_identity_or_issuer_is_not_allowed(version, instance, pinned, payload, asked, expected):
    instance.sign(version, payload, **asked)
    code, reason = rejected(version, pinned)
    assert code == "signer_not_allowed"
    assert expected in reason


def test_another_instance_is_not_believed(version, pinned, payload):
    Instance().sign(version, payload)
    code, reason = rejected(version, pinned)
    assert code == "signature_invalid"
    assert "sigstore does not verify it" in reason


def test_another_statement_than_the_signed_one_is_rejected(version, instance, pinned, payload):
    bundle = instance.sign(version, payload)
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload + b" ").decode()
    write_bundle(version, bundle)
    assert rejected(version, pinned)[0] == "signature_invalid"


LOG = ("verificationMaterial", "tlogEntries", 0)
ALTERED = {
    "no entry in the log": (LOG[:2], lambda entries: entries.clear() or entries),
    "two entries in the log": (LOG[:2], lambda entries: entries * 2),
    "another time": ((*LOG, "integratedTime"), lambda time: str(int(time) + 1)),
    "a time after the certificate's": ((*LOG, "integratedTime"), lambda time: str(int(time) + 3600)),
    "another body": ((*LOG, "canonicalizedBody"), lambda body: base64.b64encode(b"{}").decode()),
    "another promise": ((*LOG, "inclusionPromise", "signedEntryTimestamp"), lambda promise: base64.b64encode(b"x" * 70).decode()),
    "another root": ((*LOG, "inclusionProof", "rootHash"), lambda root: base64.b64encode(b"x" * 32).decode()),
    "another checkpoint": ((*LOG, "inclusionProof", "checkpoint", "envelope"), lambda text: text.replace("rekor.test - 1", "rekor.test - 2")),
    "a checkpoint that is none": ((*LOG, "inclusionProof", "checkpoint", "envelope"), lambda text: "x"),
    "no proof": (LOG, lambda entry: {name: value for name, value in entry.items() if name != "inclusionProof"}),
    "a log index that is a text": ((*LOG, "logIndex"), lambda index: "many"),
    "a certificate that is none": (("verificationMaterial", "certificate", "rawBytes"), lambda raw: "AAAA"),
}  # fmt: skip


@pytest.mark.parametrize("case", ALTERED)
def test_a_bundle_is_rejected_with(version, instance, pinned, payload, case):
    path, change = ALTERED[case]
    bundle = instance.sign(version, payload)
    *folders, last = path
    place = bundle
    for folder in folders:
        place = place[folder]
    place[last] = change(place[last])
    write_bundle(version, bundle)
    code, _ = rejected(version, pinned)
    assert code == ("signer_not_allowed" if case == "no entry in the log" else "signature_invalid")


@pytest.mark.parametrize(("day", "accepted"), [(1, True), (20, False)])
def test_the_time_of_the_policy_is_compared_with_the_log_s_and_not_with_the_signer_s(
    version, tmp_path, instance, payload, day, accepted
):
    instance.write_trusted_root(tmp_path)
    policy = write_policy(tmp_path, f"{RULE}\nnot_before = 2026-01-{day:02}T00:00:00Z")
    statement = json.loads(payload)
    statement["predicate"]["signed_at"] = "2030-01-01T00:00:00Z"
    instance.sign(version, json.dumps(statement).encode(), at=datetime(2026, 1, 10, tzinfo=UTC))
    if accepted:
        assert checked(version, policy)
    else:
        assert "was signed at 2026-01-10T00:00:00Z, not before 2026-01-20" in rejected(version, policy)[1]


def test_an_identity_s_statement_is_compared_with_the_seal_too(version, instance, pinned, payload):
    statement = json.loads(payload)
    for resource in statement["predicate"]["resources"]:
        if resource["name"] == "BLAKE3SUMS":
            resource["name"] = "blake3sums"
    instance.sign(version, json.dumps(statement).encode())
    assert "run `zwatch seal` first" in rejected(version, pinned)[1]


def test_an_identity_does_not_stand_for_a_key_nor_a_key_for_an_identity(
    version, tmp_path, key, instance, pinned, payload
):
    assert "signed with a key, not by" in rejected(version, pinned)[1]
    instance.sign(version, payload)
    assert "signed with an identity, not with the key" in rejected(version, write_policy(tmp_path, allow()))[1]


def test_a_trusted_root_that_cannot_be_used_is_the_policy_s_fault(version, tmp_path, instance, pinned, payload):
    instance.sign(version, payload)
    (tmp_path / "trusted_root.json").write_text('{"mediaType": "x"}')
    with pytest.raises(UsageError, match=r"trusted_root\.json cannot be used"):
        checked(version, pinned)


def test_without_one_the_trusted_root_of_the_sigstore_package_is_used(version, tmp_path, instance, payload):
    """Its file lies in the package; should a release move it, the message says what to give instead."""
    assert read_trusted_root(None)
    instance.sign(version, payload)
    policy = write_policy(tmp_path, f'versions = "v*"\nidentity = "{IDENTITY}"\nissuer = "{ISSUER}"')
    assert "sigstore does not verify it" in rejected(version, policy)[1]


def test_the_program_model_signing_accepts_the_same_bundle(version, tmp_path, instance, pinned, payload):
    """So that the instance of these tests is one."""
    pytest.importorskip("model_signing", reason="model-signing is not installed")
    pytest.importorskip("OpenSSL", reason="model-signing 1.1.1 needs pyOpenSSL and does not install it")
    instance.sign(version, payload)
    signing = {"mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json"}
    urls = {name: [] for name in ("caUrls", "oidcUrls", "rekorTlogUrls", "tsaUrls")}
    choice = {"selector": "ANY"}
    config = {
        "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
        "trustedRoot": instance.trusted_root(),
        "signingConfig": {**signing, **urls, "rekorTlogConfig": choice, "tsaConfig": choice},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = [
        sys.executable, "-m", "model_signing", "verify", "sigstore", version, "--signature", version / SIGNATURE_NAME,
        "--trust_config", tmp_path / "config.json", "--identity", IDENTITY, "--identity_provider", ISSUER,
    ]  # fmt: skip
    ended = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env={**os.environ, "HOME": str(tmp_path)}
    )
    assert (ended.returncode, ended.stdout) == (0, "Verification succeeded\n"), ended.stderr
    assert checked(version, pinned)
