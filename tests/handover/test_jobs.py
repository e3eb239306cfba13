"""Jobs across a handover: what a client sees of a job is the same in both processes."""

import asyncio
import json
import os
import socket
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from tests.deploy.loras import write_lora
from zwatch.api.compared import comparison_view
from zwatch.api.results import job_view
from zwatch.bridge import Bridge
from zwatch.deploy.loras import LoraRoot
from zwatch.engine.parameters import ControlImage, GenerationParameters, InitialImage, UsedLora
from zwatch.errors import RequestError
from zwatch.generation.comparison import Comparison, found
from zwatch.generation.job import Job, JobState, client_of_request
from zwatch.generation.job_events import Finished, Picture
from zwatch.generation.job_store import JobStore
from zwatch.generation.loras import Loras
from zwatch.generation.request import parse_generate
from zwatch.generation.sources import Source
from zwatch.handover import jobs
from zwatch.handover.channel import Channel
from zwatch.handover.described import described
from zwatch.handover.jobs import JobMirror, JobTeller, MirroredJob
from zwatch.rollout.lifecycle import VersionKey

KEY = VersionKey("v1", "d" * 64)
PARAMETERS = GenerationParameters("a cat", "", 64, 64, 4, 0.0, (7, 8))


class Pair:
    """A store, and a mirror of it behind a channel."""

    def __init__(self) -> None:
        one, other = socket.socketpair()
        self.old, self.new = Channel(one), Channel(other)
        self.store, self.mirrored = JobStore(), JobStore()
        self.teller = JobTeller(self.store, self.old, Bridge())
        self.submitted: list[Job] = []
        self.loras = Loras(Bridge(), LoraRoot(Path("none")))
        self.queue = SimpleNamespace(
            jobs=self.mirrored, submit=self.submit, cancel=lambda job: job.cancel(), loras=self.loras
        )
        self.mirror = JobMirror(self.queue, None, self.new, Bridge())

    def submit(self, request, *, loras=None, **how) -> Job:
        self.submitted.append(Job(request, None, self.mirrored.settle, **how))
        self.submitted[-1].loras = loras
        self.mirrored.add(self.submitted[-1])
        return self.submitted[-1]

    def job(self, **how) -> Job:
        request = parse_generate({"prompt": "a cat", "n": 2, "steps": 4, "seed": 7, "format": "jpeg"})
        job = Job(request, None, self.store.settle, **{"attended": False, "keeps_files": True, **how})
        self.store.add(job)
        return job

    async def tell(self) -> None:
        await self.teller.tell()
        self.old.send({"end": True})
        while "end" not in (message := await self.new.receive(10)).body:
            await self.mirror.note(message.body, message.fds)
            message.close()

    def views(self, job: Job) -> tuple[dict, dict]:
        """Return what both processes answer."""
        views = [json.loads(json.dumps(job_view(store.find(job.id)))) for store in (self.store, self.mirrored)]
        for view in views:
            view.pop("remaining", None)  # measured anew
        return views[0], views[1]


@pytest.fixture
async def pair():
    made = Pair()
    yield made
    made.old.close()
    made.new.close()


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def test_every_state_of_a_job_is_the_same_in_both(pair):
    job = pair.job()
    states = [
        lambda: job.set_position(3),
        job.begin,
        lambda: job.assign(KEY, PARAMETERS),
        lambda: job.advance(2, b"preview"),
        lambda: job.add_picture(Picture(7, b"one", None)),
        lambda: job.advance(8),
        lambda: job.add_picture(Picture(8, b"two", None)),
        lambda: job.finish(Finished(KEY, PARAMETERS, True, dict.fromkeys(("queue", "encode", "denoise", "decode", "write", "total"), 0.5), job.pictures)),
    ]  # fmt: skip
    for change in states:
        change()
        await pair.tell()
        old, new = pair.views(job)
        assert new == old
    found = pair.mirrored.find(job.id)
    assert [picture.file for picture in found.pictures] == [b"one", b"two"]
    assert found.state is JobState.DONE
    assert pair.mirrored.unsettled == []


@pytest.mark.parametrize(
    "end", [lambda job: job.fail(RequestError("generation_failed", "no")), lambda job: job.cancel()]
)
async def test_a_job_that_fails_or_is_cancelled_does_so_in_both(pair, end):
    job = pair.job()
    await pair.tell()
    end(job)
    await pair.tell()
    old, new = pair.views(job)
    assert new == old
    assert "error" in new


async def test_jobs_that_ended_before_come_over_with_their_age_and_their_clients(pair):
    clock = 1000.0
    pair.store._clock = lambda: clock
    token = client_of_request.set("page-1")
    jobs = [pair.job() for _ in range(3)]
    client_of_request.reset(token)
    jobs[1].cancel()
    clock = 1500.0
    jobs[0].cancel()
    await pair.teller.tell()
    await pair.tell()
    assert [round(ago) for ago, _ in pair.mirrored.ended] == [500, 0]
    assert [job.id for _, job in pair.mirrored.ended] == [jobs[1].id, jobs[0].id], (
        "they expire in the order of their ends"
    )
    assert [job.id for job in pair.mirrored.of_client("page-1")] == [job.id for job in jobs]
    assert all(pair.views(job)[0] == pair.views(job)[1] for job in jobs)


