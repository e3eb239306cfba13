"""Both transition tables, exactly as in the design, and no other transitions."""

import pytest

from zwatch.errors import Rejection
from zwatch.rollout.lifecycle import (
    ATTEMPT_MOVES,
    ENGINE_MOVES,
    Attempt,
    AttemptState,
    EngineState,
    LoadWay,
    Resident,
    VersionKey,
)

KEY = VersionKey("v1", "d" * 64)
ATTEMPT_TABLE = {
    "LOADING": {"WARMING", "REJECTED", "ABANDONED"},
    "WARMING": {"PROMOTED", "REJECTED", "ABANDONED"},
    "PROMOTED": set(),
    "REJECTED": set(),
    "ABANDONED": set(),
}
ENGINE_TABLE = {
    "SERVING": {"DRAINING"},
    "DRAINING": {"WARM", "FREED", "SERVING"},
    "WARM": {"SERVING", "FREED"},
    "FREED": set(),
}
ATTEMPT_CALLS = {
    "WARMING": lambda attempt: attempt.begin_warming(),
    "PROMOTED": lambda attempt: attempt.promote(),
    "REJECTED": lambda attempt: attempt.reject(Rejection("io_error", "x")),
    "ABANDONED": lambda attempt: attempt.abandon(),
}
ENGINE_CALLS = {
    "SERVING": Resident.serve, "DRAINING": Resident.drain, "WARM": Resident.keep, "FREED": Resident.free,
}  # fmt: skip


def names(moves):
    return {old.name: {new.name for new in news} for old, news in moves.items()}


def test_the_attempts_table_is_the_designs():
    assert names(ATTEMPT_MOVES) == ATTEMPT_TABLE


def test_the_engines_table_is_the_designs_and_a_transition_back_from_draining():
    assert names(ENGINE_MOVES) == ENGINE_TABLE


@pytest.mark.parametrize("new", ATTEMPT_CALLS)
@pytest.mark.parametrize("old", ATTEMPT_TABLE)
def test_an_attempt_moves_only_along_its_table(old, new):
    attempt = Attempt("current", KEY, LoadWay.DEVICE, state=AttemptState[old])
    if new in ATTEMPT_TABLE[old]:
        ATTEMPT_CALLS[new](attempt)
        assert attempt.state is AttemptState[new]
    else:
        with pytest.raises(AssertionError, match=f"no transition from {old} to {new}"):
            ATTEMPT_CALLS[new](attempt)
        assert attempt.state is AttemptState[old]


@pytest.mark.parametrize("new", ENGINE_CALLS)
@pytest.mark.parametrize("old", ENGINE_TABLE)
def test_an_engine_moves_only_along_its_table(old, new):
    resident = Resident(KEY, engine=None, state=EngineState[old])
    if new in ENGINE_TABLE[old] or old == new == "SERVING":
        ENGINE_CALLS[new](resident)
        assert resident.state is EngineState[new]
    else:
        with pytest.raises(AssertionError, match=f"no transition from {old} to {new}"):
            ENGINE_CALLS[new](resident)
        assert resident.state is EngineState[old]


@pytest.mark.parametrize("state", AttemptState)
def test_an_attempt_runs_until_a_final_state(state):
    running = Attempt("current", KEY, LoadWay.DEVICE, state=state).running
    assert running is (state.name in {"LOADING", "WARMING"})


@pytest.mark.parametrize("end", ["PROMOTED", "REJECTED", "ABANDONED"])
def test_an_attempts_seconds_do_not_change_after_its_end(end):
    attempt = Attempt("current", KEY, LoadWay.DEVICE, state=AttemptState.WARMING)
    assert attempt.seconds < attempt.seconds
    ATTEMPT_CALLS[end](attempt)
    assert attempt.seconds == attempt.seconds


def test_a_rejected_attempt_keeps_its_reason():
    attempt = Attempt("current", KEY, LoadWay.DEVICE)
    rejection = Rejection("hash_mismatch", "vae/w: …")
    attempt.reject(rejection)
    assert attempt.rejection is rejection


def test_an_engine_that_serves_again_has_a_new_start():
    resident = Resident(KEY, engine=None)
    first = (resident.since, resident.serving_from)
    resident.drain()
    resident.serve()
    assert resident.since > first[0]
    assert resident.serving_from > first[1]
