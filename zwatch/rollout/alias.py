"""One followed alias: what its link asks for, what it serves, and everything else that is known of it."""

import logging
from collections.abc import Iterable

from zwatch.deploy.following import ShareSeen
from zwatch.deploy.look import Awaited
from zwatch.deploy.resolving import Fault, LinkStamp, Target
from zwatch.deploy.shares import ShareLink, alias_of_key
from zwatch.errors import Rejection
from zwatch.rollout import policy
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.lifecycle import Attempt, Resident, VersionKey
from zwatch.rollout.refusals import BACKOFF_FIRST, Refusals
from zwatch.rollout.saved import SavedAlias, Withdrawn

_log = logging.getLogger(__name__)

GOOD_IMAGES = 3
GOOD_SECONDS = 60.0
"""A version that served this many images, or for this many seconds, is last-known-good."""

WITHDRAWN = "withdrawn"
"""The code of the refusal of a version that was withdrawn: it gets no requests."""

_NO_LINK = LinkStamp(0, 0, 0)
"""The stamp of a link that does not exist."""


class Alias:
    """The one record of an alias. `target` and `fault` are as the latest look saw them; both are None before the first
    look, and while the link is briefly missing."""

    def __init__(
        self,
        key: str,
        engines: EngineRegistry,
        *,
        first_pause: float = BACKOFF_FIRST,
        needs_signature: bool = False,
    ) -> None:
        self.key = key
        """What it is known by inside: in the registry, the saved state and attempts."""
        self.is_share = alias_of_key(key) is not None
        """Whether it is the share of an alias: it takes some of that one's requests, and needs no fallback."""
        self.share: ShareLink | None = None
        """The link of a share, as it is named now; None for an alias, and before the first look."""
        self.counts = True
        """Whether a share takes requests: not while its alias has another one."""
        self.target: Target | None = None
        self.fault: Fault | None = None
        self.attempt: Attempt | None = None
        """The last attempt to bring in what the link asks for; loads of last-known-good do not count."""
        self.forced = False
        """Whether an operator asked to load the wish again although it serves."""
        self._needs_signature = needs_signature
        self.refusals = Refusals(first_pause)
        self.saved = SavedAlias()
        """Its part of the saved state."""
        self._engines = engines
        self._link_stamp = _NO_LINK
        self._served: VersionKey | None = None  # before an unload, or in the previous run

    # --- what is known

    @property
    def name(self) -> str:
        """The name of its link, by which operators know it."""
        return self.key if self.share is None else self.share.name

    @property
    def percent(self) -> int:
        """How many per cent of the alias's requests a share takes; 0 while it does not count."""
        return 0 if self.share is None or not self.counts else self.share.percent

    @property
    def is_withdrawn(self) -> bool:
        """Whether what it serves was withdrawn from the requests, because it failed in some."""
        serving, withdrawn = self.serving, self.saved.withdrawn
        return serving is not None and withdrawn is not None and serving.key == withdrawn.key

    @property
    def withdrawn(self) -> Withdrawn | None:
        """What its link asks for, if that was withdrawn."""
        withdrawn = self.saved.withdrawn
        return withdrawn if withdrawn is not None and withdrawn.key == self.wish else None

    @property
    def _withdrawn_key(self) -> VersionKey | None:
        return None if self.saved.withdrawn is None else self.saved.withdrawn.key

    @property
    def wish(self) -> VersionKey | None:
        """What the link asks for; None while it has a fault."""
        return None if self.target is None else VersionKey(self.target.version, self.target.digest)

    @property
    def link_stamp(self) -> LinkStamp:
        """The stamp of the link, wherever it leads; while it cannot be read or is missing, the one that it had last."""
        return self._link_stamp

    @property
    def linked_ns(self) -> int | None:
        """When the link was made that asks for the wish, by the system's clock in nanoseconds; None if that is not known."""
        return None if self.target is None or self.target.link_stamp is None else self.target.link_stamp.ctime_ns

    @property
    def serving(self) -> Resident | None:
        """What it serves."""
        return self._engines.serving(self.key)

    @property
    def previous(self) -> VersionKey | None:
        """What it served before what it serves now, also across a restart."""
        return self._engines.previous(self.key) or self.saved.previous

    @property
    def is_unloaded(self) -> bool:
        """Whether an operator unloaded it, and its link was not made again since."""
        unloaded = self.saved.unloaded
        return unloaded is not None and (self.target is None or self.target.link_stamp == unloaded)

    def view(self, running: Attempt | None, fallbacks: Iterable[VersionKey], now: float) -> policy.AliasView:
        """Return the facts that the policy decides by. `running` is the attempt that loads, `fallbacks` are
        the versions that can serve instead, in the order to try them, `now` is a time of the monotonic clock."""
        serving, refusal, known = self.serving, self.refusals.find(self.wish), list(fallbacks)
        fallback_loads = running is not None and running.alias == self.key and running.fallback
        return policy.AliasView(
            name=self.key,
            is_share=self.is_share,
            wish=self.wish,
            serving=None if serving is None else serving.key,
            unloaded=self.is_unloaded,
            # A running load of last-known-good is not given up to try again what was just rejected.
            refused=refusal is not None and not self.forced and (fallback_loads or not refusal.due(now)),
            retried=refusal is not None and not refusal.file_changed and not self.forced,
            forced=self.forced,
            needs_signature=self._needs_signature,
            fallback=self._usable(known, now) if serving is None or self.is_withdrawn else None,
            barred=refusal is not None and refusal.rejection.code == WITHDRAWN,
            withdrawn=self.is_withdrawn,
            retreats=tuple(self.retreats(known)),
        )

    def retreats(self, fallbacks: Iterable[VersionKey]) -> list[VersionKey]:
        """Return what may serve instead of what it serves, should that be withdrawn, in the order to try it."""
        previous, serving = self.previous, self.serving
        known = dict.fromkeys([previous, *fallbacks])
        return [key for key in known if key is not None and (serving is None or key != serving.key)]

    def _usable(self, fallbacks: Iterable[VersionKey], now: float) -> VersionKey | None:
        for key in fallbacks:
            refusal = self.refusals.find(key, fallback=True)
            if refusal is None or refusal.due(now):
                return key
        return None

    def proved(self, now: float) -> VersionKey | None:
        """Return what it serves if that has served long enough to be last-known-good, else None."""
        serving = self.serving
        if (
            serving is None
            or serving.engine.is_unjudged
            or self.is_withdrawn
            or (serving.images < GOOD_IMAGES and now - serving.serving_from < GOOD_SECONDS)
        ):
            return None
        return serving.key

    @property
    def may_fall_back(self) -> bool:
        """Whether it may serve something else than its wish: a share's alias serves anyway, and what is briefly missing comes
        back, or goes."""
        return not self.is_share and (self.target is not None or self.fault is not None)

    # --- what happens to it

    def restore(self, saved: SavedAlias) -> None:
        """Take over what the previous run saved; to be called before `SavedState.begin_run` changes it."""
        self.saved = saved
        self._served = saved.serving
        if saved.previous is not None:
            self._engines.remember_previous(self.key, saved.previous)

    def note_share(self, seen: ShareSeen) -> None:
        """Note the link of a share. One that was renamed asks for what it asked for: what is known of it is kept."""
        self.counts = seen.link is not None
        self.saved.mark = seen.mark or self.saved.mark
        if seen.link is None or seen.link == self.share:
            return
        if self.share is not None:
            _log.info("%s is now %s", self.share.name, seen.link.name)
        self.share = seen.link
        if self.attempt is not None:
            self.attempt.shown = self.name

    def restamp(self, old: LinkStamp, new: LinkStamp) -> None:
        """Note that its link has another stamp, although it was not made anew."""
        self.refusals.restamp(old, new)
        if self.saved.withdrawn is not None and self.saved.withdrawn.is_asked_for_by(self.saved.withdrawn.key, old):
            self.saved.withdrawn.link_stamp = new
        if self.saved.unloaded == old:
            self.saved.unloaded = new

    def note_look(self, target: Target | None, fault: Fault | None) -> bool:
        """Note what a look saw. A link made again, or a version sealed again, clears its refusals. Return whether the wish was
        sealed again with the same content, which is the same wish."""
        before, self.target, self.fault = self.target, target, fault
        if (seen := target or fault) is not None:
            self._link_stamp = seen.link_stamp or self._link_stamp
            self.saved.wish = self.wish
            self.saved.link_stamp = None if self.link_stamp == _NO_LINK else self.link_stamp
        if target is None:
            return False
        is_sealed_again = (
            before is not None and before.seal_stamp != target.seal_stamp and before.identity == target.identity
        )
        self.refusals.keep_only(VersionKey(target.version, target.digest), target.link_stamp)
        self._note_withdrawn(target, is_sealed_again=is_sealed_again)
        if self.saved.unloaded is not None and self.saved.unloaded != target.link_stamp:
            self.saved.unloaded = None
        return is_sealed_again

    def _note_withdrawn(self, target: Target, *, is_sealed_again: bool) -> None:
        """Go on refusing what was withdrawn, also after a restart, while the same link asks for it."""
        withdrawn, key = self.saved.withdrawn, VersionKey(target.version, target.digest)
        if withdrawn is None or withdrawn.key != key:
            return
        if is_sealed_again or not withdrawn.is_asked_for_by(key, target.link_stamp):
            self.saved.withdrawn = None
            self.refusals.forget(key)
        elif self.refusals.find(key) is None:
            self.refusals.add(key, Rejection(WITHDRAWN, withdrawn.reason), target.link_stamp, None)

    def promote(self, attempt: Attempt) -> None:
        """Serve the resident engine of an attempt's version from now on."""
        key, first = attempt.key, self.serving is None
        before_withdrawn = self.previous if self.is_withdrawn else None
        self._engines.promote(self.key, key, attempt.signer)
        if first:  # since the start or an unload: the registry does not know what was served before
            before = next((known for known in (self._served, self.saved.previous) if known not in (None, key)), None)
            self._engines.remember_previous(self.key, before)
        elif self._engines.previous(self.key) == self._withdrawn_key:  # nothing goes back to that
            self._engines.remember_previous(self.key, None if before_withdrawn == key else before_withdrawn)
        attempt.promote()
        self.refusals.forget(key, fallback=attempt.fallback)
        if key == self.wish:  # also of a last resort: what the link asks for serves, so it is not refused
            self.attempt = attempt
            self.refusals.forget(key)
        self.saved.note_promoted(key)
        self.saved.previous = self._engines.previous(self.key)
        _log.info("%s serves %s (%s, %.2f s)", self.name, key.version, attempt.way.value, attempt.seconds)

    def refuse(
        self, attempt: Attempt, rejection: Rejection, link_stamp: LinkStamp | None, awaited: Awaited | None
    ) -> None:
        """Reject an attempt, and remember why and what its version is to wait for."""
        # A copy: the one that was raised refers to frames, and through them to the buffers of the failed load.
        rejection = Rejection(rejection.code, rejection.reason)
        attempt.reject(rejection)
        self.refusals.add(attempt.key, rejection, link_stamp, awaited, fallback=attempt.fallback)
        _log.warning("%s: %s is rejected (%s): %s", self.name, attempt.key.version, rejection.code, rejection.reason)

    def withdraw(self, attempt: Attempt, reason: str) -> None:
        """Reject what it serves, because it failed in requests. A share serves nothing then; an alias serves on until another
        version can."""
        asks = self.wish in (None, attempt.key)
        self.refuse(attempt, Rejection(WITHDRAWN, reason), self.link_stamp if asks else None, None)
        self.saved.note_withdrawn(Withdrawn(attempt.key, reason, self.link_stamp if asks else None))
        if self.is_share:
            self.saved.serving = None  # it is not to blame for a crash from now on
            self._engines.withdraw(self.key)

    def try_again(self) -> None:
        """Forget why versions were rejected or withdrawn, because an operator asked to try again."""
        self.refusals.clear()
        self.saved.withdrawn = None

    def unload(self) -> None:
        """Serve nothing until a load is requested or the link is made again."""
        serving = self.serving
        self.saved.unloaded = self.link_stamp
        if serving is not None:
            self._served = serving.key
        self.saved.serving = None  # this version is not to blame for a crash from now on
        self.forced = False
        self._engines.withdraw(self.key)
