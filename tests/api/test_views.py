"""The JSON views of the state, from small real objects and a supervisor that only has the attributes they read."""

from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace

import pytest

from zwatch.api import version_views, views
from zwatch.deploy.resolving import Fault
from zwatch.deploy.strays import Stray
from zwatch.deploy.versions import VersionSummary
from zwatch.errors import Rejection
from zwatch.generation.turns import Turns
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.lifecycle import Attempt, LoadWay, VersionKey
from zwatch.rollout.records import Records
from zwatch.rollout.saved import SavedState
from zwatch.rollout.uses import uses
from zwatch.rollout.verdicts import KEPT_VERDICTS, Verdicts

V1, V2 = VersionKey("v1", "1" * 64), VersionKey("v2", "2" * 64)
FAULT = Fault("current", "link_missing", "current is missing", link=None)


class Supervisor:
    """The attributes of a supervisor that views read."""

    withdrawal = SimpleNamespace(reason=lambda name: None, problems=list)

    def __init__(self, *, aliases=("current",), targets=(), faults=(), strays=(), wishes=(), attempts=(), unloaded=()):
        self.aliases = aliases
        self.seen = SimpleNamespace(targets=dict(targets), faults=dict(faults), strays=list(strays), shares={})
        self.factory = None
        self._wishes, self._attempts, self._unloaded = dict(wishes), dict(attempts), unloaded
        self.attempts, self.failure = list(self._attempts.values()), None
        self.state = SimpleNamespace(problem=None, saved=SavedState())
        self.runner = SimpleNamespace(running=None)
        self.fault, self.gate = None, SimpleNamespace(fault=None)
        self.records = Records(aliases, self._record, EngineRegistry())

    def _record(self, alias):
        return SimpleNamespace(
            key=alias, name=alias, is_share=False, wish=self.wish(alias), attempt=self.attempt(alias), previous=None,
            is_unloaded=self.is_unloaded(alias), withdrawn=None, refusals=SimpleNamespace(find=lambda wish: None),
        )  # fmt: skip

    def wish(self, alias):
        return self._wishes.get(alias)

    def attempt(self, alias):
        return self._attempts.get(alias)

    def previous(self, alias):
        return None

    def refusal(self, alias):
        return None

    def is_unloaded(self, alias):
        return alias in self._unloaded


def serving(*keys):
    """Return engines of these versions, the last of which serves `current`."""
    engines = EngineRegistry()
    for key in keys:
        engines.admit(
            key,
            SimpleNamespace(
                is_complete=True,
                nbytes=1000,
                host_nbytes=0,
                default_size=256,
                max_side=512,
                precision="bf16",
                has_control=False,
                golden=SimpleNamespace(pictures=(1, 2, 3), checked=2, missed=1),
            ),
        )
        engines.promote("current", key)
    return engines


def rejected(key=V2):
    attempt = Attempt("current", key, LoadWay.DEVICE)
    attempt.reject(Rejection("hash_mismatch", "a file differs"))
    return attempt


def test_a_time_is_in_utc_to_the_second():
    moment = datetime(2026, 11, 21, 16, 2, 11, 999_999, tzinfo=timezone(timedelta(hours=2)))
    assert views.time_text(moment) == "2026-11-21T14:02:11Z"


def test_there_is_no_view_of_no_attempt():
    assert views.attempt_view(None) is None


def test_a_running_attempt_shows_its_progress_and_a_copy_of_its_phases():
    control = SimpleNamespace(
        phases={"read": 0.123456}, bytes_done=1, bytes_total=3, shared=("vae",), activity="reading"
    )
    attempt = Attempt("current", V1, LoadWay.DEVICE, control)
    view = views.attempt_view(attempt)
    control.phases["verify"] = 1.0
    assert (view["progress"], view["bytes"], view["phases"], view["shared"]) == (0.3333, 1, {"read": 0.1235}, ["vae"])
    assert (view["state"], view["code"], view["reason"], view["way"]) == ("LOADING", None, None, "device")
    assert (view["alias"], view["version"], view["digest"]) == ("current", "v1", V1.digest)
    assert view["activity"] == "reading"


def test_a_rejected_attempt_shows_code_and_reason_and_no_further_progress():
    view = views.attempt_view(rejected())
    assert (view["state"], view["code"], view["reason"]) == ("REJECTED", "hash_mismatch", "a file differs")
    assert (view["progress"], view["bytes"], view["phases"]) == (1.0, 0, {})


def test_the_serving_view_is_of_the_version_that_an_alias_serves():
    engines = serving(V1)
    with engines.lease("current") as lease:
        lease.count_images(3)
    view = views.serving_view(engines)
    assert (view["version"], view["digest"], view["images"]) == ("v1", V1.digest, 3)
    assert (view["default_size"], view["max_size"]) == (256, 512)
    assert datetime.fromisoformat(view["since"]) <= datetime.now(UTC)
    assert views.serving_view(engines, "stable") is None


def test_an_alias_shows_its_link_its_target_and_what_it_serves():
    target = SimpleNamespace(link="v2/", version="v2")
    supervisor = Supervisor(targets={"current": target}, attempts={"current": rejected()})
    view = views.alias_view(supervisor, serving(V1), "current")
    assert view.pop("attempt")["code"] == "hash_mismatch"
    assert view == {"link": "v2/", "target": "v2", "fault": None, "serving": "v1", "unloaded": False, "share": None}


