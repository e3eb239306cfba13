"""What is saved across restarts: last-known-good, what was promoted last and is being tried, crashes, what is unloaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter

from zwatch.deploy.following import ShareMark
from zwatch.deploy.refused import RefusedStray
from zwatch.deploy.resolving import LinkStamp
from zwatch.deploy.shares import alias_of_key
from zwatch.errors import Ending
from zwatch.rollout import crashes as rules
from zwatch.rollout.crashes import Crash, SavedKey
from zwatch.rollout.lifecycle import VersionKey

FORMAT = 1
KEPT_GOOD = 2
"""How many last-known-good versions are saved, so that if one is set aside there is another."""
KEPT_PROMOTED = 3
"""How many versions that were promoted last are saved."""
KEPT_PROVED = 100
"""How many versions that proved themselves in this run are saved, beside those in use: a service may run for years. One that
is dropped proves itself again when it serves again."""


def _has_keys(*names: str) -> BeforeValidator:
    """Return a check that an object has all these keys. Defaults of fields are for new records, not for the file."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and (missing := [name for name in names if name not in value]):
            raise ValueError(f"missing: {', '.join(missing)}")
        return value

    return BeforeValidator(check)


def _check_format(value: Any) -> Any:
    """Check the number of the format first: what else is wrong in a file of another one says nothing."""
    number = value.get("format", FORMAT) if isinstance(value, dict) else FORMAT
    if isinstance(number, int) and number != FORMAT:
        raise ValueError(f"it is of format {number}, expected {FORMAT}; a newer release that wrote it can use it again")
    return value


@dataclass(slots=True)
class Withdrawn:
    """A version that was withdrawn because it failed, why, and the stamp of the link that asked for it; None if another link was
    there by then."""

    key: SavedKey
    reason: str
    link_stamp: Annotated[LinkStamp | None, Field(alias="stamp")]

    def is_asked_for_by(self, key: VersionKey, link_stamp: LinkStamp | None) -> bool:
        """Say whether a link is the one that asked for it. Only the times count, see `crashes`."""
        times = [None if stamp is None else stamp.ctime_ns for stamp in (self.link_stamp, link_stamp)]
        return key == self.key and times[0] is not None and times[0] == times[1]


@dataclass(slots=True)
class Probation:
    """When a version was promoted, by the system's clock in seconds."""

    key: SavedKey
    begun: float


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
    withdrawn: Annotated[Withdrawn | None, Field(exclude_if=lambda withdrawn: withdrawn is None)] = None
    """What was withdrawn last, until it is linked or sealed anew."""
    probation: Annotated[Probation | None, Field(exclude_if=lambda probation: probation is None)] = None
    """When the version was promoted that its link asked for."""
    mark: Annotated[ShareMark | None, Field(exclude_if=lambda mark: mark is None)] = None
    """By what the link of a share is known again after a rename."""

    def note_withdrawn(self, withdrawn: Withdrawn) -> None:
        """Note that a version was withdrawn: nothing falls back to it."""
        self.withdrawn = withdrawn
        self.good = [key for key in self.good if key != withdrawn.key]
        self.promoted = [key for key in self.promoted if key != withdrawn.key]
        if self.previous == withdrawn.key:
            self.previous = None

    def note_promoted(self, key: VersionKey) -> None:
        """Note that a version serves from now on."""
        self.serving = key
        self.promoted = [key, *(other for other in self.promoted if other != key)][:KEPT_PROMOTED]


@dataclass(slots=True)
class Failure:
    """Why a run ended by itself; `hung` is the version whose generation did not come back."""

    ending: Ending
    reason: str
    hung: SavedKey | None = None
    on_trial: Annotated[bool, Field(exclude_if=lambda on_trial: not on_trial)] = False
    """Whether that was on trial."""


