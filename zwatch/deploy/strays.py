"""Stray links: `ln -sf v2 current` drops a link into the old version instead of repointing `current`.

`judge` decides, from facts alone, whether such a link is a wish for the version of its name; `find_strays` gathers the
facts. `wishes` acts on those that are.
"""

import errno
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from zwatch.deploy import seal
from zwatch.deploy.chains import LinkStamp, place_of
from zwatch.deploy.made import Made
from zwatch.deploy.oserrors import is_missing, leads_nowhere
from zwatch.deploy.resolving import Directory, Fault
from zwatch.deploy.versions import is_version_directory
from zwatch.errors import Rejection

MAX_REPORTED = 100
"""How many strays are reported at most."""
_MAX_ENTRIES = 10_000
"""How many entries of a directory that is no version are looked at."""
_FEW = 50
_NO_VERSION = "no version of that name"
_TEMPORARY = re.compile("Cu[A-Za-z0-9]{6}")
"""The names of the links that GNU `ln -sf` makes and renames."""
OLDER = "it is older than the alias"
"""The reason of a stray that an earlier deploy may have left."""
AHEAD = "it seems to be older than the alias, whose time lies in the future: a clock was wrong"
"""The reason of a stray that may be a wish, but whose age cannot be told."""


@dataclass(frozen=True, slots=True)
class StrayFacts:
    """A symlink found directly in a version directory. `since_ns` is since when it has existed: its birth time, or its ctime on
    a file system that keeps none. Times are nanoseconds."""

    directory: str
    name: str
    text: str
    owner: int
    since_ns: int
    sealed: bool
    is_version: bool
    leads_beside: bool
    """Whether an absolute text resolves to the very directory `name` beside this one."""

    @property
    def may_be_renamed(self) -> bool:
        """Whether it may be a second `ln -sf` on its way: that makes a link under a name of its own, and renames it."""
        if self.is_version:
            return False
        is_absolute, name = self.text.startswith("/"), self.text.rstrip("/").rpartition("/")[2]
        return name != self.name and (not is_absolute or _TEMPORARY.fullmatch(self.name) is not None)


@dataclass(frozen=True, slots=True)
class Stray:
    """A stray link that was not followed, and why. `is_wish`: it is a wish, but could not be carried out."""

    path: str
    text: str
    reason: str
    is_wish: bool = False


def judge(
    facts: StrayFacts,
    alias_ctime_ns: int,
    trusted_owners: frozenset[int],
    links_here: Sequence[str],
    moved: Sequence[str] = (),
    refused_before: str | None = None,
) -> str | None:
    """Return why this link is no wish for the version of its name, or None if it is one.

    `links_here` are the names of all links that lead to its directory, followed or not; `moved` those that do not, but may
    have when it was made; `refused_before` is the reason of an earlier refusal.
    """
    if facts.sealed:
        return "the version's seal names it"
    if not facts.is_version:
        return _NO_VERSION
    if facts.owner not in trusted_owners:
        return (
            f"its owner (uid {facts.owner}) is neither root, nor the owner of the models root, nor the service's user"
        )
    if facts.since_ns < alias_ctime_ns:
        return OLDER
    if facts.text.startswith("/"):
        if not facts.leads_beside:
            return f"its text does not lead to the version {facts.name} beside it"
    elif facts.text.rstrip("/").rpartition("/")[2] != facts.name:
        return f"its text does not end in {facts.name}"
    if len(links_here) != 1:
        count = "all" if len(links_here) > 2 else "both"
        return f"{_listed(links_here)} {count} point to {facts.directory}; {_unclear(facts)}"
    if moved:
        return (
            f"{_listed(moved)} may have pointed to {facts.directory} when it was made, as {links_here[0]} does; "
            f"{_unclear(facts)}"
        )
    if refused_before is not None:
        return f"it was refused earlier, and stays refused until it is made again: {refused_before}"
    return None


def _unclear(facts: StrayFacts) -> str:
    return f"it is not clear which link was meant: `ln -sfn {facts.name} LINK` moves one"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


