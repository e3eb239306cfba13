"""The followed links as they are looked at again and again: aliases and their shares, which come, move and go."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from zwatch.deploy.asking import Asker, Direct, Unanswered
from zwatch.deploy.chains import LinkStamp, read_beside
from zwatch.deploy.following import RootNames, Rule, ShareMark, ShareSeen, two_shares
from zwatch.deploy.reread import Reread, Stamp
from zwatch.deploy.resolving import Fault, Target, resolve
from zwatch.deploy.shares import MARK, ShareLink, alias_of_key, parse_share, share_key
from zwatch.deploy.versions import is_version_name

MISSING_GRACE = 1.0
"""Seconds that a link may be missing, as it is between an unlink and a symlink, before that counts."""
_NEW_SECONDS = 0.1
"""Seconds that a new link must be there before a pattern makes it an alias: `ln -sf` and others make links for a moment, which
they rename."""

Chains = Mapping[str, tuple[tuple[LinkStamp, str], ...]]


@dataclass(slots=True)
class Known:
    """What was seen last: targets by key, the aliases that patterns found, the aliases' shares, and by what the links of those
    are told from others, by key."""

    targets: dict[str, Target] = field(default_factory=dict)
    found: set[str] = field(default_factory=set)
    shares: dict[str, ShareSeen] = field(default_factory=dict)
    marks: dict[str, ShareMark] = field(default_factory=dict)

    @classmethod
    def before(cls, rule: Rule, marks: Mapping[str, ShareMark | None]) -> "Known":
        """Return what an earlier run had seen: its keys, with the marks of shares. An alias that a pattern found then is followed
        still, whatever became of its link meanwhile."""
        found = {key for key in marks if alias_of_key(key) is None and rule.matches(key)}
        followed = {key: mark for key, mark in marks.items() if mark is not None and rule.may_follow(key)}
        shares = {
            alias: ShareSeen(link)
            for key, mark in followed.items()
            if (alias := alias_of_key(key)) is not None
            and (link := parse_share(mark.name)) is not None
            and link.alias == alias
        }
        return cls({}, found, shares, followed)


class FollowedLinks:
    """Resolves the links that are followed. It blocks, as the `Looker` that uses it."""

    def __init__(
        self,
        rule: Rule,
        asker: Asker | Direct,
        clock: Callable[[], float] = time.monotonic,
        known: Known | None = None,
    ) -> None:
        self._rule = rule
        self._asker = asker
        self._clock = clock
        self.known = known or Known()
        self._names = RootNames()
        self._reread = Reread(clock)
        self._has_read = False
        self._missing_since: dict[str, float] = {}
        self._candidates: dict[str, float] = {}  # links that a pattern matches, and since when they are there
        self._others: set[str] = set()  # of these, those that have nothing to do with versions

    @property
    def aliases(self) -> tuple[str, ...]:
        """The aliases that are followed now: those that are named first."""
        return (*self._rule.named, *sorted(self.known.found))

    @property
    def names(self) -> Iterator[tuple[str, str]]:
        """The key and the link's name of everything that is followed now."""
        yield from ((alias, alias) for alias in self.aliases)
        for alias, share in self.known.shares.items():
            if share.link is not None:
                yield share_key(alias), share.link.name

    def read_names(self, root_fd: int, stamp: Stamp) -> None:
        """Read what the models root, whose stamp this is, holds, if that may have changed.

        Raises:
            OSError: it cannot be listed.
        """
        if not self._reread.due(stamp):
            return
        self._reread.begin()
        self._names = read_root_names(root_fd)
        self._reread.done()
        self._note_candidates()

    def _note_candidates(self) -> None:
        matching = {name for name in self._names.links if self._rule.matches(name)} if self._rule.patterns else set()
        now = self._clock() if self._has_read else float("-inf")  # what was there before the start is not on its way
        self._candidates = {name: self._candidates.get(name, now) for name in matching - self.known.found}
        self._others.clear()
        self._has_read = True

    # --- one look

    def resolve(self, root_fd: int) -> dict[str, Fault]:
        """Resolve every followed link into `known`, and return the faults, by key."""
        for name in self._due_candidates():
            self._admit(root_fd, name)
        listed = {alias: self._names.shares_of(alias) for alias in self.aliases} if self._names.marked else {}
        names = [*self.aliases, *(link.name for links, _ in listed.values() for link in links)]
        chains: Chains = self._asker.ask_in("root", root_fd, read_beside, names)
        faults: dict[str, Fault] = {}
        for alias in self.aliases:
            self._resolve_alias(root_fd, alias, chains, faults)
        for alias in self.aliases:
            links, bad = listed.get(alias, ([], {}))
            if links or bad or alias in self.known.shares:
                self._resolve_share(root_fd, alias, links, bad, chains, faults)
        for alias in [alias for alias in self.known.shares if alias not in self.aliases]:
            self._forget_share(alias)
        return faults

    def _due_candidates(self) -> list[str]:
        now = self._clock()
        return [
            name
            for name, since in sorted(self._candidates.items())
            if name not in self._others and now - since >= _NEW_SECONDS
        ]

    def _admit(self, root_fd: int, name: str) -> None:
        """Follow a link that a pattern matches, if it leads to a version or was meant to."""
        found = self._resolved(root_fd, name, None, ())
        if isinstance(found, Target) or _was_meant(found):
            self.known.found.add(name)
            del self._candidates[name]
        elif not found.may_pass:
            self._others.add(name)

    def _resolve_alias(self, root_fd: int, alias: str, chains: Chains, faults: dict[str, Fault]) -> None:
        found = self._resolved(root_fd, alias, self.known.targets.get(alias), chains.get(alias, ()))
        if isinstance(found, Fault) and alias in self.known.found and found.code in ("missing", "not_a_link"):
            if self._missing_for(alias) >= MISSING_GRACE:
                self._forget(alias)
                self.known.found.discard(alias)
            return
        self._note(alias, found, faults)

    def _note(self, key: str, found: Target | Fault, faults: dict[str, Fault]) -> None:
        """Note what a link was found to be."""
        known = self.known.targets
        if isinstance(found, Target):
            known[key] = found
            self._missing_since.pop(key, None)
            return
        before = known.get(key)
        if before is not None and found.may_pass and _may_be(found, before):
            faults[key] = found
            return
        if found.code == "missing" and self._missing_for(key) < MISSING_GRACE and key in known:
            return
        faults[key] = found
        known.pop(key, None)

    def _missing_for(self, key: str) -> float:
        now = self._clock()
        return now - self._missing_since.setdefault(key, now)

    def _forget(self, key: str) -> None:
        self.known.targets.pop(key, None)
        self._missing_since.pop(key, None)

    def _resolved(
        self, root_fd: int, name: str, known: Target | None, chain: tuple[tuple[LinkStamp, str], ...]
    ) -> Target | Fault:
        """Resolve a link. One that does not answer is asked again when it has, or when one of its links was made again."""
        try:
            return self._asker.ask_in((name, chain), root_fd, resolve, name, known, chain)
        except Unanswered as error:
            stamp, text = chain[0] if chain else (None, "?")
            return Fault(name, "unreadable", f"{name} -> {text}: {error.strerror}", text, stamp)

    # --- shares

    def _resolve_share(
        self,
        root_fd: int,
        alias: str,
        links: Sequence[ShareLink],
        bad: Mapping[str, Fault],
        chains: Chains,
        faults: dict[str, Fault],
    ) -> None:
        """Note the share of an alias: the only link of such a name counts."""
        key, before = share_key(alias), self.known.shares.get(alias, ShareSeen())
        # The list may be older than a rename.
        present = [link for link in links if link.name in chains or not self._is_gone(root_fd, link.name)]
        if len(present) > 1:
            self._missing_since.pop(key, None)
            self.known.shares[alias] = ShareSeen(None, {**two_shares(alias, present), **bad})
            return
        if not present:
            is_known = key in self.known.targets or (before.link is not None and key in self.known.marks)
            if is_known and (self._missing_for(key) < MISSING_GRACE or not self._has_read):
                self.known.shares[alias] = ShareSeen(before.link, bad)
            else:
                mark = self.known.marks.get(key)
                self._forget_share(alias)
                if bad:  # it may have been renamed to what is no share's name
                    self.known.shares[alias] = ShareSeen(None, bad)
                    self.known.marks |= {} if mark is None else {key: mark}
            return
        [link] = present
        known = self.known.targets.get(key)
        is_same_name = known is not None and known.alias == link.name
        chain = chains.get(link.name, ())
        found = self._resolved(root_fd, link.name, known if is_same_name else None, chain)
        is_new = not is_same_name or found is not known
        renamed_from = self._renamed_from(root_fd, key, link.name, found) if is_new else None
        self._note(key, found, faults)
        self.known.shares[alias] = ShareSeen(link, bad, self.known.marks.get(key), renamed_from)

    def _is_gone(self, root_fd: int, name: str) -> bool:
        found = self._resolved(root_fd, name, None, ())
        return isinstance(found, Fault) and found.code == "missing"

    def _renamed_from(self, root_fd: int, key: str, name: str, found: Target | Fault) -> LinkStamp | None:
        """Note by what a share's link is told from others; return its stamp from before if it was renamed. While it cannot be
        read, what was noted stays."""
        if found.link is None or found.link_stamp is None or (isinstance(found, Fault) and found.may_pass):
            return None
        try:
            times = self._asker.ask_in("root", root_fd, _times_of, name)
        except OSError:
            return None
        before, now = self.known.marks.get(key), ShareMark(name, found.link, *times, found.link_stamp)
        self.known.marks[key] = now
        return before.stamp if before is not None and before.was_renamed(now) else None

    def _forget_share(self, alias: str) -> None:
        key = share_key(alias)
        self._forget(key)
        self.known.shares.pop(alias, None)
        self.known.marks.pop(key, None)


def read_root_names(root_fd: int) -> RootNames:
    """Read what the models root holds that may be followed.

    Raises:
        OSError: it cannot be listed.
    """
    links, marked = [], {}
    with os.scandir(root_fd) as entries:
        for entry in entries:
            if MARK in entry.name and not entry.name.startswith("."):
                marked[entry.name] = entry.is_symlink()
            elif entry.is_symlink() and is_version_name(entry.name):
                links.append(entry.name)
    return RootNames(frozenset(links), marked)


def _times_of(root_fd: int, name: str) -> tuple[int, int]:
    status = os.stat(name, dir_fd=root_fd, follow_symlinks=False)
    return status.st_mtime_ns, status.st_ctime_ns


def _was_meant(fault: Fault) -> bool:
    """Say whether a link that leads nowhere was meant to lead to a version: its text is a name beside it."""
    if fault.code not in ("dangling", "loop") or fault.link is None:
        return False
    folder, _, name = fault.link.rstrip("/").rpartition("/")
    return is_version_name(name) and folder in ("", ".")


def _may_be(fault: Fault, known: Target) -> bool:
    """Say whether a link that could not be read, or not wholly, may still be the known one."""
    return fault.link in (None, known.link) and fault.link_stamp in (None, known.link_stamp)
