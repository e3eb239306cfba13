"""The health of the service: one judgement for `/health`, `/status`, the metrics, `zwatch status` and systemd."""

from zwatch.api.golden_view import missed
from zwatch.deploy.shares import alias_of_key
from zwatch.errors import Retry
from zwatch.generation.request import PRIMARY, unloaded
from zwatch.rollout.alias import Alias
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.lifecycle import Attempt, AttemptState
from zwatch.rollout.supervisor import Supervisor

HEALTH_STATES = ("ok", "degraded", "unavailable")


def health(supervisor: Supervisor, engines: EngineRegistry, history_fault: str | None = None) -> tuple[str, list[str]]:
    """Return the health state and its reasons: `ok`; `degraded`, an alias does not serve what its link asks for, or a fault
    stands; or `unavailable`, `current` serves nothing."""
    found = [None if supervisor.failure is None else f"the service stops: {supervisor.failure}"]
    found += [_problem(supervisor, engines, record) for record in supervisor.records.values()]
    found += [_missed(record) for record in supervisor.records.values()]
    found += dict.fromkeys(
        fault.message for share in supervisor.seen.shares.values() for fault in share.faults.values()
    )
    found += supervisor.withdrawal.problems()
    found += [
        f"{stray.path} -> {stray.text} was not followed: {stray.reason}"
        for stray in supervisor.seen.strays
        if stray.is_wish
    ]
    found += [supervisor.fault, supervisor.gate.fault, supervisor.state.problem, history_fault]
    reasons = [reason for reason in found if reason is not None]
    if engines.serving(PRIMARY) is None:
        return "unavailable", reasons
    return ("degraded" if reasons else "ok"), reasons


def _problem(supervisor: Supervisor, engines: EngineRegistry, record: Alias) -> str | None:
    """Return why an alias or a share does not serve what its link asks for, or could not serve it again; else None."""
    name, fault, wish = record.name, supervisor.seen.faults.get(record.key), record.wish
    serving = engines.serving(record.key)
    if record.is_unloaded:
        return None if record.is_share else unloaded(name)
    now = _at_work(supervisor.attempts[0] if supervisor.attempts else None, record)
    if fault is not None:
        return _joined(fault.message, now)
    if wish is None:
        return f"{name} has not been looked at yet" if serving is None else None
    nothing = f"{alias_of_key(record.key)} draws all requests" if record.is_share else "nothing serves"
    serves = nothing if serving is None else f"{serving.key.version} serves"
    refusal = record.refusals.find(wish)
    attempt = record.attempt
    rejection = None if attempt is None or attempt.key != wish else attempt.rejection
    if serving is not None and serving.key == wish:
        if refusal is not None:
            return f"{name} serves {wish.version} from memory, but it could not be loaded again: {refusal.rejection.reason}"
        return None
    if rejection is not None:
        again = "it is tried again after a pause" if rejection.retry is Retry.BACKOFF else None
        return _joined(f"{name} asks for {wish.version}, {serves}: {rejection.reason}", now or again)
    if record.withdrawn is not None:  # in an earlier run
        return _joined(f"{name} asks for {wish.version}, {serves}: {record.withdrawn.reason}", now)
    if attempt is not None and attempt.running and attempt.key == wish:
        return f"{name} asks for {wish.version}, which {_doing(attempt)}; {serves}"
    return _joined(f"{name} asks for {wish.version}, which is not ready; {serves}", now)


def _missed(record: Alias) -> str | None:
    """Return that what an alias or a share serves missed golden images, if it did."""
    if (serving := record.serving) is None or (how := missed(serving.engine.golden)) is None:
        return None
    version = serving.key.version
    return f"{record.name} serves {version}, which {how}: it does not draw what it drew when they were made"


def _at_work(attempt: Attempt | None, record: Alias) -> str | None:
    """Return what the newest attempt does now, if it runs."""
    if attempt is None or not attempt.running:
        return None
    instead = " instead" if attempt.fallback and attempt.alias == record.key else ""
    whose = "" if attempt.alias == record.key else f" for {attempt.link_name}"
    return f"{attempt.key.version} {_doing(attempt)}{instead}{whose}"


def _doing(attempt: Attempt) -> str:
    return "is being warmed up" if attempt.state is AttemptState.WARMING else "is being loaded"


def _joined(reason: str, more: str | None) -> str:
    return reason if more is None else f"{reason}; {more}"
