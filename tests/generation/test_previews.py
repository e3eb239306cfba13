"""Previews: only for a client that watches, and only within their share of the run."""

import asyncio
from types import SimpleNamespace

import pytest
from PIL import Image

from tests.generation.conftest import Clock
from zwatch.bridge import Bridge
from zwatch.generation.job import Job
from zwatch.generation.previews import SHARE, PreviewBudget, PreviewCost, StepReporter
from zwatch.generation.request import parse_generate


def test_previews_stay_within_their_share_of_the_run():
    clock, cost, made = Clock(), PreviewCost(), 0
    budget = PreviewBudget(cost, clock)
    while clock.now < 10:
        clock.now += 0.03  # a step
        if budget.allows():
            clock.now += 0.004
            budget.spend(0.004)
            made += 1
    assert made > 10
    assert made * 0.004 <= SHARE * clock.now


def test_the_measured_cost_limits_the_next_run():
    cost = PreviewCost()
    for _ in range(50):
        cost.learn(0.02)
    clock = Clock()
    budget = PreviewBudget(cost, clock)
    clock.now = 0.5
    assert not budget.allows()
    clock.now = 1.5
    assert budget.allows()


@pytest.fixture
async def bridge():
    found = Bridge()
    yield found
    await asyncio.to_thread(found.close)


@pytest.fixture
async def job():
    found = Job(parse_generate({"prompt": "x", "steps": 3}), None)
    found.begin()
    return found


def engine_with(preview):
    return SimpleNamespace(preview=lambda: preview)


LOOK = SimpleNamespace(image=lambda: Image.new("RGB", (8, 8), "red"))


def reporter(job, engine, bridge):
    return StepReporter(job, engine, bridge, PreviewCost(), share=float("inf"))


async def test_a_step_is_reported_with_its_preview(bridge, job):
    job.note_poll()
    await bridge.run("generate", reporter(job, engine_with(LOOK), bridge).report, 1)
    while job.step < 1:
        await job.changes.wait()
    assert (job.step, job.preview[:2]) == (1, b"\xff\xd8")


@pytest.mark.parametrize(("watched", "done", "look"), [(False, 1, LOOK), (True, 3, LOOK), (True, 1, None)])
async def test_there_is_no_preview_if_unwatched_at_the_last_step_or_without_latents(bridge, job, watched, done, look):
    if watched:
        job.note_poll()
    await bridge.run("generate", reporter(job, engine_with(look), bridge).report, done)
    while job.step < done:
        await job.changes.wait()
    assert job.preview is None


async def test_a_failed_preview_is_logged_and_the_step_is_reported(bridge, job, caplog):
    def fail():
        raise RuntimeError("the device failed")

    job.note_poll()
    await bridge.run("generate", reporter(job, engine_with(SimpleNamespace(image=fail)), bridge).report, 1)
    while job.step < 1:
        await job.changes.wait()
    assert (job.step, job.preview) == (1, None)
    assert "a preview could not be made" in caplog.text