def test_an_alias_with_a_fault_shows_it_with_the_link():
    fault = Fault("current", "not_a_version", "v9 does not exist", link="v9")
    view = views.alias_state(Supervisor(faults={"current": fault}, unloaded=("current",)), serving(), "current")
    assert view == {
        "link": "v9", "target": None, "fault": {"code": "not_a_version", "message": "v9 does not exist"},
        "serving": None, "unloaded": True, "share": None,
    }  # fmt: skip


@pytest.mark.parametrize("running", [[], [object()], [object(), object()]])
def test_the_queue_shows_how_many_wait_and_run(running):
    queue = SimpleNamespace(waiting=3, turns=SimpleNamespace(jobs=running), limit=64)
    assert views.queue_view(queue) == {"waiting": 3, "running": len(running), "limit": 64}


def test_the_status_has_all_parts():
    queue = SimpleNamespace(waiting=0, turns=Turns(), limit=64)
    supervisor = Supervisor(wishes={"current": V2}, strays=[Stray("v1/v9", "v9", "no version of that name")])
    engines = serving(V1, V2)
    view = views.status_view(supervisor, engines, queue, None, None, 1.23456, [])
    assert view["device"] == {"name": None, "free": None, "total": None}
    assert (view["status"], view["uptime"], view["history"]) == ("degraded", 1.235, None)
    assert view["reasons"] == [
        "current serves v2, which missed 1 of 2 golden images: it does not draw what it drew when they were made"
    ]
    assert view["strays"] == [{"path": "v1/v9", "text": "v9", "reason": "no version of that name"}]
    states = {one["version"]: (one["state"], one["leases"], one["bytes"]) for one in view["engines"]}
    assert states["v2"] == ("SERVING", 0, 1000)
    assert states["v1"][0] != "SERVING"
    supervisor.factory = SimpleNamespace(device=SimpleNamespace(name="NVIDIA H100"))
    view = views.status_view(supervisor, engines, queue, None, (1, 2), 0.0, [])
    assert view["device"] == {"name": "NVIDIA H100", "free": 1, "total": 2}


@pytest.mark.parametrize(
    ("name", "resident", "serves", "aliases"),
    [("v1", True, False, ["stable"]), ("v2", True, True, ["current"]), ("v3", False, False, [])],
)
def test_a_version_shows_whether_it_is_resident_and_serves(name, resident, serves, aliases):
    targets = {"current": SimpleNamespace(version="v2"), "stable": SimpleNamespace(version="v1")}
    supervisor = Supervisor(aliases=("current", "stable"), targets=targets)
    sealed_at = datetime(2026, 11, 21, tzinfo=UTC)
    summary = VersionSummary(name, True, "a" * 64, name, 10, 2, sealed_at, None)
    uses = [use for use, is_so in (("serving", serves), ("resident", resident)) if is_so]
    assert version_views.version_view(summary, version_views.version_marks(supervisor, serving(V1, V2)), Verdicts().find) == {
        "name": name, "sealed": True, "digest": "a" * 64, "signer": None, "header_version": name, "bytes": 10, "files": 2,
        "resident": resident, "serving": serves, "aliases": aliases, "sealed_at": "2026-11-21T00:00:00Z", "seal_changed_ns": None, "problem": None,
        "rejected": None, "uses": uses, "provenance": None,
    }  # fmt: skip


def test_a_version_shows_why_it_was_rejected_until_it_serves_or_is_sealed_anew():
    verdicts, marks = Verdicts(), version_views.version_marks(Supervisor(), serving())

    def shown(digest):
        summary = VersionSummary("v2", True, digest, "v2", 10, 2, None, None)
        return version_views.version_view(summary, marks, verdicts.find)["rejected"]

    verdicts.note(failed := rejected())
    found = shown(V2.digest)
    assert (found["code"], found["reason"]) == ("hash_mismatch", "a file differs")
    assert datetime.fromisoformat(found["when"]) >= failed.started.replace(microsecond=0)
    assert shown("3" * 64) is None
    abandoned = Attempt("current", V2, LoadWay.DEVICE)
    abandoned.abandon("superseded")
    verdicts.note(abandoned)
    assert shown(V2.digest) == found
    good = Attempt("current", V2, LoadWay.RESIDENT)
    good.begin_warming()
    good.promote()
    verdicts.note(good)
    assert shown(V2.digest) is None


def test_the_newest_verdicts_are_kept():
    verdicts = Verdicts()
    for number in range(KEPT_VERDICTS + 1):
        verdicts.note(rejected(VersionKey(f"v{number}", None)))
    assert verdicts.find("v0", None) is None
    assert verdicts.find(f"v{KEPT_VERDICTS}", None).code == "hash_mismatch"


def test_a_version_is_in_use_as_what_it_is_needed_for():
    supervisor = Supervisor(wishes={"current": V2})
    supervisor.state.saved.note_good("current", V1)
    supervisor.state.saved.alias("current").note_promoted(VersionKey("v0", "0" * 64))
    supervisor.runner.running = SimpleNamespace(attempt=SimpleNamespace(key=VersionKey("v3", None)))
    assert uses(supervisor, serving(V1)) == {
        "v1": ["serving", "resident", "last_known_good"],
        "v2": ["linked"],
        "v3": ["loading"],
        "v0": ["last_known_good"],
    }


def test_a_version_that_is_not_sealed_shows_its_problem():
    summary = VersionSummary("v3", False, None, None, 0, 0, None, "there is no seal")
    view = version_views.version_view(summary, version_views.version_marks(Supervisor(), serving()), Verdicts().find)
    assert (view["sealed"], view["sealed_at"], view["problem"]) == (False, None, "there is no seal")
