"""The pictures of a job of several images: stored and listed one by one, as they are made."""

import asyncio
import threading

import pytest
from PIL import Image

from tests.generation.conftest import V1
from zwatch.engine.parameters import GenerationParameters
from zwatch.generation import pictures as module
from zwatch.generation.finish import Finisher
from zwatch.generation.history import History
from zwatch.generation.image_files import encode
from zwatch.generation.job import Job, JobState
from zwatch.generation.request import parse_generate

DEADLINE = 60.0


@pytest.fixture
async def history(bridge, tmp_path):
    made = History(bridge, tmp_path / "out", None, None)
    await made.open()
    return made


def submit(queue, **fields):
    wanted = {"prompt": "a cat", "width": 16, "height": 16, "steps": 2, "seed": 7, "n": 3, **fields}
    return queue.submit(parse_generate(wanted), attended=False, keeps_files=True)


async def has_pictures(job, number):
    async with asyncio.timeout(DEADLINE):
        while len(job.pictures) < number:
            await job.changes.wait()


async def names_in(history):
    return [image["name"] for image in (await history.page(50, None))["images"]]


async def test_a_picture_is_stored_and_listed_while_the_device_makes_the_next(start, history, engine):
    queue = start(history=history)
    engine.hold_before = 5
    job = submit(queue)
    await has_pictures(job, 2)
    assert (job.state, [picture.seed for picture in job.pictures]) == (JobState.RUNNING, [7, 8])
    assert await names_in(history) == [job.pictures[1].name, job.pictures[0].name]
    engine.resume()
    finished = await job.result()
    assert finished.pictures == job.pictures
    assert [picture.seed for picture in finished.pictures] == [7, 8, 9]
    assert len(await names_in(history)) == 3


async def test_a_cancelled_job_keeps_the_pictures_it_made_and_the_version_counts_them(start, history, engine, engines):
    queue = start(history=history)
    engine.hold_before = 5
    job = submit(queue)
    await has_pictures(job, 2)
    queue.cancel(job)
    engine.resume()
    async with asyncio.timeout(DEADLINE):
        await queue.drained()
    assert (job.state, [picture.seed for picture in job.pictures]) == (JobState.CANCELLED, [7, 8])
    assert job.kept_bytes == 0, "the history has them"
    assert len(await names_in(history)) == 2
    assert (engines.resident(V1).images, engines.resident(V1).leases) == (2, 0)


async def test_without_a_history_a_cancelled_job_itself_keeps_them(start, engine):
    queue = start()
    engine.hold_before = 3
    job = submit(queue)
    await has_pictures(job, 1)
    queue.cancel(job)
    assert [bool(picture.file) for picture in job.pictures] == [True]
    assert job.kept_bytes > 0


async def test_a_job_that_fails_later_keeps_the_pictures_it_made(start, history, engine):
    queue = start(history=history)
    engine.hold_before = 3
    job = submit(queue)
    await has_pictures(job, 1)
    engine.error = RuntimeError("the device is gone")
    engine.resume()
    async with asyncio.timeout(DEADLINE):
        await queue.drained()
    assert (job.state, len(job.pictures), len(await names_in(history))) == (JobState.FAILED, 1, 1)


class Gate:
    """Holds the encoder back at images of one colour, by their red."""

    def __init__(self, monkeypatch, *reds):
        self.reds, self.opened, self.reached = set(reds), threading.Event(), threading.Event()
        monkeypatch.setattr(module, "encode", self)

    def __call__(self, image, *others):
        if image.getpixel((0, 0))[0] in self.reds:
            self.reached.set()
            assert self.opened.wait(DEADLINE)
        return encode(image, *others)


def pictures_of(bridge, history, job, finisher=None):
    parameters = GenerationParameters("a cat", "", 16, 16, 2, 0.0, (7, 8, 9))
    return (finisher or Finisher(bridge, history)).begin(job, V1, parameters)


def image(red):
    return Image.new("RGB", (16, 16), (red, 0, 0))


def job_of_three():
    job = Job(parse_generate({"prompt": "a cat", "seed": 7, "n": 3}), None)
    job.begin()
    return job


async def test_they_are_stored_in_the_order_of_their_seeds_though_the_first_takes_longest(bridge, history, monkeypatch):
    gate, job = Gate(monkeypatch, 0), job_of_three()
    pictures = pictures_of(bridge, history, job)
    for red in range(3):
        pictures.add(red, image(red))
    assert await asyncio.to_thread(gate.reached.wait, DEADLINE)
    await asyncio.sleep(0.05)
    assert job.pictures == ()
    gate.opened.set()
    written = await pictures.written()
    assert [picture.seed for picture in written] == [picture.seed for picture in job.pictures] == [7, 8, 9]
    assert await names_in(history) == [picture.name for picture in reversed(written)]


async def test_one_that_was_made_before_the_job_was_cancelled_is_still_stored(bridge, history, monkeypatch):
    gate, job, finisher = Gate(monkeypatch, 0), job_of_three(), Finisher(bridge, history)
    pictures = pictures_of(bridge, history, job, finisher)
    pictures.add(0, image(0))
    assert finisher.is_busy
    job.cancel()
    pictures.add(1, image(1))
    gate.opened.set()
    await pictures.written()
    assert [picture.seed for picture in job.pictures] == [7]
    assert await names_in(history) == [job.pictures[0].name]
    assert job.kept_bytes == 0
    await asyncio.sleep(0)
    assert not finisher.is_busy


async def test_after_its_end_a_job_takes_no_picture_that_only_it_would_keep(bridge, monkeypatch):
    gate, job = Gate(monkeypatch, 0), job_of_three()
    pictures = pictures_of(bridge, None, job)
    pictures.add(0, image(0))
    job.cancel()
    gate.opened.set()
    await pictures.written()
    assert job.pictures == ()


async def test_a_picture_that_cannot_be_encoded_fails_its_job_and_the_others_are_stored(start, history, monkeypatch):
    def failing(made, *others):
        if made.getpixel((0, 0))[0] == 8:
            raise MemoryError
        return encode(made, *others)

    monkeypatch.setattr(module, "encode", failing)
    job = submit(start(history=history))
    async with asyncio.timeout(DEADLINE):
        while not job.state.is_final:
            await job.changes.wait()
    assert (job.state, job.error.code) == (JobState.FAILED, "out_of_memory")
    assert [picture.seed for picture in job.pictures] == [7, 9]


async def test_writing_counts_only_after_the_device_is_done(start, history):
    finished = await submit(start(history=history)).result()
    spent = finished.timings
    assert spent["write"] <= spent["total"]
    assert spent.keys() == {"queue", "encode", "denoise", "decode", "write", "total"}