@dataclass(slots=True)
class SavedState:
    """Everything that is in the state file. `proved` are the versions that have proved themselves in this run; `failure` says why
    it ends."""

    format: Literal[1] = field(default=1, kw_only=True)
    running: bool = False
    aliases: dict[
        str, Annotated[SavedAlias, _has_keys("serving", "trying", "previous", "good", "stamp", "unloaded")]
    ] = field(default_factory=dict)
    crashes: list[Crash] = field(default_factory=list)
    refused: list[RefusedStray] = field(default_factory=list)
    """Stray links that were refused and still exist, see `Look.refused`."""
    proved: list[SavedKey] = field(default_factory=list)
    failure: Annotated[Failure | None, Field(exclude_if=lambda failure: failure is None)] = None

    def alias(self, name: str) -> SavedAlias:
        """Return an alias's part, made on first use."""
        return self.aliases.setdefault(name, SavedAlias())

    def crashed_with(self) -> list[str]:
        """Return the digests of all versions that served or were tried when the previous run crashed, if it did; to be called
        before `begin_run`."""
        if not self.running:
            return []
        return [key.digest for key in self._used() if key.digest is not None]

    def _used(self) -> set[VersionKey]:
        """Return the versions that serve, or are being tried."""
        return {key for part in self.aliases.values() for key in (part.serving, part.trying) if key is not None}

    def begin_run(self) -> list[VersionKey]:
        """Note the start of a run; if the previous run crashed, return what that is counted for."""
        before = self._run()
        self.crashes = rules.after(self.crashes, before)
        self.running, self.failure = True, None
        self.proved = []
        for part in self.aliases.values():
            part.serving = part.trying = None
        return sorted(before.blamed, key=str)

    def ending(self) -> Failure | None:
        """Return how the run ended whose state this is, None if it is no run's; to be called before `begin_run`."""
        if self.failure is not None:
            return self.failure
        if self.running:
            return Failure(Ending.KILLED, "the process ended without a word")
        is_anew = all(part == SavedAlias() for part in self.aliases.values())
        return None if is_anew else Failure(Ending.STOPPED, "the service was stopped")

    def _run(self) -> rules.Run:
        parts = list(self.aliases.values())
        served = frozenset(part.serving for part in parts if part.serving is not None)
        # What did not come back is to blame, whatever it did before.
        hung = frozenset() if self.failure is None or self.failure.hung is None else frozenset({self.failure.hung})
        used = {key: self._links_to(key) for key in self._used() | hung}
        on_trial = self.failure.hung if self.failure is not None and self.failure.on_trial else None
        return rules.Run(self.running, used, served, frozenset(self.proved) - hung, on_trial)

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

    def links(self) -> dict[str, tuple[VersionKey | None, LinkStamp | None, ShareMark | None]]:
        """Return what each alias's link asks for, its stamp, and by what the link of a share is known again."""
        return {name: (part.wish, part.link_stamp, part.mark) for name, part in self.aliases.items()}

    def marks(self) -> dict[str, ShareMark | None]:
        """Return the keys of all aliases and shares, with by what the links of the shares are known again."""
        return {key: part.mark for key, part in self.aliases.items()}

    def note_links(self, links: Mapping[VersionKey, rules.Stamps]) -> None:
        """Note which links lead to which versions: what was linked anew is not set aside any more."""
        self.crashes = rules.without_new_links(self.crashes, links)

    def restamp(self, old: LinkStamp, new: LinkStamp) -> None:
        """Note that a link has another stamp, although it was not made anew: crashes go on to count."""
        self.crashes = [replace(crash, link_stamp=new) if crash.link_stamp == old else crash for crash in self.crashes]

    def note_sealed(self, key: VersionKey) -> None:
        """Note that a version was sealed anew: it is not set aside any more."""
        self.crashes = rules.without(self.crashes, key)

    def is_set_aside(self, key: VersionKey, link_stamp: LinkStamp | None = None) -> bool:
        """Say whether a version crashed too often since it was last sealed (its key) and linked; `link_stamp` is of the link
        that asks for it now."""
        links = {} if link_stamp is None else {key: frozenset({link_stamp})}
        return rules.is_set_aside(rules.without_new_links(self.crashes, links), key)

    def why_set_aside(self, alias: str, key: VersionKey, link: str) -> str:
        """Return the sentence about a version that was set aside; `link` is the name of the alias's link."""
        version, pause = key.version, self.last_resorts(alias).get(key)
        later = "" if pause is None else f". If nothing else can serve, it is tried {pause:g} s after the start"
        return (
            f"{version} was serving or being tried at {rules.count(self.crashes, key)} crashes in a row, and had not proved "
            f"itself; link it again (`ln -sfn {version} {link}`) or seal it again{later}"
        )

    def note_good(self, alias: str, key: VersionKey) -> bool:
        """Note that a version has proved itself in this run; return whether that is new."""
        part = self.alias(alias)
        if key in self.proved and (part.good[:1] == [key] or alias_of_key(alias) is not None):
            return False
        if key not in self.proved:
            self.proved.append(key)
            used = self._used()
            unused = [other for other in self.proved if other not in used]
            for other in unused[:-KEPT_PROVED]:
                self.proved.remove(other)
        self.crashes = rules.without_proved(self.crashes, key)
        if alias_of_key(alias) is not None:  # a share needs nothing to fall back on: its alias serves
            return True
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
    has_all = _has_keys("format", "running", "aliases", "crashes")
    return TypeAdapter(Annotated[SavedState, has_all, BeforeValidator(_check_format)])  # the last is asked first


def serialise(saved: SavedState) -> bytes:
    """Return the bytes of the state file for this state."""
    return schema().dump_json(saved, by_alias=True, indent=1)
