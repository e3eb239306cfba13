"""Who may sign which version, and what is rejected: from the files on disk to the reason."""

import base64
import hashlib
import json
import shutil
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from blake3 import blake3

from tests.deploy.factory import reseal_by_hand, write_version
from tests.signing.made import (
    KINDS,
    allow,
    certificate,
    checked,
    pem,
    private_pem,
    read_bundle,
    signed,
    statement_in,
    write_bundle,
    write_key,
    write_policy,
    write_secret,
)
from zwatch.deploy.seal import SEAL_NAME, SIGNATURE_NAME
from zwatch.deploy.sealing import write_seal
from zwatch.errors import Rejection
from zwatch.signing import bundle, keys
from zwatch.signing.keys import read_signing_key


def rejected(directory, policy, name=None):
    """Return the code and the reason with which a version is rejected."""
    with pytest.raises(Rejection) as found:
        checked(directory, policy, name)
    return found.value.code, found.value.reason


def sign_statement(directory, key, change):
    """Sign what `change` makes of the statement that zwatch would sign."""
    signed(directory, key)
    statement = statement_in(directory)
    statement = change(statement) or statement
    resources = statement["predicate"]["resources"]
    root = hashlib.sha256(b"".join(bytes.fromhex(one["digest"]) for one in resources)).hexdigest()
    if statement["subject"][0]["digest"].get("sha256") != "kept":
        statement["subject"][0]["digest"]["sha256"] = root
    payload = json.dumps(statement).encode()
    private = read_signing_key(key, str).private
    signature = keys.sign_bytes(private, bundle.signed_bytes(payload))
    material = bundle.public_key_material(keys.fingerprint(private.public_key()))
    (directory / SIGNATURE_NAME).write_bytes(bundle.format_bundle(payload, signature, material))


@pytest.mark.parametrize("kind", ["Ed25519", "P-256", "P-384", "P-521"])
def test_a_version_is_accepted_with_the_name_and_the_fingerprint_of_the_key(version, tmp_path, kind):
    key = write_key(tmp_path, kind=kind)
    signed(version, key)
    fingerprint = hashlib.sha256((tmp_path / "release.pub").read_bytes()).hexdigest()
    assert checked(version, write_policy(tmp_path, allow())) == f"key release.pub sha256:{fingerprint}"


def test_no_file_but_the_seal_and_the_signature_is_opened(version, key, policy):
    signed(version, key)
    for path in version.rglob("*"):
        if path.is_file() and path.name not in (SEAL_NAME, SIGNATURE_NAME):
            path.unlink()
    assert checked(version, policy).startswith("key release.pub ")


def test_a_version_without_a_signature_is_rejected(version, policy):
    code, reason = rejected(version, policy)
    assert code == "signature_missing"
    assert "there is no model.sig" in reason
    assert "zwatch seal --sign KEY" in reason


def test_a_version_that_somebody_else_signed_is_rejected_with_both_keys(version, tmp_path, policy):
    signed(version, write_key(tmp_path, "other"))
    code, reason = rejected(version, policy)
    assert code == "signer_not_allowed"
    for name in ("other", "release"):
        assert hashlib.sha256((tmp_path / f"{name}.pub").read_bytes()).hexdigest() in reason


def test_one_who_names_a_key_that_did_not_sign_is_rejected(version, tmp_path, key, policy):
    signed(version, write_key(tmp_path, "other"))
    found = read_bundle(version)
    hint = hashlib.sha256((tmp_path / "release.pub").read_bytes()).hexdigest()
    found["verificationMaterial"]["publicKey"]["hint"] = hint
    write_bundle(version, found)
    assert rejected(version, policy) == (
        "signature_invalid", "model.sig: the signature is not of this statement by the key release.pub",
    )  # fmt: skip


@pytest.mark.parametrize("hint", [None, ""])
def test_a_bundle_that_names_no_key_is_tried_with_each(version, tmp_path, policy, key, hint):
    signed(version, key)
    found = read_bundle(version)
    found["verificationMaterial"]["publicKey"] = {} if hint is None else {"hint": hint}
    write_bundle(version, found)
    assert checked(version, policy).startswith("key release.pub ")
    both = write_policy(tmp_path, allow("other.pub"), name="other.toml")
    write_key(tmp_path, "other")
    assert rejected(version, both)[0] == "signer_not_allowed"


