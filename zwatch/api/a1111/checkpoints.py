"""The loaded versions as checkpoints of AUTOMATIC1111, and the names by which clients choose them."""

from collections.abc import Container

from typing_extensions import TypedDict

from zwatch.api.schema import Digest
from zwatch.errors import RequestError
from zwatch.generation.request import PRIMARY
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.lifecycle import Resident, VersionKey
from zwatch.rollout.supervisor import Supervisor

FIELD = "sd_model_checkpoint"
"""The field that names a checkpoint, in the options and in a request's `override_settings`."""
_HASH = 10
"""Hex digits of a digest in a title, as AUTOMATIC1111 shows them."""


class Checkpoint(TypedDict):
    """A loaded version, or an alias with the version that it serves. `hash` is the beginning of its digest; `sha256` is null because the digest is blake3."""

    title: str
    model_name: str
    hash: str | None
    sha256: str | None
    filename: str
    config: str | None
    digest: Digest | None


def short_hash(key: VersionKey) -> str:
    """Return the beginning of a version's digest."""
    return str(key.digest)[:_HASH]


def title(key: VersionKey) -> str:
    """Return a version's title, which clients show and send back."""
    return f"{key.version} [{short_hash(key)}]"


def loaded(engines: EngineRegistry) -> list[Resident]:
    """Return the versions that a request can name now; the one that `current` serves is first."""
    found = [resident for resident in engines.residents if engines.find(resident.key.version) is resident]
    serving = engines.serving(PRIMARY)
    return sorted(found, key=lambda resident: (resident is not serving, resident.key.version))


def checkpoint_views(supervisor: Supervisor, engines: EngineRegistry) -> list[Checkpoint]:
    """Return the list of checkpoints: the aliases, `current` first, then their shares, then the loaded versions. `current` is there
    while nothing serves, too: some clients fail on an empty list."""
    shares = set(supervisor.names) - set(supervisor.aliases)
    names = sorted(supervisor.names, key=lambda name: (name in shares, name != PRIMARY, name))
    found = [(name, supervisor.traffic.find(name)) for name in names]
    followed = [_view(name, name, None if resident is None else resident.key) for name, resident in found]
    return followed + [_view(title(one.key), one.key.version, one.key) for one in loaded(engines)]


def _view(shown: str, name: str, key: VersionKey | None) -> Checkpoint:
    return {
        "title": shown,
        "model_name": name,
        "hash": None if key is None else short_hash(key),
        "sha256": None,
        "filename": name,
        "config": None,
        "digest": None if key is None else str(key.digest),
    }


def choice_of(name: str, engines: EngineRegistry, aliases: Container[str]) -> VersionKey | str:
    """Return the alias, the share or the loaded version that a checkpoint's name or title stands for; `aliases` has the names of
    aliases and shares.

    Raises:
        RequestError: 404, no such checkpoint is loaded.
    """
    if name in aliases:
        return name
    found = loaded(engines)
    for resident in found:
        if name in (resident.key.version, title(resident.key)):
            return resident.key
    listed = ", ".join(title(resident.key) for resident in found) or "nothing"
    raise RequestError(
        "model_not_found", f"no checkpoint {name[:100]!r} is loaded; loaded: {listed}; or say {PRIMARY!r}",
        param=FIELD,
    )  # fmt: skip


def model_of(choice: VersionKey | str) -> str:
    """Return a request's `model` for a choice."""
    return choice.version if isinstance(choice, VersionKey) else choice
