"""The queue: order, limit, leases, cancellation, failures, closing, and its listeners."""

import asyncio
import threading
import time

import pytest
import torch

from tests.generation.conftest import V1, FakeEngine
from zwatch.deploy.shares import ShareLink
from zwatch.errors import RequestError
from zwatch.generation.finish import Finisher
from zwatch.generation.history import History
from zwatch.generation.job import JobState
from zwatch.generation.request import parse_generate
from zwatch.rollout.alias import Alias
from zwatch.rollout.lifecycle import VersionKey
from zwatch.rollout.traffic import Traffic

V2 = VersionKey("v2", "2" * 64)
STOPPING = RequestError("shutting_down", "the service stops")
DEADLINE = 60.0


def request(prompt="a cat", **fields):
    return parse_generate({"prompt": prompt, "width": 16, "height": 16, "steps": 2, "seed": 1, **fields})


@pytest.fixture
async def queue(start):
    return start()


def submit(queue, prompt="a cat", *, attended=False, keeps_files=False, **fields):
    return queue.submit(request(prompt, **fields), attended=attended, keeps_files=keeps_files)


async def running(engine):
    """Wait until the engine has begun the next request."""
    assert await asyncio.to_thread(engine.started.wait, DEADLINE)
    engine.started.clear()


async def end_of(*jobs):
    """Wait for the end of jobs and return their states' names."""
    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(*(job.result() for job in jobs), return_exceptions=True)
    return [job.state.name for job in jobs]


def refused(queue, *, limit_only=False, **fields):
    with pytest.raises(RequestError) as caught:
        queue.refuse_if_full() if limit_only else submit(queue, **fields)
    return caught.value


# --- order and limit


async def test_jobs_run_in_the_order_of_their_arrival(queue, engine):
    jobs = [submit(queue, prompt) for prompt in ("one", "two", "three")]
    assert await end_of(*jobs) == ["DONE"] * 3
    assert engine.prompts == ["one", "two", "three"]


async def test_positions_count_the_jobs_that_wait_before(queue, engine):
    engine.hold()
    first, second, third = [submit(queue, prompt) for prompt in ("one", "two", "three")]
    assert [job.position for job in (first, second, third)] == [0, 1, 2]
    await running(engine)
    assert queue.running is first
    assert ([second.position, third.position], queue.waiting) == ([0, 1], 2)
    queue.cancel(second)
    assert (third.position, queue.waiting) == (0, 1)


async def test_a_job_has_its_images_seeds_and_version(queue):
    job = submit(queue, n=2, seed=5)
    finished = await job.result()
    assert (finished.key, [picture.seed for picture in finished.pictures]) == (V1, [5, 6])
    assert job.step == job.steps == 4
    assert finished.timings["denoise"] == 0.5


async def test_beyond_the_limit_a_request_is_refused_with_retry_after(start, engine):
    queue = start(limit=2)
    engine.hold()
    submit(queue)
    await running(engine)
    queue.refuse_if_full()
    for _ in range(2):
        submit(queue)
    for error in (refused(queue), refused(queue, limit_only=True)):
        assert (error.status, error.code) == (429, "queue_full")
        assert int(error.headers["Retry-After"]) >= 1
    assert queue.waiting == 2


async def test_retry_after_grows_with_the_work_that_waits_up_to_a_minute(start, engine):
    queue = start(limit=2)
    engine.hold()
    submit(queue)
    await running(engine)
    jobs = [submit(queue) for _ in range(2)]
    seconds = []
    for work in (0.1, 10.0, 200.0, 1e6):
        for job in jobs:
            job.work = work
        seconds.append(int(refused(queue).headers["Retry-After"]))
    assert seconds == sorted(seconds)
    assert 1 <= seconds[0] < seconds[1] < seconds[2]
    assert seconds[3] == 60


async def test_before_the_first_job_runs_there_is_room_for_one_more(start):
    queue = start(limit=1)
    submit(queue)
    submit(queue)
    assert refused(queue).code == "queue_full"


async def test_a_job_that_ends_makes_room(start, engine):
    queue = start(limit=1)
    engine.hold()
    submit(queue)
    await running(engine)
    waiting = submit(queue)
    queue.cancel(waiting)
    job = submit(queue)
    engine.resume()
    assert await end_of(job) == ["DONE"]


