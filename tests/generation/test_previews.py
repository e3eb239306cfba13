"""Previews: only for somebody, and only while they cost next to nothing."""

import asyncio
from types import SimpleNamespace

import pytest
from PIL import Image

from zwatch.bridge import Bridge
from zwatch.generation import previews
from zwatch.generation.job import Job
from zwatch.generation.previews import PreviewCost, PreviewPace, Steps
from zwatch.generation.request import parse_generate


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_previews_stay_within_their_share_of_the_run():
    clock, cost, made = Clock(), PreviewCost(), 0
    pace = PreviewPace(cost, clock)
    while clock.now < 10:
        clock.now += 0.03  # a step
        if pace.allows():
            clock.now += 0.004
            pace.spend(0.004)
            made += 1
    assert made > 10
    assert made * 0.004 <= previews.SHARE * clock.now


def test_what_previews_cost_is_known_to_the_next_run():
    cost = PreviewCost()
    for _ in range(50):
        cost.learn(0.02)
    clock = Clock()
    pace = PreviewPace(cost, clock)
    clock.now = 0.5
    assert not pace.allows()
    clock.now = 1.5
    assert pace.allows()


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


@pytest.fixture
def _unlimited(monkeypatch):
    monkeypatch.setattr(previews, "SHARE", float("inf"))


@pytest.mark.usefixtures("_unlimited")
async def test_a_step_comes_with_its_preview(bridge, job):
    job.glance()
    await bridge.run("generate", Steps(job, engine_with(LOOK), bridge, PreviewCost()).report, 1)
    await job.changes.wait()
    assert (job.step, job.preview[:2]) == (1, b"\xff\xd8")


@pytest.mark.usefixtures("_unlimited")
@pytest.mark.parametrize(("watched", "done", "look"), [(False, 1, LOOK), (True, 3, LOOK), (True, 1, None)])
async def test_nobody_there_the_last_step_or_nothing_to_see_makes_no_preview(bridge, job, watched, done, look):
    if watched:
        job.glance()
    await bridge.run("generate", Steps(job, engine_with(look), bridge, PreviewCost()).report, done)
    while job.step < done:
        await job.changes.wait()
    assert job.preview is None


@pytest.mark.usefixtures("_unlimited")
async def test_a_preview_that_fails_harms_nobody(bridge, job, caplog):
    def fail():
        raise RuntimeError("the device failed")

    job.glance()
    await bridge.run("generate", Steps(job, engine_with(SimpleNamespace(image=fail)), bridge, PreviewCost()).report, 1)
    await job.changes.wait()
    assert (job.step, job.preview) == (1, None)
    assert "a preview could not be made" in caplog.text
