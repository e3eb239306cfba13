"""What is saved across restarts: last-known-good, what was promoted last and is being tried, crashes, what is unloaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter

from zwatch.deploy.refused import RefusedStray
from zwatch.deploy.resolving import LinkStamp
from zwatch.rollout import crashes as rules
from zwatch.rollout.crashes import Crash, SavedKey
from zwatch.rollout.lifecycle import VersionKey

KEPT_GOOD = 2
"""How many last-known-good versions are saved, so that if one is set aside there is another."""
KEPT_PROMOTED = 3
"""How many versions that were promoted last are saved."""


def _has_keys(*names: str) -> BeforeValidator:
    """Return a check that an object has all these keys. Defaults of fields are for new records, not for the file."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and (missing := [name for name in names if name not in value]):
            raise ValueError(f"missing: {', '.join(missing)}")
        return value

    return BeforeValidator(check)


@dataclass(slots=True)
class SavedAlias:
    """One alias's part. `good` and `promoted` are newest first; `link_stamp` is of its link, which led to `wish`;
    `unloaded` is the link's stamp when an operator unloaded the alias."""

    serving: SavedKey | None = None
    trying: SavedKey | None = None
    previous: SavedKey | None = None
    good: list[SavedKey] = field(default_factory=list)
    link_stamp: Annotated[LinkStamp | None, Field(alias="stamp")] = None
    unloaded: LinkStamp | None = None
    wish: SavedKey | None = None
    promoted: list[SavedKey] = field(default_factory=list)

    def note_promoted(self, key: VersionKey) -> None:
        """Note that a version serves from now on."""
        self.serving = key
        self.promoted = [key, *(other for other in self.promoted if other != key)][:KEPT_PROMOTED]


@dataclass(slots=True)
class SavedState:
    """Everything that is in the state file. `proved` are the versions that have proved themselves in this run."""

    format: Literal[1] = field(default=1, kw_only=True)
    running: bool = False
    aliases: dict[
        str, Annotated[SavedAlias, _has_keys("serving", "trying", "previous", "good", "stamp", "unloaded")]
    ] = field(default_factory=dict)
    crashes: list[Crash] = field(default_factory=list)
    refused: list[RefusedStray] = field(default_factory=list)
    """Stray links that were refused and still exist, see `Look.refused`."""
    proved: list[SavedKey] = field(default_factory=list)

    def alias(self, name: str) -> SavedAlias:
        """Return an alias's part, made on first use."""
        return self.aliases.setdefault(name, SavedAlias())

    def begin_run(self) -> list[VersionKey]:
        """Note the start of a run; if the previous run crashed, return what that is counted for."""
        before = self._run()
        self.crashes = rules.after(self.crashes, before)
        self.running = True
        self.proved = []
        for part in self.aliases.values():
            part.serving = part.trying = None
        return sorted(before.blamed, key=str)

    def _run(self) -> rules.Run:
        parts = list(self.aliases.values())
        used = {key for part in parts for key in (part.serving, part.trying) if key is not None}
        served = frozenset(part.serving for part in parts if part.serving is not None)
        return rules.Run(self.running, {key: self._links_to(key) for key in used}, served, frozenset(self.proved))

    def _links_to(self, key: VersionKey) -> rules.Stamps:
        return frozenset(
            part.link_stamp
            for part in self.aliases.values()
            # A file of an earlier release names no wish: its stamp is of the link that asked for the version.
            if part.wish == key or (part.wish is None and key in (part.serving, part.trying))
        )

    def end_run(self) -> None:
        """Note that this run ended without a crash."""
        self.running = False

    def note_links(self, links: Mapping[VersionKey, rules.Stamps]) -> None:
        """Note which links lead to which versions: what was linked anew is not set aside any more."""
        self.crashes = rules.without_new_links(self.crashes, links)

    def note_sealed(self, key: VersionKey) -> None:
        """Note that a version was sealed anew: it is not set aside any more."""
        self.crashes = rules.without(self.crashes, key)

    def is_set_aside(self, key: VersionKey, link_stamp: LinkStamp | None = None) -> bool:
        """Say whether a version crashed too often since it was last sealed (its key) and linked; `link_stamp` is of the link
        that asks for it now."""
        links = {} if link_stamp is None else {key: frozenset({link_stamp})}
        return rules.is_set_aside(rules.without_new_links(self.crashes, links), key)

    def why_set_aside(self, alias: str, key: VersionKey) -> str:
        """Return the sentence about a version that was set aside."""
        version, pause = key.version, self.last_resorts(alias).get(key)
        later = "" if pause is None else f". If nothing else can serve, it is tried {pause:g} s after the start"
        return (
            f"{version} was serving or being tried at {rules.count(self.crashes, key)} crashes in a row, and had not proved "
            f"itself; link it again (`ln -sfn {version} {alias}`) or seal it again{later}"
        )

    def note_good(self, alias: str, key: VersionKey) -> bool:
        """Note that a version has proved itself in this run; return whether that is new."""
        part = self.alias(alias)
        if key in self.proved and part.good[:1] == [key]:
            return False
        if key not in self.proved:
            self.proved.append(key)
        self.crashes = rules.without(self.crashes, key)
        part.good = [key, *(other for other in part.good if other != key)][:KEPT_GOOD]
        return True

    def fallbacks(self, alias: str, wish: VersionKey | None = None) -> list[VersionKey]:
        """Return what serves while an alias's wish cannot, in the order to try it."""
        part = self.alias(alias)
        return rules.fallbacks(part.good, part.promoted, self.crashes, wish)

    def last_resorts(self, alias: str) -> dict[VersionKey, float]:
        """Return what is tried if nothing else can serve, with the seconds after the start from which it is."""
        return rules.last_resorts(self.alias(alias).good, self.crashes)


@cache
def schema() -> TypeAdapter[SavedState]:
    """Return the schema of the state file."""
    # At the first use, in a thread: building it takes some 30 ms, which the first answer would wait for.
    return TypeAdapter(Annotated[SavedState, _has_keys("format", "running", "aliases", "crashes")])


def serialise(saved: SavedState) -> bytes:
    """Return the bytes of the state file for this state."""
    return schema().dump_json(saved, by_alias=True, indent=1)
