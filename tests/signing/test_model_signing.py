"""The program and the library model_signing, of the OpenSSF, beside zwatch: what one signs the other accepts."""

import shutil
import subprocess
import sys

import pytest

from tests.deploy.factory import VAE
from tests.signing.made import (
    KINDS,
    allow,
    certificate,
    checked,
    pem,
    private_pem,
    signed,
    write_key,
    write_policy,
    write_secret,
)
from tests.signing.test_check import rejected
from zwatch.deploy.seal import SEAL_NAME, SIGNATURE_NAME
from zwatch.deploy.sealing import write_seal

pytest.importorskip("model_signing", reason="model-signing is not installed")
pytest.importorskip("OpenSSL", reason="model-signing 1.1.1 needs pyOpenSSL and does not install it")

CURVES = ("P-256", "P-521")


def model_signing(*arguments):
    """Run the program; return its exit status and what it says."""
    command = [sys.executable, "-m", "model_signing", *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True)
    return ended.returncode, ended.stdout + ended.stderr


def verify(version, folder, *more):
    signature = ("--signature", version / SIGNATURE_NAME)
    return model_signing("verify", "key", version, *signature, "--public_key", folder / "release.pub", *more)


@pytest.mark.parametrize("kind", CURVES)
def test_the_program_verifies_what_zwatch_signs(version, tmp_path, kind):
    signed(version, write_key(tmp_path, kind=kind))
    assert verify(version, tmp_path) == (0, "Verification succeeded\n")


def test_it_does_so_with_files_beside_the_sealed_ones_and_a_git_repository(version, tmp_path, key):
    (version / "README.md").write_text("# v1")
    (version / "assets").mkdir()
    (version / "assets/cat.txt").write_text("a cat")
    signed(version, key)
    (version / ".git").mkdir()
    (version / ".git/config").write_text("[core]")
    assert verify(version, tmp_path) == (0, "Verification succeeded\n")
    (version / "later.txt").write_text("made after the signature")
    assert verify(version, tmp_path)[0] == 1
    assert verify(version, tmp_path, "--ignore_unsigned_files")[0] == 0


@pytest.mark.parametrize("change", ["weights", "seal", "another key"])
def test_it_refuses_what_zwatch_refuses(version, tmp_path, key, policy, change):
    signed(version, key)
    if change == "weights":
        path = version / VAE
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    elif change == "seal":
        (version / "vae/config.json").write_text('{"changed": 1}')
        write_seal(version, "v1")
    else:
        write_key(tmp_path)
    assert verify(version, tmp_path)[0] == 1
    if change != "weights":  # which the seal tells, not the signature
        assert rejected(version, policy)[0] in ("signature_invalid", "signer_not_allowed")


def test_zwatch_accepts_what_the_program_signs_after_the_seal(version, tmp_path):
    key = write_key(tmp_path, kind="P-384")
    (version / "README.md").write_text("signed, and not sealed")
    signature = version / SIGNATURE_NAME
    status, said = model_signing("sign", "key", version, "--signature", signature, "--private_key", key)
    assert status == 0, said
    assert checked(version, write_policy(tmp_path, allow())).startswith("key release.pub ")


def test_zwatch_says_what_to_do_with_what_the_program_signed_before_the_seal(version, key, policy):
    (version / SEAL_NAME).unlink()
    signature = version / SIGNATURE_NAME
    assert model_signing("sign", "key", version, "--signature", signature, "--private_key", key)[0] == 0
    shutil.move(signature, version.parent / SIGNATURE_NAME)
    write_seal(version, "v1")
    shutil.move(version.parent / SIGNATURE_NAME, signature)
    code, reason = rejected(version, policy)
    assert code == "signature_invalid"
    assert "run `zwatch seal` first and sign then" in reason


@pytest.mark.parametrize("is_sealed_first", [True, False])
def test_zwatch_accepts_what_the_library_signs_with_blake3(version, tmp_path, key, policy, is_sealed_first):
    import model_signing as library

    seal = (version / SEAL_NAME).read_bytes()
    if not is_sealed_first:
        (version / SEAL_NAME).unlink()
    hashing = library.hashing.Config().use_file_serialization(hashing_algorithm="blake3")
    hashing.set_ignored_paths(paths=[SIGNATURE_NAME])
    config = library.signing.Config().use_elliptic_key_signer(private_key=key).set_hashing_config(hashing)
    config.sign(version, version / SIGNATURE_NAME)
    (version / SEAL_NAME).write_bytes(seal)
    assert checked(version, policy).startswith("key release.pub ")


def test_the_program_of_1_1_1_hashes_by_sha256_whatever_was_signed_which_is_why_zwatch_signs_sha256(
    version, tmp_path, key
):
    import model_signing as library

    hashing = library.hashing.Config().use_file_serialization(hashing_algorithm="blake3")
    hashing.set_ignored_paths(paths=[SIGNATURE_NAME])
    config = library.signing.Config().use_elliptic_key_signer(private_key=key).set_hashing_config(hashing)
    config.sign(version, version / SIGNATURE_NAME)
    status, said = verify(version, tmp_path)
    assert status == 1
    assert "Hash mismatch" in said
    library.verifying.Config().use_elliptic_key_verifier(public_key=tmp_path / "release.pub").verify(
        version, version / SIGNATURE_NAME
    )


def test_shards_are_refused_with_what_to_do(version, key, policy):
    import model_signing as library

    hashing = library.hashing.Config().use_shard_serialization()
    hashing.set_ignored_paths(paths=[SIGNATURE_NAME])
    config = library.signing.Config().use_elliptic_key_signer(private_key=key).set_hashing_config(hashing)
    config.sign(version, version / SIGNATURE_NAME)
    assert "sign whole files, not shards of them" in rejected(version, policy)[1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_certificates_are_accepted_both_ways(version, tmp_path):
    root_key, key = KINDS["P-256"](), KINDS["P-384"]()
    root = certificate(root_key, "Test CA", authority=True, days=3650)
    leaf = certificate(key, "release", (root, root_key), addresses=("release@example.org",))
    (tmp_path / "ca.pem").write_bytes(pem(root))
    (tmp_path / "leaf.pem").write_bytes(pem(leaf))
    write_secret(tmp_path / "leaf.key", private_pem(key))
    policy = write_policy(tmp_path, 'versions = "v*"\nroots = "ca.pem"\nidentity = "release@example.org"')
    signature = ("--signature", version / SIGNATURE_NAME)
    signed(version, write_secret(tmp_path / "signer.pem", private_pem(key) + pem(leaf)))
    status, said = model_signing(
        "verify", "certificate", version, *signature, "--certificate_chain", tmp_path / "ca.pem"
    )
    assert status == 0, said
    assert checked(version, policy).startswith("certificate release@example.org ")
    status, said = model_signing(
        "sign", "certificate", version, *signature, "--private_key", tmp_path / "leaf.key",
        "--signing_certificate", tmp_path / "leaf.pem", "--certificate_chain", tmp_path / "ca.pem",
    )  # fmt: skip
    assert status == 0, said
    assert checked(version, policy).startswith("certificate release@example.org ")
