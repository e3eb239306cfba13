"""The one judgement of the service's health, as a table over small real objects."""

from types import SimpleNamespace

import pytest

from zwatch.api.health import health
from zwatch.deploy.following import ShareSeen, two_shares
from zwatch.deploy.resolving import Fault
from zwatch.deploy.shares import ShareLink
from zwatch.deploy.strays import Stray
from zwatch.errors import FatalError, Rejection
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.lifecycle import Attempt, LoadWay, VersionKey

V1, V2, V3 = (VersionKey(f"v{number}", str(number) * 64) for number in (1, 2, 3))
FAULT = Fault("current", "link_missing", "current is missing", link=None)


class Supervisor:
    """The attributes of a supervisor that the judgement reads. `attempts` are newest first."""

    withdrawal = SimpleNamespace(reason=lambda name: None, problems=list)

    def __init__(
        self,
        *attempts,
        current=V1,
        canary=None,
        fault=None,
        strays=(),
        unloaded=(),
        refused=None,
        problem=None,
        failure=None,
        looking=None,
        policy=None,
        share=None,
        shares=None,
    ):
        self.aliases = ("current",) if canary is None else ("current", "canary")
        self.seen = SimpleNamespace(
            faults={} if fault is None else {"current": fault}, strays=list(strays), shares=shares or {}
        )
        self._wishes = {"current": None if fault else current, "canary": canary}
        self.attempts, self.failure, self.state = list(attempts), failure, SimpleNamespace(problem=problem)
        self.fault, self.gate = looking, SimpleNamespace(fault=policy)
        self._unloaded, self._refused = unloaded, refused
        keys = {alias: alias for alias in self.aliases} | ({} if share is None else {"current@": "current@10"})
        self._wishes["current@"] = share
        self.records = {key: self._record(key, name) for key, name in keys.items()}

    def _record(self, key, name):
        tried = next((one for one in self.attempts if one.alias == key and not one.fallback), None)
        refusal = None if self._refused is None else SimpleNamespace(rejection=self._refused)
        return SimpleNamespace(
            key=key, name=name, is_share=key != name, wish=self._wishes.get(key), attempt=tried,
            is_unloaded=key in self._unloaded, withdrawn=None, refusals=SimpleNamespace(find=lambda wish: refusal),
        )  # fmt: skip


def serving(**keys):
    engines = EngineRegistry()
    for alias, key in keys.items():
        if engines.resident(key) is None:
            golden = SimpleNamespace(checked=3, missed=2 if key == V3 else 0)
            engines.admit(key, SimpleNamespace(is_complete=True, golden=golden))
        engines.promote(alias, key)
    return engines


def attempt(key, alias="current", *, warming=False, code=None, reason="a file differs", fallback=False):
    made = Attempt(alias, key, LoadWay.DEVICE, fallback=fallback)
    if warming:
        made.begin_warming()
    if code is not None:
        made.reject(Rejection(code, reason))
    return made


