"""`zwatch golden`: what it makes, what it refuses, and that nothing half-made looks complete."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from tests import goldens
from zwatch import cli, golden
from zwatch.deploy import hashing, sealing
from zwatch.deploy.golden import parse
from zwatch.deploy.seal import SIGNATURE_NAME, read_seal
from zwatch.deploy.verifying import check_directory
from zwatch.deploy.versions import opened
from zwatch.engine import rounding
from zwatch.engine.check import check_version

MODELS = Path(__file__).parent.parent / "models"


def seal_of(version):
    with opened(version) as fd:
        return read_seal(fd)


def state_of(version):
    """Return every file of a version, by its path."""
    return {path.relative_to(version).as_posix(): path.read_bytes() for path in version.rglob("*") if path.is_file()}


@pytest.fixture
def make(models, capsys, tmp_path):
    """Run `zwatch golden` for v1 with these lines; return its exit status and what it printed."""

    def run(*lines, options=(), name="v1"):
        file = tmp_path / "prompts.txt"
        file.write_text("\n".join(lines or goldens.PROMPTS))
        capsys.readouterr()
        given = ["golden", name, "--models", str(models), "--prompts", str(file), "--device", "cpu", *options]
        status = cli.main(given)
        return status, *capsys.readouterr()

    return run


def test_it_draws_what_is_asked_for_and_seals_the_version_with_it(make, models):
    weights = dict(seal_of(models / "v1").files)
    line = json.dumps(
        {"prompt": "a dog", "seed": 7, "width": 32, "height": 48, "steps": 3, "min_psnr": 35, "min_ssim": 0.9}
    )
    status, out, _ = make("a cat", "", line, options=["--steps", "2", "--min-psnr", "38", "--seed", "5"])
    assert status == 0
    sealed = seal_of(models / "v1")
    assert (
        out.splitlines()[0]
        == f"{models}/v1: 2 golden images, sealed v1, {len(sealed.files)} files, digest {sealed.digest}"
    )
    first, second = parse((models / "v1/golden.json").read_bytes())
    assert (first.prompt, first.seed, first.width, first.height, first.steps) == ("a cat", 5, 64, 64, 2)
    assert (first.image, first.min_psnr, first.min_ssim) == ("golden/1.png", 38.0, 0.998)
    assert (second.seed, second.width, second.height, second.steps) == (7, 32, 48, 3)
    assert (second.image, second.min_psnr, second.min_ssim) == ("golden/2.png", 35.0, 0.9)
    assert set(sealed.files) - set(weights) == {"golden.json", "golden/1.png", "golden/2.png"}
    assert {path: sealed.files[path] for path in weights} == weights
    assert check_directory(models / "v1", "v1") == []
    assert check_version(models / "v1", "cpu", lambda *report: None)[0] == []


def test_json_has_what_was_made(make, models):
    _, out, _ = make("a cat", options=["--json", "--steps", "1"])
    found = json.loads(out)
    assert (found["version"], found["images"], found["notes"]) == ("v1", ["golden/1.png"], [])
    assert found["digest"] == seal_of(models / "v1").digest


def test_what_the_load_has_verified_is_not_hashed_again(make, models, monkeypatch):
    for path in (models / "v1").rglob("*"):
        os.utime(path)
    old = [path for path in (models / "v1").rglob("*") if path.is_file()]
    monkeypatch.setattr(golden, "_RACY_NS", -1)  # the copies of this test are younger than a second
    hashed = []
    real = hashing.hashed

    def noting(sources, *given):
        sources = list(sources)
        hashed.extend(source.path for source in sources)
        return real(iter(sources), *given)

    monkeypatch.setattr(sealing, "hashed", noting)
    assert make("a cat", options=["--steps", "1"])[0] == 0
    assert sorted(hashed) == ["golden.json", "golden/1.png"]
    assert len(old) > 10
    assert check_directory(models / "v1", "v1") == []


@pytest.mark.parametrize("path", ["transformer/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"])
def test_a_file_that_changes_while_the_images_are_drawn_is_not_sealed_with_them(make, models, monkeypatch, path):
    before = seal_of(models / "v1")
    real = golden._png

    def png(*given):
        data = (models / "v1" / path).read_bytes()
        is_json = path.endswith(".json")
        (models / "v1" / path).write_bytes(data + b" " if is_json else data[:-1] + bytes([data[-1] ^ 4]))
        return real(*given)

    monkeypatch.setattr(golden, "_png", png)
    status, _, error = make("a cat", options=["--steps", "1"])
    assert status == 1
    assert f"{path}: it changed while it was sealed" in error
    assert seal_of(models / "v1") == before
    assert not (models / "v1/golden.json").exists()
    assert not (models / "v1/golden").exists()


def test_golden_images_are_replaced_only_when_that_is_asked_for(make, models):
    make("a cat", "a dog", options=["--steps", "1"])
    before = state_of(models / "v1")
    status, _, error = make("a house", options=["--steps", "1"])
    assert (status, "it has 2 golden images; give --force" in error) == (1, True)
    assert state_of(models / "v1") == before
    assert make("a house", options=["--steps", "1", "--force"])[0] == 0
    assert os.listdir(models / "v1/golden") == ["3.png"]
    assert make("a tree", options=["--steps", "1", "--force"])[0] == 0
    assert os.listdir(models / "v1/golden") == ["1.png"]
    assert check_directory(models / "v1", "v1") == []


@pytest.mark.parametrize("stage", ["_loaded", "_png", "write_durably", "write_beside", "_check_unchanged"])
@pytest.mark.parametrize("has_golden", [False, True])
def test_an_interruption_leaves_the_version_as_it_was(make, models, monkeypatch, stage, has_golden):
    if has_golden:
        make("a cat", options=["--steps", "1"])
    before = state_of(models / "v1")
    place = sealing if stage in ("write_beside", "_check_unchanged") else golden
    real, calls = getattr(place, stage), []

    def interrupted(*given, **more):
        calls.append(given)
        if len(calls) == (2 if stage in ("_png", "write_durably") else 1):
            os.kill(os.getpid(), signal.SIGINT)
        return real(*given, **more)

    monkeypatch.setattr(place, stage, interrupted)
    if stage == "_check_unchanged":  # its place is in the last moment, in which signals wait
        assert make("a house", "a tree", options=["--steps", "1", "--force"])[0] == 130
        assert check_directory(models / "v1", "v1") == []
        assert len(parse((models / "v1/golden.json").read_bytes())) == 2
        return
    assert make("a house", "a tree", options=["--steps", "1", "--force"])[0] == 130
    assert state_of(models / "v1") == before


def test_what_a_kill_leaves_is_no_part_of_the_version_and_is_overwritten(make, models):
    (models / "v1/golden").mkdir()
    (models / "v1/golden/1.png").write_bytes(b"half")
    (models / "v1/golden/.2.png.x1").write_bytes(b"half")
    assert check_directory(models / "v1", "v1") == []
    assert make("a cat", "a dog", options=["--steps", "1"])[0] == 0
    assert check_directory(models / "v1", "v1") == []
    assert not [path for path in seal_of(models / "v1").files if "x1" in path]


def test_an_old_signature_is_removed_and_a_new_one_made_with_a_key(make, models, tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (tmp_path / "key.pem").write_bytes(key.private_bytes(*form))
    (tmp_path / "key.pem").chmod(0o600)
    status, out, error = make("a cat", options=["--steps", "1", "--sign", str(tmp_path / "key.pem")])
    assert (status, error) == (0, "")
    assert "signed by" in out
    assert (models / "v1" / SIGNATURE_NAME).exists()
    _, out, _ = make("a dog", options=["--steps", "1", "--force"])
    assert f"removed {SIGNATURE_NAME}, which was of another seal" in out
    assert not (models / "v1" / SIGNATURE_NAME).exists()


# Floors


@pytest.fixture(scope="module")
def v1(tmp_path_factory):
    """The repository's v1, with golden images whose floors were measured."""
    root = tmp_path_factory.mktemp("floors") / "models"
    shutil.copytree(MODELS / "v1", root / "v1")
    goldens.add(root, "v1")
    return root / "v1"


