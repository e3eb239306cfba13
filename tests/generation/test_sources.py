"""Decoding images that strangers send: what users expect of each kind, and a refusal that says why."""

import base64
import io
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from blake3 import blake3
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from zwatch.errors import RequestError
from zwatch.generation import sources
from zwatch.generation.sources import Source, file_of, read_source, too_much_held

RED, WHITE = (255, 0, 0), (255, 255, 255)


def saved(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def corners(width=40, height=20):
    """Return a black picture whose upper left corner is red."""
    made = Image.new("RGB", (width, height))
    ImageDraw.Draw(made).rectangle((0, 0, width // 4, height // 4), fill=RED)
    return made


def refusal(image, mask=None):
    with pytest.raises(RequestError) as raised:
        read_source(image, mask)
    assert raised.value.status == 400
    return raised.value.param, raised.value.message


def near(found, expected, most=12):
    return all(abs(a - b) <= most for a, b in zip(found, expected, strict=True))


# --- what is decoded, and how


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_the_usual_formats(kind):
    file = saved(corners(), kind)
    source = read_source(file, None)
    assert (source.picture.mode, source.picture.size, source.mask) == ("RGB", (40, 20), None)
    assert near(source.picture.getpixel((1, 1)), RED, 60)
    assert near(source.picture.getpixel((39, 19)), (0, 0, 0), 30)
    assert source.digest == blake3(file).hexdigest()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "size", "corner"),
    [(1, (40, 20), (1, 1)), (2, (40, 20), (38, 1)), (3, (40, 20), (38, 18)), (4, (40, 20), (1, 18)),
     (5, (20, 40), (1, 1)), (6, (20, 40), (18, 1)), (7, (20, 40), (18, 38)), (8, (20, 40), (1, 38))],
)  # fmt: skip
def test_exif_orientation_is_honoured(kind, orientation, size, corner):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = read_source(saved(corners(), kind, exif=exif), None).picture
    assert picture.size == size
    assert near(picture.getpixel(corner), RED, 60)


def test_an_orientation_that_is_none_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 77
    assert read_source(saved(corners(), "JPEG", exif=exif), None).picture.size == (40, 20)
    file = saved(corners(), "JPEG", exif=b"Exif\0\0" + b"\xff" * 40)
    assert read_source(file, None).picture.size == (40, 20)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_what_is_transparent_becomes_white(kind):
    made = Image.new("RGBA", (8, 8), (*RED, 0))
    made.paste((*RED, 255), (0, 0, 4, 8))
    made.paste((0, 0, 0, 128), (4, 4, 8, 8))
    picture = read_source(saved(made, kind, lossless=True), None).picture
    assert (picture.getpixel((1, 1)), picture.getpixel((6, 1))) == (RED, WHITE)
    assert near(picture.getpixel((6, 6)), (127,) * 3, 1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_of_a_png_becomes_the_colours_that_it_shows(mode):
    plain = Image.new("L", (8, 8), 255)
    plain.paste(0, (0, 0, 4, 8))
    picture = read_source(saved(plain.convert(mode)), None).picture
    assert (picture.getpixel((1, 1)), picture.getpixel((6, 1))) == ((0, 0, 0), WHITE)


@pytest.mark.parametrize("transparent", [None, 1, bytes([255, 0])], ids=["opaque", "one", "alphas"])
def test_palettes(transparent):
    made = Image.new("P", (8, 8), 1)
    made.putpalette([*RED, 0, 0, 255])
    made.paste(0, (0, 0, 4, 8))
    options = {} if transparent is None else {"transparency": transparent}
    picture = read_source(saved(made, **options), None).picture
    assert picture.getpixel((1, 1)) == RED
    assert picture.getpixel((6, 6)) == ((0, 0, 255) if transparent is None else WHITE)


def test_16_bits_of_grey_keep_their_upper_8():
    levels = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    picture = read_source(saved(Image.fromarray(levels)), None).picture
    assert [picture.getpixel((x, 0))[0] for x in range(5)] == [0, 0, 1, 128, 255]


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, pixels, *, depth=8, colour=2, extra=b""):
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_16_bits_of_colour_keep_their_upper_8():
    row = b"\0" + struct.pack(">6H", 65535, 32768, 255, 0, 256, 65280)
    picture = read_source(png(2, 1, zlib.compress(row), depth=16), None).picture
    assert [picture.getpixel((x, 0)) for x in (0, 1)] == [(255, 128, 0), (0, 1, 255)]


def test_cmyk():
    file = saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    assert near(read_source(file, None).picture.getpixel((4, 4)), RED, 6)


def test_a_broken_profile_of_cmyk_is_ignored():
    file = saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", icc_profile=b"nonsense" * 40)
    assert near(read_source(file, None).picture.getpixel((4, 4)), RED, 6)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_it_is_the_first_image(kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, (0, 255, 0), (0, 0, 255))]
    file = saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **({"lossless": True} if kind == "WEBP" else {}))  # fmt: skip
    with Image.open(io.BytesIO(file)) as animated:
        assert animated.n_frames == 3
    assert read_source(file, None).picture.getpixel((8, 8)) == RED


