"""PNG files as other programs read them."""

import io
import threading
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from zwatch.generation import png
from zwatch.generation.png import write_png

SIDES = st.integers(1, 40)


def read_back(file):
    with Image.open(io.BytesIO(file)) as checked:
        checked.verify()  # every checksum
    image = Image.open(io.BytesIO(file))
    image.load()
    return image


@given(width=SIDES, height=SIDES, seed=st.integers(0, 2**32 - 1), band=st.sampled_from([1, 100, 2**17]))
def test_every_pixel_is_read_back(width, height, seed, band):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    image = read_back(write_png(Image.fromarray(pixels), band=band))
    assert (image.mode, image.size) == ("RGB", (width, height))
    assert (np.asarray(image) == pixels).all()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_other_modes_are_converted_to_rgb(mode):
    image = Image.radial_gradient("L").convert(mode)
    assert read_back(write_png(image)).tobytes() == image.convert("RGB").tobytes()


def test_text_of_any_script_comes_before_the_pixels():
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "a cat")
    text.add_text("zwatch_request", "一只猫")
    file = write_png(Image.new("RGB", (3, 2)), text)
    assert file.index(b"parameters") < file.index(b"zwatch_request") < file.index(b"IDAT")
    assert read_back(file).info == {"parameters": "a cat", "zwatch_request": "一只猫"}


def test_the_pixels_are_one_valid_zlib_stream():
    image = Image.effect_noise((200, 100), 80).convert("RGB")
    file = write_png(image)
    begin = file.index(b"IDAT") + 4
    length = int.from_bytes(file[begin - 8 : begin - 4], "big")
    assert len(zlib.decompress(file[begin : begin + length])) == 100 * (1 + 3 * 200)
    assert file[begin + length + 4 :] == bytes(4) + b"IEND" + zlib.crc32(b"IEND").to_bytes(4, "big")


def test_the_file_is_written_if_no_thread_can_be_started(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    image = Image.effect_noise((1024, 1024), 30).convert("RGB")
    png._threads.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        file = write_png(image)
    png._threads.cache_clear()
    assert read_back(file).tobytes() == image.tobytes()


def test_an_image_of_one_colour_is_small():
    assert len(write_png(Image.new("RGB", (1024, 1024), "teal"))) < 20_000