def test_rounding_alone_passes_the_floors_that_were_measured(v1):
    floors = [(picture.min_psnr, picture.min_ssim) for picture in parse((v1 / "golden.json").read_bytes())]
    assert all(44 < least <= 47 and 0.99 < similarity <= 0.998 for least, similarity in floors), floors
    assert check_version(v1, "cpu", lambda *report: None, exact=False)[0] == []


def test_a_wrong_scheduler_is_caught_by_the_floors_that_were_measured(v1):
    wrong = goldens.copied(v1.parent, "v1", "wrong")
    goldens.change_shift(wrong)
    goldens.seal(wrong)
    [problem] = check_version(wrong, "cpu", lambda *report: None)[0]
    assert problem.startswith("golden_mismatch: golden/1.png")


def test_an_image_with_both_floors_said_is_drawn_once(make, monkeypatch):
    monkeypatch.setattr(rounding, "measured", None)
    assert make("a cat", options=["--steps", "1", "--min-psnr", "38", "--min-ssim", "0.9"])[0] == 0


# What is refused


@pytest.mark.parametrize("content", [b"{", b'{"images": []}', b"\xff"])
def test_a_golden_json_that_is_wrong_is_replaced_with_force(make, models, content):
    assert make("a cat", "a dog", options=["--steps", "1"])[0] == 0
    (models / "v1/golden.json").write_bytes(content)
    status, _, error = make("a tree", options=["--steps", "1"])
    assert (status, "golden.json: " in error, "give --force to replace it" in error) == (1, True, True)
    assert make("a tree", options=["--steps", "1", "--force"])[0] == 0
    assert os.listdir(models / "v1/golden") == ["3.png"], "what the old seal named stayed until the new one was there"
    assert check_directory(models / "v1", "v1") == []
    assert check_version(models / "v1", "cpu", lambda *report: None)[0] == []