def test_what_telephones_write_behind_a_jpeg_is_ignored():
    file = saved(corners(), "MPO", save_all=True, append_images=[Image.new("RGB", (40, 20))])
    assert near(read_source(file, None).picture.getpixel((1, 1)), RED, 60)


def test_an_enormous_side_is_reduced(monkeypatch):
    monkeypatch.setattr(sources, "MAX_SIDE", 100)
    source = read_source(saved(corners(400, 200)), saved(Image.new("L", (400, 200), 255)))
    assert source.picture.size == source.mask.size == (100, 50)
    assert read_source(saved(corners(400, 1)), None).picture.size == (100, 1)


@pytest.mark.parametrize("mode", ["RGBA", "P", "RGB", "I;16"])
def test_what_a_large_image_takes_to_be_decoded_is_bounded(mode):
    """Of 64 million pixels: as they are decoded, and little more, whatever is to be done with them."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    options = {"transparency": 0} if mode == "P" else {}
    Image.new(mode, (8192, 8192), 5 if mode in ("P", "I;16") else 9).save(
        file, "PNG", compress_level=1, exif=exif, **options
    )
    program = (
        "import resource, sys; from zwatch.generation.sources import read_source; "
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        "found = read_source(sys.stdin.buffer.read(), None); assert found.picture.size == (4096, 4096); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], input=file.getvalue(), capture_output=True, check=True)
    assert int(done.stdout) < 460 * 1024  # KiB


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "I;16", "CMYK"])
def test_what_is_reduced_in_bands_is_what_is_reduced_at_once(monkeypatch, mode):
    rows = np.random.default_rng(2).integers(0, 256, (331, 77, 3), dtype=np.uint8)
    whole = Image.fromarray(rows)
    if mode == "I;16":
        whole = Image.fromarray(rows[..., 0].astype(np.uint16) * 257)
    elif mode != "RGB":
        whole = whole.convert(mode)
    monkeypatch.setattr(sources, "MAX_SIDE", 100)
    at_once = np.asarray(sources._reduced(whole)).astype(int)
    monkeypatch.setattr(sources, "_BAND_PIXELS", 1000)
    in_bands = np.asarray(sources._reduced(whole)).astype(int)
    assert at_once.shape[:2] == (100, 23)
    assert np.abs(at_once - in_bands).max() <= 2  # both steps of a reduction round


def test_text_beside_the_pixels_that_is_too_large_is_named():
    info = PngInfo()
    info.add_text("comment", "x" * (2 * 2**20), zip=True)
    assert "save it without metadata" in refusal(saved(corners(), pnginfo=info))[1]


# --- masks


def test_a_mask_is_the_brightness_of_an_image_of_its_own_size():
    mask = Image.new("RGB", (10, 5))
    mask.paste(WHITE, (5, 0, 10, 5))
    source = read_source(saved(corners()), saved(mask))
    assert (source.mask.mode, source.mask.size) == ("L", (10, 5))
    assert (source.mask.getpixel((1, 2)), source.mask.getpixel((8, 2))) == (0, 255)


def test_what_is_transparent_in_a_mask_stays():
    mask = Image.new("RGBA", (40, 20), (255, 255, 255, 0))
    mask.paste((*WHITE, 255), (20, 0, 40, 20))
    source = read_source(saved(corners()), saved(mask))
    assert (source.mask.getpixel((5, 5)), source.mask.getpixel((30, 5))) == (0, 255)


def test_a_mask_that_is_none_is_refused_by_its_name():
    assert refusal(saved(corners()), b"no")[0] == "mask"


def test_a_mask_is_turned_as_its_own_exif_says():
    exif = Image.Exif()
    exif[0x0112] = 3
    mask = Image.new("L", (40, 20))
    mask.paste(255, (0, 0, 20, 20))
    source = read_source(saved(corners()), saved(mask, exif=exif))
    assert (source.mask.getpixel((5, 5)), source.mask.getpixel((35, 5))) == (0, 255)


# --- what is refused


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (b"", "is an empty file"), (b"GIF89a", "image"), (b"hello", "is no image"), (b"\0" * 1000, "is no image"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC file"), (b"\0\0\0\x18ftypavif\0\0\0\0", "an AVIF file"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG file"), (b"%PDF-1.7", "a PDF file"),
        (b"\x89PNG\r\n\x1a\n", "image"), (b"\xff\xd8\xff\xe0", "image"), (b"RIFF\0\0\0\0WEBPVP8 ", "image"),
    ],
)  # fmt: skip
def test_other_files_are_refused_with_what_they_are(file, words):
    param, message = refusal(file)
    assert param == "image"
    assert words in message


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "ICO", "PPM", "PCX", "TGA"])
def test_formats_that_nobody_needs_are_not_decoded(kind):
    assert "send a PNG, JPEG, WebP or GIF file" in refusal(saved(corners(), kind))[1]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_a_file_that_ends_early_is_refused(kind, part):
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    file = saved(noise, kind)
    assert refusal(file[: int(len(file) * part)])[0] == "image"


def outcome(file):
    """Return the mode of what a file becomes, or the field of the refusal."""
    try:
        return read_source(file, None).picture.mode
    except RequestError as error:
        return error.param


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_damaged_files_are_decoded_or_refused_and_nothing_else(kind):
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (24, 24, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = bytearray(saved(noise, kind, **({} if kind == "GIF" else {"exif": exif})))
    random = np.random.default_rng(2)
    for _ in range(400):
        damaged = bytearray(file)
        for place in random.integers(0, len(file), 3):
            damaged[place] = random.integers(0, 256)
        assert outcome(bytes(damaged)) in ("RGB", "image")


def white_bomb():
    row = b"\0" + bytes(3 * 9000)
    compressor = zlib.compressobj(1)
    pixels = b"".join(compressor.compress(row) for _ in range(9000)) + compressor.flush()
    return png(9000, 9000, pixels)


def vast_gif():
    head = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return head + b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02D\x01\0;"


BOMBS = {"pixels": white_bomb, "a claim": lambda: png(2**31 - 1, 2**31 - 1, b""), "gif": vast_gif}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_anything_is_decoded(name):
    file = BOMBS[name]()
    tracemalloc.start()
    try:
        begun = time.perf_counter()
        message = refusal(file)[1]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "more pixels than" in message
    assert peak < 20 * 2**20
    assert time.perf_counter() - begun < 5


def test_the_text_of_a_png_is_no_bomb_either():
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200 * 2**20), 9))
    profile = chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(200 * 2**20), 9))
    for extra in (text, profile):
        file = png(1, 1, zlib.compress(b"\0\0\0\0"), extra=extra)
        tracemalloc.start()
        try:
            assert outcome(file) in ("RGB", "image")
            assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
        finally:
            tracemalloc.stop()


def test_a_jpeg_of_very_many_scans_is_refused():
    file = saved(corners(64, 64), "JPEG", progressive=True)
    begin = file.rindex(b"\xff\xda")
    end = file.rindex(b"\xff\xd9")
    many = file[:end] + file[begin:end] * 200 + file[end:]
    assert "scans" in refusal(many)[1]
    assert read_source(file, None).picture.size == (64, 64)


# --- text


def test_a_file_as_text():
    file = bytes(range(256))
    text = base64.b64encode(file).decode()
    assert text.endswith("=")
    wrapped = "\n".join(text[at : at + 76] for at in range(0, len(text), 76))
    given = [
        text, f"  {wrapped}\n", text.rstrip("="), base64.urlsafe_b64encode(file).decode(), f"data:image/png;base64,{text}",
        f"data:;base64,{text}", f"DATA:image/png;name=a.png;BASE64,{text}",
    ]  # fmt: skip
    for one in given:
        assert file_of(one, "image") == file


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not base64!", "is not base64"), ("a", "is not base64"), ("猫", "is not base64"), ("AAA=AAA", "is not base64"),
        ("https://example.com/a.png", "not fetched"), ("HTTP://example.com", "not fetched"),
        ("data:image/svg+xml,<svg/>", "without base64"), ("data:image/png;base64", "without base64"),
        ("file:///etc/passwd", "is not base64"), ("/etc/passwd.", "is not base64"),
    ],
)  # fmt: skip
def test_other_text_is_refused(text, words):
    with pytest.raises(RequestError, match=words) as raised:
        file_of(text, "mask")
    assert (raised.value.status, raised.value.param) == (400, "mask")


# --- how much is held


def test_images_of_other_requests_bound_what_is_accepted(monkeypatch):
    monkeypatch.setattr(sources, "MOST_HELD", 10_000)
    small, large = (Source(Image.new("RGB", (side, side)), None, "") for side in (40, 100))
    assert small.nbytes == 4800
    assert too_much_held(large, []) is None, "alone, any is accepted"
    assert too_much_held(small, [small, small, None]) is None, "one that several have counts once"
    assert "10000" in too_much_held(large, [small])
    other = Source(small.picture, Image.new("L", (40, 40)), "")
    assert other.nbytes == 6400
    assert too_much_held(other, [small]) is not None