TWO_SHARES = {"current": ShareSeen(None, two_shares("current", [ShareLink("current", 10), ShareLink("current", 50)]))}
NOTHING, BOTH = {}, {"current": V1, "canary": V1}
BAD = attempt(V2, code="hash_mismatch")
CASES = {
    "all is well": (Supervisor(), {"current": V1}, "ok", []),
    "it is being loaded at the start": (
        Supervisor(attempt(V1)), NOTHING, "unavailable",
        ["current asks for v1, which is being loaded; nothing serves"],
    ),
    "it is being warmed up": (
        Supervisor(attempt(V2, warming=True), current=V2), {"current": V1}, "degraded",
        ["current asks for v2, which is being warmed up; v1 serves"],
    ),
    "it waits for another alias": (
        Supervisor(attempt(V2, "canary"), canary=V2), NOTHING, "unavailable",
        [
            "current asks for v1, which is not ready; nothing serves; v2 is being loaded for canary",
            "canary asks for v2, which is being loaded; nothing serves",
        ],
    ),
    "rejected beside one that serves": (
        Supervisor(BAD, current=V2), {"current": V1}, "degraded", ["current asks for v2, v1 serves: a file differs"],
    ),
    "rejected, and nothing serves": (
        Supervisor(BAD, current=V2), NOTHING, "unavailable", ["current asks for v2, nothing serves: a file differs"],
    ),
    "rejected, and last-known-good is being loaded": (
        Supervisor(attempt(V1, fallback=True), BAD, current=V2), NOTHING, "unavailable",
        ["current asks for v2, nothing serves: a file differs; v1 is being loaded instead"],
    ),
    "rejected for what may heal": (
        Supervisor(attempt(V2, code="io_error", reason="Input/output error"), current=V2), {"current": V1}, "degraded",
        ["current asks for v2, v1 serves: Input/output error; it is tried again after a pause"],
    ),
    "the rejection was of an earlier wish": (
        Supervisor(BAD, current=V3), {"current": V1}, "degraded",
        ["current asks for v3, which is not ready; v1 serves"],
    ),
    "a share is being loaded": (
        Supervisor(attempt(V2, "current@"), share=V2), {"current": V1}, "degraded",
        ["current@10 asks for v2, which is being loaded; current draws all requests"],
    ),
    "a share serves": (Supervisor(share=V2), {"current": V1, "current@": V2}, "ok", []),
    "a share missed golden images": (
        Supervisor(share=V3), {"current": V1, "current@": V3}, "degraded",
        ["current@10 serves v3, which missed 2 of 3 golden images: it does not draw what it drew when they were made"],
    ),
    "golden images were missed, and only that": (
        Supervisor(current=V3), {"current": V3}, "degraded",
        ["current serves v3, which missed 2 of 3 golden images: it does not draw what it drew when they were made"],
    ),
    "a share is rejected": (
        Supervisor(attempt(V2, "current@", code="hash_mismatch"), share=V2), {"current": V1}, "degraded",
        ["current@10 asks for v2, current draws all requests: a file differs"],
    ),
    "two shares": (
        Supervisor(shares=TWO_SHARES), {"current": V1}, "degraded",
        ["current has 2 shares, current@10 and current@50, and none of them counts: keep one, and remove the others, such as `rm current@10`"],
    ),
    "a rejection of an earlier wish does not matter": (Supervisor(BAD), {"current": V1}, "ok", []),
    "sealed again, not loaded yet": (
        Supervisor(current=VersionKey("v1", "f" * 64)), {"current": V1}, "degraded",
        ["current asks for v1, which is not ready; v1 serves"],
    ),
    "its files were changed on disk": (
        Supervisor(attempt(V1, code="hash_mismatch"), refused=Rejection("hash_mismatch", "a file differs")),
        {"current": V1}, "degraded",
        ["current serves v1 from memory, but it could not be loaded again: a file differs"],
    ),
    "a fault of the link": (Supervisor(fault=FAULT), {"current": V1}, "degraded", ["current is missing"]),
    "a fault of the link, and nothing serves": (Supervisor(fault=FAULT), NOTHING, "unavailable", ["current is missing"]),
    "a fault of the link, and last-known-good is being loaded": (
        Supervisor(attempt(V1, fallback=True), fault=FAULT), NOTHING, "unavailable",
        ["current is missing; v1 is being loaded instead"],
    ),
    "unloaded": (
        Supervisor(unloaded=("current",)), NOTHING, "unavailable",
        ["current is unloaded; POST /api/load_model loads it"],
    ),
    "another alias is unloaded": (
        Supervisor(canary=V1, unloaded=("canary",)), {"current": V1}, "degraded",
        ['canary is unloaded; POST /api/load_model with {"alias": "canary"} loads it'],
    ),
    "before the first look": (Supervisor(current=None), NOTHING, "unavailable", ["current has not been looked at yet"]),
    "the link is missing for a moment": (Supervisor(current=None), {"current": V1}, "ok", []),
    "another alias": (
        Supervisor(canary=V2), BOTH, "degraded", ["canary asks for v2, which is not ready; v1 serves"],
    ),
    "a wish that cannot be followed": (
        Supervisor(strays=[Stray("v1/v2", "v2", "the models root may not be written", is_wish=True)]), {"current": V1},
        "degraded", ["v1/v2 -> v2 was not followed: the models root may not be written"],
    ),
    "a stray that means nothing": (Supervisor(strays=[Stray("v1/v9", "v9", "no version of that name")]), {"current": V1}, "ok", []),
    "a state that cannot be saved": (
        Supervisor(problem="the state directory cannot be written"), {"current": V1}, "degraded",
        ["the state directory cannot be written"],
    ),
    "the links cannot be looked at": (
        Supervisor(looking="links are not followed: OSError: no"), {"current": V1}, "degraded",
        ["links are not followed: OSError: no"],
    ),
    "it has to stop": (
        Supervisor(failure=FatalError("torch cannot be imported")), NOTHING, "unavailable",
        ["the service stops: torch cannot be imported", "current asks for v1, which is not ready; nothing serves"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("supervisor", "served", "state", "reasons"), CASES.values(), ids=CASES.keys())
def test_the_health_is_ok_degraded_or_unavailable_with_reasons(supervisor, served, state, reasons):
    assert health(supervisor, serving(**served)) == (state, reasons)


def test_a_policy_that_cannot_be_used_is_a_fault():
    found = health(Supervisor(policy="the policy p.toml cannot be read"), serving(current=V1))
    assert found == ("degraded", ["the policy p.toml cannot be read"])


def test_a_history_that_cannot_be_written_is_a_fault():
    assert health(Supervisor(), serving(current=V1), "images cannot be kept") == ("degraded", ["images cannot be kept"])


@pytest.mark.parametrize("case", [one for one in CASES.values() if one[2] == "unavailable"])
def test_whenever_nothing_serves_there_is_a_reason(case):
    assert case[3]
