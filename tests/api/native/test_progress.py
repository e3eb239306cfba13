"""The progress of attempts in a stream."""

import pytest

from zwatch.api.native.progress import SECONDS, Progress, next_look
from zwatch.errors import Rejection
from zwatch.rollout.lifecycle import Attempt, LoadWay, VersionKey
from zwatch.shadow.control import LoadControl


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def attempt_of(alias="current", total=1000):
    control = LoadControl()
    control.bytes_total = total
    return Attempt(alias, VersionKey("v1", "d" * 64), LoadWay.DEVICE, control)


@pytest.fixture
def clock():
    return Clock()


def test_the_view_of_a_running_attempt_changes_a_few_times_a_second(clock):
    progress, attempt, seen = Progress(clock), attempt_of(), []
    for look in range(100):  # a second, in hundredths
        clock.now = look / 100
        attempt.control.bytes_done = 10 * look
        seen.append(progress.view(attempt)["progress"])
    assert len(set(seen)) == 1 / SECONDS


def test_another_state_is_shown_at_once(clock):
    progress, attempt = Progress(clock), attempt_of()
    assert progress.view(attempt)["state"] == "LOADING"
    attempt.begin_warming()
    assert progress.view(attempt)["state"] == "WARMING"
    attempt.reject(Rejection("io_error", "x"))
    assert progress.view(attempt)["state"] == "REJECTED"


def test_another_attempt_is_shown_at_once_and_each_alias_has_its_own(clock):
    progress, first, second, other = Progress(clock), attempt_of(), attempt_of(total=2000), attempt_of("canary")
    for attempt in (first, second, other):
        attempt.control.bytes_done = 500
    assert [progress.view(one)["progress"] for one in (first, second, other)] == [0.5, 0.25, 0.5]
    assert progress.view(None) is None


def test_only_while_an_attempt_runs_the_stream_looks_without_a_change():
    running, ended = attempt_of(), attempt_of()
    ended.abandon()
    assert next_look([None, ended, running]) == SECONDS
    assert next_look([None, ended]) is None
    assert next_look([]) is None
