"""What to do next: each rule as a row, and random histories after which no action is left."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zwatch.deploy.shares import share_key
from zwatch.rollout.lifecycle import EngineState, VersionKey
from zwatch.rollout.policy import (
    Abandon,
    AliasView,
    EngineView,
    Free,
    Keep,
    Load,
    LoadView,
    Promote,
    Retreat,
    decide,
    expected,
)

V1, V2, V3 = (VersionKey(f"v{number}", str(number) * 64) for number in (1, 2, 3))
V1_RESEALED = VersionKey("v1", "f" * 64)
UNSEALED = VersionKey("v9", None)
SHARE = share_key("current")


def current(wish=None, serving=None, **more):
    return AliasView("current", wish, serving, **more)


def canary(wish=None, serving=None, **more):
    return AliasView("canary", wish, serving, **more)


def share(wish=None, serving=None, **more):
    return AliasView(SHARE, wish, serving, is_share=True, **more)


def engine(key, state="SERVING", leases=0, previous=False, usable=True):
    return EngineView(key, EngineState[state], leases, previous, usable)


def load(key, alias="current", **more):
    return LoadView(alias, key, **more)


serving_v1 = [engine(V1)]
v2_before_v1 = [engine(V1), engine(V2, "WARM", previous=True)]
v2_draining = [engine(V1), engine(V2, "DRAINING", leases=1, previous=True)]

ROWS = {
    # --- what serves keeps serving
    "nothing asked, nothing served": ([current()], [], None, None),
    "the wish serves": ([current(V1, V1)], serving_v1, None, None),
    "a link with a fault changes nothing": ([current(None, V1)], serving_v1, None, None),
    "a refused wish changes nothing": ([current(V2, V1, refused=True)], serving_v1, None, None),
    "a fault with a good fallback, while something serves": ([current(None, V1, fallback=V2)], serving_v1, None, None),
    "a refused wish with a fallback, while something serves": (
        [current(V3, V1, refused=True, fallback=V2)], serving_v1, None, None),
    # --- the newest wish wins
    "a wish is loaded": ([current(V1)], [], None, Load("current", V1)),
    "a new wish is loaded beside": ([current(V2, V1)], serving_v1, None, Load("current", V2)),
    "a version sealed again is a new wish": ([current(V1_RESEALED, V1)], serving_v1, None, Load("current", V1_RESEALED)),
    "a version without a seal is tried, to say why": ([current(UNSEALED, V1)], serving_v1, None, Load("current", UNSEALED)),
    "a wanted load goes on": ([current(V2, V1)], serving_v1, load(V2), None),
    "another wish abandons": ([current(V3, V1)], serving_v1, load(V2), Abandon()),
    "the same version sealed again abandons": ([current(V1_RESEALED)], [], load(V1), Abandon()),
    "a fault of the link abandons": ([current(None, V1)], serving_v1, load(V2), Abandon()),
    "a load is abandoned once": ([current(V3, V1)], serving_v1, load(V2, abandoned=True), None),
    "back to what serves abandons": ([current(V1, V1)], serving_v1, load(V2), Abandon()),
    "and does nothing else": ([current(V1, V1)], serving_v1, load(V2, abandoned=True), None),
    "nor after its end": ([current(V1, V1)], serving_v1, None, None),
    "no second load beside an abandoned one": ([current(V2, V1)], serving_v1, load(V2, abandoned=True), None),
    # --- a resident wish
    "a warm wish is promoted without a load": ([current(V2, V1)], v2_before_v1, None, Promote("current", V2)),
    "a draining wish too": ([current(V2, V1)], v2_draining, None, Promote("current", V2)),
    "a resident wish abandons what loads first": ([current(V2, V1)], v2_before_v1, load(V3), Abandon()),
    "and is promoted before the load has ended": (
        [current(V2, V1)], v2_before_v1, load(V3, abandoned=True), Promote("current", V2)),
    "a resident wish is promoted though it was refused": (
        [current(V2, V1, refused=True)], v2_before_v1, None, Promote("current", V2)),
    "but not where it needs a signature and was refused": (
        [current(V2, V1, refused=True, needs_signature=True)], v2_before_v1, None, None),
    "where it needs a signature and was not refused, it is": (
        [current(V2, V1, needs_signature=True)], v2_before_v1, None, Promote("current", V2)),
    "what another alias serves is promoted": (
        [current(V2, V1), canary(V2, V2)], [engine(V1), engine(V2)], None, Promote("current", V2)),
    "but not while it is being exchanged": (
        [current(V2, V1), canary(V1)], [engine(V1, leases=1, usable=False)], load(V2), None),
    # --- unloaded by an operator
    "unloaded: nothing is loaded": ([current(V1, unloaded=True)], [], None, None),
    "unloaded: no fallback either": ([current(None, unloaded=True, fallback=V2)], [], None, None),
    "unloaded: nothing is promoted": ([current(V1, unloaded=True)], [engine(V1, "DRAINING", leases=1)], None, None),
    "unloaded: what loads is abandoned": ([current(V2, unloaded=True)], [], load(V2), Abandon()),
    "unloaded: a fallback that loads is abandoned": (
        [current(V2, unloaded=True, refused=True)], [], load(V1, fallback=True), Abandon()),
    "unloaded: what drained is freed": ([current(V1, unloaded=True)], [engine(V1, "DRAINING")], None, Free(V1)),
    # --- refused, due again, forced
    "a refused wish is not tried again": ([current(V2, refused=True)], [], None, None),
    "one that is due is": ([current(V2, V1, refused=False)], serving_v1, None, Load("current", V2)),
    "forced: what serves is loaded again": ([current(V1, V1, forced=True)], serving_v1, None, Load("current", V1)),
    "forced: it goes on": ([current(V1, V1)], serving_v1, load(V1, forced=True), None),
    "forced, but there is another wish": ([current(V2, V1)], serving_v1, load(V1, forced=True), Abandon()),
    "forced, but unloaded since": ([current(V1, unloaded=True)], [], load(V1, forced=True), Abandon()),
    # --- last-known-good
    "a refused wish and nothing serves: the fallback": (
        [current(V2, refused=True, fallback=V1)], [], None, Load("current", V1, fallback=True)),
    "a fault and nothing serves: the fallback": (
        [current(None, fallback=V1)], [], None, Load("current", V1, fallback=True)),
    "the wish goes before the fallback": ([current(V2, fallback=V1)], [], None, Load("current", V2)),
    "a fallback goes on loading": ([current(V2, refused=True, fallback=V1)], [], load(V1, fallback=True), None),
    "a fallback under a fault goes on loading": ([current(None, fallback=V1)], [], load(V1, fallback=True), None),
    "a good wish abandons the fallback": ([current(V3, fallback=V1)], [], load(V1, fallback=True), Abandon()),
    "a fallback that serves is not the wish": ([current(V2, V1)], serving_v1, None, Load("current", V2)),
    # --- withdrawn
    "what serves was withdrawn: what served before serves again": (
        [current(V2, V2, refused=True, barred=True, withdrawn=True, retreats=(V1,))],
        [engine(V1, "WARM", previous=True), engine(V2)], None, Retreat("current", V1)),
    "also before its last requests have drained": (
        [current(V2, V2, refused=True, barred=True, withdrawn=True, retreats=(V3, V1))],
        [engine(V1, "DRAINING", leases=1, previous=True), engine(V2)], None, Retreat("current", V1)),
    "withdrawn, but the version before is being exchanged": (
        [current(V2, V2, refused=True, barred=True, withdrawn=True, retreats=(V1,))],
        [engine(V1, "WARM", usable=False, previous=True), engine(V2)], None, None),
    "then it is not promoted again, though it is resident": (
        [current(V2, V1, refused=True, barred=True)], [engine(V1), engine(V2, "DRAINING", leases=1)], None, None),
    "what served before is loaded again, beside what was withdrawn": (
        [current(V2, V2, refused=True, barred=True, withdrawn=True, retreats=(V1,), fallback=V1)],
        [engine(V2)], None, Load("current", V1, fallback=True)),
    "that load goes on": (
        [current(V2, V2, refused=True, barred=True, withdrawn=True, retreats=(V1,), fallback=V1)],
        [engine(V2)], load(V1, fallback=True), None),
    "a newer wish goes before it": (
        [current(V3, V2, withdrawn=True, retreats=(V1,), fallback=V1)], [engine(V2)], None, Load("current", V3)),
    "a newer wish that is loaded does not delay going back": (
        [current(V3, V2, withdrawn=True, retreats=(V1,))], [engine(V1, "WARM", previous=True), engine(V2)],
        load(V3), Retreat("current", V1)),
    "a resident wish goes before going back": (
        [current(V3, V2, withdrawn=True, retreats=(V1,))], [engine(V1, "WARM", previous=True), engine(V2), engine(V3)],
        None, Promote("current", V3)),
    "withdrawn without a fallback: it serves on": (
        [current(V2, V2, refused=True, barred=True, withdrawn=True)], [engine(V2)], None, None),
    "withdrawn, then unloaded": (
        [current(V2, refused=True, barred=True, unloaded=True, retreats=(V1,))], [engine(V1, "WARM", previous=True)], None, None),
    "withdrawn under a fault of the link": (
        [current(None, V2, withdrawn=True, retreats=(V1,), fallback=V1)], [engine(V2)], None, Load("current", V1, fallback=True)),
    "a withdrawn version that is forced is promoted again": (
        [current(V2, V1, barred=True, forced=True)], [engine(V1), engine(V2, "DRAINING", leases=1)], None, Promote("current", V2)),
    # --- retire
    "what drained is kept for a flip back": (
        [current(V2, V2)], [engine(V1, "DRAINING", previous=True), engine(V2)], None, Keep(V1)),
    "what drained and is not the previous one is freed": ([current(V2, V2)], [engine(V1, "DRAINING"), engine(V2)], None, Free(V1)),
    "what drained without its memory is not kept": (
        [current(V2, V2)], [engine(V1, "DRAINING", previous=True, usable=False), engine(V2)], None, Free(V1)),
    "what has a lease goes on draining": (
        [current(V2, V2)], [engine(V1, "DRAINING", leases=1), engine(V2)], None, None),
    "what has a lease and is the previous one too": (
        [current(V2, V2)], [engine(V1, "DRAINING", leases=2, previous=True), engine(V2)], None, None),
    "the previous one stays warm": ([current(V1, V1)], v2_before_v1, None, None),
    "what is warm and no longer the previous one is freed": ([current(V1, V1)], [engine(V1), engine(V2, "WARM")], None, Free(V2)),
    "unless a request holds it by name": ([current(V1, V1)], [engine(V1), engine(V2, "WARM", leases=1)], None, None),
    "room is made before the next load": (
        [current(V3, V1)], [engine(V1), engine(V2, "DRAINING")], None, Free(V2)),
    "an old engine retires while a load goes on": (
        [current(V3, V1)], [engine(V1), engine(V2, "DRAINING")], load(V3), Free(V2)),
    # --- several aliases
    "each alias has its wish": ([current(V1, V1), canary(V2)], serving_v1, None, Load("canary", V2)),
    "one after the other": ([current(V1), canary(V2)], [], None, Load("current", V1)),
    "a second alias waits for the load": ([current(V1), canary(V2)], [], load(V1), None),
    "a load is judged by its own alias": ([current(V1), canary(V2)], [], load(V2, "canary"), None),
    "a refused wish does not delay the others": (
        [current(V3, refused=True), canary(V2)], [], None, Load("canary", V2)),
    "nor does an unloaded alias": ([current(V1, unloaded=True), canary(V2)], [], None, Load("canary", V2)),
    "a promotion goes before another alias's load": (
        [current(V3, V1), canary(V2)], v2_before_v1, None, Promote("canary", V2)),
    "a promotion beside another alias's load": (
        [current(V3, V1), canary(V2)], v2_before_v1, load(V3), Promote("canary", V2)),
    # --- shares
    "what an alias asks for is loaded before what a share does": (
        [share(V2), current(V3, V1)], serving_v1, None, Load("current", V3)),
    "the load for a share is given up for it": (
        [current(V3, V1), share(V2)], serving_v1, load(V2, SHARE), Abandon(yields=True)),
    "once": ([current(V3, V1), share(V2)], serving_v1, load(V2, SHARE, abandoned=True), None),
    "not if it is of the same version": ([current(V2, V1), share(V2)], serving_v1, load(V2, SHARE), None),
    "not if what the alias asks for is resident": (
        [current(V2, V1), share(V3)], v2_before_v1, load(V3, SHARE), Promote("current", V2)),
    "nor once that serves": ([current(V2, V2), share(V3)], [engine(V2)], load(V3, SHARE), None),
    "not if another alias does what it asks for at once": (
        [current(V1, V1), canary(V2), share(V3)], v2_before_v1, load(V3, SHARE), Promote("canary", V2)),
    "not for another try of what failed": (
        [current(V3, V1, retried=True), share(V2)], serving_v1, load(V2, SHARE), None),
    "also while nothing else serves": ([current(V3, retried=True), share(V2)], [], load(V2, SHARE), None),
    "that try is made when the load has ended, before the next one of the share": (
        [current(V3, V1, retried=True), share(V2)], serving_v1, None, Load("current", V3)),
    "but for another alias's first try": (
        [current(V3, V1, retried=True), canary(V1_RESEALED, V1), share(V2)], serving_v1, load(V2, SHARE), Abandon(yields=True)),
    "and for last-known-good while nothing serves": (
        [current(V3, refused=True, retried=True, fallback=V1), share(V2)], [], load(V2, SHARE), Abandon(yields=True)),
    "a load for an alias never yields": ([current(V3, V1), canary(V2)], serving_v1, load(V2, "canary"), None),
    "going back from what was withdrawn goes before giving up a share's load": (
        [current(V2, V2, refused=True, barred=True, withdrawn=True, retreats=(V1,), fallback=V1), share(V3)],
        [engine(V1, "WARM", previous=True), engine(V2)], load(V3, SHARE), Retreat("current", V1)),
}  # fmt: skip


@pytest.mark.parametrize(("aliases", "engines", "loading", "action"), ROWS.values(), ids=ROWS.keys())
def test_the_next_action(aliases, engines, loading, action):
    assert decide(aliases, engines, loading) == action


# --- random histories


@dataclass
class World:
    """Aliases, engines and one load, changed only by actions as the supervisor does; `bad` versions are rejected."""

    aliases: dict[str, AliasView]
    bad: frozenset[VersionKey]
    good: dict[str, list[VersionKey]]
    engines: dict[VersionKey, EngineState] = field(default_factory=dict)
    leases: dict[VersionKey, int] = field(default_factory=dict)
    previous: dict[str, VersionKey] = field(default_factory=dict)
    refused_fallbacks: set[tuple[str, VersionKey]] = field(default_factory=set)
    loading: LoadView | None = None
    withdrawn: dict[str, VersionKey] = field(default_factory=dict)

    def withdraw(self, name):
        """Withdraw what an alias serves, as after too many faults."""
        view = self.aliases[name]
        if view.serving is None:
            return
        self.withdrawn[name] = view.serving
        self.good[name] = [key for key in self.good[name] if key != view.serving]
        if view.wish == view.serving:
            self.aliases[name] = replace(view, refused=True)

    def views(self):
        for name, view in self.aliases.items():
            is_withdrawn = view.serving is not None and view.serving == self.withdrawn.get(name)
            usable = [key for key in self.good[name] if key != view.wish and (name, key) not in self.refused_fallbacks]
            before = [self.previous[name]] if name in self.previous else []
            self.aliases[name] = replace(
                view,
                fallback=usable[0] if usable and (view.serving is None or is_withdrawn) else None,
                barred=view.wish is not None and view.wish == self.withdrawn.get(name),
                withdrawn=is_withdrawn,
                retreats=tuple(key for key in before + usable if key != view.serving),
            )
        engines = [
            EngineView(key, state, self.leases.get(key, 0), key in self.previous.values())
            for key, state in self.engines.items()
        ]
        return list(self.aliases.values()), engines, self.loading

    def step(self):
        """Carry out one action; return whether there was one."""
        action = decide(*self.views())
        match action:
            case None:
                return False
            case Abandon():
                assert self.loading is not None
                assert not self.loading.abandoned
                self.loading = replace(self.loading, abandoned=True)
            case Promote(alias, key):
                self._promote(alias, key)
            case Retreat(alias, key):
                self._promote(alias, key)
            case Load(alias, key, fallback):
                assert self.loading is None
                view = self.aliases[alias]
                self.loading = LoadView(alias, key, fallback, forced=view.forced)
                self.aliases[alias] = replace(view, forced=False)
            case Keep(key):
                assert (self.engines[key], self.leases.get(key, 0)) == (EngineState.DRAINING, 0)
                self.engines[key] = EngineState.WARM
            case Free(key):
                assert self.engines[key] in (EngineState.DRAINING, EngineState.WARM)
                assert self.leases.get(key, 0) == 0
                del self.engines[key]
        return True

    def end_load(self):
        loading, self.loading = self.loading, None
        view = self.aliases[loading.alias]
        if loading.abandoned:
            return
        if loading.key not in self.bad:
            self.engines.setdefault(loading.key, EngineState.SERVING)
            self._promote(loading.alias, loading.key)
        elif loading.fallback:
            self.refused_fallbacks.add((loading.alias, loading.key))
        else:
            self.aliases[loading.alias] = replace(view, refused=True)

    def _promote(self, alias, key):
        old = self.aliases[alias].serving
        self.engines[key] = EngineState.SERVING
        self.aliases[alias] = replace(self.aliases[alias], serving=key)
        if old is not None and old != key:
            self.previous[alias] = old
            if old == self.withdrawn.get(alias):
                del self.previous[alias]
            if all(view.serving != old for view in self.aliases.values()):
                self.engines[old] = EngineState.DRAINING

    def come_to_rest(self):
        for _ in range(200):
            if not self.step():
                if self.loading is None:
                    return
                self.end_load()
        pytest.fail(f"it does not come to rest: {self}")


keys = st.sampled_from([V1, V2, V3, V1_RESEALED])
wishes = st.one_of(st.none(), keys)
moves = st.one_of(
    st.tuples(st.just("wish"), st.sampled_from(["current", "canary"]), wishes),
    st.tuples(st.just("unload"), st.sampled_from(["current", "canary"]), st.booleans()),
    st.tuples(st.just("force"), st.sampled_from(["current", "canary"]), st.none()),
    st.tuples(st.just("withdraw"), st.sampled_from(["current", "canary"]), st.none()),
    st.tuples(st.just("lease"), keys, st.integers(0, 2)),
    st.tuples(st.just("act"), st.integers(1, 3), st.none()),
    st.tuples(st.just("load ends"), st.none(), st.none()),
)


@given(
    st.lists(moves, max_size=25),
    st.frozensets(keys, max_size=3),
    st.fixed_dictionaries({"current": st.lists(keys, max_size=2), "canary": st.lists(keys, max_size=2)}),
)
@settings(max_examples=300, deadline=None)
def test_any_history_ends_with_every_wish_served_or_refused(history, bad, good):
    world = World({"current": current(), "canary": canary()}, bad, good)
    for what, first, second in history:
        if what == "wish":
            world.aliases[first] = replace(world.aliases[first], wish=second, refused=False)
            if second == world.withdrawn.get(first):  # by a link made anew
                world.withdrawn.pop(first, None)
        elif what == "withdraw":
            world.withdraw(first)
        elif what == "unload":
            view = world.aliases[first]
            if second and view.serving is not None and not view.unloaded:
                old = view.serving
                world.aliases[first] = view = replace(view, serving=None)
                world.previous.pop(first, None)
                if all(other.serving != old for other in world.aliases.values()):
                    world.engines[old] = EngineState.DRAINING
            world.aliases[first] = replace(view, unloaded=second)
        elif what == "force" and world.aliases[first].wish is not None:
            world.aliases[first] = replace(world.aliases[first], forced=True, refused=False)
            world.withdrawn.pop(first, None)
        elif what == "lease" and first in world.engines:
            world.leases[first] = second
        elif what == "act":
            for _ in range(first):
                world.step()
        elif what == "load ends" and world.loading is not None:
            world.end_load()
        served = {view.serving for view in world.aliases.values()} - {None}
        assert {key for key, state in world.engines.items() if state is EngineState.SERVING} == served
    world.leases.clear()
    world.come_to_rest()
    for name, view in world.aliases.items():
        if view.unloaded:
            continue
        if view.wish is not None:
            is_barred = view.wish == world.withdrawn.get(name)
            assert view.serving == view.wish or (view.refused and (view.wish in bad or is_barred))
        if view.serving is not None and view.serving == world.withdrawn.get(name):
            assert all(key in bad or key == view.wish for key in good[name] if key != view.serving)
        if view.serving is None:
            assert all(key in bad for key in good[name])
    assert all(state is not EngineState.DRAINING for state in world.engines.values())
    kept = {view.serving for view in world.aliases.values()} | set(world.previous.values())
    assert set(world.engines) <= kept


@pytest.mark.parametrize(
    ("view", "loading", "key"),
    [
        (current(V2, V1), None, V2),
        (current(V1, V1), None, None),
        (current(V1, V1, forced=True), None, V1),
        (current(V2, refused=True), None, None),
        (current(V2, refused=True, fallback=V1), None, V1),
        (current(None, fallback=V1), None, V1),
        (current(None, V1, fallback=V2), None, None),
        (current(V2, unloaded=True, fallback=V1), None, None),
        (current(V2, refused=True), load(V1, fallback=True), V1),
    ],
)
def test_what_a_request_for_an_alias_may_wait_for(view, loading, key):
    assert expected(view, loading) == key
