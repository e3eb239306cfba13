"""A job's states, and what its followers see."""

import asyncio
from contextlib import aclosing

import pytest

from zwatch.errors import RequestError
from zwatch.generation.job import Done, Failed, Finished, Job, JobState, Picture, Queued, Quiet, Stepped
from zwatch.generation.request import parse_generate

FINISHED = Finished(None, None, False, {}, (Picture(1, b"abc", "a.png"), Picture(2, b"de", None)))
LONG = 60.0


@pytest.fixture
async def job():
    return Job(parse_generate({"prompt": "a cat", "steps": 4, "n": 2}), None)


async def test_a_follower_sees_the_present_and_then_every_change(job):
    job.position = 2
    async with aclosing(job.follow(LONG)) as events:
        assert await anext(events) == Queued(2)
        job.move(1)
        assert await anext(events) == Queued(1)
        job.begin()
        assert await anext(events) == Stepped(0, 8, None)
        job.advance(1, b"jpeg")
        assert await anext(events) == Stepped(1, 8, b"jpeg")
        job.advance(2)
        assert await anext(events) == Stepped(2, 8, None), "the preview was sent before"
        job.finish(FINISHED)
        assert await anext(events) == Done(FINISHED)
        with pytest.raises(StopAsyncIteration):
            await anext(events)


async def test_a_slow_follower_gets_the_newest_of_what_it_missed(job):
    job.begin()
    async with aclosing(job.follow(LONG)) as events:
        assert await anext(events) == Stepped(0, 8, None)
        job.advance(1, b"first")
        job.advance(2, b"second")
        job.advance(3)
        assert await anext(events) == Stepped(3, 8, b"second")


async def test_who_comes_late_sees_the_last_preview_or_the_end(job):
    job.begin()
    job.advance(5, b"jpeg")
    async with aclosing(job.follow(LONG)) as events:
        assert await anext(events) == Stepped(5, 8, b"jpeg")
    job.finish(FINISHED)
    assert [event async for event in job.follow(LONG)] == [Done(FINISHED)]


async def test_silence_is_told_too(job):
    async with aclosing(job.follow(0.01)) as events:
        assert await anext(events) == Queued(0)
        assert await anext(events) == Quiet()
        assert await anext(events) == Quiet()
        job.begin()
        assert isinstance(await anext(events), Stepped)


async def test_it_is_watched_while_somebody_follows_and_a_while_after_somebody_asked(job, monkeypatch):
    assert not job.is_watched
    async with aclosing(job.follow(LONG)) as events:
        await anext(events)
        assert job.is_watched
    assert not job.is_watched
    job.glance()
    assert job.is_watched
    monkeypatch.setattr("zwatch.generation.job.GLANCE_SECONDS", 0.0)
    assert not job.is_watched


@pytest.mark.parametrize("end", ["finish", "fail", "cancel"])
async def test_it_ends_once(job, end):
    ends = []
    job._ended = ends.append
    error = RequestError("generation_failed", "no")
    calls = {
        "finish": lambda: job.finish(FINISHED),
        "fail": lambda: job.fail(error),
        "cancel": job.cancel,
    }
    job.begin()
    calls[end]()
    state = job.state
    for call in calls.values():
        call()
    job.advance(7, b"late")
    assert (job.state, ends, job.step, job.preview) == (state, [job], 0, None)
    assert state is {"finish": JobState.DONE, "fail": JobState.FAILED, "cancel": JobState.CANCELLED}[end]


async def test_its_result_is_what_came_of_it_or_the_error(job):
    waiting = asyncio.create_task(job.result())
    await asyncio.sleep(0)
    job.finish(FINISHED)
    assert await waiting is FINISHED
    other = Job(job.request, None)
    other.cancel()
    with pytest.raises(RequestError) as caught:
        await other.result()
    assert (caught.value.code, other.is_cancelled) == ("cancelled", True)
    assert [event.error.code async for event in other.follow(LONG) if isinstance(event, Failed)] == ["cancelled"]


async def test_files_can_be_let_go_of(job):
    job.finish(FINISHED)
    assert job.kept_bytes == 5
    job.let_go_of_files(all_of_them=False)
    assert [picture.file for picture in job.finished.pictures] == [None, b"de"]
    job.let_go_of_files(all_of_them=True)
    assert job.kept_bytes == 0
