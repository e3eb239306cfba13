"""The fast reader of text chunks, compared with Pillow."""

import io
import zlib

import pytest
from PIL import Image, PngImagePlugin

from zwatch.generation.png_text import png_texts


def png(*texts, **options):
    """Return a PNG with text chunks, given as (keyword, text, whether it is compressed)."""
    chunks = PngImagePlugin.PngInfo()
    for keyword, text, is_compressed in texts:
        chunks.add_text(keyword, text, zip=is_compressed)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "png", pnginfo=chunks, **options)
    return file.getvalue()


def of_pillow(file):
    with Image.open(io.BytesIO(file)) as image:
        return {name: str(value) for name, value in image.info.items() if isinstance(value, str)}


@pytest.mark.parametrize(
    "texts",
    [
        [], [("parameters", "a cat", False)], [("parameters", "Käfer", False), ("x", "", False)], [("a", "猫 🐱\n", False)],
        [("a", "one", False), ("a", "two", False)], [("parameters", "x" * 20_000, False)],
    ],
)  # fmt: skip
def test_texts_are_read_as_pillow_reads_them(texts):
    file = png(*texts, dpi=(72, 72))
    assert png_texts(io.BytesIO(file)) == of_pillow(file)


def test_an_international_text_with_a_language_is_read():
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("a", "猫", lang="zh", tkey="译")
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "png", pnginfo=chunks)
    assert png_texts(io.BytesIO(file.getvalue())) == {"a": "猫"}


@pytest.mark.parametrize("part", [b"zh", b"translated"])
def test_an_international_text_is_no_text_where_any_part_of_it_is_not_utf8(part):
    """Else a list would show what the picture itself does not have."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("a", "猫", lang="zh", tkey="translated")
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "png", pnginfo=chunks)
    begin = file.getvalue().index(b"iTXt")
    length = int.from_bytes(file.getvalue()[begin - 4 : begin])
    body = file.getvalue()[begin : begin + 4 + length].replace(part, part[:-1] + b"\xff")
    rest = file.getvalue()[begin + 8 + length :]
    changed = file.getvalue()[:begin] + body + zlib.crc32(body).to_bytes(4) + rest
    assert of_pillow(changed) == {}
    assert png_texts(io.BytesIO(changed)) is None


@pytest.mark.parametrize(
    "file",
    [
        b"", b"hello", png()[:20], png(("a", "x" * 50_000, False)), png(("a", "x" * 100, True)), png(("a", "猫" * 100, True)),
        png(("a", "猫", False)).replace("猫".encode(), b"\xff\xff\xff"), zlib.compress(png()), png()[:40],
        png(("abc", "text", False)).replace(b"abc\0text", b"abcdtext"),
    ],
)  # fmt: skip
def test_what_only_a_complete_reader_understands_is_left_to_it(file):
    assert png_texts(io.BytesIO(file)) is None
