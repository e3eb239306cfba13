"""What is counted of a trial: when one begins and ends, and which requests count."""

import json
import random
from types import SimpleNamespace

import pytest

from zwatch.errors import RequestError
from zwatch.generation.job import JobState
from zwatch.generation.trial_results import MOST_SAMPLES, Side, TrialResults
from zwatch.rollout.lifecycle import VersionKey

V1, V2, V3 = (VersionKey(f"v{number}", str(number) * 64) for number in (1, 2, 3))


class Records(dict):
    """The records of `current` and its share as far as results read them."""

    def __init__(self):
        self["current"] = SimpleNamespace(
            is_share=False, share=None, name="current", serving=None, target=object(), fault=None
        )

    def serve(self, key, alias="current"):
        self[alias].serving = None if key is None else SimpleNamespace(key=key)

    def link(self, percent, key):
        name = f"current@{percent}"
        self["current@"] = SimpleNamespace(
            is_share=True, share=name, name=name, serving=None, target=object(), fault=None
        )
        self.serve(key, "current@")


def ended(key, *, model="current", client="ann", state=JobState.DONE, seconds=1.0, code="generation_failed"):
    """A job as far as results read it."""
    timings = {"total": seconds + 5.0, "queue": 5.0}
    finished = SimpleNamespace(timings=timings) if state is JobState.DONE else None
    error = None if state is JobState.DONE else RequestError(code, "…")
    return SimpleNamespace(
        request=SimpleNamespace(model=model), client=client, key=key, state=state, finished=finished, error=error
    )


@pytest.fixture
def records():
    found = Records()
    found.serve(V1)
    found.link(10, V3)
    return found


@pytest.fixture
def results(records):
    return TrialResults(records)


def counted(results):
    trial = results.find("current")
    return [(side.key.version, side.requests, side.failures, side.seconds) for side in trial.sides]


def test_each_side_counts_its_requests_and_how_long_drawing_took(results):
    for key in (V1, V1, V3):
        results.job_ended(ended(key))
    results.job_ended(ended(V3, state=JobState.FAILED))
    results.job_ended(ended(V3, state=JobState.FAILED, code="timeout"))
    assert counted(results) == [("v1", 2, 0, [1.0, 1.0]), ("v3", 3, 2, [1.0])]
    assert results.is_changed


@pytest.mark.parametrize(
    "job",
    [
        ended(V1, state=JobState.CANCELLED, code="cancelled"), ended(V1, state=JobState.FAILED, code="invalid_value"),
        ended(V1, client=None), ended(V3, model="v3"), ended(V3, model="current@10"), ended(V2), ended(None, state=JobState.FAILED),
    ],
    ids=["cancelled", "client's mistake", "names the alias", "names the version", "names the share", "a third version", "never drawn"],
)  # fmt: skip
def test_what_was_not_left_to_chance_does_not_count(results, job):
    results.find("current")
    results.job_ended(job)
    assert [row[1:] for row in counted(results)] == [(0, 0, []), (0, 0, [])]


def test_a_request_that_the_other_version_drew_again_counts_for_both(results):
    results.find("current")
    results.drawn_again(V3)
    results.job_ended(ended(V1))
    assert counted(results) == [("v1", 1, 0, [1.0]), ("v3", 1, 1, [])]


def test_renaming_the_share_goes_on_with_the_same_trial(results, records):
    results.job_ended(ended(V3))
    before = results.find("current").id
    records.link(50, V3)
    assert results.find("current").id == before
    assert (results.find("current").share, results.find("current").sides[1].requests) == ("current@50", 1)


@pytest.mark.parametrize("change", [lambda records: records.serve(V2), lambda records: records.link(10, V2)])
def test_another_version_on_either_side_is_another_trial(results, records, change):
    results.job_ended(ended(V3))
    change(records)
    assert all(row[1:] == (0, 0, []) for row in counted(results))


def promote(records):
    del records["current@"]
    records.serve(V3)


@pytest.mark.parametrize("ending", [promote, lambda records: records.pop("current@")])
def test_a_promotion_and_a_removed_link_end_it_and_its_counts_stay(results, records, ending):
    results.job_ended(ended(V3))
    ending(records)
    trial = results.find("current")
    assert trial.ended is not None
    results.job_ended(ended(V3))
    assert counted(results)[1] == ("v3", 1, 0, [1.0])
    assert list(results.running()) == []
    assert results.trial_of(V3, "current") == ""


def test_nothing_ends_while_something_is_loaded(results, records):
    """As after a restart, or an unload."""
    results.job_ended(ended(V3))
    before = results.find("current").id
    records.serve(None)
    records.serve(None, "current@")
    assert results.find("current").ended is None
    records.serve(V1)
    records.serve(V3, "current@")
    assert results.find("current").id == before


def test_an_alias_without_a_share_has_no_trial(records):
    del records["current@"]
    assert TrialResults(records).find("current") is None
    assert TrialResults(records).find("nobody") is None


def test_a_share_of_the_version_that_serves_is_no_trial(records):
    records.link(10, V1)
    assert TrialResults(records).find("current") is None


def test_a_restart_goes_on_with_it(results, records):
    results.job_ended(ended(V3))
    saved = json.loads(json.dumps(results.saved()))
    again = TrialResults(records)
    again.restore(saved)
    assert again.find("current").id == results.find("current").id
    again.job_ended(ended(V3))
    assert counted(again)[1] == ("v3", 2, 0, [1.0, 1.0])


@pytest.mark.parametrize(
    "wrong", [{}, {"schema": 2, "trials": []}, {"schema": 1, "trials": [{}]}, {"schema": 1, "trials": 3}, []]
)
def test_another_programs_json_is_no_results(results, wrong):
    with pytest.raises(ValueError, match=r"schema|not what zwatch writes"):
        results.restore(wrong)


def test_a_picture_is_of_the_trial_of_its_version(results):
    trial = results.find("current").id
    assert results.trial_of(V1, "v1") == results.trial_of(V3, None) == trial
    assert results.trial_of(V2, "current") == ""


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