# --- what is refused


async def test_a_request_beyond_the_limits_of_the_version_or_of_max_work_is_refused(start):
    queue = start(max_work=0.001)
    assert refused(queue, width=2048).param == "width"
    assert refused(queue, width=64, height=64).code == "invalid_value"
    assert queue.waiting == 0


async def test_a_model_that_is_not_resident_is_unknown(queue):
    error = refused(queue, model="v9")
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")


async def test_an_alias_that_serves_nothing_is_not_loaded(start):
    error = refused(start(aliases=("current", "canary")), model="canary")
    assert (error.status, error.code, error.headers["Retry-After"]) == (503, "model_not_loaded", "2")


# --- leases


async def test_a_request_for_an_alias_leases_what_serves_when_its_turn_comes(queue, engine, engines):
    engine.hold()
    first, second = submit(queue), submit(queue)
    await running(engine)
    assert (second.lease, engines.resident(V1).leases) == (None, 1)
    engines.admit(V2, FakeEngine("v2"))
    engines.promote("current", V2)
    engine.resume()
    assert [(await job.result()).key for job in (first, second)] == [V1, V2]


async def test_a_request_for_a_version_leases_it_when_it_is_accepted(queue, engine, engines):
    engine.hold()
    first, second = submit(queue), submit(queue, model="v1")
    await running(engine)
    assert engines.resident(V1).leases == 2
    engines.admit(V2, FakeEngine("v2"))
    engines.promote("current", V2)
    engine.resume()
    assert [(await job.result()).key for job in (first, second)] == [V1, V1]


@pytest.fixture
def share(engines):
    """The share of `current`, by which v2 draws a tenth of its requests."""
    share = Alias("current@", engines)
    share.share = ShareLink("current", 10)
    engines.admit(V2, FakeEngine("v2"))
    engines.promote("current@", V2)
    return share


@pytest.mark.parametrize("change", ["renamed", "ended", "repointed"])
async def test_a_request_for_a_share_leases_it_when_it_is_accepted(start, engine, engines, share, change):
    traffic = Traffic({"current": Alias("current", engines), "current@": share}, engines)
    queue = start(aliases=traffic, traffic=traffic)
    engine.hold()
    first, named = submit(queue), submit(queue, model="current@10")
    await running(engine)
    assert (first.lease.key, named.lease.key, engines.resident(V2).leases) == (V1, V2, 1)
    match change:
        case "renamed":
            share.share = ShareLink("current", 50)
        case "ended":
            share.share = None
            engines.withdraw("current@")
        case "repointed":
            engines.promote("current@", V1)
    engine.resume()
    assert await end_of(first, named) == ["DONE", "DONE"]
    assert (named.key, named.by_share) == (V2, "current@10")


async def test_a_request_for_a_share_that_has_another_name_by_now_is_refused(start, engines, share):
    traffic = Traffic({"current": Alias("current", engines), "current@": share}, engines)
    error = refused(start(aliases=traffic, traffic=traffic), model="current@50")
    assert (error.code, error.message) == (
        "model_not_found",
        "current has no share 'current@50' at present, see /status",
    )


@pytest.mark.parametrize("end", ["done", "failed", "cancelled while it runs", "cancelled while it waits"])
async def test_the_lease_is_released_at_the_end(queue, engine, engines, end):
    engine.hold()
    job = submit(queue, model="v1")
    if end != "cancelled while it waits":
        await running(engine)
    if end == "failed":
        engine.error = RuntimeError("the device failed")
    if "cancelled" in end:
        queue.cancel(job)
    engine.resume()
    await end_of(job)
    async with asyncio.timeout(DEADLINE):
        await queue.drained()
    assert engines.resident(V1).leases == 0


async def test_a_finished_job_is_counted_for_its_engine(queue, engines):
    await end_of(submit(queue, n=3))
    assert engines.resident(V1).images == 3


