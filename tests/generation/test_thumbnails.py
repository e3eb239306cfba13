"""Thumbnails of real files: what they look like, what is kept, and what is deleted."""

import io
import os

import pytest
from PIL import Image

from zwatch.generation import thumbnails as module
from zwatch.generation.thumbnails import NoThumbnail, Thumbnails

NAME = "20261121_142231_seed42.png"


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "state" / "thumbnails"


@pytest.fixture
def thumbnails(images, cache):
    return Thumbnails(images, cache)


def put(images, name=NAME, size=(640, 480), mode="RGB", colour="red", **options):
    """Write an image into the directory; return its name."""
    Image.new(mode, size, colour).save(images / name, **options)
    return name


def shown(thumbnail):
    with Image.open(io.BytesIO(thumbnail.file)) as image:
        image.load()
        return image


def names_of(count):
    return [f"20261121_1422{number:02}_seed1.png" for number in range(count)]


@pytest.mark.parametrize(
    ("size", "expected"), [((640, 480), (320, 240)), ((480, 640), (240, 320)), ((100, 50), (100, 50)), ((2048, 32), (320, 5))]
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_thumbnail_is_a_small_webp_of_the_same_shape(thumbnails, images, size, expected, suffix):
    made = thumbnails.make(put(images, NAME.replace("png", suffix), size))
    assert made.media_type == "image/webp"
    image = shown(made)
    assert (image.format, image.size) == ("WEBP", expected)
    assert image.getpixel((0, 0))[0] > 240


def test_it_is_made_once(thumbnails, images, monkeypatch):
    put(images)
    assert thumbnails.cached(NAME) is None
    made = thumbnails.make(NAME)
    monkeypatch.setattr(module, "_small_copy", pytest.fail)
    assert thumbnails.cached(NAME) == thumbnails.make(NAME) == made
    assert Thumbnails(images, thumbnails._cache).cached(NAME) == made, "also after a restart"


def test_without_webp_it_is_a_jpeg(thumbnails, images, monkeypatch):
    monkeypatch.setattr(module.features, "check", lambda name: False)
    module._format.cache_clear()
    try:
        put(images, mode="RGBA")
        made = thumbnails.make(NAME)
        assert (made.media_type, shown(made).format) == ("image/jpeg", "JPEG")
        assert thumbnails.cached(NAME) == made
    finally:
        module._format.cache_clear()


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16", "CMYK"])
def test_images_of_other_programs_have_any_mode(thumbnails, images, mode):
    name = NAME.replace("png", "jpg") if mode == "CMYK" else NAME
    put(images, name, mode=mode, colour=0)
    assert shown(thumbnails.make(name)).size == (320, 240)


def test_transparency_stays(thumbnails, images):
    put(images, mode="RGBA", colour=(255, 0, 0, 0))
    assert shown(thumbnails.make(NAME)).getpixel((0, 0))[3] == 0


def test_a_photograph_that_lies_on_its_side_is_turned(thumbnails, images):
    exif = Image.Exif()
    exif[0x0112] = 6
    name = put(images, NAME.replace("png", "jpg"), exif=exif)
    assert shown(thumbnails.make(name)).size == (240, 320)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + b"x" * 99])
def test_a_file_that_is_no_image_has_none(thumbnails, images, cache, content):
    (images / NAME).write_bytes(content)
    with pytest.raises(NoThumbnail):
        thumbnails.make(NAME)
    assert not cache.exists()


