"""What crashes mean, as tables of histories, and compared with a simple model over long random histories."""

import random
from dataclasses import dataclass, field

import pytest

from zwatch.deploy.resolving import LinkStamp
from zwatch.errors import Ending
from zwatch.rollout import crashes
from zwatch.rollout.crashes import Crash
from zwatch.rollout.lifecycle import VersionKey
from zwatch.rollout.saved import KEPT_PROVED, Failure, SavedState, serialise

V1, V2, V3 = (VersionKey(f"v{number}", str(number) * 64) for number in (1, 2, 3))
ANEW = "ANEW"


@dataclass
class Machine:
    """Runs of the service on one saved state. Each link is made when it is first pointed at a version."""

    saved: SavedState = field(default_factory=SavedState)
    links: dict = field(default_factory=dict)
    made: int = 0

    def link(self, key, alias="current"):
        self.made += 1
        self.links[alias] = (key, LinkStamp(1, self.made, self.made))

    def start(self):
        """Begin a run, and look once."""
        blamed = self.saved.begin_run()
        self.look()
        return blamed

    def look(self):
        seen = {}
        for alias, (key, stamp) in self.links.items():
            part = self.saved.alias(alias)
            part.wish, part.link_stamp = key, stamp
            seen[key] = seen.get(key, frozenset()) | {stamp}
        self.saved.note_links(seen)

    def run(self, serving=None, *, trying=None, proved=(), crash=True, alias="current"):
        """Do one whole run."""
        self.start()
        part = self.saved.alias(alias)
        if serving is not None:
            part.note_promoted(serving)
        part.trying = trying
        for key in proved:
            self.saved.note_good(alias, key)
        if not crash:
            self.saved.end_run()

    def set_aside(self):
        """Return what is set aside at the next start."""
        self.start()
        return {key for key in (V1, V2, V3) if self.saved.is_set_aside(key)}


SERVED, TRIED = {"serving": V2}, {"trying": V2}
PROVED = {"serving": V2, "proved": [V2]}
STOPPED = {"serving": V2, "crash": False}
OTHER = {"serving": V1}

HISTORIES = {
    "one crash": ([SERVED], set()),
    "two crashes while it served": ([SERVED, SERVED], {V2}),
    "two crashes while it was tried": ([TRIED, TRIED], {V2}),
    "tried, then served": ([TRIED, SERVED], {V2}),
    "two crashes after it had proved itself": ([PROVED, PROVED], set()),
    "many crashes after it had proved itself": ([PROVED] * 9, set()),
    "a crash before, one after it had proved itself": ([SERVED, PROVED], set()),
    "a crash after it had proved itself, one before": ([PROVED, SERVED], set()),
    "two unproved crashes after years of good service": ([PROVED, PROVED, SERVED, TRIED], {V2}),
    "a good run between two crashes": ([SERVED, PROVED, SERVED], set()),
    "a run without a crash between two crashes": ([SERVED, STOPPED, SERVED], set()),
    "a crash of another version between two crashes": ([SERVED, OTHER, SERVED], set()),
    "a run in which nothing was tried between two crashes": ([SERVED, {}, SERVED], {V2}),
    "a stop in which nothing was tried between two crashes": ([SERVED, {"crash": False}, SERVED], {V2}),
    "a stop in the middle of its load between two crashes": ([TRIED, {"trying": V2, "crash": False}, TRIED], set()),
    "both are to blame while neither has proved itself": (
        [{"serving": V1, "trying": V2}, {"serving": V1, "trying": V2}], {V1, V2},
    ),
    "the tried one is to blame while the other has proved itself": (
        [{"serving": V1, "trying": V2, "proved": [V1]}, {"serving": V1, "trying": V2, "proved": [V1]}], {V2},
    ),
    "linked anew between two crashes": ([SERVED, ANEW, SERVED], set()),
    "linked anew, then two crashes": ([SERVED, ANEW, SERVED, SERVED], {V2}),
    "set aside, then linked anew": ([SERVED, SERVED, ANEW], set()),
    "set aside, linked anew, and one crash": ([SERVED, SERVED, ANEW, SERVED], set()),
    "set aside, linked anew, and two crashes": ([SERVED, SERVED, ANEW, SERVED, TRIED], {V2}),
    "set aside, then another crashes": ([SERVED, SERVED, OTHER], {V2}),
    "set aside, then another serves and stops": ([SERVED, SERVED, {"serving": V1, "crash": False}], {V2}),
    "set aside, then it serves as the last resort and stops": ([SERVED, SERVED, STOPPED], set()),
    "set aside, then it proves itself as the last resort": ([SERVED, SERVED, PROVED], set()),
    "nothing ran before": ([], set()),
}  # fmt: skip