async def test_an_alias_that_serves_nothing_any_more_fails_the_job_at_its_turn(queue, engine, engines):
    engine.hold()
    first, second = submit(queue), submit(queue)
    await running(engine)
    engines.withdraw("current")
    engine.resume()
    assert await end_of(first, second) == ["DONE", "FAILED"]
    assert second.error.code == "model_not_loaded"


async def test_while_an_engine_leaves_only_jobs_with_a_lease_on_it_run(queue, engine, engines):
    engine.hold()
    first, unbound, bound = submit(queue, "first"), submit(queue, "unbound"), submit(queue, "bound", model="v1")
    await running(engine)
    lease = engines.begin_exchange(V1)
    engine.resume()
    assert await end_of(first, bound) == ["DONE", "DONE"]
    assert unbound.state is JobState.QUEUED
    engines.end_exchange()
    lease.release()
    queue.wake()
    assert await end_of(unbound) == ["DONE"]
    assert engine.prompts == ["first", "bound", "unbound"]


# --- cancellation


async def test_a_waiting_job_is_cancelled_without_running(queue, engine):
    engine.hold()
    first, second = submit(queue, "first"), submit(queue, "second")
    await running(engine)
    queue.cancel(second)
    assert (second.state, second.error.code, queue.waiting) == (JobState.CANCELLED, "cancelled", 0)
    engine.resume()
    assert await end_of(first) == ["DONE"]
    assert engine.prompts == ["first"]


async def test_a_running_job_is_cancelled_between_two_steps_and_the_next_one_runs(queue, engine):
    engine.hold()
    first, second = submit(queue, "first"), submit(queue, "second")
    await running(engine)
    queue.cancel(first)
    await running(engine)
    assert engine.prompts == ["first", "second"]
    engine.resume()
    assert await end_of(first, second) == ["CANCELLED", "DONE"]


async def test_cancelling_an_ended_job_changes_nothing(queue):
    job = submit(queue)
    await end_of(job)
    queue.cancel(job)
    assert job.state is JobState.DONE


async def test_leaving_an_attended_job_cancels_it(queue, engine):
    engine.hold()
    job = submit(queue, attended=True)
    with queue.attending(job):
        await running(engine)
    assert job.state is JobState.CANCELLED


async def test_a_timeout_ends_the_job_as_failed(queue, engine):
    engine.hold()
    job = submit(queue, attended=True)
    with queue.attending(job):
        await running(engine)
        job.note_timeout(RequestError("timeout", "too slow"))
    assert (job.state, job.error.code) == (JobState.FAILED, "timeout")


async def test_an_attended_job_is_unsettled_until_its_client_left(queue):
    job = submit(queue, attended=True)
    with queue.attending(job):
        await end_of(job)
        assert queue.jobs.unsettled == [job]
    assert queue.jobs.unsettled == []
    assert job.kept_bytes == 0, "its client has the images"


async def test_an_unattended_job_is_settled_at_its_end_and_keeps_its_images(queue):
    job = submit(queue, keeps_files=True)
    assert queue.jobs.unsettled == [job]
    await end_of(job)
    assert queue.jobs.unsettled == []
    assert queue.jobs.find(job.id) is job
    assert job.kept_bytes > 0


# --- failures


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("the device failed"), "generation_failed"),
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
    ],
)
async def test_an_error_of_the_engine_fails_its_job_only(queue, engine, error, code):
    engine.error = error
    job = submit(queue)
    assert await end_of(job) == ["FAILED"]
    assert (job.error.status, job.error.code) == (500, code)
    engine.error = None
    assert await end_of(submit(queue)) == ["DONE"]


async def test_nan_pixels_fail_the_job_and_are_not_counted(queue, engine, engines):
    engine.finite = False
    job = submit(queue)
    assert await end_of(job) == ["FAILED"]
    assert (job.error.code, engines.resident(V1).images) == ("generation_failed", 0)


async def test_an_error_while_finishing_fails_the_job_only(start, bridge):
    class Failing(Finisher):
        async def finish(self, job, result):
            if job.request.prompt == "bad":
                raise MemoryError
            return await super().finish(job, result)

    queue = start(Failing(bridge, None))
    bad, good = submit(queue, "bad"), submit(queue, "good")
    assert await end_of(bad, good) == ["FAILED", "DONE"]
    assert bad.error.code == "out_of_memory"


