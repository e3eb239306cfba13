"""Finishing a job: its images are encoded and stored."""

import io

import pytest
from PIL import Image

from zwatch.engine.parameters import Generation, GenerationParameters
from zwatch.generation.finish import Finisher, Result
from zwatch.generation.history import History
from zwatch.generation.image_details import read_details
from zwatch.generation.job import Job
from zwatch.generation.request import parse_generate
from zwatch.rollout.lifecycle import VersionKey

KEY = VersionKey("v1", "ab" * 32)


def job_of(**fields):
    return Job(parse_generate({"prompt": "a cat", "seed": 7, "n": 2, **fields}), None)


def two_images():
    return [Image.new("RGB", (32, 16), colour) for colour in ("red", "blue")]


async def finish(bridge, history, job, images=None, *, truncated=False):
    """Hand over the images one by one, as the device does, and finish the job."""
    finisher, made = Finisher(bridge, history), images or two_images()
    pictures = finisher.begin(job, KEY, GenerationParameters("a cat", "", 32, 16, 8, 0.0, (7, 8)))
    for number, image in enumerate(made):
        pictures.add(number, image)
    generation = Generation(made, truncated, True, {"denoise": 0.5})
    return await finisher.finish(job, Result(pictures, generation, queued=1.5))


@pytest.fixture
async def history(bridge, tmp_path):
    made = History(bridge, tmp_path / "out", None, None)
    await made.open()
    return made


@pytest.mark.parametrize(
    ("name", "kind", "suffix"), [("png", "PNG", "png"), ("jpeg", "JPEG", "jpg"), ("webp", "WEBP", "webp")]
)
async def test_each_image_is_encoded_with_its_seed_and_stored_under_its_name(bridge, history, name, kind, suffix):
    finished = await finish(bridge, history, job_of(format=name))
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
    finished = await finish(bridge, history, job_of(), truncated=True)
    assert (finished.key, finished.parameters.seeds, finished.truncated) == (KEY, (7, 8), True)
    assert read_details(finished.pictures[0].file).digest == KEY.digest
    assert set(finished.timings) == {"queue", "denoise", "write", "total"}
    assert (finished.timings["queue"], finished.timings["denoise"]) == (1.5, 0.5)
    assert finished.timings["write"] <= finished.timings["total"]


async def test_quality_changes_a_jpeg(bridge):
    noise = Image.effect_noise((64, 64), 80).convert("RGB")
    sizes = []
    for quality in (20, 95):
        finished = await finish(bridge, None, job_of(format="jpeg", quality=quality), [noise, noise])
        sizes.append(len(finished.pictures[0].file))
    assert sizes[0] < sizes[1]


async def test_without_a_history_images_have_no_name(bridge):
    finished = await finish(bridge, None, job_of())
    assert [picture.name for picture in finished.pictures] == [None, None]
    assert all(picture.file for picture in finished.pictures)


async def test_images_that_the_history_cannot_store_have_no_name_and_keep_their_bytes(bridge, tmp_path, caplog):
    (tmp_path / "out").write_text("a file where the directory should be")
    history = History(bridge, tmp_path / "out", None, None)
    finished = await finish(bridge, history, job_of())
    assert [picture.name for picture in finished.pictures] == [None, None]
    assert all(read_details(picture.file).version == "v1" for picture in finished.pictures)
    assert caplog.text.count("images cannot be kept") == 1


async def test_images_that_are_made_after_a_job_was_cancelled_are_not_stored(bridge, history, tmp_path):
    job = job_of()
    job.cancel()
    finished = await finish(bridge, history, job)
    assert (finished.pictures, job.pictures) == ((), ())
    assert list((tmp_path / "out").iterdir()) == []


async def test_an_error_of_the_encoder_is_raised(bridge, history):
    with pytest.raises(AttributeError):
        await finish(bridge, history, job_of(), [two_images()[0], None])


async def test_an_image_that_is_beyond_the_limits_at_once_has_no_name(bridge, tmp_path):
    history = History(bridge, tmp_path / "out", 1, None)
    await history.open()
    finished = await finish(bridge, history, job_of())
    [deleted, kept] = [picture.name for picture in finished.pictures]
    assert deleted is None
    assert await history.read(kept) == finished.pictures[1].file
