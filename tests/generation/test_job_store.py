"""How long jobs can be found."""

from zwatch.errors import RequestError
from zwatch.generation.job import Job
from zwatch.generation.job_events import Finished, Picture
from zwatch.generation.job_store import JobStore
from zwatch.generation.request import parse_generate


def added(jobs, *, keeps_files=True):
    job = Job(parse_generate({"prompt": "x"}), None, keeps_files=keeps_files)
    jobs.add(job)
    return job


def ended(jobs, size=0, **options):
    job = added(jobs, **options)
    job.finish(Finished(None, None, False, {}, (Picture(1, b"x" * size, None),)))
    jobs.settle(job)
    return job


def knows(jobs, job):
    try:
        return jobs.find(job.id) is job
    except RequestError as error:
        return error.status != 404


async def test_an_ended_job_is_found_for_an_hour_and_a_waiting_one_without_limit(clock):
    jobs = JobStore(clock)
    waiting, done = added(jobs), ended(jobs)
    clock.now = 3599
    assert knows(jobs, done)
    clock.now = 3601
    assert not knows(jobs, done)
    assert knows(jobs, waiting)
    assert jobs.unsettled == [waiting]


async def test_beyond_a_number_the_oldest_ended_jobs_are_forgotten(clock):
    jobs = JobStore(clock, keep_jobs=3)
    made = [ended(jobs) for _ in range(5)]
    assert [knows(jobs, job) for job in made] == [False, False, True, True, True]


async def test_beyond_a_number_of_bytes_the_oldest_jobs_drop_their_images(clock):
    jobs = JobStore(clock, keep_bytes=100)
    made = [ended(jobs, 40) for _ in range(4)]
    assert [job.kept_bytes for job in made] == [0, 0, 40, 40]
    assert all(knows(jobs, job) for job in made)
    clock.now = 4000
    ended(jobs, 90)
    assert [knows(jobs, job) for job in made] == [False] * 4


async def test_a_job_that_does_not_keep_files_drops_its_images(clock):
    assert ended(JobStore(clock), 40, keeps_files=False).kept_bytes == 0