class HeldFinisher(Finisher):
    """A finisher that waits until the test lets it proceed."""

    def __init__(self, bridge, proceed):
        super().__init__(bridge, None)
        self._proceed = proceed

    async def finish(self, job, result):
        await self._proceed.wait()
        return await super().finish(job, result)


async def test_the_next_job_runs_while_images_are_finished_up_to_a_limit(start, engine, bridge):
    proceed = asyncio.Event()
    queue = start(HeldFinisher(bridge, proceed))
    jobs = [submit(queue) for _ in range(7)]
    async with asyncio.timeout(DEADLINE):
        while len(engine.prompts) < 5:
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)
    assert len(engine.prompts) == 5, "four are being finished, and the fifth waits to be"
    proceed.set()
    assert await end_of(*jobs) == ["DONE"] * 7


async def test_a_history_that_cannot_store_does_not_fail_a_job(start, bridge, tmp_path):
    (tmp_path / "out").write_text("a file where the directory should be")
    queue = start(Finisher(bridge, History(bridge, tmp_path / "out", None, None)))
    job = submit(queue, keeps_files=True)
    assert await end_of(job) == ["DONE"]
    assert job.finished.pictures[0].name is None


# --- closing


async def test_a_closed_queue_refuses_and_finishes_what_it_has(queue, engine):
    engine.hold()
    job = submit(queue)
    queue.close(STOPPING)
    for _ in range(20):
        assert refused(queue) is STOPPING
        assert refused(queue, limit_only=True) is STOPPING
    assert len(list(frames(STOPPING))) < 10, "the error is shared by all requests and must not collect their frames"
    engine.resume()
    assert await end_of(job) == ["DONE"]
    queue.reopen()
    assert await end_of(submit(queue)) == ["DONE"]


def frames(error):
    trace = error.__traceback__
    while trace is not None:
        yield trace
        trace = trace.tb_next


async def test_a_permanent_close_is_not_undone(queue):
    queue.close(STOPPING, permanent=True)
    queue.close(RequestError("model_not_loaded", "unloaded"))
    queue.reopen()
    assert refused(queue) is STOPPING


async def test_drained_waits_for_waiting_running_and_finishing_jobs(start, engine, bridge):
    proceed = asyncio.Event()
    queue = start(HeldFinisher(bridge, proceed))
    async with asyncio.timeout(DEADLINE):
        await queue.drained()
        job = submit(queue)
        drained = asyncio.create_task(queue.drained())
        while queue.running is not None or queue.waiting or not engine.prompts:
            await asyncio.sleep(0.005)
        assert not drained.done()
        proceed.set()
        await drained
    assert job.state is JobState.DONE


async def test_drained_can_be_given_up(queue, engine):
    engine.hold()
    submit(queue)
    await running(engine)
    given_up = []
    drained = asyncio.create_task(queue.drained(lambda: bool(given_up)))
    await asyncio.sleep(0)
    assert not drained.done()
    given_up.append(True)
    submit(queue)  # a change
    async with asyncio.timeout(DEADLINE):
        await drained


async def test_abandon_fails_all_jobs_that_have_not_ended(queue, engine):
    engine.hold()
    jobs = [submit(queue) for _ in range(2)]
    await running(engine)
    queue.abandon(STOPPING)
    assert [(job.state, job.error) for job in jobs] == [(JobState.FAILED, STOPPING)] * 2


# --- listeners


async def test_on_end_gets_each_job_once_in_its_final_state(queue, engine):
    ended = []
    queue.on_end.append(lambda job: ended.append((job.request.prompt, job.state.name)))
    await end_of(submit(queue, "good"))
    engine.error = RuntimeError("the device failed")
    await end_of(submit(queue, "bad"))
    engine.error = None
    engine.hold()
    running_job, waiting = submit(queue, "running"), submit(queue, "waiting")
    for job in (waiting, running_job, waiting):
        queue.cancel(job)
    await queue.drained()
    assert ended == [("good", "DONE"), ("bad", "FAILED"), ("waiting", "CANCELLED"), ("running", "CANCELLED")]


