"""What a service needs each version for, so that `zwatch prune` keeps it."""

from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.lifecycle import VersionKey
from zwatch.rollout.supervisor import Supervisor

USES = ("serving", "loading", "resident", "linked", "previous", "last_known_good")
"""What a version can be needed for."""


def uses(supervisor: Supervisor, engines: EngineRegistry) -> dict[str, list[str]]:
    """Return what each version that is needed at all is needed for, by its name: contents of one name count together."""
    found: dict[str, dict[str, None]] = {}

    def note(use: str, *keys: VersionKey | None) -> None:
        for key in keys:
            if key is not None:
                found.setdefault(key.version, {})[use] = None

    records = supervisor.records
    served = [engines.serving(key) for key in records]
    note("serving", *(resident.key for resident in served if resident is not None))
    if (load := supervisor.runner.running) is not None:
        note("loading", load.attempt.key)
    note("resident", *(resident.key for resident in engines.residents))
    saved = supervisor.state.saved
    for name, record in records.items():
        wish = record.wish
        note("linked", wish)
        note("previous", record.previous)
        if not record.is_share:
            note("last_known_good", *saved.alias(name).good, *saved.fallbacks(name, wish), *saved.last_resorts(name))
    return {version: list(those) for version, those in found.items()}
