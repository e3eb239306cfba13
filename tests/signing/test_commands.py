"""`zwatch seal --sign`, `zwatch verify --signature`, and what they say of keys that cannot be used."""

import json
import os
import shutil
import sys

import pytest

from tests.deploy.factory import VAE
from tests.signing.made import (
    AS_ROOT,
    KINDS,
    allow,
    certificate,
    checked,
    pem,
    private_pem,
    public_pem,
    signed,
    statement_in,
    write_key,
    write_policy,
    write_secret,
)
from tests.test_cli import zwatch
from zwatch.cli import main
from zwatch.deploy.seal import SEAL_NAME, SIGNATURE_NAME, read_seal
from zwatch.deploy.sealing import write_seal
from zwatch.deploy.versions import opened
from zwatch.errors import Rejection
from zwatch.signing.keys import read_signing_key
from zwatch.signing.sign import sign


def test_a_version_is_sealed_signed_and_verified(version, key, policy, capsys):
    assert main(["seal", str(version), "--sign", str(key)]) == 0
    assert "v1: signed by key release.pem sha256:" in capsys.readouterr().out
    assert main(["verify", str(version), "--signature", str(policy)]) == 0
    assert "v1: verified, signed by key release.pub sha256:" in capsys.readouterr().out


def test_verify_prints_the_signer_and_the_reason_as_json(version, key, policy, capsys):
    main(["seal", str(version), "--sign", str(key)])
    capsys.readouterr()
    assert main(["verify", str(version), "--signature", str(policy), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    assert found["signer"].startswith("key release.pub sha256:")
    (version / SIGNATURE_NAME).unlink()
    assert main(["verify", str(version), "--signature", str(policy), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["signer"] is None
    assert found["findings"][0].startswith("signature_missing: v1: there is no model.sig")


def test_what_is_unsigned_is_not_read_any_further(version, policy, capsys):
    for path in version.rglob("*.safetensors"):
        path.unlink()
    assert main(["verify", str(version), "--signature", str(policy)]) == 1
    assert capsys.readouterr().out.startswith("signature_missing: ")
    assert main(["check", str(version), "--require-signature", str(policy)]) == 1
    assert capsys.readouterr().out.startswith("signature_missing: ")


def test_a_signed_version_with_altered_weights_is_not_verified(version, key, policy, capsys):
    main(["seal", str(version), "--sign", str(key)])
    weights = version / VAE
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    capsys.readouterr()
    assert main(["verify", str(version), "--signature", str(policy)]) == 1
    assert f"{VAE}: blake3 is" in capsys.readouterr().out


def test_a_policy_that_cannot_be_used_is_a_wrong_call(version, tmp_path, capsys):
    assert main(["verify", str(version), "--signature", str(tmp_path / "none.toml")]) == 2
    assert "none.toml cannot be read" in capsys.readouterr().err


def test_sealing_again_removes_a_signature_of_another_seal_and_keeps_one_of_this(version, key, policy, capsys):
    main(["seal", str(version), "--sign", str(key)])
    capsys.readouterr()
    assert main(["seal", str(version)]) == 0
    assert "model.sig" not in capsys.readouterr().out
    assert checked(version, policy)
    (version / "vae/config.json").write_text('{"changed": 1}')
    assert main(["seal", str(version)]) == 0
    assert "removed model.sig, which was of another seal; sign this one with --sign KEY" in capsys.readouterr().out
    assert not (version / SIGNATURE_NAME).exists()


@pytest.mark.parametrize("what", [b"", b"{}", b"\xff" * 100])
def test_sealing_again_removes_what_is_no_signature(version, what):
    (version / SIGNATURE_NAME).write_bytes(what)
    assert main(["seal", str(version)]) == 0
    assert not (version / SIGNATURE_NAME).exists()


def test_sealing_removes_a_link_in_the_signature_s_place_and_not_what_it_leads_to(version, tmp_path):
    (tmp_path / "x.sig").write_text("{}")
    (version / SIGNATURE_NAME).symlink_to(tmp_path / "x.sig")
    assert main(["seal", str(version)]) == 0
    assert not (version / SIGNATURE_NAME).is_symlink()
    assert (tmp_path / "x.sig").exists()


def test_a_file_that_changes_between_the_seal_and_the_signature_is_not_signed(version, key):
    (version / "model_index.json").write_text('{"changed": 1}')
    with pytest.raises(Rejection, match=r"model_index\.json: blake3 is"):
        sign(version, read_signing_key(key, str))
    assert not (version / SIGNATURE_NAME).exists()


def test_an_interrupt_ends_the_reading_at_once_and_leaves_no_signature(version, key):
    with open(version / "tokenizer/merges.txt", "wb") as file:
        file.truncate(2**26)
    write_seal(version, "v1")
    read = []

    def interrupt(path, done):
        read.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sign(version, read_signing_key(key, str), progress=interrupt)
    assert len(read) < 20, "each thread stops at its next piece, of 32"
    assert not (version / SIGNATURE_NAME).exists()


def test_digests_that_are_known_are_not_made_again(version, key, policy):
    """`zwatch import` has them when it has written the files."""
    with opened(version) as fd:
        paths = read_seal(fd).files
    sign(version, read_signing_key(key, str), digests=dict.fromkeys(paths, "ab" * 32))
    assert {one["digest"] for one in statement_in(version)["predicate"]["resources"]} > {"ab" * 32}
    assert checked(version, policy)
    sign(version, read_signing_key(key, str), digests={})
    assert {one["digest"] for one in statement_in(version)["predicate"]["resources"]}.isdisjoint({"ab" * 32})


def test_what_lies_beside_the_sealed_files_is_named_so_that_model_signing_leaves_it_out(version, key):
    (version / "docs/more").mkdir(parents=True)
    (version / "docs/more/a.txt").touch()
    (version / "vae/notes.txt").touch()
    (version / os.fsdecode(b"odd\xff")).touch()
    signed(version, key)
    assert statement_in(version)["predicate"]["serialization"]["ignore_paths"] == [
        "docs",
        SIGNATURE_NAME,
        "vae/notes.txt",
    ]


def test_nothing_half_written_is_left_beside_a_signature(version, key):
    (version / f".{SIGNATURE_NAME}.k2j3").touch()
    signed(version, key)
    assert [path.name for path in version.iterdir() if path.name.startswith(".")] == []


def wrong_keys():
    key = KINDS["P-256"]()
    return {
        "a public key": (public_pem(key), "is a public key, expected a private key: openssl genpkey"),
        "a certificate": (pem(certificate(key, "x")), "is no private key"),
        "an RSA key": (private_pem(KINDS["RSA"]()), "is RSA, expected Ed25519 or EC"),
        "a key on another curve": (private_pem(KINDS["secp256k1"]()), "is EC on secp256k1"),
        "no PEM": (b"secret", "is no PEM file"),
        "nothing": (b"", "is no PEM file"),
        "a damaged key": (private_pem(key).replace(b"M", b"N"), "cannot be used"),
        "a key with somebody else's certificate": (
            private_pem(key) + pem(certificate(KINDS["P-256"](), "x")), "its first certificate is of another key",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("case", wrong_keys())
def test_nothing_is_sealed_with(version, tmp_path, capsys, case):
    data, expected = wrong_keys()[case]
    write_secret(tmp_path / "bad.pem", data)
    (version / "model_index.json").write_text("{}")
    before = (version / SEAL_NAME).read_bytes()
    assert main(["seal", str(version), "--sign", str(tmp_path / "bad.pem")]) == 2
    said = capsys.readouterr().err
    assert "bad.pem" in said
    assert expected in said
    assert (version / SEAL_NAME).read_bytes() == before


def test_a_key_that_is_not_there_is_named(version, tmp_path, capsys):
    assert main(["seal", str(version), "--sign", str(tmp_path / "none.pem")]) == 2
    assert "none.pem cannot be read: No such file or directory" in capsys.readouterr().err


def test_a_key_that_everyone_may_read_is_refused_unless_it_is_encrypted(version, tmp_path, key, capsys, monkeypatch):
    key.chmod(0o644)
    assert main(["seal", str(version), "--sign", str(key)]) == 2
    assert f"every user may read it: chmod 600 {key}" in capsys.readouterr().err
    encrypted = write_key(tmp_path, "locked", password="a secret")
    encrypted.chmod(0o644)
    monkeypatch.setenv("ZWATCH_SIGN_PASSWORD", "a secret")
    assert main(["seal", str(version), "--sign", str(encrypted)]) == 0


@pytest.mark.skipif(AS_ROOT, reason="root may read everything")
def test_a_key_that_may_not_be_read_is_named(version, key, capsys):
    key.chmod(0)
    assert main(["seal", str(version), "--sign", str(key)]) == 2
    assert "Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["Ed25519", "P-256"])
def test_an_encrypted_key_takes_its_password_from_the_environment(version, tmp_path, kind, monkeypatch, capsys):
    key = write_key(tmp_path, kind=kind, password="a secret")
    arguments = ["seal", str(version), "--sign", str(key)]
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    assert main(arguments) == 2
    assert "is encrypted: set ZWATCH_SIGN_PASSWORD" in capsys.readouterr().err
    monkeypatch.setenv("ZWATCH_SIGN_PASSWORD", "wrong")
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "the password is wrong, or it is damaged" in said
    monkeypatch.setenv("ZWATCH_SIGN_PASSWORD", "a secret")
    assert main(arguments) == 0
    assert checked(version, write_policy(tmp_path, allow()))


def test_a_key_may_come_from_a_pipe(version, tmp_path, key, policy):
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    import subprocess

    command = f"{sys.executable} -m zwatch seal {version} --sign <(cat {key})"
    assert subprocess.run([bash, "-c", command], capture_output=True).returncode == 0
    assert checked(version, policy)


def test_the_private_key_is_in_no_output(version, tmp_path, key):
    secret = key.read_text().splitlines()[1]
    for arguments in (["seal", version, "--sign", key], ["verify", version, "--signature", key]):
        ended = zwatch(*arguments)
        assert secret not in ended.stdout + ended.stderr


def test_an_ed25519_signature_says_that_model_signing_cannot_verify_it(version, tmp_path, capsys):
    key = write_key(tmp_path, kind="Ed25519")
    main(["seal", str(version), "--sign", str(key)])
    assert "the program model_signing 1.1 needs a key on an EC curve" in capsys.readouterr().out


def test_without_the_libraries_the_command_says_what_to_install(version, key, policy, tmp_path):
    """The extra is not installed: as where the package is hidden."""
    (tmp_path / "hidden/cryptography").mkdir(parents=True)
    (tmp_path / "hidden/cryptography/__init__.py").write_text("raise ImportError('no cryptography here')")
    path = f"{tmp_path / 'hidden'}:{os.getcwd()}"
    for arguments in (["seal", version, "--sign", key], ["verify", version, "--signature", policy]):
        ended = zwatch(*arguments, env={**os.environ, "PYTHONPATH": path})
        assert ended.returncode == 2
        assert "pip install 'zwatch[signing]'" in ended.stderr
    assert zwatch("verify", version, env={**os.environ, "PYTHONPATH": path}).returncode == 0
    assert zwatch("seal", version, env={**os.environ, "PYTHONPATH": path}).returncode == 0
