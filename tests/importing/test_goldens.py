"""Golden images go along where all that draws them does, and quantized versions are judged by those of their source."""

import json
import os
import shutil

import pytest

from tests.deploy import goldens as files
from zwatch import cli
from zwatch.deploy.golden import QUANTIZED_FLOORS, parse
from zwatch.deploy.verifying import check_directory


def copied(source, target):
    return shutil.copytree(source, target)


@pytest.fixture
def source(pipeline, tmp_path):
    directory = copied(pipeline, tmp_path / "source")
    files.add(directory, {}, {"image": "elsewhere/2.png"})
    (directory / "golden/.DS_Store").write_bytes(b"")
    (directory / "golden/3.png").write_bytes(files.png())
    return directory


def test_a_pipeline_brings_its_golden_images_and_no_other(source, importing):
    version = importing(source, "v2")
    assert (os.listdir(version / "golden"), os.listdir(version / "elsewhere")) == (["1.png"], ["2.png"])
    assert (version / "golden.json").read_bytes() == (source / "golden.json").read_bytes()
    assert check_directory(version, "v2") == []


def test_without_a_list_they_do_not_come(source, importing):
    (source / "golden.json").unlink()
    assert not (importing(source, "v2") / "golden").exists()


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (lambda source: (source / "golden/1.png").write_bytes(b"x"), "golden/1.png: found no PNG"),
        (lambda source: (source / "golden/1.png").unlink(), "golden/1.png: golden.json names it, it is not there"),
        (lambda source: (source / "golden.json").write_text("{}"), "golden.json: images: found nothing"),
    ],
)
def test_what_is_wrong_with_them_is_refused(source, importing, harm, what):
    harm(source)
    assert what in importing.refused(source, "v2")


def test_a_fine_tune_does_not_inherit_those_of_its_base_and_says_so(source, importing, tmp_path):
    importing(source, "v1")
    tuned = tmp_path / "tuned"
    shutil.copytree(source / "transformer", tuned / "transformer")
    version = importing(tuned, "v2", "--base", "v1")
    assert not (version / "golden.json").exists()
    assert not (version / "golden").exists()
    assert (
        "the golden images of v1 are left out: of what draws them, only transformer is the source's" in importing.error
    )
    assert "`zwatch golden NAME --prompts FILE`" in importing.error


def test_a_source_without_its_own_autoencoder_loses_its_golden_images_and_says_so(source, importing):
    importing(source, "v1")
    shutil.rmtree(source / "vae")
    version = importing(source, "v2", "--base", "v1")
    assert not (version / "golden.json").exists()
    assert "the golden images of the source are left out" in importing.error


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_a_quantized_version_is_judged_by_the_images_of_its_source_with_lower_floors(source, importing, capsys, kind):
    importing(source, "v1")
    assert cli.main(["quantize", "v1", "v1-q", "--to", kind, "--models", str(importing.root)]) == 0
    assert "the golden images of v1 go along and judge the quantization" in capsys.readouterr().err
    version = importing.root / "v1-q"
    assert check_directory(version, "v1-q") == []
    pictures = parse((version / "golden.json").read_bytes())
    assert {(picture.min_psnr, picture.min_ssim) for picture in pictures} == {QUANTIZED_FLOORS[kind]}
    for path in ("golden/1.png", "elsewhere/2.png"):
        assert (version / path).read_bytes() == (importing.root / "v1" / path).read_bytes()


def test_lower_floors_stay(source, importing, capsys):
    found = json.loads((source / "golden.json").read_text())
    found["images"][0].update(min_psnr=5.0, min_ssim=0.1)
    (source / "golden.json").write_text(json.dumps(found))
    importing(source, "v1")
    cli.main(["quantize", "v1", "v1-q", "--models", str(importing.root)])
    first, _ = parse((importing.root / "v1-q/golden.json").read_bytes())
    assert (first.min_psnr, first.min_ssim) == (5.0, 0.1)
