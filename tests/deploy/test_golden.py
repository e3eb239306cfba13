"""golden.json: what is accepted, and what the refusal of everything else names."""

import json
import math

import pytest

from tests.deploy import goldens
from tests.deploy.factory import write_version
from zwatch.deploy import golden
from zwatch.deploy.sealing import write_seal
from zwatch.deploy.verifying import check_directory
from zwatch.errors import Rejection


def refusal(call, *arguments):
    with pytest.raises(Rejection) as caught:
        call(*arguments)
    assert caught.value.code == "golden_invalid"
    return caught.value.reason


def parse(text):
    return golden.parse(text if isinstance(text, bytes) else text.encode())


def test_what_is_written_is_read_again():
    pictures = parse(goldens.text({}, {"prompt": "Grüße ☃", "min_psnr": 40, "seed": 2**63 - 1}))
    assert pictures[0] == golden.Picture("a cat", 1, 64, 64, 2, "golden/1.png", 40.0, 0.98)
    assert golden.parse(golden.format_json(pictures)) == pictures


BAD = [
    ("prompt", ["", " \n", 1, None, "a" * 10_001, "\ud800"], "text of 1 to 10000 characters"),
    ("seed", [-1, 2**63, 1.0, True, "1", None], "a whole number from 0 to 2^63 - 1"),
    ("width", [0, 8, 100, 2064, 64.0, "64", True, -64], "a multiple of 16 from 16 to 2048"),
    ("height", [10**9, None, []], "a multiple of 16 from 16 to 2048"),
    ("steps", [0, 101, 2.0, False], "a whole number from 1 to 100"),
    ("min_psnr", [-1, 100.5, "40", None, True], "a number from 0 to 100"),
    ("min_ssim", [-0.1, 1.01, "1", []], "a number from 0 to 1"),
    (
        "image",
        ["", 1, "golden/1.jpg", "/etc/1.png", "../1.png", "golden/../../1.png", "a//1.png", "./1.png", "a\\1.png", "a\n.png",
         "golden/.1.png", ".golden/1.png", "\ud800.png"],
        "a path below the version that ends in .png",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value", "expected"), [(field, value, expected) for field, values, expected in BAD for value in values]
)
def test_a_wrong_field_is_named_with_what_was_found_and_what_is_expected(field, value, expected):
    text = json.dumps({"images": [goldens.PICTURE, {**goldens.PICTURE, "image": "golden/2.png", field: "?"}]})
    reason = refusal(parse, text.replace('"?"', json.dumps(value)))
    assert reason.startswith(f"golden.json: images[1].{field}: found ")
    assert expected in reason
    assert len(reason) < 300


def test_a_number_of_thousands_of_digits_is_refused():
    assert "not JSON" in refusal(parse, goldens.text({"seed": "?"}).replace('"?"', "1" * 5000))


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("field", ["min_psnr", "min_ssim", "seed"])
def test_a_floor_that_is_no_number_is_refused(field, value):
    text = json.dumps({"images": [{**goldens.PICTURE, field: "?"}]}).replace('"?"', value)
    assert refusal(parse, text).startswith("golden.json: ")


def test_every_field_is_required_and_no_other_is_allowed():
    for field in goldens.PICTURE:
        text = json.dumps({"images": [{key: value for key, value in goldens.PICTURE.items() if key != field}]})
        assert refusal(parse, text).startswith(f"golden.json: images[0].{field}: found nothing, expected ")
    assert refusal(parse, goldens.text({"guidance_scale": 0})).startswith(
        "golden.json: images[0].guidance_scale: found an unknown"
    )
    assert refusal(parse, '{"images": [], "version": 1}').startswith("golden.json: version: found an unknown field")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "not JSON"),
        ("[]", "golden.json: found []"),
        ("null", "golden.json: found null"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        (b"\xff", "not JSON"),
        ("{}", "images: found nothing"),
        ('{"images": {}}', "images: found {}, expected a list of 1 to 100"),
        ('{"images": []}', "images: found a list of 0"),
        ('{"images": [1]}', "images[0]: found 1, expected a JSON object"),
        ('{"images": [], "images": []}', 'the field "images" is there twice'),
        (goldens.text(*[{}] * 101), "images: found a list of 101"),
        (goldens.text({}, {"image": "golden/1.png"}), "images[1].image"),
        (" " * (golden.MOST_JSON + 1), f"found {golden.MOST_JSON + 1} bytes"),
    ],
)
def test_what_is_no_list_of_images_is_refused(text, what):
    assert what in refusal(parse, text)


