"""The health of the service: one judgement for `/health`, `/status`, the metrics, `zwatch status` and systemd."""

from zwatch.errors import Retry
from zwatch.generation.request import PRIMARY, unloaded
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.lifecycle import Attempt, AttemptState
from zwatch.rollout.supervisor import Supervisor

HEALTH_STATES = ("ok", "degraded", "unavailable")


def health(supervisor: Supervisor, engines: EngineRegistry, history_fault: str | None = None) -> tuple[str, list[str]]:
    """Return the health state and its reasons: `ok`; `degraded`, an alias does not serve what its link asks for, or a fault
    stands; or `unavailable`, `current` serves nothing."""
    found = [None if supervisor.failure is None else f"the service stops: {supervisor.failure}"]
    found += [_alias_problem(supervisor, engines, alias) for alias in supervisor.aliases]
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


def _alias_problem(supervisor: Supervisor, engines: EngineRegistry, alias: str) -> str | None:
    """Return why an alias does not serve what its link asks for, or could not serve it again; else None."""
    fault, wish, serving = supervisor.seen.faults.get(alias), supervisor.wish(alias), engines.serving(alias)
    if supervisor.is_unloaded(alias):
        return unloaded(alias)
    now = _at_work(supervisor.attempts[0] if supervisor.attempts else None, alias)
    if fault is not None:
        return _joined(fault.message, now)
    if wish is None:
        return f"{alias} has not been looked at yet" if serving is None else None
    serves = "nothing serves" if serving is None else f"{serving.key.version} serves"
    attempt = supervisor.attempt(alias)
    rejection = None if attempt is None or attempt.key != wish else attempt.rejection
    if serving is not None and serving.key == wish:
        if (refused := supervisor.refusal(alias)) is not None:
            return f"{alias} serves {wish.version} from memory, but it could not be loaded again: {refused.reason}"
        return None
    if rejection is not None:
        again = "it is tried again after a pause" if rejection.retry is Retry.BACKOFF else None
        return _joined(f"{alias} asks for {wish.version}, {serves}: {rejection.reason}", now or again)
    if (reason := supervisor.withdrawal.reason(alias)) is not None:  # in an earlier run
        return _joined(f"{alias} asks for {wish.version}, {serves}: {reason}", now)
    if attempt is not None and attempt.running and attempt.key == wish:
        return f"{alias} asks for {wish.version}, which {_doing(attempt)}; {serves}"
    return _joined(f"{alias} asks for {wish.version}, which is not ready; {serves}", now)


def _at_work(attempt: Attempt | None, alias: str) -> str | None:
    """Return what the newest attempt does now, if it runs."""
    if attempt is None or not attempt.running:
        return None
    instead = " instead" if attempt.fallback and attempt.alias == alias else ""
    whose = "" if attempt.alias == alias else f" for {attempt.alias}"
    return f"{attempt.key.version} {_doing(attempt)}{instead}{whose}"


def _doing(attempt: Attempt) -> str:
    return "is being warmed up" if attempt.state is AttemptState.WARMING else "is being loaded"


def _joined(reason: str, more: str | None) -> str:
    return reason if more is None else f"{reason}; {more}"