def test_a_golden_json_that_is_gone_is_said_with_what_helps(make, models):
    assert make("a cat", options=["--steps", "1"])[0] == 0
    (models / "v1/golden.json").unlink()
    status, _, error = make("a tree", options=["--steps", "1", "--force"])
    assert (status, f"run `zwatch seal {models}/v1`" in error) == (1, True)
    assert cli.main(["seal", str(models / "v1")]) == 0
    assert make("a tree", options=["--steps", "1"])[0] == 0
    assert check_directory(models / "v1", "v1") == []


def test_what_has_the_name_of_golden_json_and_is_no_file_is_refused_at_once(make, models):
    os.mkfifo(models / "v1/golden.json")
    status, _, error = make("a cat", options=["--force"])
    assert (status, f"{models}/v1/golden.json: it is not a regular file; move it away" in error) == (1, True)
    with sealing.locked(models / "v1"):  # nothing holds the lock any more
        pass


def test_a_file_where_the_folder_of_images_belongs_is_refused_before_anything_is_loaded(make, models, monkeypatch):
    monkeypatch.setattr(golden, "_loaded", None)
    (models / "v1/golden").write_text("")
    status, _, error = make("a cat")
    assert (status, f"{models}/v1/golden: expected a folder, found a file; move it away" in error) == (1, True)
    (models / "v1/golden").unlink()
    (models / "v1/golden").symlink_to("vae")
    assert "expected a folder, found a link" in make("a cat")[2]


def test_what_is_no_version_is_refused(make, models):
    assert "current: is a link; name the version that it leads to" in make(name="current")[2]
    assert "there is no such version" in make(name="v9")[2]
    shutil.rmtree(models / "v1/vae")
    status, _, error = make()
    assert (status, "file_missing" in error or "vae/" in error) == (1, True)


def test_a_wrong_line_is_an_error_of_the_call(make):
    status, _, error = make("a cat", '{"prompt": "a dog", "steps": 0}')
    assert (status, "line 2: steps: found 0" in error) == (2, True)
    status, _, error = make(*["a cat"] * 101)
    assert (status, "found 101 prompts, expected at most 100" in error) == (2, True)
    status, _, error = make("a cat", '{"prompt": "a dog", "width": 2048}')
    assert (status, "line 2: a side of 2048 pixels" in error) == (2, True)
    assert cli.main(["golden", "v1"]) == 2


def test_a_sealing_beside_it_is_refused(make, models):
    with sealing.locked(models / "v1"):
        status, _, error = make()
    assert (status, "another process is sealing it" in error) == (1, True)


def test_a_version_that_makes_no_image_gets_no_golden_ones(make, models):
    from tests.engine.editing import TRANSFORMER, edit_tensors

    edit_tensors(models / "v1" / TRANSFORMER, lambda tensors: {k: t * float("nan") for k, t in tensors.items()})
    goldens.seal(models / "v1")
    status, _, error = make()
    assert (status, "NaN or infinite pixels" in error) == (1, True)
    assert not (models / "v1/golden.json").exists()


def test_a_comparison_of_versions_names_what_differs_of_them(make, models, capsys):
    shutil.copytree(models / "v1", models / "v3")
    goldens.seal(models / "v3")
    assert make("a cat", options=["--steps", "1"])[0] == 0
    capsys.readouterr()
    assert cli.main(["diff", "v3", "v1", "--models", str(models)]) == 0
    out = capsys.readouterr().out
    assert "golden/1.png: added" in out
    assert "golden.json: added" in out