def test_a_version_that_was_sealed_again_after_it_was_signed_is_rejected(version, key, policy):
    signed(version, key)
    (version / "vae/config.json").write_text('{"changed": 1}')
    write_seal(version, "v1")
    code, reason = rejected(version, policy)
    assert code == "signature_invalid"
    assert "sha256 of BLAKE3SUMS is" in reason
    assert "sealed again after it was signed, or altered" in reason


def test_the_signature_of_another_version_is_not_one_of_this(version, tmp_path, key, policy):
    other = write_version(tmp_path, "v2")
    signed(version, key)
    shutil.copy(version / SIGNATURE_NAME, other)
    assert rejected(other, policy)[0] == "signature_invalid"


def test_a_seal_with_a_file_that_was_not_signed_is_rejected(version, key, policy):
    """Where the seal itself was not signed, each of its files must have been."""
    sign_statement(version, key, as_blake3)
    lines = (version / SEAL_NAME).read_text().splitlines()
    reseal_by_hand(version, *lines, f"{'a' * 64}  vae/zz.json")
    assert rejected(version, policy) == (
        "signature_invalid", "model.sig: the signed statement does not name vae/zz.json, which the seal names",
    )  # fmt: skip


def as_blake3(statement):
    """Change a statement into what the library model_signing makes with hashing_algorithm="blake3" of a directory that was not
    sealed yet."""
    digests = {line[66:]: line[:64] for line in SEAL_OF["v1"]}
    statement["predicate"]["serialization"]["hash_type"] = "blake3"
    statement["predicate"]["resources"] = [
        {"name": path, "algorithm": "blake3", "digest": digest} for path, digest in digests.items()
    ]


SEAL_OF = {}


@pytest.fixture(autouse=True)
def _seal_of(version):
    SEAL_OF["v1"] = (version / SEAL_NAME).read_text().splitlines()


def test_blake3_digests_are_compared_with_the_seal_s_though_the_seal_was_not_signed(version, key, policy):
    sign_statement(version, key, as_blake3)
    assert checked(version, policy).startswith("key release.pub ")


def test_a_blake3_digest_that_is_not_the_seal_s_is_rejected_with_both(version, key, policy):
    def change(statement):
        as_blake3(statement)
        statement["predicate"]["resources"][0]["digest"] = "b" * 64

    sign_statement(version, key, change)
    code, reason = rejected(version, policy)
    assert code == "signature_invalid"
    assert f"blake3 {'b' * 64} was signed, the seal says {SEAL_OF['v1'][0][:64]}" in reason


def test_sha256_digests_alone_cannot_be_compared_with_the_seal_and_the_reason_says_what_to_do(version, key, policy):
    def without_seal(statement):
        resources = statement["predicate"]["resources"]
        statement["predicate"]["resources"] = [one for one in resources if one["name"] != SEAL_NAME]

    sign_statement(version, key, without_seal)
    code, reason = rejected(version, policy)
    assert code == "signature_invalid"
    assert "run `zwatch seal` first and sign then" in reason


@pytest.mark.parametrize("algorithm", ["sha256", "blake2b", "blake3"])
def test_the_seal_s_own_digest_is_compared_in_each_algorithm(version, key, policy, algorithm):
    data = (version / SEAL_NAME).read_bytes()
    digest = blake3(data).hexdigest() if algorithm == "blake3" else hashlib.new(algorithm, data).hexdigest()

    def change(statement):
        one = next(one for one in statement["predicate"]["resources"] if one["name"] == SEAL_NAME)
        one |= {"algorithm": algorithm, "digest": digest}

    sign_statement(version, key, change)
    assert checked(version, policy)


def test_a_file_that_was_signed_and_is_not_sealed_does_not_matter(version, key, policy):
    def change(statement):
        statement["predicate"]["resources"].append({"name": "README.md", "algorithm": "sha256", "digest": "c" * 64})

    sign_statement(version, key, change)
    assert checked(version, policy)


def renamed(name):
    def change(statement):
        statement["predicate"]["resources"][1]["name"] = name

    return change


def repeated(statement):
    resources = statement["predicate"]["resources"]
    resources.append({**resources[0], "digest": "d" * 64})


def set_in(*path, to):
    def change(statement):
        *folders, last = path
        place = statement
        for folder in folders:
            place = place[folder]
        place[last] = to

    return change


