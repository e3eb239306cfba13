"""Searching for stray links at every look: only where something may have changed, and without waiting for what does not
answer."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from zwatch.deploy.asking import Asker, Direct, Unanswered
from zwatch.deploy.refused import RefusedStray
from zwatch.deploy.reread import Reread, stamp_of
from zwatch.deploy.resolving import Fault, Target
from zwatch.deploy.strays import Stray, misplaced, shortened
from zwatch.deploy.wishes import WishFollower


class StraySearch:
    """Finds strays, follows wishes, and remembers what it found for as long as nothing changes.

    One file system that does not answer holds up a search; the next ones are done by a new follower.
    """

    def __init__(
        self,
        root: Path,
        asker: Asker | Direct,
        *,
        strict_links: bool,
        refused: Iterable[RefusedStray],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root = root
        self._asker = asker
        self._make_reread = partial(Reread, clock)
        self._make_wishes = partial(WishFollower, strict=strict_links, clock=clock)
        self._searcher = _Searcher(self._make_wishes(refused=refused), self._make_reread())
        self._lost = 0  # searchers that did not return

    @property
    def refused(self) -> tuple[RefusedStray, ...]:
        """The strays that were refused and still exist, to be kept across restarts."""
        return self._searcher.wishes.refused

    def take_notes(self) -> list[str]:
        """Return what was done since the last call, a sentence each, for the log."""
        wishes = self._searcher.wishes
        notes, wishes.notes = wishes.notes, []
        return notes

    def forget_links(self) -> None:
        """Forget where links led, because the models root could not be read for a while: they may have moved unseen."""
        self._searcher.wishes.forget_links()
        self._searcher.reread = self._make_reread()

    def search(
        self, root_fd: int, known: Mapping[str, Target], faults: Mapping[str, Fault], changed_ns: int
    ) -> tuple[Sequence[Stray], bool]:
        """Act on every wish; return the strays that are none, and whether to look again at once. `changed_ns` is the models
        root's mtime before zwatch changed anything there.

        Raises:
            OSError: something could not be read.
        """
        subject = ("wishes", self._lost % 2)
        is_new = not self._asker.is_waiting(subject)
        try:
            return self._asker.ask_in(
                subject, root_fd, self._searcher.search, list(known.values()), list(faults.values()), changed_ns
            )
        except Unanswered as error:
            if is_new:
                # The thread that does not return still works with it. A new one may get on: it knows no directory that an
                # alias has left. If it does not either, that is all until one of them returns.
                self._lost += 1
                self._searcher = _Searcher(self._make_wishes(refused=self.refused), self._make_reread())
                self._searcher.wishes.notes.append(
                    f"links inside versions of {self._root} are not followed: {error.strerror}"
                )
            return (), False


class _Searcher:
    """Searches in one thread; what it remembers belongs to that thread until it returns."""

    def __init__(self, wishes: WishFollower, reread: Reread) -> None:
        self.wishes = wishes
        self.reread = reread
        self._strays: list[Stray] = []
        self._problem: tuple[object, ...] | None = None  # the arguments of an OSError

    def search(
        self, root_fd: int, targets: Sequence[Target], faults: Sequence[Fault], changed_ns: int
    ) -> tuple[list[Stray], bool]:
        is_due = self.reread.due(_stamps(root_fd, targets, faults))
        if not is_due and not self.wishes.is_following:
            if self._problem is not None:
                raise OSError(*self._problem)
            return self._strays, False
        self.reread.begin()
        self._strays, self._problem, moved = [], None, True
        try:
            strays, moved = self.wishes.take_wishes(root_fd, targets, changed_ns)
            self._strays = shortened([*strays, *misplaced(root_fd, faults)])
        except OSError as error:
            self._problem = (error.errno, error.strerror, error.filename)
            raise
        finally:
            self.reread.done(is_whole=self._problem is None and not moved)
        return self._strays, moved


def _stamps(root_fd: int, targets: Sequence[Target], faults: Sequence[Fault]) -> object:
    """Return what changes if a link in the models root does, or a stray is made.

    Where inode numbers do not hold still, that is at every look.

    Raises:
        OSError: a directory could not be looked at.
    """
    directories = [fault.directory for fault in faults if fault.directory is not None]
    directories += [target.directory for target in targets]
    links = [(target.alias, target.link, target.link_stamp) for target in targets]
    return links, stamp_of(root_fd), [stamp_of(directory.fd) for directory in directories]