@pytest.mark.parametrize(("runs", "expected"), HISTORIES.values(), ids=HISTORIES.keys())
def test_what_is_set_aside_after_a_history_of_runs(runs, expected):
    machine = Machine()
    machine.link(V2)
    for run in runs:
        if run is ANEW:
            machine.link(V2)
        else:
            machine.run(**run)
    assert machine.set_aside() == expected


@pytest.mark.parametrize(("on_trial", "expected"), [(True, {V2}), (False, set())])
def test_good_images_do_not_acquit_what_drew_on_trial_when_the_device_was_lost(on_trial, expected):
    machine = Machine()
    machine.link(V2, "current@")
    for _ in range(2):
        machine.run(V2, proved=[V2], alias="current@")
        machine.saved.failure = Failure(Ending.DEVICE_LOST, "the device is lost", V2, on_trial)
    assert machine.set_aside() == expected


@pytest.mark.parametrize(("on_trial", "expected"), [(True, {V2}), (False, {V1, V2})])
def test_what_drew_on_trial_when_the_device_was_lost_is_alone_to_blame(on_trial, expected):
    """`current` serves v1, which has drawn too few images to have proved itself; its share draws by v2."""
    machine = Machine()
    machine.link(V1)
    machine.link(V2, "current@")
    for _ in range(2):
        machine.run(V1)
        machine.saved.alias("current@").serving = V2
        machine.saved.failure = Failure(Ending.DEVICE_LOST, "the device is lost", V2, on_trial)
    assert machine.set_aside() == expected


def test_a_crash_by_what_drew_on_trial_neither_counts_for_others_nor_acquits_them():
    machine = Machine()
    machine.link(V1)
    machine.run(V1)
    machine.run(V1)
    machine.saved.failure = Failure(Ending.HUNG, "it hangs", V2, on_trial=True)  # its share has ended meanwhile
    assert machine.start() == [V2]
    assert (crashes.count(machine.saved.crashes, V1), crashes.count(machine.saved.crashes, V2)) == (1, 1)


def test_the_start_names_what_is_to_blame():
    machine = Machine()
    machine.link(V2)
    machine.run(V1, trying=V2, proved=[V1])
    assert machine.start() == [V2]


def test_a_version_to_which_two_links_lead_is_set_aside_for_both():
    machine = Machine()
    machine.link(V2)
    machine.link(V2, "canary")
    machine.run(trying=V2, alias="canary")
    machine.run(trying=V2)
    assert machine.set_aside() == {V2}
    for _, stamp in machine.links.values():
        assert machine.saved.is_set_aside(V2, stamp)


def test_one_of_two_links_made_anew_ends_it():
    machine = Machine()
    machine.link(V2)
    machine.link(V2, "canary")
    machine.run(V2)
    machine.run(V2)
    machine.link(V2, "canary")
    assert machine.set_aside() == set()


def test_another_link_moved_away_changes_nothing():
    machine = Machine()
    machine.link(V2)
    machine.link(V2, "canary")
    machine.run(V2)
    machine.run(V2)
    machine.link(V1, "canary")
    assert machine.set_aside() == {V2}


def test_a_last_known_good_version_that_crashes_is_set_aside_although_no_link_leads_to_it():
    machine = Machine()
    machine.link(V2)
    machine.run(V1)
    machine.run(V1)
    assert machine.set_aside() == {V1}
    machine.link(V1)
    assert machine.set_aside() == set()


def test_sealed_anew_is_another_version_and_sealed_again_with_the_same_content_begins_at_zero():
    machine = Machine()
    machine.link(V2)
    machine.run(V2)
    machine.run(V2)
    machine.start()
    assert not machine.saved.is_set_aside(VersionKey("v2", "f" * 64))
    machine.saved.note_sealed(V2)
    assert not machine.saved.is_set_aside(V2)