# What the images are


SMALL = {"golden.json": goldens.text({}).encode(), "golden/1.png": goldens.png()}


def test_a_version_without_golden_json_has_no_golden_images():
    assert golden.read({"golden/1.png": b""}) == ()
    assert len(golden.read(SMALL)) == 1


@pytest.mark.parametrize(
    ("image", "what"),
    [
        (b"", "found no PNG"),
        (b"GIF89a" + bytes(100), "found no PNG"),
        (goldens.png()[:20], "found no PNG"),
        (goldens.png(mode="L"), "found a PNG of 8 bits and colour type 0"),
        (goldens.png(mode="RGBA"), "found a PNG of 8 bits and colour type 6"),
        (goldens.png(mode="P"), "colour type 3"),
        (goldens.png(mode="I;16"), "found a PNG of 16 bits"),
        (goldens.png(width=80), "found 80 x 64 pixels, golden.json says 64 x 64"),
        (goldens.png() + bytes(golden.MOST_IMAGE_BYTES), "expected at most"),
    ],
    ids=["empty", "gif", "cut", "grey", "alpha", "palette", "16 bits", "size", "too long"],
)
def test_an_image_that_is_not_as_it_says_is_refused_by_its_first_bytes(image, what):
    reason = refusal(golden.read, {**SMALL, "golden/1.png": image})
    assert reason.startswith("golden/1.png: ")
    assert what in reason


def test_an_image_that_the_seal_does_not_name_is_refused():
    reason = refusal(golden.read, {"golden.json": SMALL["golden.json"]})
    assert reason.startswith('golden.json: images[0].image: found "golden/1.png", expected a path that the seal names')


def test_too_many_bytes_together_are_refused(monkeypatch):
    monkeypatch.setattr(golden, "MOST_BYTES", 10)
    assert "bytes of images, expected at most 10 together" in refusal(golden.read, SMALL)


# Sealing and verifying


@pytest.fixture
def version(tmp_path):
    return write_version(tmp_path, "v1")


def test_golden_images_are_sealed_and_verified(version):
    goldens.add(version, {}, {"image": "elsewhere/2.png"})
    (version / "golden/3.png").write_bytes(goldens.png())
    files = write_seal(version, "v1").files
    assert {"golden.json", "golden/1.png", "elsewhere/2.png"} <= set(files)
    assert "golden/3.png" not in files
    assert check_directory(version, "v1") == []


def test_a_golden_image_of_another_size_is_not_sealed(version):
    goldens.add(version)
    (version / "golden/1.png").write_bytes(goldens.png(128, 64))
    assert refusal(write_seal, version, "v1").startswith(
        "golden/1.png: found 128 x 64 pixels, golden.json says 64 x 64"
    )


def test_a_symlink_instead_of_a_golden_image_is_not_sealed(version):
    goldens.add(version)
    (version / "golden/1.png").rename(version.parent / "1.png")
    (version / "golden/1.png").symlink_to("../../1.png")
    with pytest.raises(Rejection, match="a symlink cannot be sealed"):
        write_seal(version, "v1")


def test_what_another_tool_sealed_is_verified_by_its_content(version):
    from tests.deploy.factory import seal_as_it_is

    goldens.add(version, {"seed": -1})
    seal_as_it_is(version)
    [finding] = check_directory(version, "v1")
    assert finding.startswith("golden.json: images[0].seed: found -1")


@pytest.mark.parametrize(
    ("psnr", "ssim", "expected"),
    [
        (52.4, 0.9994, (46.4, 0.9976)),
        (53.1, 0.9999, (47.0, 0.998)),
        (45.96, 0.9991, (39.9, 0.9964)),
        (36.6, 0.9959, (30.6, 0.9836)),
        (math.inf, 1.0, (40.0, 0.98)),
        (3.0, 0.2, (0.0, 0.0)),
    ],
)
def test_the_floors_of_a_picture_by_its_rounding(psnr, ssim, expected):
    assert golden.floors(psnr, ssim) == pytest.approx(expected, abs=0.00011)