async def test_on_refuse_gets_each_refusal(queue):
    refusals = []
    queue.on_refuse.append(lambda error: refusals.append(error.code))
    refused(queue, model="v9")
    refused(queue, width=2048)
    queue.close(STOPPING)
    refused(queue)
    refused(queue, limit_only=True)
    assert refusals == ["model_not_found", "invalid_value", "shutting_down", "shutting_down"]


class Looping:
    """Never comes back, as a loop of Python code; `begun` is set when it is in it."""

    def __init__(self):
        self.begun = threading.Event()

    def __call__(self, *args, **kwargs):
        self.begun.set()
        while True:
            time.sleep(0.01)


async def test_a_generation_that_never_comes_back_is_answered_and_said_to_be_stuck(engine, queue, monkeypatch):
    go, stuck = threading.Event(), []
    monkeypatch.setattr(engine, "serve", lambda *args, **kwargs: go.wait())
    queue.generator.stall = queue.generator.grace = 0.1
    queue.generator.on_stuck = lambda engine, reason: stuck.append((engine, reason))
    assert queue.worker_stuck_since() is None
    before = time.monotonic()
    hung = submit(queue)
    await end_of(hung)
    assert (hung.error.code, hung.error.status) == ("generation_failed", 500)
    assert "made no progress for 0.1 s" in hung.error.message
    while not stuck:
        await asyncio.sleep(0.01)
    assert stuck == [(engine, "a generation by v1 made no progress for 0.1 s and does not come back")]
    assert before <= queue.worker_stuck_since() <= time.monotonic()
    go.set()


async def test_a_generation_that_loops_for_ever_is_interrupted_and_the_next_one_runs(engine, queue, monkeypatch):
    monkeypatch.setattr(engine, "serve", Looping())
    queue.generator.stall = 2.0  # as long as a slow machine may take until the thread comes back
    queue.generator.on_stuck = lambda engine, reason: pytest.fail(reason)
    hung, after = submit(queue), submit(queue)
    await end_of(hung)
    assert hung.error.code == "generation_failed"
    monkeypatch.undo()
    queue.generator.stall = 600.0
    await end_of(after)
    assert after.state is JobState.DONE
    assert queue.worker_stuck_since() is None


async def test_a_generation_whose_client_has_gone_is_interrupted_earlier(engine, queue, monkeypatch):
    monkeypatch.setattr(engine, "serve", looping := Looping())
    queue.generator.stall, queue.generator.stall_after_end = 600.0, 0.1
    hung, after = submit(queue), submit(queue)
    assert await asyncio.to_thread(looping.begun.wait, DEADLINE)
    queue.cancel(hung)
    monkeypatch.undo()
    await end_of(after)
    assert (hung.state, after.state) == (JobState.CANCELLED, JobState.DONE)


async def test_a_slow_step_whose_client_has_gone_is_waited_for(engine, queue, monkeypatch):
    """The thread is in a call that an interruption does not end; others wait for it, since the device is busy."""
    begun, go = threading.Event(), threading.Event()
    monkeypatch.setattr(engine, "serve", lambda *args, **kwargs: (begun.set(), go.wait()))
    queue.generator.stall, queue.generator.stall_after_end = 600.0, 0.1
    slow = submit(queue)
    assert await asyncio.to_thread(begun.wait, DEADLINE)
    queue.cancel(slow)
    await asyncio.sleep(0.5)
    assert queue.running is slow
    monkeypatch.undo()
    after = submit(queue)
    go.set()
    await end_of(after)
    assert after.state is JobState.DONE


# --- what is loaded meanwhile


async def test_a_request_for_what_is_loaded_waits_and_others_do_not(start, engines, engine):
    queue = start(aliases=("current", "canary"))
    coming = {"canary", "v2"}
    queue.is_coming = coming.__contains__
    by_alias, by_name = submit(queue, model="canary"), submit(queue, model="v2")
    other = submit(queue, "another")
    assert await end_of(other) == ["DONE"]
    assert [job.state.name for job in (by_alias, by_name)] == ["QUEUED"] * 2
    second = FakeEngine("v2")
    engines.admit(V2, second)
    engines.promote("canary", V2)
    queue._changes.fire()
    assert await end_of(by_alias, by_name) == ["DONE"] * 2
    assert len(second.prompts) == 2


