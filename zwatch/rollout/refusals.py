"""Earlier rejections: which wish each one is for, and what must happen before the version is tried again."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from zwatch.deploy.look import Awaited
from zwatch.deploy.resolving import LinkStamp
from zwatch.errors import Rejection, Retry
from zwatch.rollout.lifecycle import VersionKey

BACKOFF_FIRST, BACKOFF_LONGEST = 1.0, 60.0
"""Seconds before a version that failed for lack of memory or on a device error is tried again; doubled each time."""


_OF_THE_SEAL = frozenset({"seal_missing", "seal_invalid", "seal_changed"})
_FOR_GOOD = frozenset({"bad_image", "golden_mismatch", "set_aside", "withdrawn"})
"""Codes that say something about a version whose files are as they were sealed."""


@dataclass(eq=False)
class Refusal:
    """One earlier rejection. `retry_at` is a time of the monotonic clock, in seconds."""

    key: VersionKey
    rejection: Rejection
    link_stamp: LinkStamp | None
    awaited: Awaited | None
    tries: int
    retry_at: float | None
    is_fallback: bool = False
    file_changed: bool = False

    def due(self, now: float) -> bool:
        """Say whether the version should be tried again."""
        return self.file_changed or (self.retry_at is not None and now >= self.retry_at)

    @property
    def awaits_seal(self) -> bool:
        """Whether it is for last-known-good without its seal: no link asks for that, so nothing else tells when it is sealed
        again. A wish that is sealed again is a new wish."""
        return self.is_fallback and self.rejection.code in _OF_THE_SEAL

    def note_change(self) -> None:
        """Note that a file which the version's seal names has changed and then settled. This also ends a pause: a
        file was repaired, or its permissions were."""
        self.file_changed = self.file_changed or self.rejection.retry is not Retry.NEVER or self.awaits_seal


class Refusals:
    """Why one alias's versions were rejected: separately for its wish, and for last-known-good tried instead of it.

    `first_pause` is the seconds before the first retry.
    """

    def __init__(self, first_pause: float = BACKOFF_FIRST) -> None:
        self._first_pause = first_pause
        self._entries: dict[tuple[VersionKey, bool], Refusal] = {}

    def find(self, key: VersionKey | None, *, fallback: bool = False) -> Refusal | None:
        """Return the refusal of a version, as wish or as fallback."""
        return None if key is None else self._entries.get((key, fallback))

    def awaiting(self) -> list[Refusal]:
        """Return those that wait for files to change."""
        return [refusal for refusal in self._entries.values() if refusal.awaited is not None]

    def add(
        self,
        key: VersionKey,
        rejection: Rejection,
        link_stamp: LinkStamp | None,
        awaited: Awaited | None,
        *,
        fallback: bool = False,
    ) -> None:
        """Add a rejection; if the version was rejected before, the next pause is twice as long."""
        before = self._entries.get((key, fallback))
        tries = 1 if before is None else before.tries + 1
        pause = min(BACKOFF_LONGEST, self._first_pause * 2 ** (tries - 1))
        # Last-known-good is tried only while nothing serves: its directory may be replaced, which no file in the old one shows.
        is_paused = rejection.retry is Retry.BACKOFF or (fallback and rejection.code not in _FOR_GOOD)
        retry_at = time.monotonic() + pause if is_paused else None
        self._entries[key, fallback] = Refusal(
            key, rejection, link_stamp, awaited, tries, retry_at, is_fallback=fallback
        )

    def forget(self, key: VersionKey, *, fallback: bool = False) -> None:
        """Remove a version's refusal, because it serves now."""
        self._entries.pop((key, fallback), None)

    def keep_only(self, wish: VersionKey, link_stamp: LinkStamp) -> None:
        """Remove the refusals of other wishes: a link made again or a version sealed again is a new wish."""
        self._entries = {
            (key, fallback): refusal
            for (key, fallback), refusal in self._entries.items()
            if fallback or (key == wish and refusal.link_stamp == link_stamp)
        }

    def restamp(self, old: LinkStamp, new: LinkStamp) -> None:
        """Note that the link which asked for refused versions has another stamp, although it was not made anew."""
        for one in self._entries.values():
            if one.link_stamp == old:
                one.link_stamp = new

    def forget_set_aside(self, is_set_aside: Callable[[VersionKey], bool]) -> None:
        """Remove those for crashes that do not count any more: also of an alias whose own link stayed as it was."""
        self._entries = {
            at: one for at, one in self._entries.items() if one.rejection.code != "set_aside" or is_set_aside(one.key)
        }

    def end_pauses(self) -> None:
        """Let all be tried again now, but for what is set aside or was withdrawn."""
        for one in self._entries.values():
            one.file_changed = one.file_changed or one.rejection.code not in ("set_aside", "withdrawn")

    def clear(self) -> None:
        """Remove all, because an operator asked to try again."""
        self._entries.clear()
