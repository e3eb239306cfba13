"""Finishing a job: its images are encoded and stored."""

import io

import pytest
from PIL import Image

from zwatch.engine.pipeline import Generation, GenerationParameters
from zwatch.generation.finish import Finisher, Result
from zwatch.generation.history import History
from zwatch.generation.image_details import read_details
from zwatch.generation.job import Job
from zwatch.generation.request import parse_generate
from zwatch.rollout.lifecycle import VersionKey

KEY = VersionKey("v1", "ab" * 32)


def job_of(**fields):
    return Job(parse_generate({"prompt": "a cat", "seed": 7, "n": 2, **fields}), None)


def result(truncated=False):
    parameters = GenerationParameters("a cat", "", 32, 16, 8, 0.0, (7, 8))
    images = [Image.new("RGB", (32, 16), colour) for colour in ("red", "blue")]
    return Result(KEY, parameters, Generation(images, truncated, True, {"denoise": 0.5}), queued=1.5)


@pytest.fixture
async def history(bridge, tmp_path):
    made = History(bridge, tmp_path / "out", None, None)
    await made.open()
    return made


@pytest.mark.parametrize(
    ("name", "kind", "suffix"), [("png", "PNG", "png"), ("jpeg", "JPEG", "jpg"), ("webp", "WEBP", "webp")]
)
async def test_each_image_is_encoded_with_its_seed_and_stored_under_its_name(bridge, history, name, kind, suffix):
    finished = await Finisher(bridge, history).finish(job_of(format=name), result())
    assert [picture.seed for picture in finished.pictures] == [7, 8]
    for picture in finished.pictures:
        assert picture.name.endswith(f"_seed{picture.seed}.{suffix}")
        assert await history.read(picture.name) == picture.file
        assert read_details(picture.file).request["seed"] == picture.seed
        with Image.open(io.BytesIO(picture.file)) as image:
            assert (image.format, image.size) == (kind, (32, 16))
    with Image.open(io.BytesIO(finished.pictures[1].file)) as image:
        red, _, blue = image.convert("RGB").getpixel((8, 8))
        assert blue > 200 > red, "the second image is the second seed's"


async def test_the_result_names_the_version_of_the_lease_and_the_seconds_of_each_phase(bridge, history):
    finished = await Finisher(bridge, history).finish(job_of(), result(truncated=True))
    assert (finished.key, finished.parameters.seeds, finished.truncated) == (KEY, (7, 8), True)
    assert read_details(finished.pictures[0].file).digest == KEY.digest
    assert set(finished.timings) == {"queue", "denoise", "write", "total"}
    assert (finished.timings["queue"], finished.timings["denoise"]) == (1.5, 0.5)
    assert finished.timings["write"] <= finished.timings["total"]


async def test_quality_changes_a_jpeg(bridge):
    noise = Image.effect_noise((64, 64), 80).convert("RGB")
    sizes = []
    for quality in (20, 95):
        made = result()
        made.generation.images[:] = [noise, noise]
        finished = await Finisher(bridge, None).finish(job_of(format="jpeg", quality=quality), made)
        sizes.append(len(finished.pictures[0].file))
    assert sizes[0] < sizes[1]


async def test_without_a_history_images_have_no_name(bridge):
    finished = await Finisher(bridge, None).finish(job_of(), result())
    assert [picture.name for picture in finished.pictures] == [None, None]
    assert all(picture.file for picture in finished.pictures)


async def test_images_that_the_history_cannot_store_have_no_name_and_keep_their_bytes(bridge, tmp_path, caplog):
    (tmp_path / "out").write_text("a file where the directory should be")
    history = History(bridge, tmp_path / "out", None, None)
    finished = await Finisher(bridge, history).finish(job_of(), result())
    assert [picture.name for picture in finished.pictures] == [None, None]
    assert all(read_details(picture.file).version == "v1" for picture in finished.pictures)
    assert caplog.text.count("images cannot be kept") == 1


async def test_images_of_a_cancelled_job_are_not_stored(bridge, history, tmp_path):
    job = job_of()
    job.cancel()
    finished = await Finisher(bridge, history).finish(job, result())
    assert [picture.name for picture in finished.pictures] == [None, None]
    assert list((tmp_path / "out").iterdir()) == []


async def test_an_error_of_the_encoder_is_raised(bridge, history):
    broken = result()
    broken.generation.images[1] = None
    with pytest.raises(AttributeError):
        await Finisher(bridge, history).finish(job_of(), broken)


async def test_an_image_that_is_beyond_the_limits_at_once_has_no_name(bridge, tmp_path):
    history = History(bridge, tmp_path / "out", 1, None)
    await history.open()
    finished = await Finisher(bridge, history).finish(job_of(), result())
    [deleted, kept] = [picture.name for picture in finished.pictures]
    assert deleted is None
    assert await history.read(kept) == finished.pictures[1].file
