"""What is counted of a trial: when one begins and ends, and which requests count."""

import asyncio
import json
import random
from types import SimpleNamespace

import pytest

from zwatch.bridge import Pulse
from zwatch.errors import RequestError
from zwatch.generation.job import JobState
from zwatch.generation.trial_file import TrialFile
from zwatch.generation.trial_results import MOST_SAMPLES, Side, TrialResults
from zwatch.rollout.lifecycle import VersionKey

V1, V2, V3 = (VersionKey(f"v{number}", str(number) * 64) for number in (1, 2, 3))


class Records(dict):
    """The records of `current` and its share as far as results read them."""

    def __init__(self):
        self["current"] = SimpleNamespace(is_share=False, share=None, name="current", serving=None)

    def serve(self, key, alias="current"):
        self[alias].serving = None if key is None else SimpleNamespace(key=key)

    def link(self, percent, key):
        name = f"current@{percent}"
        self["current@"] = SimpleNamespace(
            is_share=True, share=name, name=name, serving=None, target=object(), fault=None, percent=percent,
            is_withdrawn=False, saved=SimpleNamespace(withdrawn=None),
        )  # fmt: skip
        self.serve(key, "current@")

    def withdraw(self):
        self["current@"].saved.withdrawn = self["current@"].serving
        self.serve(None, "current@")


def takes(share):
    return share.serving is not None and share.percent > 0


def made(records):
    return TrialResults(records, takes)


def begun(results, key, *, model="current", client="ann"):
    """A job that gets this version now, as far as results read it."""
    job = SimpleNamespace(request=SimpleNamespace(model=model), client=client, key=key)
    job.trial = results.trial_of(job)
    return job


def end(results, job, *, state=JobState.DONE, seconds=1.0, code="generation_failed"):
    timings = {"total": seconds + 5.0, "queue": 5.0}
    job.state, job.error = state, None if state is JobState.DONE else RequestError(code, "…")
    job.finished = SimpleNamespace(timings=timings) if state is JobState.DONE else None
    results.job_ended(job)


def draw(results, key, *, model="current", client="ann", **ending):
    """Count a request from its turn to its end."""
    end(results, begun(results, key, model=model, client=client), **ending)


@pytest.fixture
def records():
    found = Records()
    found.serve(V1)
    found.link(10, V3)
    return found


@pytest.fixture
def results(records):
    return made(records)


def counted(results):
    trial = results.find("current")
    return [(side.key.version, side.requests, side.failures, side.seconds) for side in trial.sides]


def test_each_side_counts_its_requests_and_how_long_drawing_took(results):
    for key in (V1, V1, V3):
        draw(results, key)
    draw(results, V3, state=JobState.FAILED)
    draw(results, V3, state=JobState.FAILED, code="timeout")
    assert counted(results) == [("v1", 2, 0, [1.0, 1.0]), ("v3", 3, 2, [1.0])]
    assert results.is_changed


@pytest.mark.parametrize(
    ("key", "job"),
    [
        (V1, {"state": JobState.CANCELLED, "code": "cancelled"}), (V1, {"state": JobState.FAILED, "code": "invalid_value"}),
        (V1, {"client": None}), (V3, {"model": "v3"}), (V3, {"model": "current@10"}), (V2, {}), (None, {"state": JobState.FAILED}),
    ],
    ids=["cancelled", "client's mistake", "names the alias", "names the version", "names the share", "a third version", "never drawn"],
)  # fmt: skip
def test_what_was_not_left_to_chance_does_not_count(results, key, job):
    results.find("current")
    draw(results, key, **job)
    assert [row[1:] for row in counted(results)] == [(0, 0, []), (0, 0, [])]


def test_a_request_that_the_other_version_drew_again_counts_for_the_one_that_failed_only(results):
    job = begun(results, V3)
    failed_in, job.trial, job.key = job.trial, "", V1  # its second turn
    results.failed(failed_in, V3)
    end(results, job)
    assert counted(results) == [("v1", 0, 0, []), ("v3", 1, 1, [])]


def test_a_failure_counts_in_the_trial_of_its_request_only(records):
    records["canary"] = SimpleNamespace(is_share=False, share=None, name="canary", serving=SimpleNamespace(key=V1))
    share = records["current@"]
    records["canary@"] = SimpleNamespace(**{**vars(share), "share": "canary@10", "name": "canary@10"})
    results = made(records)
    results.failed(begun(results, V3).trial, V3)
    results.failed(begun(results, V3, client=None).trial, V3)  # it names the alias
    assert [side.requests for side in results.find("canary").sides] == [0, 0]
    assert [side.requests for side in results.find("current").sides] == [0, 1]


def test_nothing_counts_while_the_share_takes_no_requests(results, records):
    draw(results, V1)
    before = results.find("current").id
    records.link(0, V3)
    draw(results, V1)
    draw(results, V1, state=JobState.FAILED)
    assert (results.find("current").share, results.find("current").ended) == ("current@0", None)
    assert counted(results) == [("v1", 1, 0, [1.0]), ("v3", 0, 0, [])]
    records.link(20, V3)
    draw(results, V1)
    assert results.find("current").id == before
    assert counted(results) == [("v1", 2, 0, [1.0, 1.0]), ("v3", 0, 0, [])]


def test_a_version_that_is_only_held_ready_is_in_no_trial_until_it_takes_requests(records):
    records.link(0, V3)
    results = made(records)
    draw(results, V1)
    assert results.find("current") is None
    records.link(1, V3)
    assert results.find("current").ended is None