async def test_a_request_for_what_was_not_loaded_after_all_is_told_so(start):
    queue = start(aliases=("current", "canary"))
    coming = {"canary", "v2"}
    queue.is_coming = coming.__contains__
    jobs = [submit(queue, model="canary"), submit(queue, model="v2")]
    await asyncio.sleep(0)
    coming.clear()
    queue._changes.fire()
    assert await end_of(*jobs) == ["FAILED"] * 2
    assert [job.error.code for job in jobs] == ["model_not_loaded", "model_not_found"]


async def test_a_request_that_does_not_fit_what_was_loaded_fails_at_its_turn(start, engines):
    queue = start(aliases=("current", "canary"))
    queue.is_coming = lambda model: model == "canary"
    job = submit(queue, model="canary", width=2048, height=2048)
    engines.admit(V2, FakeEngine("v2"))
    engines.promote("canary", V2)
    queue._changes.fire()
    assert await end_of(job) == ["FAILED"]
    assert (job.error.code, job.error.param) == ("invalid_value", "width")


async def test_requests_that_wait_for_a_load_count_for_the_limit_and_can_be_cancelled(start):
    queue = start(limit=1, aliases=("current", "canary"))
    queue.is_coming = lambda model: model == "canary"
    first, second = submit(queue, model="canary"), submit(queue, model="canary")
    assert refused(queue, model="canary").code == "queue_full"
    queue.cancel(first)
    assert (first.state.name, queue.waiting, second.position) == ("CANCELLED", 1, 0)


@pytest.fixture
def withdrawing(engines, engine):
    """Return a judge that withdraws the first engine for its images, and lets another serve."""

    async def withdraw(judged, generation):
        assert judged is engine
        engines.withdraw("current")
        engines.admit(V2, FakeEngine("v2"))
        engines.promote("current", V2)
        return False

    engine.is_unjudged = True
    return withdraw


@pytest.mark.parametrize("finite", [True, False])
async def test_a_request_whose_version_is_withdrawn_by_its_bad_image_is_drawn_by_another(
    start, engines, engine, withdrawing, finite
):
    queue = start()
    engine.finite, queue.drawer.judge_first = finite, withdrawing
    job = submit(queue, n=2, seed=5)
    assert await end_of(job) == ["DONE"]
    assert (job.finished.key, engines.resident(V1).leases, engines.resident(V1).images) == (V2, 0, 0)
    assert [picture.seed for picture in job.pictures] == [5, 6], "none of the version that was withdrawn"


async def test_a_request_for_a_withdrawn_version_by_its_name_fails(start, engines, withdrawing):
    queue = start()
    queue.drawer.judge_first = withdrawing
    job = submit(queue, model="v1")
    assert await end_of(job) == ["FAILED"]
    assert job.error.message == "v1 makes no usable images and was withdrawn"


async def test_the_good_first_images_of_an_engine_are_added(start, engine):
    queue = start()
    engine.is_unjudged = True

    async def keep(judged, generation):
        assert not job.pictures, "they are held until they are judged"
        return True

    queue.drawer.judge_first = keep
    job = submit(queue, n=2, seed=5)
    assert await end_of(job) == ["DONE"]
    assert [picture.seed for picture in job.pictures] == [5, 6]


async def test_a_bad_image_of_a_version_that_goes_on_is_an_error(start, engine):
    queue = start()
    engine.is_unjudged, engine.finite = True, False

    async def keep(judged, generation):
        return True

    queue.drawer.judge_first = keep
    job = submit(queue)
    assert await end_of(job) == ["FAILED"]
    assert job.error.code == "generation_failed"


async def test_requests_for_what_will_not_be_loaded_here_any_more_are_given_up(start):
    queue = start(aliases=("current", "canary"))
    queue.is_coming = lambda model: model == "canary"
    job = submit(queue, model="canary")
    queue.give_up_waiting(STOPPING)
    assert (job.state.name, job.error.code, queue.waiting) == ("FAILED", "shutting_down", 0)
    assert refused(queue, model="canary").code == "model_not_loaded"