@dataclass(frozen=True, slots=True)
class FoundStray:
    """A symlink found directly in an opened version directory, with the facts about it and its identity."""

    facts: StrayFacts
    link_stamp: LinkStamp
    made: Made
    directory: Directory

    @property
    def path(self) -> str:
        """Where it lies, below the models root."""
        return f"{self.facts.directory}/{self.facts.name}"

    @property
    def times(self) -> Iterator[tuple[str, str, int]]:
        """Its name with each of its times. One that is made again shares none of them."""
        for kind, at in (("ctime", self.link_stamp.ctime_ns), *self.made.marks()):
            yield self.facts.name, kind, at

    def stray(self, reason: str, *, is_wish: bool = False) -> Stray:
        """Return it as one that was not followed, for this reason."""
        return Stray(self.path, self.facts.text, reason, is_wish)


def find_strays(root_fd: int, directory: Directory, *, only_versions: bool = False) -> list[FoundStray]:
    """Gather the facts about every symlink directly in a version directory, or about those with a version's name.

    Raises:
        OSError: they could not be found out; nothing may be judged by a part of them.
    """
    names = _links_in(directory)
    unknown: set[str] = set()
    if len(names) > _FEW:  # one listing is cheaper than to ask for each
        unknown = set(names).difference(os.listdir(root_fd))
    if only_versions:
        names = [name for name in names if name not in unknown]
    if not names:
        return []
    sealed = _sealed_names(directory.fd)
    found = []
    for name in names:
        try:
            is_version = name not in unknown and is_version_directory(root_fd, name)
            if only_versions and not is_version:
                continue
            status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
            text = os.readlink(name, dir_fd=directory.fd)
            leads_beside = is_version and text.startswith("/") and _leads_beside(root_fd, text, name)
            made = Made.of(directory.fd, name, status)
        except OSError as error:
            if not is_missing(error) and error.errno != errno.EINVAL:
                raise
            continue  # gone, or not a link any more
        since = made.since(status.st_ctime_ns)
        facts = StrayFacts(
            directory.version, name, text, status.st_uid, since, name in sealed, is_version, leads_beside
        )
        found.append(FoundStray(facts, LinkStamp.of(status), made, directory))
    return found


def misplaced(root_fd: int, faults: Iterable[Fault]) -> list[Stray]:
    """Return the links that `ln -sf` dropped into directories which aliases lead to but which are no versions: nobody
    follows them, and one deep in a version cannot be sealed. What cannot be read is left out."""
    found = []
    for fault in faults:
        if fault.directory is None:
            continue
        try:
            names = _links_in(fault.directory, most=_MAX_ENTRIES)
        except OSError:
            continue
        for name in names:
            try:
                text = os.readlink(name, dir_fd=fault.directory.fd)
                # A directory elsewhere may be full of links that have nothing to do with versions.
                if text.rstrip("/").rpartition("/")[2] != name or not is_version_directory(root_fd, name):
                    continue
            except OSError:
                continue
            path, advice = f"{fault.directory.version}/{name}", f"`ln -sfn {name} {fault.alias}`"
            reason = (
                f"{fault.alias} -> {fault.link} leads to no version, so `ln -sf {name} {fault.alias}` made this link there; "
                f"remove it (`rm {path}`) and type {advice}"
            )
            found.append(Stray(path, text, reason))
    return found


def shortened(strays: Sequence[Stray]) -> list[Stray]:
    """Return these strays, or the first of very many and how many more there are."""
    if len(strays) <= MAX_REPORTED:
        return list(strays)
    # First the wishes, then those that somebody may wait for: a name of a version.
    first = sorted(strays, key=lambda stray: (not stray.is_wish, stray.reason == _NO_VERSION))[:MAX_REPORTED]
    more = len(strays) - MAX_REPORTED
    return [*first, Stray("...", "", f"{more} more links were not followed; only {MAX_REPORTED} are reported")]


def _links_in(directory: Directory, most: int | None = None) -> list[str]:
    with os.scandir(directory.fd) as entries:
        return [entry.name for entry in itertools.islice(entries, most) if entry.is_symlink()]


def _sealed_names(directory_fd: int) -> set[str]:
    try:
        return {path.partition("/")[0] for path in seal.read_seal(directory_fd).files}
    except Rejection:
        return set()


def _leads_beside(root_fd: int, text: str, name: str) -> bool:
    try:
        return place_of(root_fd, text) == place_of(root_fd, name)
    except ValueError:
        return False
    except OSError as error:
        if not leads_nowhere(error):
            raise
        return False