def test_a_request_counts_in_the_trial_in_which_it_got_its_version(results, records):
    early = begun(results, V1)
    records.link(0, V3)
    late = begun(results, V1)
    records.link(10, V3)
    for job in (early, late):
        end(results, job)
    assert counted(results)[0] == ("v1", 1, 0, [1.0])


def test_renaming_the_share_goes_on_with_the_same_trial(results, records):
    draw(results, V3)
    before = results.find("current").id
    records.link(50, V3)
    assert results.find("current").id == before
    assert (results.find("current").share, results.find("current").sides[1].requests) == ("current@50", 1)


@pytest.mark.parametrize("change", [lambda records: records.serve(V2), lambda records: records.link(10, V2)])
def test_another_version_on_either_side_is_another_trial(results, records, change):
    draw(results, V3)
    change(records)
    assert all(row[1:] == (0, 0, []) for row in counted(results))


def promote(records):
    del records["current@"]
    records.serve(V3)


def lose_both(records):
    """`current` is moved to another version, and the share's link to one that is not there."""
    records.serve(V2)
    records.serve(None, "current@")


@pytest.mark.parametrize(
    "ending",
    [
        promote, lambda records: records.pop("current@"), Records.withdraw, lose_both,
        lambda records: records.link(10, V1), lambda records: records.serve(V3),
    ],
    ids=["promoted", "removed", "withdrawn", "serves neither", "the share serves the alias's", "the alias serves the share's"],
)  # fmt: skip
def test_it_ends_when_the_sides_are_not_served_any_more_and_its_counts_stay(results, records, ending):
    draw(results, V3)
    ending(records)
    trial = results.find("current")
    assert trial.ended is not None
    draw(results, V3)
    assert counted(results)[1] == ("v3", 1, 0, [1.0])
    assert list(results.running()) == []
    assert not results.goes_on(trial.id, V3)


def test_another_version_while_the_share_takes_nothing_ends_it(results, records):
    results.look()
    records.link(0, V3)
    records.serve(V2)
    assert results.find("current").ended is not None


def test_what_is_tried_again_after_a_withdrawal_is_another_trial(results, records):
    before = results.find("current").id
    records.withdraw()
    results.look()
    records.link(10, V3)
    found = results.find("current")
    assert (found.id != before, found.ended) == (True, None)


def test_nothing_ends_while_something_is_loaded(results, records):
    """As after a restart, or an unload."""
    draw(results, V3)
    before = results.find("current").id
    records.serve(None)
    records.serve(None, "current@")
    assert results.find("current").ended is None
    records.serve(V1)
    records.serve(V3, "current@")
    assert results.find("current").id == before


def test_an_alias_without_a_share_has_no_trial(records):
    del records["current@"]
    assert made(records).find("current") is None
    assert made(records).find("nobody") is None


def test_a_share_of_the_version_that_serves_is_no_trial(records):
    records.link(10, V1)
    assert made(records).find("current") is None


def test_a_restart_goes_on_with_it(results, records):
    draw(results, V3)
    saved = json.loads(json.dumps(results.saved()))
    again = made(records)
    again.restore(saved)
    assert again.find("current").id == results.find("current").id
    draw(again, V3)
    assert counted(again)[1] == ("v3", 2, 0, [1.0, 1.0])


@pytest.mark.parametrize(
    "wrong", [{}, {"schema": 2, "trials": []}, {"schema": 1, "trials": [{}]}, {"schema": 1, "trials": 3}, []]
)
def test_another_programs_json_is_no_results(results, wrong):
    with pytest.raises(ValueError, match=r"schema|not what zwatch writes"):
        results.restore(wrong)


def test_a_trial_goes_on_with_its_two_versions(results):
    trial = results.find("current").id
    assert results.goes_on(trial, V1)
    assert results.goes_on(trial, V3)
    assert not results.goes_on(trial, V2)
    assert not results.goes_on("", V3)
    assert not results.goes_on("current 2026-11-21T14:02:11+00:00", V3)


async def test_a_trial_that_begins_and_ends_while_the_file_is_left_alone_is_seen(results, records, bridge, tmp_path):
    changes = Pulse()
    keeping = asyncio.create_task(TrialFile(bridge, tmp_path, results, changes).run())
    try:
        async with asyncio.timeout(60):
            while not (tmp_path / "trials.json").exists():  # the next time is seconds away
                await asyncio.sleep(0.01)
        for change in (lambda: records.link(10, V2), lambda: records.pop("current@")):
            change()
            changes.fire()
            for _ in range(5):
                await asyncio.sleep(0)
        found = results.find("current")
        assert (found.sides[1].key, found.ended is not None) == (V2, True)
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
    [saved] = json.loads((tmp_path / "trials.json").read_text())["trials"]
    assert (saved["sides"][1]["version"], saved["ended"]) == ("v2", found.ended.isoformat())


def test_memory_is_bounded_and_the_sample_is_of_all():
    side = Side(V1)
    for number in range(5 * MOST_SAMPLES):
        side.drawn(float(number))
    assert (side.requests, len(side.seconds)) == (5 * MOST_SAMPLES, MOST_SAMPLES)
    # Of each fifth about as many: a hypergeometric count of mean 200 and deviation 11, from fixed seeds.
    fifths = [sum(1 for value in side.seconds if value // MOST_SAMPLES == fifth) for fifth in range(5)]
    assert all(150 < count < 250 for count in fifths)
    again = Side(V1)
    random.seed(5)
    for number in range(5 * MOST_SAMPLES):
        again.drawn(float(number))
    assert again.seconds == side.seconds, "nothing depends on chance"