def test_a_damaged_image_has_none(thumbnails, images):
    put(images)
    file = (images / NAME).read_bytes()
    (images / NAME).write_bytes(file[: len(file) // 2])
    with pytest.raises(NoThumbnail):
        thumbnails.make(NAME)


def test_an_image_of_too_many_pixels_is_not_decoded(thumbnails, images):
    put(images, size=(9000, 8000), mode="1", colour=0)
    with pytest.raises(NoThumbnail, match="9000 x 8000 pixels"):
        thumbnails.make(NAME)


@pytest.mark.parametrize("name", ["x.png", "../secret.png", "", "20260101_000000_seed1.png"])
def test_what_is_no_image_of_the_directory_has_none(thumbnails, images, name):
    Image.new("RGB", (8, 8)).save(images.parent / "secret.png")
    put(images, "x.png")
    assert thumbnails.cached(name) is None
    assert thumbnails.make(name) is None


def test_a_link_is_not_followed(thumbnails, images):
    put(images.parent, "secret.png")
    (images / NAME).symlink_to(images.parent / "secret.png")
    with pytest.raises(NoThumbnail):
        thumbnails.make(NAME)


def test_another_image_of_the_same_name_has_another_thumbnail(thumbnails, images):
    put(images, colour="red")
    thumbnails.make(NAME)
    put(images, colour="blue")
    os.utime(images / NAME, (1, 1))
    assert thumbnails.cached(NAME) is None
    assert shown(thumbnails.make(NAME)).getpixel((0, 0))[2] > 240


@pytest.mark.parametrize("end", [0, 20, -1])
def test_a_thumbnail_that_was_cut_off_is_made_anew(thumbnails, images, cache, end):
    put(images)
    made = thumbnails.make(NAME)
    [file] = cache.iterdir()
    moment = file.stat().st_mtime_ns
    file.write_bytes(made.file[:end])
    os.utime(file, ns=(moment, moment))
    assert thumbnails.cached(NAME) is None
    assert thumbnails.make(NAME) == made
    assert thumbnails.cached(NAME) == made


def test_removed_thumbnails_are_gone(thumbnails, images, cache):
    put(images)
    thumbnails.make(NAME)
    (images / NAME).unlink()
    assert thumbnails.cached(NAME) is None
    thumbnails.remove([NAME, "20260101_000000_seed1.png"])
    assert os.listdir(cache) == []


def test_an_image_that_is_deleted_while_its_thumbnail_is_made_leaves_none(thumbnails, images, cache, monkeypatch):
    put(images)
    small_copy = module._small_copy

    def deleted_meanwhile(file):
        made = small_copy(file)
        (images / NAME).unlink()
        thumbnails.remove([NAME])
        return made

    monkeypatch.setattr(module, "_small_copy", deleted_meanwhile)
    assert thumbnails.make(NAME) is not None
    assert os.listdir(cache) == []


def test_beyond_its_limit_the_cache_loses_those_not_asked_for_the_longest(images, cache):
    names = names_of(4)
    for name in names:
        put(images, name)
    size = len(Thumbnails(images, None).make(names[0]).file)
    bounded = Thumbnails(images, cache, 3 * size)
    for name in names[:3]:
        bounded.make(name)
    assert bounded.cached(names[0])
    bounded.make(names[3])
    assert sorted(os.listdir(cache)) == [f"{name}.webp" for name in (names[0], names[2], names[3])]
    assert bounded.make(names[1]), "and is made again"
    again = Thumbnails(images, cache, 2 * size)
    again.open({*names}.__contains__)
    assert sorted(os.listdir(cache)) == [f"{name}.webp" for name in (names[1], names[3])], "at a start, by name"


def test_one_thumbnail_is_kept_whatever_the_limit(images, cache):
    bounded = Thumbnails(images, cache, 1)
    for name in names_of(2):
        put(images, name)
        bounded.make(name)
        assert os.listdir(cache) == [f"{name}.webp"]


def test_at_a_start_only_thumbnails_of_images_that_are_there_stay(thumbnails, images, cache):
    names = names_of(2)
    for name in names:
        put(images, name)
        thumbnails.make(name)
    for stray in ("a.part", "notes.txt", "x.png.webp", f"{names[0]}.jpg"):
        (cache / stray).write_bytes(b"x")
    Thumbnails(images, cache).open({names[0]}.__contains__)
    assert os.listdir(cache) == [f"{names[0]}.webp"]


def test_a_cache_that_cannot_be_written_does_no_harm(images, tmp_path):
    put(images)
    (tmp_path / "file").write_text("a file where the directory should be")
    unable = Thumbnails(images, tmp_path / "file" / "thumbnails")
    unable.open({NAME}.__contains__)
    assert unable.cached(NAME) is None
    assert shown(unable.make(NAME)).size == (320, 240)
    unable.remove([NAME])
