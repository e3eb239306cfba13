"""What to do next, as a pure function of what is seen: at most one action, decided from scratch each time."""

from collections.abc import Sequence
from dataclasses import dataclass

from zwatch.rollout.lifecycle import EngineState, VersionKey


@dataclass(frozen=True, slots=True)
class AliasView:
    """One alias at this moment. Everything here is a fact; what follows from it is decided below."""

    name: str
    wish: VersionKey | None
    """What its link asks for; None while the link has a fault."""
    serving: VersionKey | None
    unloaded: bool = False
    """An operator unloaded it: nothing is loaded for it."""
    refused: bool = False
    """Exactly this wish was rejected and no retry is due."""
    retried: bool = False
    """Exactly this wish was rejected, and nothing but time has passed since."""
    forced: bool = False
    """An operator asked to load the wish, or to load it again, even if it serves."""
    needs_signature: bool = False
    """A signature is required: then a refusal holds for what is resident too."""
    fallback: VersionKey | None = None
    """Last-known-good, to serve while nothing else does."""
    barred: bool = False
    """Its wish was withdrawn: that refusal holds for what is resident too."""
    withdrawn: bool = False
    """What it serves was withdrawn: it serves on only until another version can."""
    retreats: tuple[VersionKey, ...] = ()
    """What may serve instead of what was withdrawn, in the order to try it."""
    is_share: bool = False
    """It is the share of an alias: what an alias asks for is loaded first."""


@dataclass(frozen=True, slots=True)
class EngineView:
    """One resident engine. `previous`: some alias served it just before what it serves now. `usable`: it can serve (see
    `EngineRegistry.is_usable`)."""

    key: VersionKey
    state: EngineState
    leases: int
    previous: bool
    usable: bool = True


@dataclass(frozen=True, slots=True)
class LoadView:
    """The running load."""

    alias: str
    key: VersionKey
    fallback: bool = False
    forced: bool = False
    abandoned: bool = False


@dataclass(frozen=True, slots=True)
class Abandon:
    """Stop the running load; with `yields` because what an alias asks for is loaded before what a share does."""

    yields: bool = False


@dataclass(frozen=True, slots=True)
class Promote:
    """Let an alias serve a resident engine."""

    alias: str
    key: VersionKey


@dataclass(frozen=True, slots=True)
class Retreat:
    """Let an alias serve another resident engine than the one that was withdrawn."""

    alias: str
    key: VersionKey


@dataclass(frozen=True, slots=True)
class Load:
    """Start to load a version for an alias."""

    alias: str
    key: VersionKey
    fallback: bool = False


@dataclass(frozen=True, slots=True)
class Keep:
    """Keep a drained engine warm."""

    key: VersionKey


@dataclass(frozen=True, slots=True)
class Free:
    """Free an engine that is not needed any more."""

    key: VersionKey


Action = Abandon | Promote | Retreat | Load | Keep | Free


def decide(aliases: Sequence[AliasView], engines: Sequence[EngineView], loading: LoadView | None) -> Action | None:
    """Return the next action, or None if there is nothing to do but wait."""
    if loading is not None and not loading.abandoned and not _still_wanted(loading, aliases):
        return Abandon()
    return (
        _promotion(aliases, engines)
        or retreat(aliases, engines)
        or _yielding(loading, aliases)
        or _retirement(engines)
        or (None if loading is not None else _load(aliases))
    )


def _still_wanted(loading: LoadView, aliases: Sequence[AliasView]) -> bool:
    view = next((view for view in aliases if view.name == loading.alias), None)
    if view is None or view.unloaded:
        return False
    if loading.fallback:
        return (view.serving is None or view.withdrawn) and (view.wish is None or view.refused)
    return view.wish == loading.key and (view.serving != view.wish or loading.forced)


def _yielding(loading: LoadView | None, aliases: Sequence[AliasView]) -> Abandon | None:
    """Give up a load for a share that holds up one for an alias; to be asked when all that is resident is promoted. A load of
    the version that the alias asks for goes on: it is promoted for both. So does one that only holds up another try of what
    failed: those come again and again, and the share would never be loaded."""
    if loading is None or loading.abandoned or not any(one.is_share and one.name == loading.alias for one in aliases):
        return None
    waiting = [view for view in aliases if not view.is_share and expected(view) not in (None, loading.key)]
    return None if all(_asks(view) and view.retried for view in waiting) else Abandon(yields=True)


def _promotion(aliases: Sequence[AliasView], engines: Sequence[EngineView]) -> Promote | None:
    resident = {engine.key for engine in engines if engine.usable}
    for view in aliases:
        is_barred = view.refused and (view.needs_signature or view.barred)
        if view.wish in resident and not view.unloaded and not is_barred and view.wish != view.serving:
            assert view.wish is not None  # no engine is without a key
            return Promote(view.name, view.wish)
    return None


def retreat(aliases: Sequence[AliasView], engines: Sequence[EngineView]) -> Retreat | None:
    """Return which alias serves something else at once because what it serves was withdrawn, if another engine is resident."""
    resident = {engine.key for engine in engines if engine.usable}
    for view in aliases:
        for key in view.retreats if view.withdrawn and not view.unloaded else ():
            if key in resident:
                return Retreat(view.name, key)
    return None


def _retirement(engines: Sequence[EngineView]) -> Keep | Free | None:
    for engine in engines:
        if engine.leases == 0 and engine.state is EngineState.DRAINING:
            return Keep(engine.key) if engine.previous and engine.usable else Free(engine.key)
        if engine.leases == 0 and engine.state is EngineState.WARM and not engine.previous:
            return Free(engine.key)
    return None


def _load(aliases: Sequence[AliasView]) -> Load | None:
    for view in sorted(aliases, key=lambda view: view.is_share):
        if (key := expected(view)) is not None:
            return Load(view.name, key, fallback=not _asks(view))
    return None


def expected(view: AliasView, loading: LoadView | None = None) -> VersionKey | None:
    """Return the version that is loaded for an alias, or has to be; None if there is none."""
    if view.unloaded:
        return None
    if loading is not None and loading.alias == view.name and not loading.abandoned:
        return loading.key
    return view.wish if _asks(view) else view.fallback if view.serving is None or view.withdrawn else None


def _asks(view: AliasView) -> bool:
    """Say whether the link asks for a version that does not serve, or not as an operator asked for."""
    return view.wish is not None and not view.refused and (view.wish != view.serving or view.forced)
