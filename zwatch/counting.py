"""Connects what counts the outcome of trials to the service: the requests of both sides, and the votes on their pictures."""

from pathlib import Path

from zwatch.bridge import Bridge
from zwatch.generation.history import History
from zwatch.generation.queue import GenerationQueue
from zwatch.generation.trial_file import TrialFile
from zwatch.generation.trial_results import TrialResults
from zwatch.generation.voting import FILE, Voting
from zwatch.rollout.supervisor import Supervisor


def count_trials(state_dir: Path, bridge: Bridge, supervisor: Supervisor, queue: GenerationQueue) -> TrialFile:
    """Count every request from now on; what is returned has the results and keeps them."""
    results = TrialResults(supervisor.records, supervisor.traffic.takes)
    queue.drawer.trial_of = results.trial_of
    queue.drawer.on_fault.append(results.failed)
    queue.on_end.append(results.job_ended)
    return TrialFile(bridge, state_dir, results, supervisor.changes)


def count_votes(state_dir: Path, bridge: Bridge, history: History | None, results: TrialResults) -> Voting | None:
    """Return what takes votes; None where no pictures are kept."""
    if history is None:
        return None
    voting = Voting(bridge, state_dir / FILE, history)
    voting.goes_on = results.goes_on
    return voting