async def test_a_comparison_is_found_in_both_by_its_id(pair):
    jobs = [pair.job(), pair.job()]
    old = Comparison(jobs)
    await pair.tell()
    jobs[0].begin()
    jobs[0].assign(KEY, PARAMETERS)
    jobs[0].add_picture(Picture(7, b"one", None))
    jobs[1].cancel()
    await pair.tell()
    new = found(pair.mirrored, old.id)
    views = [json.loads(json.dumps(comparison_view(one))) for one in (old, new)]
    assert views[0] == views[1]
    assert (views[1]["state"], len(views[1]["images"])) == ("cancelled", 1)


async def test_followers_of_the_mirrored_job_get_its_events(pair):
    job = pair.job()
    await pair.tell()
    seen = []

    async def follow():
        async for event in pair.mirrored.find(job.id).follow(10.0):
            seen.append(type(event).__name__)  # noqa: PERF401 (the test reads it meanwhile)

    following = asyncio.create_task(follow())
    for change in (job.begin, lambda: job.advance(1), job.cancel):
        await asyncio.sleep(0.01)
        change()
        await pair.tell()
    await asyncio.wait_for(following, 60)
    assert (seen[0], seen[-1]) == ("Queued", "Failed")
    assert "Stepped" in seen


async def test_a_client_of_the_new_process_cancels_a_job_of_the_old_one_and_watches_it(pair):
    job = pair.job()
    job.begin()
    await pair.tell()
    mirrored = pair.mirrored.find(job.id)
    mirrored.note_poll()
    pair.mirror.tell_watched()
    assert (await pair.old.receive(10)).body == {"watched": job.id}
    mirrored.cancel()
    assert (await pair.old.receive(10)).body == {"cancel": job.id}
    assert mirrored.state is JobState.CANCELLED
    job.advance(3)
    await pair.tell()  # what comes late is ignored
    assert pair.mirrored.find(job.id).state is JobState.CANCELLED


async def test_a_job_that_the_old_process_could_not_end_is_drawn_again(pair):
    job, attended = pair.job(), pair.job(attended=True)
    job.begin()
    job.advance(3)
    await pair.tell()
    pair.mirror.redraw()
    await until(lambda: pair.submitted)
    (again,) = pair.submitted
    assert again.request == job.request
    mirrored = pair.mirrored.find(job.id)
    assert (mirrored.state, mirrored.step) == (JobState.QUEUED, 0)
    assert pair.mirrored.find(attended.id).state is JobState.FAILED, "its client has lost its connection"
    again.begin()
    again.assign(KEY, PARAMETERS)
    again.add_picture(Picture(7, b"one", None))
    timings = dict.fromkeys(("queue", "encode", "denoise", "decode", "write", "total"), 0.5)
    again.finish(Finished(KEY, PARAMETERS, False, timings, again.pictures))
    await asyncio.wait_for(mirrored.result(), 60)
    assert (mirrored.state, mirrored.pictures[0].file) == (JobState.DONE, b"one")


SOURCE = Source(Image.effect_noise((70, 50), 90).convert("RGB"), Image.linear_gradient("L").resize((70, 50)), "e" * 64)


@pytest.mark.parametrize("mask", [None, SOURCE.mask], ids=["", "mask"])
async def test_the_image_that_a_job_changes_comes_over_and_is_changed_again(pair, mask):
    source = replace(SOURCE, mask=mask)
    job = pair.job(source=source)
    job.begin()
    parameters = replace(PARAMETERS, source=InitialImage(None, None, 0.6, 0, source.digest, mask is not None))
    job.assign(KEY, parameters)
    await pair.tell()
    old, new = pair.views(job)
    assert new == old
    assert (new["request"]["source"], new["request"]["mask"], new["steps"]) == ("e" * 64, mask is not None, 6)
    mirrored = pair.mirrored.find(job.id)
    assert mirrored.parameters == parameters
    pair.mirror.redraw()
    await until(lambda: pair.submitted)
    again = pair.submitted[0].source
    assert again.digest == source.digest
    assert again.picture.tobytes() == source.picture.tobytes()
    assert (again.mask is None) if mask is None else (again.mask.tobytes() == mask.tobytes())
    pair.submitted[0].cancel()
    assert mirrored.source is not None


async def test_the_image_that_guides_a_job_comes_over_and_guides_it_again(pair):
    source = replace(SOURCE, mask=None, guides=True)
    job = pair.job(source=source)
    job.begin()
    parameters = replace(PARAMETERS, control=ControlImage(None, 0.5, source.digest))
    job.assign(KEY, parameters)
    await pair.tell()
    old, new = pair.views(job)
    assert new == old
    asked = new["request"]
    assert (asked["control"], asked["control_scale"], asked["source"], asked["strength"]) == (
        "e" * 64,
        0.75,
        None,
        None,
    )
    assert pair.mirrored.find(job.id).parameters == parameters
    pair.mirror.redraw()
    await until(lambda: pair.submitted)
    again = pair.submitted[0].source
    assert (again.guides, again.digest, again.picture.tobytes()) == (True, source.digest, source.picture.tobytes())
    pair.submitted[0].cancel()


