"""Losses at the moments at which they are hardest to notice. Ray and its processes are not here: what a replica answers is given, and the
fleet's own code decides."""

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from zwatch.engine.parameters import GenerationParameters
from zwatch.errors import Abandoned, GenerationCancelled, Rejection
from zwatch.fleet.cluster import Gone
from zwatch.fleet.following import Following, Lost
from zwatch.fleet.joining import Joining
from zwatch.fleet.member import Member
from zwatch.fleet.messages import Failure, Sign
from zwatch.fleet.replica import _Load, _Stage
from zwatch.fleet.roster import Roster
from zwatch.fleet.settings import FleetLimits, FleetSettings, Place, quorum, replica_count
from zwatch.fleet.stages import Rollout, Stage
from zwatch.fleet.views import ReplicaState
from zwatch.shadow.control import LoadControl

ASKED = GenerationParameters("a cat", "", 64, 64, 4, 0.0, (7,))
SIGN = Sign("1", 1, "host-a", "cpu (CPU)", False, None, {}, 0, {})


class Ended:
    """A call that has ended."""

    def __init__(self, result):
        self.result = result


class Answers:
    """An actor whose calls have ended with what is given by method; `told` are the calls. A function is called at the end of a call."""

    def __init__(self, **answers):
        self.answers, self.told = answers, []

    def call(self, method, *args):
        self.told.append((method, *args))
        answer = self.answers.get(method)
        return Ended(answer if callable(answer) else lambda: answer)

    def tell(self, method, *args):
        self.call(method, *args)

    def draw(self, *args):
        self.told.append(("draw", *args))
        events = iter(self.answers["draw"])
        return SimpleNamespace(next=lambda seconds: next(events))


@pytest.fixture
def roster():
    limits = FleetLimits(begin=0.3, straggler=0.05)
    asked = FleetSettings(
        Path("models"), Path("loras"), Path("state"), None, "auto", replica_count("1..4"), quorum("all"), "cpu", None, None, "auto", None,
        "auto", None, limits=limits,
    )  # fmt: skip
    made = Roster(asked)
    made.connected = SimpleNamespace(done=lambda calls, seconds: set(calls))
    return made


def member(roster, name, actor=None, **known):
    made = Member(
        name, actor or Answers(), Place(), sign=SIGN, **{"state": ReplicaState.READY, "is_open": True, **known}
    )
    roster.members = [*roster.members, made]
    return made


def following(cancelled=lambda: False):
    return Following("e1", 60.0, ASKED, (), lambda done: None, lambda number, image: None, cancelled, threading.local())


def test_a_replica_that_is_lost_between_being_chosen_and_being_called_is_noticed(roster):
    one = member(roster, "r0", Answers(draw=[None] * 3), holds={"e1"})
    engine = SimpleNamespace(id="e1", version="v1", is_complete=True)
    with roster.taken(engine, "run", lambda: False) as (chosen, epoch):
        roster.lose(one, one.epoch, "it has not answered for 20 s")
        with pytest.raises(Lost, match="it has not answered"):
            following().draw(chosen, epoch)


def test_a_request_that_is_cancelled_while_its_replica_is_lost_is_cancelled_on_the_next_one_too(roster):
    cancelled = Failure("cancelled", "")
    first, second = (
        member(roster, name, Answers(draw=draw)) for name, draw in (("r0", [None] * 9), ("r1", [None, cancelled]))
    )
    drawing = following(lambda: True)
    roster.lose(first, 0, "it died")
    with pytest.raises(Lost):
        drawing.draw(first, 0)
    drawing.renew()
    with pytest.raises(GenerationCancelled):
        drawing.draw(second, second.epoch)
    assert ("cancel", drawing.run_id) in second.actor.told


@pytest.mark.parametrize("kind", ["error", "memory"])
def test_an_error_of_a_drawing_names_the_replica(roster, kind):
    one = member(roster, "r0", Answers(draw=[Failure(kind, "the device said no")]))
    with pytest.raises((RuntimeError, MemoryError), match=r"replica r0 \(host-a, cpu\): the device said no"):
        following().draw(one, one.epoch)


def test_a_replica_that_is_lost_after_its_part_of_a_stage_is_no_part_of_the_promotion(roster):
    def dies():
        roster.lose(first, first.epoch, "it died")

    first, second = member(roster, "r0"), member(roster, "r1", Answers(warm=dies))
    rollout = Rollout("e1", "v2", "0" * 64, [first, second], quorum("all").of(2))
    with pytest.raises(Rejection, match=r"replica r0 .* lost while v2 was prepared"):
        Stage(roster, rollout, LoadControl(), "warming", lambda one: one.actor.call("warm")).run()
    assert ("forget", "e1") in first.actor.told
    assert ("forget", "e1") in second.actor.told


def test_a_stage_without_a_replica_says_so(roster):
    with pytest.raises(Rejection, match="no replica has v2 ready"):
        Stage(roster, Rollout("e1", "v2", "0" * 64, [], 1), LoadControl(), "warming", lambda one: None).run()


def test_a_device_that_was_opened_by_a_process_that_died_is_not_open(roster):
    def opened():
        roster.lose(one, one.epoch, "it died")
        return SIGN

    one = member(roster, "r0", Answers(open=opened), state=ReplicaState.STARTING, is_open=False)
    with pytest.raises(Gone):
        Joining(roster)._prepared(one, one.epoch)
    assert (one.is_open, one.state) == (False, ReplicaState.LOST)


def test_a_state_of_before_a_loss_is_not_set_after_it(roster):
    one = member(roster, "r0")
    roster.lose(one, one.epoch, "it died")
    roster.set_state(one, one.epoch - 1, ReplicaState.READY)
    assert one.state is ReplicaState.LOST


def test_no_rollout_waits_for_a_replica_that_came_later_and_has_no_host_yet(roster):
    first = member(roster, "r0")
    late = member(roster, "r1", is_open=False, state=ReplicaState.STARTING, is_extra=True)
    assert roster.gather(LoadControl()) == {first: None}
    late.is_open = True
    assert roster.gather(LoadControl()) == {first: None, late: None}


@pytest.mark.parametrize(("text", "seconds"), [("all", 0.3), ("1/2", 0.05)])
def test_a_rollout_waits_for_a_lost_replica_no_longer_than_the_quorum_asks(roster, text, seconds):
    roster.settings = replace(roster.settings, quorum=quorum(text))
    first, lost = member(roster, "r0"), member(roster, "r1", is_open=False, state=ReplicaState.LOST, problem="it died")
    waits = []
    wait = roster.lock.wait
    roster.lock.wait = lambda timeout: waits.append(timeout) or wait(0.01)
    found = roster.gather(LoadControl())
    assert found[first] is None
    assert "it died" in found[lost].text
    assert len(waits) <= seconds / 0.01 + 1


def test_a_stage_that_is_abandoned_before_it_begins_has_ended():
    load = _Load("v1", "0" * 64)
    load.control.abandon()
    with pytest.raises(Abandoned), _Stage(load):
        pass
    assert load.ended.is_set()
