"""A job's states, and the events that its followers get."""

import asyncio
from contextlib import aclosing

import pytest

from zwatch.errors import RequestError
from zwatch.generation.job import POLL_SECONDS, Job, JobState
from zwatch.generation.job_events import Done, Failed, Finished, Picture, Queued, Quiet, Stepped
from zwatch.generation.request import parse_generate

FINISHED = Finished(None, None, False, {}, (Picture(1, b"abc", "a.png"), Picture(2, b"de", None)))
LONG = 60.0


@pytest.fixture
def request_():
    return parse_generate({"prompt": "a cat", "steps": 4, "n": 2})


@pytest.fixture
async def job(request_):
    return Job(request_, None)


async def test_follow_yields_the_present_state_and_then_every_change(job):
    job.position = 2
    async with aclosing(job.follow(LONG)) as events:
        assert await anext(events) == Queued(2)
        job.set_position(1)
        assert await anext(events) == Queued(1)
        job.begin()
        assert await anext(events) == Stepped(0, 8, None)
        job.advance(1, b"jpeg")
        assert await anext(events) == Stepped(1, 8, b"jpeg")
        job.advance(2)
        assert await anext(events) == Stepped(2, 8, None), "the preview was already sent"
        job.finish(FINISHED)
        assert await anext(events) == Done(FINISHED)
        with pytest.raises(StopAsyncIteration):
            await anext(events)


async def test_a_slow_follower_gets_the_newest_state_only(job):
    job.begin()
    async with aclosing(job.follow(LONG)) as events:
        assert await anext(events) == Stepped(0, 8, None)
        job.advance(1, b"first")
        job.advance(2, b"second")
        job.advance(3)
        assert await anext(events) == Stepped(3, 8, b"second")


async def test_a_late_follower_gets_the_last_preview_or_the_end(job):
    job.begin()
    job.advance(5, b"jpeg")
    async with aclosing(job.follow(LONG)) as events:
        assert await anext(events) == Stepped(5, 8, b"jpeg")
    job.finish(FINISHED)
    assert [event async for event in job.follow(LONG)] == [Done(FINISHED)]


async def test_follow_yields_quiet_after_each_heartbeat_without_a_change(job):
    async with aclosing(job.follow(0.01)) as events:
        assert await anext(events) == Queued(0)
        assert await anext(events) == Quiet()
        assert await anext(events) == Quiet()
        job.begin()
        assert isinstance(await anext(events), Stepped)


async def test_a_job_is_watched_while_followed_and_for_some_seconds_after_a_poll(request_):
    now = [0.0]
    job = Job(request_, None, clock=lambda: now[0])
    assert not job.is_watched
    async with aclosing(job.follow(LONG)) as events:
        await anext(events)
        assert job.is_watched
    assert not job.is_watched
    job.note_poll()
    assert job.is_watched
    now[0] = POLL_SECONDS - 1
    assert job.is_watched
    now[0] = POLL_SECONDS
    assert not job.is_watched


@pytest.mark.parametrize("end", ["finish", "fail", "cancel"])
async def test_a_job_ends_once(request_, end):
    ends = []
    job = Job(request_, None, ends.append)
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


async def test_result_returns_the_finished_images_or_raises_the_error(job):
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


async def test_drop_files_drops_saved_images_or_all(job):
    job.finish(FINISHED)
    assert job.kept_bytes == 5
    job.drop_files(also_unsaved=False)
    assert [picture.file for picture in job.finished.pictures] == [None, b"de"]
    job.drop_files(also_unsaved=True)
    assert job.kept_bytes == 0


async def test_the_time_that_remains_leaves_out_the_prompt(request_):
    now = 0.0
    job = Job(request_, None, clock=lambda: now)
    job.begin()
    assert job.remaining is None
    now = 10.0  # the prompt, and one of eight steps
    job.advance(1)
    now = 12.0
    job.advance(3)
    assert job.remaining == 5.0
