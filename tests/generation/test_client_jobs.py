"""The jobs of a client that names itself, and who follows them."""

import asyncio

import pytest

from zwatch.generation.client_jobs import Follower
from zwatch.generation.job import Job, client_of_request
from zwatch.generation.job_events import Finished, Picture
from zwatch.generation.job_store import KEEP_SECONDS, JobStore
from zwatch.generation.request import parse_generate


@pytest.fixture
def jobs(clock):
    return JobStore(clock)


def added(jobs, client="page", **fields):
    token = client_of_request.set(client)
    try:
        job = Job(parse_generate({"prompt": "x", **fields}), None, attended=False)
    finally:
        client_of_request.reset(token)
    jobs.add(job)
    return job


def ended(jobs, client="page"):
    job = added(jobs, client)
    job.finish(Finished(None, None, False, {}, ()))
    jobs.settle(job)
    return job


def news(follower):
    return [(job, is_new) for job, is_new in follower.news()]


async def test_a_clients_jobs_are_all_of_its_own_oldest_first(jobs):
    first, _, _ = ended(jobs), added(jobs, "another"), added(jobs, None)
    second = added(jobs)
    assert jobs.of_client("page") == [first, second]
    assert jobs.of_client("nobody") == []


async def test_a_job_that_is_no_longer_kept_is_not_listed(jobs, clock):
    ended(jobs)
    clock.now = KEEP_SECONDS / 2
    later = ended(jobs)
    clock.now = KEEP_SECONDS + 1
    assert jobs.of_client("page") == [later]


async def test_a_client_is_forgotten_with_its_last_job_and_its_last_follower(jobs, clock):
    ended(jobs)
    with jobs.following("page"):
        clock.now = KEEP_SECONDS + 1
        assert jobs.of_client("page") == []
        assert jobs._clients
    assert not jobs._clients
    with jobs.following("page"):
        job = added(jobs)
    assert jobs.of_client("page") == [job]


async def test_a_follower_is_told_of_each_job_once_and_then_only_of_changes(jobs):
    old, job = ended(jobs), added(jobs)
    with jobs.following("page") as client:
        follower = Follower(client)
        assert news(follower) == [(old, False), (job, False)]
        assert news(follower) == []
        new = added(jobs)
        assert news(follower) == [(new, False)]
        job.set_position(3)
        assert news(follower) == [(job, False)]


async def test_each_preview_is_new_once_to_each_follower(jobs):
    job = added(jobs)
    with jobs.following("page") as client:
        first = Follower(client)
        job.begin()
        job.advance(1, b"jpeg")
        assert news(first) == [(job, True)]
        job.advance(2)
        assert news(first) == [(job, False)]
        assert news(Follower(client)) == [(job, True)]


async def test_a_slow_follower_gets_only_the_newest_state(jobs):
    job = added(jobs)
    with jobs.following("page") as client:
        follower = Follower(client)
        news(follower)
        job.begin()
        for step in range(1, 5):
            job.advance(step)
        job.add_picture(Picture(1, b"x", "name"))
        assert news(follower) == [(job, False)]
        assert news(follower) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda job: job.set_position(1), lambda job: job.begin(), lambda job: (job.begin(), job.advance(1)),
        lambda job: job.add_picture(Picture(1, b"x", "name")), lambda job: job.cancel(),
    ],
    ids=["position", "begin", "step", "picture", "end"],
)  # fmt: skip
async def test_every_change_of_a_job_wakes_the_followers_of_its_client(jobs, change):
    job = added(jobs)
    with jobs.following("page") as client:
        waiting = asyncio.create_task(client.audience.changes.wait())
        await asyncio.sleep(0)
        change(job)
        await asyncio.wait_for(waiting, 60)


async def test_a_new_job_wakes_the_followers_of_its_client(jobs):
    with jobs.following("page") as client:
        waiting = asyncio.create_task(client.audience.changes.wait())
        await asyncio.sleep(0)
        added(jobs, "another")
        await asyncio.sleep(0)
        assert not waiting.done()
        added(jobs)
        await asyncio.wait_for(waiting, 60)


async def test_previews_are_made_for_jobs_whose_client_is_followed(jobs):
    before, other = added(jobs), added(jobs, "another")
    assert not before.is_watched
    with jobs.following("page"):
        after = added(jobs)
        assert (before.is_watched, after.is_watched, other.is_watched) == (True, True, False)
    assert not before.is_watched
