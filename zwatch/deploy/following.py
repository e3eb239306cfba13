"""Which links under the models root are followed: rules over names, and what is seen of an alias's share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from zwatch.deploy.resolving import Fault, LinkStamp
from zwatch.deploy.shares import ShareLink, alias_meant, alias_of_key, parse_share, why_no_share
from zwatch.deploy.versions import is_version_name

SEVERAL = "several_shares"
"""The code of the fault of an alias with more than one share."""
_SPECIAL = frozenset("*?[")


def is_pattern(text: str) -> bool:
    """Say whether an `--alias` is a shell pattern, and not a name."""
    return not _SPECIAL.isdisjoint(text)


@dataclass(frozen=True, slots=True)
class Rule:
    """The links that are followed: those `named`, always, and those whose name a pattern matches, while they are there."""

    named: tuple[str, ...]
    patterns: tuple[str, ...] = ()

    @classmethod
    def of(cls, aliases: Iterable[str]) -> "Rule":
        """Return the rule for names and patterns."""
        names = tuple(dict.fromkeys(aliases))
        return cls(tuple(one for one in names if not is_pattern(one)), tuple(one for one in names if is_pattern(one)))

    def matches(self, name: str) -> bool:
        """Say whether a link of this name is followed although nobody named it, if it leads to a version."""
        return (
            name not in self.named
            and is_version_name(name)
            and any(fnmatchcase(name, pattern) for pattern in self.patterns)
        )

    def may_follow(self, name: str) -> bool:
        """Say whether a link of this name may be followed: as an alias, or as the share of one. A share's key counts as well."""
        alias = alias_of_key(name) or alias_meant(name) or name
        return alias in self.named or self.matches(alias)


@dataclass(frozen=True, slots=True)
class RootNames:
    """What the models root holds that may be followed: `links` are the symlinks that may be aliases, `marked` the entries with
    an `@` in their name, each with whether it is a symlink."""

    links: frozenset[str] = frozenset()
    marked: Mapping[str, bool] = field(default_factory=dict)

    def shares_of(self, alias: str) -> tuple[list[ShareLink], dict[str, Fault]]:
        """Return the links that have names of an alias's shares, and the faults of the entries that were meant to, by name."""
        links, faults = [], {}
        for name, is_link in sorted(self.marked.items()):
            if alias_meant(name) != alias:
                continue
            share = parse_share(name)
            if share is None:
                faults[name] = Fault(name, "not_a_share", why_no_share(name))
            elif not is_link:
                text = f"{name}: expected a symlink, found something else with that name; move it away"
                faults[name] = Fault(name, "not_a_link", text)
            else:
                links.append(share)
        return links, faults


@dataclass(frozen=True, slots=True)
class ShareMark:
    """By what a share's link is told from one that is made anew: its text and mtime, which a rename leaves as they are. `name`
    and its ctime are what a rename changes, and with that `stamp`, which is of the whole chain. Times are in nanoseconds."""

    name: str
    text: str
    mtime_ns: int
    ctime_ns: int
    stamp: LinkStamp

    def was_renamed(self, now: "ShareMark") -> bool:
        """Say whether this link has another stamp now, and is the same, as are all others of its chain."""
        return self.stamp != now.stamp and self.kept == now.kept

    @property
    def kept(self) -> tuple[str, int, int]:
        """What a rename leaves as it is."""
        return self.text, self.mtime_ns, self.stamp.ctime_ns - self.ctime_ns


@dataclass(frozen=True, slots=True)
class ShareSeen:
    """What was seen of the shares of one alias. `link` is the one that counts, also while it is briefly missing; None if none
    does. `faults` are those of the names that do not count. `mark` tells the link from others, None if it could not be read.
    `renamed_from` is the stamp that the link had before it was renamed: it asks for what it asked for."""

    link: ShareLink | None = None
    faults: Mapping[str, Fault] = field(default_factory=dict)
    mark: ShareMark | None = None
    renamed_from: LinkStamp | None = None

    @property
    def fault(self) -> Fault | None:
        """Why some name does not count."""
        return next(iter(self.faults.values()), None)

    @property
    def is_ambiguous(self) -> bool:
        """Whether none counts because there are several."""
        return any(fault.code == SEVERAL for fault in self.faults.values())


def two_shares(alias: str, links: Sequence[ShareLink]) -> dict[str, Fault]:
    """Return the faults of several shares of one alias, of which none counts."""
    names = sorted((link.name for link in links), key=lambda name: (len(name), name))
    listed = " and ".join([", ".join(names[:-1]), names[-1]])
    message = (
        f"{alias} has {len(names)} shares, {listed}, and none of them counts: keep one, and remove the others, such as "
        f"`rm {names[0]}`"
    )
    return {name: Fault(name, SEVERAL, message) for name in names}