def test_numbers_of_devices_and_inodes_may_change_when_the_machine_starts_again():
    machine = Machine()
    machine.link(V2)
    machine.run(V2)
    machine.run(V2)
    key, stamp = machine.links["current"]
    machine.links["current"] = (key, LinkStamp(stamp.device + 1, stamp.inode + 1, stamp.ctime_ns))
    assert machine.set_aside() == {V2}


TWICE = [Crash(V2, 2, None)]


@pytest.mark.parametrize(
    ("good", "promoted", "counted", "wish", "expected"),
    [
        ([], [], [], V1, []),
        ([], [V1], [], V2, [V1]),
        ([], [V2, V1], [], V2, [V1]),
        ([V1], [V3, V1], [], V2, [V1, V3]),
        ([V3, V1], [V2], [], V2, [V3, V1]),
        ([V2, V1], [V2, V1], TWICE, V3, [V1]),
        ([V2], [V2], TWICE, V3, []),
        ([V1], [], [], None, [V1]),
        ([], [V1], [Crash(V1, 1, None)], V2, [V1]),
    ],
    ids=[
        "nothing known", "the one promoted last", "not the wish itself", "what has proved itself comes first",
        "the newest of these comes first", "not what is set aside", "not even if it is all there is",
        "while the link has a fault", "one crash sets nothing aside",
    ],
)  # fmt: skip
def test_what_serves_while_the_wish_cannot(good, promoted, counted, wish, expected):
    assert crashes.fallbacks(good, promoted, counted, wish) == expected


@pytest.mark.parametrize(
    ("good", "counted", "expected"),
    [
        ([V2], [], {}),
        ([V2], [Crash(V2, 1, None)], {}),
        ([V2], TWICE, {V2: 60.0}),
        ([V2], [Crash(V2, 3, None)], {V2: 120.0}),
        ([V2], [Crash(V2, 2_000_000_000, None)], {V2: 600.0}),
        ([V1], TWICE, {}),
    ],
    ids=["no crash", "one", "two", "three", "many", "what never proved itself is none"],
)
def test_the_last_resort_has_proved_itself_and_waits_longer_each_time(good, counted, expected):
    assert crashes.last_resorts(good, counted) == expected


class Model:
    """Counts for each version with one number, as a person would."""

    def __init__(self):
        self.counts = dict.fromkeys((V1, V2, V3), 0)

    def linked(self, key):
        self.counts[key] = 0

    def ended(self, serving, trying, proved, crash):
        if serving is None and trying is None:
            return
        for key in self.counts:
            if key in proved or (key == serving and not crash):
                self.counts[key] = 0
            elif key in (serving, trying) and crash:
                self.counts[key] += 1
            elif self.counts[key] < 2:
                self.counts[key] = 0


@pytest.mark.parametrize("seed", range(20))
def test_long_random_histories_agree_with_a_simple_model(seed):
    chance = random.Random(seed)
    machine, model = Machine(), Model()
    for alias in ("current", "canary"):
        machine.link(V1, alias)
    for _ in range(500):
        for alias in ("current", "canary"):
            if chance.random() < 0.2:
                key = chance.choice((V1, V2, V3))
                machine.link(key, alias)
                model.linked(key)
        assert machine.set_aside() == {key for key, count in model.counts.items() if count >= 2}
        machine.saved.end_run()
        wishes = [key for key, _ in machine.links.values()]
        serving, trying = chance.choice([None, *wishes]), chance.choice([None, *wishes])
        proved = [serving] if serving is not None and chance.random() < 0.3 else []
        crash = chance.random() < 0.7
        machine.run(serving, trying=trying, proved=proved, crash=crash)
        model.ended(serving, trying, proved, crash)


def test_a_run_of_many_versions_keeps_some_of_those_that_proved_themselves_and_all_that_are_in_use():
    machine = Machine()
    stable = VersionKey("stable", "5" * 64)
    daily = [VersionKey(f"day-{number}", f"{number:064x}") for number in range(1000)]
    machine.run(stable, proved=[stable], alias="stable")
    saved = machine.saved
    for key in daily:
        saved.alias("current").note_promoted(key)
        assert saved.note_good("current", key)
        assert not saved.note_good("current", key)
    assert stable in saved.proved
    assert daily[-1] in saved.proved
    assert len(saved.proved) <= KEPT_PROVED + 2
    assert len(serialise(saved)) < 2**15
    machine.start()  # it crashed
    assert saved.crashes == [], "both that were in use had proved themselves"
