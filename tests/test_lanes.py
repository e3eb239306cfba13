"""Lanes and the bridge: calls that do not return hold up nobody."""

import asyncio
import gc
import os
import sys
import threading
import time
import weakref

import pytest

from zwatch.bridge import LANES, Bridge, LaneLimits, NoAnswer
from zwatch.lanes import Interrupted, Lane

SECONDS = 30.0


@pytest.fixture
def held():
    """An event that blocked calls wait for; set at the end, so that their threads end."""
    event = threading.Event()
    yield event
    event.set()


def begun(lane, function):
    """Submit a function, and return its future when it runs."""
    runs = threading.Event()

    def run():
        runs.set()
        return function()

    future = lane.submit(run)
    assert runs.wait(SECONDS)
    return future


def test_a_call_that_was_left_holds_up_no_other(held):
    lane = Lane("test")
    hung = begun(lane, lambda: held.wait() and "late")
    waiting = lane.submit(lambda: "ran")
    lane.leave(hung)
    assert waiting.result(SECONDS) == "ran"
    assert lane.left == 1
    held.set()
    assert hung.result(SECONDS) == "late"
    assert lane.submit(lambda: "again").result(SECONDS) == "again"
    assert lane.left == 0


def test_in_an_exclusive_lane_nothing_runs_beside_a_call_that_was_left(held):
    lane, order = Lane("test", is_exclusive=True), []
    hung = begun(lane, lambda: (held.wait(), order.append("hung")))
    lane.leave(hung)
    after = lane.submit(lambda: order.append("after"))
    held.set()
    after.result(SECONDS)
    assert order == ["hung", "after"]


def test_a_lane_lowers_the_priority_of_its_own_threads_and_of_no_other():
    lane = Lane("test", nice=7)

    def priority():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    here = priority()
    assert lane.submit(priority).result(SECONDS) == max(here, 7)
    assert priority() == here


def test_a_call_that_was_left_before_it_began_never_runs(held):
    lane, ran = Lane("test"), []
    hung = begun(lane, held.wait)
    waiting = lane.submit(lambda: ran.append(1))
    lane.leave(waiting)
    held.set()
    hung.result(SECONDS)
    lane.submit(lambda: None).result(SECONDS)
    assert waiting.cancelled()
    assert not ran


def test_an_endless_loop_of_python_code_can_be_interrupted_though_it_catches_every_exception():
    def loop():
        while True:
            try:
                while True:
                    pass
            except Exception:  # as a library may
                pass

    lane = Lane("test")
    endless = begun(lane, loop)
    lane.leave(endless)
    lane.interrupt(endless)
    assert isinstance(endless.exception(SECONDS), Interrupted)
    assert lane.submit(lambda: 1).result(SECONDS) == 1


def test_interrupts_never_end_a_lanes_thread_and_no_result_is_lost():
    lane = Lane("test")
    for number in range(300):
        future = lane.submit(lambda number=number: number)
        lane.interrupt(future)
        error = future.exception(SECONDS)
        assert isinstance(error, Interrupted) if error is not None else future.result() == number
    assert lane.running == lane.left == 0


def test_an_errors_frames_are_freed_without_a_garbage_collection():
    class Memory:
        pass

    def fail():
        memory = Memory()
        found.append(weakref.ref(memory))
        raise ValueError("failed")

    async def run():
        bridge = Bridge()
        for lane in ("load", "load", "inspect", "inspect"):
            with pytest.raises(ValueError, match="failed"):
                await bridge.run(lane, fail)
        bridge.close()

    found: list = []
    gc.disable()
    try:
        asyncio.run(run())
        end = time.monotonic() + SECONDS  # the lane's thread lets go of an error a moment after its caller has it
        while any(reference() is not None for reference in found) and time.monotonic() < end:
            time.sleep(0.01)
        assert [reference() for reference in found] == [None] * 4
    finally:
        gc.enable()


async def test_a_call_beyond_its_lanes_limit_is_left_and_says_what_does_not_answer(held):
    bridge = Bridge({"inspect": LaneLimits(width=1, seconds=0.05, most_left=2), "state": LaneLimits(seconds=0.05)})
    for _ in range(2):
        with pytest.raises(NoAnswer, match=r"nothing came back within 0\.05 s"):
            await bridge.run("inspect", held.wait)
    with pytest.raises(NoAnswer, match="an earlier call still waits"):
        await bridge.run("inspect", lambda: 1)
    with pytest.raises(NoAnswer):
        await bridge.run("state", held.wait)
    held.set()
    while bridge.left("inspect") or bridge.left("state"):
        await asyncio.sleep(0.01)
    bridge._limits = LANES  # 50 ms are too short for a thread of a busy machine
    assert await bridge.run("inspect", lambda: 1) == await bridge.run("state", lambda: 1) == 1
    assert bridge.close() == []


async def test_a_late_result_is_handed_over_to_be_given_back(held):
    bridge, late = Bridge(), []
    call = bridge.begin("load", lambda: held.wait() and "engine")
    while not call.has_begun:
        await asyncio.sleep(0.01)
    call.leave(late.append)
    assert await bridge.run("load", lambda: "next") == "next"
    held.set()
    while not late:
        await asyncio.sleep(0.01)
    assert late == ["engine"]


async def test_closing_names_the_lanes_that_do_not_end(held):
    bridge = Bridge()
    call = bridge.begin("history", held.wait)
    while not call.has_begun:
        await asyncio.sleep(0.01)
    assert await asyncio.to_thread(bridge.close, 0.05) == ["history"]


async def test_where_calls_may_wait_for_others_the_clock_begins_with_the_call(held):
    """Two calls of 0.3 s in one thread, with a limit of 0.5 s: the second one takes 0.6 s in all."""
    bridge = Bridge({"decode": LaneLimits(seconds=0.5, waits=True)})
    found = await asyncio.gather(*(bridge.run("decode", lambda: time.sleep(0.3) or 1) for _ in range(2)))
    assert found == [1, 1]
    took, waited = await asyncio.gather(
        bridge.run("decode", held.wait), bridge.run("decode", int), return_exceptions=True
    )
    assert [(type(one), one.has_begun) for one in (took, waited)] == [(NoAnswer, True), (NoAnswer, False)]
    with pytest.raises(NoAnswer) as refused:
        await bridge.run("decode", int)
    assert not refused.value.has_begun
    held.set()
    while bridge.left("decode"):
        await asyncio.sleep(0.01)
    assert bridge.close() == []


def panics():
    """A panic of a library in Rust, which is no Exception."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.encode("a a a a").truncate(2, stride=5)


@pytest.mark.parametrize(
    ("function", "said"), [(panics, "PanicException: .*stride"), (lambda: sys.exit(3), "SystemExit: 3")]
)
def test_what_is_no_exception_is_one_for_whoever_waits(function, said):
    lane = Lane("test")
    with pytest.raises(RuntimeError, match=said):
        lane.submit(function).result(SECONDS)
    assert lane.submit(lambda: 1).result(SECONDS) == 1
    lane.close()