WRONG = {
    "a path that is not normalised": (renamed("./model_index.json"), "is not a normalised path"),
    "a path with two slashes": (renamed("vae//x"), "is not a normalised path"),
    "a path that climbs": (renamed("vae/../model_index.json"), "is not a normalised path"),
    "a path out of the version": (renamed("../model_index.json"), "leads out of the version"),
    "an absolute path": (renamed("/etc/passwd"), "is not a normalised path"),
    "no path": (renamed(""), "is not a normalised path"),
    "a path that is a number": (renamed(7), "is not a normalised path"),
    "a file named twice": (repeated, "is named a second time"),
    "shards": (set_in("predicate", "serialization", "method", to="shards"), "expected 'files'"),
    "another predicate": (set_in("predicateType", to="https://model_signing/Digests/v0.1"), "predicateType is"),
    "another statement": (set_in("_type", to="https://in-toto.io/Statement/v0.1"), "_type is"),
    "no predicate": (lambda statement: {**statement, "predicate": {"resources": []}}, "predicate.serialization is missing"),
    "an algorithm that is not known": (
        set_in("predicate", "resources", 0, "algorithm", to="md5"), "algorithm 'md5', expected sha256, blake2b, blake3",
    ),
    "an algorithm that is a list": (set_in("predicate", "resources", 0, "algorithm", to=[]), "algorithm '[]'"),
    "a short digest": (set_in("predicate", "resources", 0, "digest", to="ab"), "expected 64 hex digits"),
    "another digest of the whole": (set_in("subject", 0, "digest", "sha256", to="kept"), "subject.digest is 'kept'"),
    "two subjects": (lambda statement: {**statement, "subject": statement["subject"] * 2}, "subject must have one entry"),
    "a time that is none": (set_in("predicate", "signed_at", to="yesterday"), "expected a time such as"),
    "a time without a zone": (set_in("predicate", "signed_at", to="2026-01-31T00:00:00"), "expected a time such as"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_statement_that_is_not_as_model_signing_says_is_rejected_though_it_was_signed(version, key, policy, case):
    change, expected = WRONG[case]
    sign_statement(version, key, change)
    code, reason = rejected(version, policy)
    assert code == "signature_invalid"
    assert expected in reason


BROKEN = {
    "nothing": b"",
    "no JSON": b"BLAKE3SUMS",
    "not UTF-8": b"\xff{}",
    "a list": b"[]",
    "nested too deeply": b"[" * 200_000,
    "a number without an end": b'{"mediaType": ' + b"9" * 10_000 + b"}",
    "NaN": b'{"mediaType": NaN}',
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_signature_that_cannot_be_parsed_is_rejected(version, policy, case):
    (version / SIGNATURE_NAME).write_bytes(BROKEN[case])
    assert rejected(version, policy)[0] == "signature_invalid"


def envelope(**changes):
    return lambda bundle: bundle["dsseEnvelope"].update(changes)


def material(**changes):
    return lambda bundle: bundle["verificationMaterial"].update(changes)


def chain_of(number, one=None):
    chain = {"certificates": [{"rawBytes": "MAA="} if one is None else one] * number}
    return lambda bundle: bundle.update(verificationMaterial={"x509CertificateChain": chain})


WRONG_BUNDLES = {
    "another media type": (lambda bundle: bundle.update(mediaType="text/plain"), "mediaType is"),
    "no envelope": (lambda bundle: bundle.pop("dsseEnvelope"), "dsseEnvelope is missing"),
    "another payload type": (envelope(payloadType="text/plain"), "payloadType is"),
    "a payload that is no base64": (envelope(payload="%%%"), "payload is not base64"),
    "no signature": (envelope(signatures=[]), "signatures has 0 entries"),
    "two signatures": (envelope(signatures=[{"sig": ""}] * 2), "signatures has 2 entries"),
    "a signature that is a text": (envelope(signatures=["x"]), "expected one"),
    "an empty signature": (envelope(signatures=[{"sig": ""}]), "is not of this statement by the key"),
    "no key": (lambda bundle: bundle["verificationMaterial"].pop("publicKey"), "no key and no certificate"),
    "a key and a certificate": (material(certificate={"rawBytes": ""}), "publicKey and certificate"),
    "a hint that is no text": (material(publicKey={"hint": 7}), "hint is no text"),
    "no certificate": (chain_of(0), "the chain has 0 certificates, expected 1 to 16"),
    "too many certificates": (chain_of(17), "the chain has 17 certificates"),
    "a certificate that is a text": (chain_of(1, "MAA="), "a certificate is no object"),
    "a log that is no list": (material(tlogEntries={"a": 1}), "tlogEntries is no list"),
}


@pytest.mark.parametrize("case", WRONG_BUNDLES)
def test_a_bundle_that_is_not_as_sigstore_says_is_rejected_with_the_field(version, key, policy, case):
    change, expected = WRONG_BUNDLES[case]
    signed(version, key)
    found = read_bundle(version)
    change(found)
    write_bundle(version, found)
    code, reason = rejected(version, policy)
    assert code == "signature_invalid"
    assert expected in reason


def test_a_name_that_occurs_twice_in_a_bundle_is_rejected(version, key, policy):
    signed(version, key)
    text = (version / SIGNATURE_NAME).read_text()
    (version / SIGNATURE_NAME).write_text(text.replace('{"mediaType"', '{"mediaType": "x", "mediaType"', 1))
    assert "occurs twice" in rejected(version, policy)[1]


def test_each_bit_of_what_was_signed_matters(version, key, policy):
    signed(version, key)
    original = read_bundle(version)
    payload = base64.b64decode(original["dsseEnvelope"]["payload"])
    for position in range(0, len(payload), max(1, len(payload) // 40)):
        changed = bytearray(payload)
        changed[position] ^= 1
        original["dsseEnvelope"]["payload"] = base64.b64encode(changed).decode()
        write_bundle(version, original)
        assert rejected(version, policy)[0] == "signature_invalid"


@pytest.mark.parametrize("what", ["link", "directory", "fifo"])
def test_a_signature_that_is_no_regular_file_is_rejected(version, key, policy, tmp_path, what):
    signed(version, key)
    path = version / SIGNATURE_NAME
    shutil.move(path, tmp_path / "elsewhere.sig")
    if what == "link":
        path.symlink_to(tmp_path / "elsewhere.sig")
    elif what == "directory":
        path.mkdir()
    else:
        subprocess.run(["mkfifo", path], check=True)
    code, reason = rejected(version, policy)
    assert code == "signature_invalid"
    assert "expected a regular file" in reason


def test_a_signature_that_is_too_long_is_not_read(version, policy):
    with open(version / SIGNATURE_NAME, "wb") as file:
        file.truncate(bundle.MAX_SIGNATURE + 1)
    assert "expected at most" in rejected(version, policy)[1]


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("v*", "v1", True), ("v?", "v1", True), ("v[0-9]", "v1", True), ("v1", "v1", True), ("*", "v1", True),
        ("V*", "v1", False), ("v", "v1", False), ("w*", "v1", False), ("*", "lora/ink", False), ("*/*", "lora/ink", True),
        ("lora/*", "lora/ink", True), ("lora/i*", "lora/ink", True), ("lora*", "lora/ink", False), ("lora/*", "v1", False),
    ],
)  # fmt: skip
def test_an_entry_is_for_the_names_of_its_pattern_and_no_others(version, tmp_path, key, pattern, name, matches):
    signed(version, key)
    policy = write_policy(tmp_path, allow(versions=pattern))
    if matches:
        assert checked(version, policy, name)
    else:
        code, reason = rejected(version, policy, name)
        assert code == "signer_not_allowed"
        assert repr(pattern) in reason


def test_each_entry_that_is_for_the_name_may_be_the_one_that_allows_it(version, tmp_path, key):
    """As while a key is replaced: the old one and the new one."""
    signed(version, key)
    write_key(tmp_path, "new", "Ed25519")
    policy = write_policy(tmp_path, allow("new.pub"), 'versions = ["w*", "v1"]\nkey = "release.pub"')
    assert checked(version, policy).startswith("key release.pub ")
    signed(version, tmp_path / "new.pem")
    assert checked(version, policy).startswith("key new.pub ")


def test_a_key_of_another_pattern_does_not_sign_this_version(version, tmp_path, key):
    write_key(tmp_path, "other")
    signed(version, tmp_path / "other.pem")
    policy = write_policy(tmp_path, allow(), allow("other.pub", "lab-*"))
    assert rejected(version, policy)[0] == "signer_not_allowed"


@pytest.mark.parametrize(("days", "accepted"), [(-1, True), (1, False)])
def test_what_was_signed_before_the_time_of_the_policy_is_not_accepted(version, tmp_path, key, days, accepted):
    signed(version, key)
    when = f"{datetime.now(UTC) + timedelta(days=days):%Y-%m-%dT%H:%M:%SZ}"
    policy = write_policy(tmp_path, allow(more=f"not_before = {when}"))
    if accepted:
        assert checked(version, policy)
    else:
        code, reason = rejected(version, policy)
        assert code == "signer_not_allowed"
        assert f"not before {when} is allowed" in reason


def test_a_statement_without_a_time_is_not_accepted_where_the_policy_has_one(version, tmp_path, key):
    def change(statement):
        del statement["predicate"]["signed_at"]

    sign_statement(version, key, change)
    assert checked(version, write_policy(tmp_path, allow()))
    policy = write_policy(tmp_path, allow(more="not_before = 2020-01-01T00:00:00Z"))
    assert "states no time of signing" in rejected(version, policy)[1]


# --- certificates


@pytest.fixture
def authority(tmp_path):
    """A root certificate and its key; ca.pem has the former."""
    key = KINDS["P-256"]()
    root = certificate(key, "Test CA", authority=True, days=3650, begins=datetime(2020, 1, 1, tzinfo=UTC))
    (tmp_path / "ca.pem").write_bytes(pem(root))
    return root, key


@pytest.fixture
def by_certificate(tmp_path, authority):
    return write_policy(tmp_path, 'versions = "v*"\nroots = "ca.pem"\nidentity = "release@example.org"')


def sign_with(directory, tmp_path, *chain, key):
    signed(directory, write_secret(tmp_path / "signer.pem", private_pem(key) + pem(*chain)))


@pytest.mark.parametrize("kind", ["P-256", "P-384", "P-521", "Ed25519"])
def test_a_certificate_that_leads_to_a_root_of_the_policy_is_accepted(
    version, tmp_path, authority, by_certificate, kind
):
    key = KINDS[kind]()
    leaf = certificate(key, "release", authority, addresses=("release@example.org",))
    said = signed(version, write_secret(tmp_path / "signer.pem", private_pem(key) + pem(leaf)))
    assert said == checked(version, by_certificate)
    assert said.startswith("certificate release@example.org sha256:")


def test_a_certificate_may_lead_there_by_others_in_the_bundle(version, tmp_path, authority, by_certificate):
    between_key, key = KINDS["P-256"](), KINDS["P-256"]()
    between = certificate(between_key, "Team CA", authority, authority=True)
    leaf = certificate(key, "release", (between, between_key), addresses=("release@example.org",))
    sign_with(version, tmp_path, leaf, between, key=key)
    assert checked(version, by_certificate)
    sign_with(version, tmp_path, leaf, key=key)
    assert rejected(version, by_certificate)[0] == "signer_not_allowed"


def test_where_a_certificate_has_no_alternative_names_its_common_name_counts(version, tmp_path, authority):
    key = KINDS["P-256"]()
    sign_with(version, tmp_path, certificate(key, "release", authority), key=key)
    policy = write_policy(tmp_path, 'versions = "v*"\nroots = "ca.pem"\nidentity = "release"')
    assert checked(version, policy).startswith("certificate release sha256:")


REFUSED = {
    "for somebody else": ({"addresses": ("other@example.org",)}, "is for other@example.org, expected release@example.org"),
    "with the right common name and other alternative names": ({"name": "release@example.org", "addresses": ("x@y.org",)}, "is for x@y.org"),
    "expired": ({"begins": datetime(2024, 1, 1, tzinfo=UTC)}, "is not accepted"),
    "not yet valid": ({"begins": datetime.now(UTC) + timedelta(days=2)}, "is not accepted"),
    "that must not sign": ({"signs": False}, "its key usage is not digitalSignature"),
    "of a web server": ({"for_code": False}, "its extended key usage is not codeSigning"),
    "that is an authority": ({"authority": True}, "is not accepted"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_certificate_is_not_accepted_that_is(version, tmp_path, authority, by_certificate, case):
    changes, expected = REFUSED[case]
    key = KINDS["P-256"]()
    leaf = certificate(key, issuer=authority, **{"name": "release", "addresses": ("release@example.org",), **changes})
    sign_with(version, tmp_path, leaf, key=key)
    code, reason = rejected(version, by_certificate)
    assert code == "signer_not_allowed"
    assert expected in reason


def test_a_certificate_of_another_root_is_not_accepted(version, tmp_path, by_certificate):
    key, other_key = KINDS["P-256"](), KINDS["P-256"]()
    other = certificate(other_key, "Test CA", authority=True)
    leaf = certificate(key, "release", (other, other_key), addresses=("release@example.org",))
    sign_with(version, tmp_path, leaf, other, key=key)
    assert rejected(version, by_certificate)[0] == "signer_not_allowed"


def test_a_certificate_that_has_ended_since_counts_at_the_time_of_signing(
    version, tmp_path, authority, by_certificate, key
):
    """The statement says when: signed by the certificate's own key, so nobody else can say so."""
    leaf_key = KINDS["P-256"]()
    begins = datetime(2025, 1, 1, tzinfo=UTC)
    leaf = certificate(leaf_key, "release", authority, begins=begins, addresses=("release@example.org",))
    sign_with(version, tmp_path, leaf, key=leaf_key)
    assert rejected(version, by_certificate)[0] == "signer_not_allowed"
    statement = statement_in(version)
    for when, accepted in (("2025-01-15T00:00:00Z", True), ("2025-03-01T00:00:00Z", False), (None, False)):
        statement["predicate"]["signed_at"] = when
        payload = json.dumps(statement).encode()
        found = bundle.format_bundle(
            payload,
            keys.sign_bytes(leaf_key, bundle.signed_bytes(payload)),
            read_bundle(version)["verificationMaterial"],
        )
        (version / SIGNATURE_NAME).write_bytes(found)
        if accepted:
            assert checked(version, by_certificate)
        else:
            assert "is not accepted" in rejected(version, by_certificate)[1]


def test_a_time_in_the_future_is_rejected(version, tmp_path, authority, by_certificate):
    key = KINDS["P-256"]()
    leaf = certificate(key, "release", authority, days=3650, addresses=("release@example.org",))
    sign_with(version, tmp_path, leaf, key=key)
    statement = statement_in(version)
    statement["predicate"]["signed_at"] = f"{datetime.now(UTC) + timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}"
    payload = json.dumps(statement).encode()
    signature = keys.sign_bytes(key, bundle.signed_bytes(payload))
    found = bundle.format_bundle(payload, signature, read_bundle(version)["verificationMaterial"])
    (version / SIGNATURE_NAME).write_bytes(found)
    assert "in the future" in rejected(version, by_certificate)[1]


def test_a_certificate_that_did_not_sign_is_rejected(version, tmp_path, authority, by_certificate, key):
    leaf_key = KINDS["P-256"]()
    leaf = certificate(leaf_key, "release", authority, addresses=("release@example.org",))
    sign_with(version, tmp_path, leaf, key=leaf_key)
    found = read_bundle(version)
    signed(version, key)
    write_bundle(version, {**read_bundle(version), "verificationMaterial": found["verificationMaterial"]})
    code, reason = rejected(version, by_certificate)
    assert (code, reason) == (
        "signature_invalid", "model.sig: the signature is not of this statement by the certificate's key",
    )  # fmt: skip


@pytest.mark.parametrize("raw", [b"", b"0", b"\x30\x03\x02\x01\x01"])
def test_a_certificate_that_cannot_be_parsed_is_rejected(version, key, by_certificate, raw):
    signed(version, key)
    found = read_bundle(version)
    chain = {"certificates": [{"rawBytes": base64.b64encode(raw).decode()}]}
    found["verificationMaterial"] = {"x509CertificateChain": chain}
    write_bundle(version, found)
    assert "a certificate cannot be parsed" in rejected(version, by_certificate)[1]


def test_a_key_does_not_stand_for_a_certificate_nor_a_certificate_for_a_key(
    version, tmp_path, authority, by_certificate, key
):
    signed(version, key)
    assert "signed with a key, not with a certificate" in rejected(version, by_certificate)[1]
    leaf_key = KINDS["P-256"]()
    leaf = certificate(leaf_key, "release", authority, addresses=("release@example.org",))
    sign_with(version, tmp_path, leaf, key=leaf_key)
    assert "signed with a certificate, not with the key" in rejected(version, write_policy(tmp_path, allow()))[1]


def test_what_somebody_wrote_into_a_signature_does_not_reach_a_terminal_unescaped(version, key, policy):
    signed(version, key)
    found = read_bundle(version)
    found["verificationMaterial"]["publicKey"]["hint"] = "\x1b[2J\nzwatch: all is well\ud800"
    write_bundle(version, found)
    reason = rejected(version, policy)[1]
    assert reason.isprintable()
    assert "\\x1b[2J\\nzwatch" in reason
