"""Details in image files: written and read back."""

import io
import struct

import pytest
from PIL import Image

from zwatch.engine.parameters import GenerationParameters
from zwatch.generation.image_details import details_of, read_details
from zwatch.generation.image_files import encode
from zwatch.generation.request import parse_generate
from zwatch.rollout.lifecycle import VersionKey

KEY = VersionKey("v1", "ab" * 32)


def made(prompt="a cat", negative="", image_format="png"):
    asked = parse_generate({"prompt": prompt, "negative_prompt": negative, "format": image_format, "seed": 7})
    parameters = GenerationParameters(prompt, negative, 64, 48, 8, 0.0, (7,))
    details = details_of(asked, parameters, KEY, 7)
    return details, encode(Image.new("RGB", (64, 48), "red"), details, image_format, 90)


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("prompt", ["a cat", "Käfer, naïve", "一只戴墨镜的猫 🐱", 'a "quoted": {line}\nand another'])
def test_written_details_are_read_back(image_format, prompt):
    details, file = made(prompt, "blurry", image_format)
    assert read_details(file) == details
    assert read_details(io.BytesIO(file)) == details


def test_the_text_has_the_format_of_a1111():
    details, _ = made("a cat", "blurry")
    assert details.parameters == (
        "a cat\nNegative prompt: blurry\nSteps: 8, Sampler: Euler, CFG scale: 0.0, Seed: 7, Size: 64x48, "
        "Model hash: ababababab, Model: v1"
    )


def test_the_request_in_a_file_can_be_sent_again():
    details, _ = made("a cat")
    assert parse_generate(details.request).seed == 7


@pytest.mark.parametrize(("prompt", "chunk"), [("Käfer", b"tEXt"), ("猫", b"iTXt")])
def test_a_png_uses_plain_text_if_latin_1_is_enough(prompt, chunk):
    _, file = made(prompt)
    assert chunk + b"parameters\0" in file


@pytest.mark.parametrize("character", ["a", "猫", "\U0001f600"])
def test_the_longest_prompts_fit_a_jpeg_and_keep_its_version(character):
    details, file = made(character * 10_000, character * 10_000, "jpeg")
    found = read_details(file)
    assert (found.version, found.digest) == ("v1", "ab" * 32)
    assert details.parameters == found.parameters or found.request["steps"] == 8


@pytest.mark.parametrize("broken", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_a_file_that_is_no_image_raises(broken):
    with pytest.raises((OSError, ValueError, SyntaxError)):
        read_details(broken)


def test_an_image_of_another_program_has_no_version():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "png")
    assert read_details(file.getvalue()).version == ""


def test_a_little_endian_comment_is_read():
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + "a cat\nSteps: 4".encode("utf-16-le")
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "jpeg", exif=exif)
    assert read_details(file.getvalue()).parameters == "a cat\nSteps: 4"


@pytest.mark.parametrize("order", ["utf-16-be", "utf-16-le"])
@pytest.mark.parametrize("prompt", ["一" * 300, "a cat", "猫"])
def test_the_byte_order_is_found_for_any_prompt(order, prompt):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + f"{prompt}\nSteps: 4".encode(order)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "webp", exif=exif)
    assert read_details(file.getvalue()).parameters == f"{prompt}\nSteps: 4"


def tiff_types(block):
    """Return {tag: (type, bytes)} of the EXIF directory of a block, read as the TIFF standard says."""
    assert block[:6] == b"Exif\0\0"
    tiff = block[6:]
    order = {b"MM": ">", b"II": "<"}[tiff[:2]]

    def directory(offset):
        count = struct.unpack_from(f"{order}H", tiff, offset)[0]
        return [struct.unpack_from(f"{order}HHII", tiff, offset + 2 + 12 * number) for number in range(count)]

    [(pointer, _, _, offset)] = directory(struct.unpack_from(f"{order}I", tiff, 4)[0])
    assert pointer == 0x8769
    return {tag: (kind, tiff[value : value + length]) for tag, kind, length, value in directory(offset)}


@pytest.mark.parametrize("image_format", ["jpeg", "webp"])
def test_the_exif_comment_has_the_type_that_the_standard_demands(image_format):
    details, file = made("一只戴墨镜的猫 🐱", "", image_format)
    with Image.open(io.BytesIO(file)) as image:
        block = image.info["exif"]
    found = tiff_types(block if block.startswith(b"Exif") else b"Exif\0\0" + block)
    undefined = 7
    assert found[0x9286] == (undefined, b"UNICODE\0" + details.parameters.encode("utf-16-be"))
    assert found[0x927C][0] == undefined


@pytest.mark.parametrize("image_format", ["jpeg", "webp"])
@pytest.mark.parametrize(
    "prompt", ["a cat", "Käfer, naïve", "一只戴墨镜的猫 🐱", "two\nlines\r\nand three", "猫" * 10_000]
)
def test_piexif_by_which_a1111_reads_files_reads_the_comment(image_format, prompt):
    piexif = pytest.importorskip("piexif")
    helper = pytest.importorskip("piexif.helper")
    details, file = made(prompt, "blurry", image_format)
    with Image.open(io.BytesIO(file)) as image:
        found = piexif.load(image.info["exif"])
    assert helper.UserComment.load(found["Exif"][piexif.ExifIFD.UserComment]) == details.parameters
    piexif.dump(found)  # and it can write them again


def test_a_comment_that_is_too_long_for_a_jpeg_loses_the_end_of_its_prompts_and_nothing_else():
    details, file = made("\U0001f431" * 10_000, "\U0001f436" * 10_000, "jpeg")
    found = read_details(file).parameters
    prompts, _, rest = found.rpartition("…\nSteps: ")
    assert details.parameters.startswith(prompts)
    assert len(prompts) > 15_000
    assert details.parameters.endswith(f"\nSteps: {rest}")