async def test_the_pixels_of_images_are_written_and_read_beside_the_event_loop(pair, monkeypatch):
    threads = []

    def noted(function):
        return lambda *given: threads.append(threading.current_thread()) or function(*given)

    monkeypatch.setattr(jobs, "source_file", noted(jobs.source_file))
    monkeypatch.setattr(jobs, "read_source_file", noted(jobs.read_source_file))
    made = [pair.job(source=replace(SOURCE, mask=SOURCE.mask.resize((30, 20)))) for _ in range(2)]
    before = len(os.listdir("/proc/self/fd"))
    await asyncio.gather(pair.teller.tell(), pair.tell())
    assert len(threads) == 4, "each is told once, also by two that tell"
    assert threading.main_thread() not in threads
    for job in made:
        assert pair.mirrored.find(job.id).source.mask.size == (30, 20)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_only_images_that_may_be_needed_come_over(pair):
    done, attended = pair.job(source=SOURCE), pair.job(source=SOURCE, attended=True)
    done.cancel()
    before = len(os.listdir("/proc/self/fd"))
    await pair.tell()
    assert pair.mirrored.find(attended.id).source is None
    assert pair.views(done)[0] == pair.views(done)[1]
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_job_whose_image_did_not_come_is_not_drawn_without_it(pair, monkeypatch):
    def full(name, flags):
        raise OSError(12, "no memory")

    monkeypatch.setattr(os, "memfd_create", full)
    job = pair.job(source=SOURCE)
    await pair.tell()
    pair.mirror.redraw()
    mirrored = pair.mirrored.find(job.id)
    assert (mirrored.state, pair.submitted) == (JobState.FAILED, [])


async def test_a_job_that_is_drawn_again_can_be_cancelled(pair):
    job = pair.job()
    await pair.tell()
    pair.mirror.redraw()
    await until(lambda: pair.submitted)
    pair.mirrored.find(job.id).cancel()
    await until(lambda: pair.submitted[0].state is JobState.CANCELLED)


async def test_a_jobs_loras_are_the_same_in_both_and_it_is_drawn_again_with_them(pair, tiny_versions, tmp_path):
    write_lora(tmp_path / "loras", "ink", tiny_versions / "v1/transformer")
    pair.loras = pair.queue.loras = Loras(Bridge(), LoraRoot(tmp_path / "loras"))
    digest = pair.loras.root.open_lora("ink").digest
    request = parse_generate({"prompt": "a cat", "loras": [{"name": "ink", "scale": 0.8}], "steps": 4})
    job = Job(request, None, pair.store.settle, attended=False)
    pair.store.add(job)
    job.begin()
    job.assign(KEY, replace(PARAMETERS, loras=(UsedLora("ink", 0.8, digest),)))
    await pair.tell()
    here, there = pair.views(job)
    assert here == there
    assert there["loras"] == [{"name": "ink", "scale": 0.8, "digest": digest}]
    assert there["request"]["loras"] == [{"name": "ink", "scale": 0.8}]
    pair.mirror.redraw()
    await until(lambda: pair.submitted)
    [again] = pair.submitted
    assert [(one.name, one.scale, one.digest) for one in again.loras.used] == [("ink", 0.8, digest)]
    await pair.mirror.stop()
    pair.loras._bridge.close(1.0)


@pytest.mark.parametrize("takeovers", [1, 2])
async def test_a_job_whose_lora_is_another_by_then_fails_with_both_digests(pair, tiny_versions, tmp_path, takeovers):
    write_lora(tmp_path / "loras", "ink", tiny_versions / "v1/transformer")
    pair.loras = pair.queue.loras = Loras(Bridge(), LoraRoot(tmp_path / "loras"))
    request = parse_generate({"prompt": "a cat", "loras": [{"name": "ink", "scale": 0.8}], "steps": 4})
    job = Job(request, None, pair.store.settle, attended=False)
    job.loras = await pair.loras.opened(request.loras)
    [accepted] = job.loras.digests
    if takeovers == 2:
        job = MirroredJob(json.loads(json.dumps(described(job))), lambda job: None, pair.store.settle)
    pair.store.add(job)
    await pair.tell()
    write_lora(tmp_path / "loras", "ink", tiny_versions / "v1/transformer", seed=9)
    now = pair.loras.root.open_lora("ink").digest
    pair.mirror.redraw()
    mirrored = pair.mirrored.find(job.id)
    await until(lambda: mirrored.state.is_final or pair.submitted)
    assert mirrored.state is JobState.FAILED
    assert (mirrored.error.status, mirrored.error.param) == (400, "loras")
    assert f"ink was {accepted[:12]} when the job was accepted, and is {now[:12]} now" in mirrored.error.message
    await pair.mirror.stop()
    pair.loras._bridge.close(1.0)
