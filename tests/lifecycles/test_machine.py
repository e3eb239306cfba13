"""Lifecycles at random: links, seals, loads that fail or hang, unloads, restarts, kill -9 and requests, against a model.

`ZWATCH_LONG=1` makes 1,000 runs of 50 steps of it.
"""

import os
import time

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.lifecycles.inside import GRACE
from tests.lifecycles.machine import ALIASES, FOUND, ODD, VERSIONS, World
from tests.lifecycles.service import WEIGHTS
from tests.lifecycles.ways import STRAY_WAYS, TEXTS, WAYS
from zwatch.deploy.seal import SEAL_NAME

LONG = os.environ.get("ZWATCH_LONG") == "1"
FILES = (WEIGHTS, "model_index.json", SEAL_NAME)

aliases = st.sampled_from(ALIASES)
versions = st.sampled_from(VERSIONS)
ways = st.sampled_from(sorted(WAYS))
texts = st.sampled_from(sorted(TEXTS))
percents = st.sampled_from([0, 10, 50, 100])


class Lifecycle(RuleBasedStateMachine):
    """Everything that may happen to a service."""

    world = None

    @initialize()
    def start(self):
        self.world = World()

    def teardown(self):
        if self.world is None:
            return
        try:
            self.world.check_quiet()
        finally:
            self.world.close()

    @invariant()
    def what_must_serve_serves(self):
        if self.world is not None:
            self.world.check()

    def _there(self):
        return self.world.truth.disk

    # --- links

    @rule(alias=aliases, version=versions, way=ways, text=texts)
    def flip(self, alias, version, way, text):
        self.world.flip(alias, version, way, text)

    @rule(alias=aliases, version=versions, way=st.sampled_from(sorted(STRAY_WAYS)), text=texts)
    def flip_by_a_stray(self, alias, version, way, text):
        self.world.make_stray(alias, version, way, text)

    @rule(alias=aliases, flips=st.lists(st.tuples(versions, ways), min_size=2, max_size=5))
    def flip_in_a_burst(self, alias, flips):
        # What is seen of the others must not matter: whether an unload ended, or a version is set aside no more.
        crashed = {version for version, _ in self.world.truth.crashes}
        if flips[-1][0] in self._there() and not crashed & {version for version, _ in flips[:-1]}:
            self.world.flip_in_a_burst(alias, flips)

    @rule(alias=aliases, kind=st.sampled_from(sorted(ODD)))
    def lead_to_no_version(self, alias, kind):
        self.world.make_odd(alias, kind)

    @rule(alias=aliases)
    def unlink(self, alias):
        (self.world.root / alias).unlink(missing_ok=True)
        time.sleep(1.5 * GRACE)

    @rule(alias=aliases, version=versions)
    def lead_through_another_link(self, alias, version):
        self.world.flip("stable", version)
        self.world.flip(alias, "stable")

    @rule(name=st.sampled_from(["stable", "backup"]), version=versions, way=ways)
    def move_a_link_that_is_not_followed(self, name, version, way):
        self.world.flip(name, version, way)

    @rule()
    def remove_a_link_that_is_not_followed(self):
        (self.world.root / "backup").unlink(missing_ok=True)

    # --- shares

    @rule(alias=aliases, version=versions, percent=percents, way=ways, text=texts)
    def share(self, alias, version, percent, way, text):
        self.world.share(alias, version, percent, way, text)

    @rule(alias=aliases, percent=percents)
    def rename_share(self, alias, percent):
        self.world.rename_share(alias, percent)

    @rule(alias=aliases)
    def promote_share(self, alias):
        self.world.promote_share(alias)

    @rule(alias=aliases)
    def end_share(self, alias):
        self.world.end_share(alias)

    @rule(alias=aliases, version=versions)
    def add_another_share(self, alias, version):
        self.world.add_another_share(alias, version)

    @rule(alias=aliases, version=versions, way=st.sampled_from(sorted(STRAY_WAYS)), text=texts)
    def move_a_share_by_a_stray(self, alias, version, way, text):
        if (name := self.world.share_of(alias)) is not None:
            self.world.make_stray(name, version, way, text)

    @rule(alias=st.sampled_from([None, *ALIASES]), user=st.sampled_from([f"user-{number}" for number in range(10)]))
    def draw_for_a_user(self, alias, user):
        self.world.draw(alias, user=user)

    @rule(alias=aliases)
    def draw_by_the_name_of_a_share(self, alias):
        if (name := self.world.share_of(alias)) is not None:
            self.world.draw(name)

    @rule(alias=aliases, version=versions, percent=percents, unloads=st.booleans(), crashed=st.booleans())
    def rename_share_while_nothing_runs(self, alias, version, percent, unloads, crashed):
        world = self.world
        if world.share_of(alias) is None:
            world.share(alias, version, 20, "ln -sfn", "relative")
            world.check()
        if unloads:
            self.unload()
            world.check()
        name = world.share_of(alias)
        world.restart(crashed=crashed, meanwhile=lambda: world.truth.rename(name, f"{alias}@{percent}"))

    # --- an alias that a pattern finds

    @rule(version=versions, way=ways, text=texts)
    def find_alias(self, version, way, text):
        self.world.find_alias(version, way, text)

    @rule(kind=st.sampled_from(sorted(ODD)))
    def lead_a_found_alias_to_no_version(self, kind):
        if (self.world.root / FOUND).is_symlink():
            self.world.make_odd(FOUND, kind)

    @rule()
    def lose_alias(self):
        self.world.lose_alias()

    @rule(version=versions, kind=st.sampled_from([*sorted(ODD), *VERSIONS, "gone"]), crashed=st.booleans())
    def change_a_found_alias_while_nothing_runs(self, version, kind, crashed):
        if not os.path.lexists(self.world.root / FOUND):
            self.world.find_alias(version, "ln -sfn", "relative")
            self.world.check()
        if FOUND not in self.world.truth.aliases:
            return  # there is no such version

        def change():
            if kind in ODD:
                self.world.make_odd(FOUND, kind)
            elif kind != "gone":
                self.world.flip(FOUND, kind)
            else:
                (self.world.root / FOUND).unlink()
                self.world.truth.find_alias(FOUND)

        self.world.restart(crashed=crashed, meanwhile=change)

    @rule()
    def draw_for_a_found_alias(self):
        if FOUND in self.world.truth.aliases:
            self.world.draw(FOUND)

    # --- versions

    @rule(version=versions, draws=st.sampled_from([True, True, True, False]))
    def seal_anew(self, version, draws):
        self.world.seal_anew(version, draws=draws)

    @rule(version=versions, how=st.sampled_from(["other bytes", "shorter", "missing"]))
    def damage(self, version, how):
        if version in self._there():
            self.world.damage(version, how)

    @rule(version=versions, how=st.sampled_from(["missing", "empty", "garbage"]))
    def unseal(self, version, how):
        if version in self._there() and self._there()[version].digest is not None:
            self.world.unseal(version, how)

    @rule(version=versions)
    def repair(self, version):
        if version in self._there():
            self.world.repair(version)

    @rule(version=versions)
    def remove(self, version):
        self.world.remove(version)

    @rule(version=versions, order=st.permutations(FILES), looks=st.booleans())
    def copy_in_late(self, version, order, looks):
        self.world.copy_in(version, order, looks=looks)

    # --- loads that fail or hang

    def _would_load(self, version):
        there = self._there().get(version)
        return (
            there is not None
            and there.loads
            and there.digest
            and (version, there.digest) not in self.world.truth.resident
        )

    @rule(
        alias=aliases,
        version=versions,
        code=st.sampled_from(["io_error", "device_error", "out_of_memory", "internal_error"]),
    )
    def fail_once(self, alias, version, code):
        if self._would_load(version):
            self.world.service.ask("set_faults", {"fail": code})
            before = self.world.service.ask("view")["attempts"].count((version, "REJECTED", code))
            self.world.flip(alias, version)
            self.world.service.until(lambda seen: seen["attempts"].count((version, "REJECTED", code)) > before)
            self._refused(alias)

    def _refused(self, alias):
        truth = self.world.truth
        truth.aliases[alias].refused = (truth.wish(alias), truth.stamp(alias))

    @rule()
    def the_pause_is_over(self):
        for alias in self.world.truth.followed.values():
            alias.refused = None
        self.world.service.ask("end_pauses", "all")

    @rule(
        alias=aliases, version=versions, stage=st.sampled_from(["plan", "build", "warm"]),
        kind=st.sampled_from(["hang", "slow"]), other=versions,
        ending=st.sampled_from(["in time", "back", "other", "unload", "kill", "stop"]),
    )  # fmt: skip
    def hang(self, alias, version, stage, kind, other, ending):
        world = self.world
        service, truth = world.service, world.truth
        if not self._would_load(version):
            return
        text = os.readlink(world.root / alias) if (world.root / alias).is_symlink() else version
        before = {name: one.serving for name, one in truth.aliases.items()}
        service.ask("set_faults", {kind: stage})
        world.flip(alias, version)
        stamp = truth.stamp(alias)
        seen = service.until(lambda seen: seen["stopped_in"] == stage)
        truth.settle_links()  # it was seen: an unload has ended, also if the link is moved again now
        assert seen["serving"] == before, "while it loads, what serves goes on"
        for name, key in before.items():
            if key is not None:
                world.draw(name)
        service.ask("look")
        truth.note_good()  # now, before the end takes away what serves
        if ending in ("back", "other"):
            world.wait_a_tick()
            world.flip(alias, text if ending == "back" else other)
            if truth.wish(alias) == (version, self._there()[version].digest):
                ending = "in time"  # it is the same wish
        if ending == "in time" and kind == "hang":
            before = service.ask("view")["attempts"].count((version, "REJECTED", "stalled"))
            service.ask("give_up")
            service.until(lambda seen: seen["attempts"].count((version, "REJECTED", "stalled")) > before)
            world.stalls += 1
            truth.aliases[alias].refused = (truth.wish(alias), stamp)  # unless its link was made again since
        elif ending == "in time":
            service.ask("go_on")
        elif ending == "unload":
            self.unload()
        elif ending in ("kill", "stop"):
            truth.settle_links()
            world.restart(crashed=ending == "kill", trying=(version, self._there()[version].digest))

    # --- operators

    @rule()
    def unload(self):
        assert self.world.service.post("/api/unload_model") == 200
        self.world.truth.settle_links()
        self.world.truth.unload()

    @rule(alias=aliases)
    def load_model(self, alias):
        world = self.world
        truth = world.truth
        alias_truth = truth.aliases[alias]
        serving = alias_truth.serving
        alias_truth.unloaded = alias_truth.refused = None
        if (share := truth.shares.get(world.share_of(alias))) is not None:
            share.unloaded = share.refused = None
        status = world.service.post("/api/load_model", alias=alias)
        truth.settle()
        wish = truth.wish(alias)
        is_loaded = wish is not None and alias_truth.serving == wish
        # What serves is loaded again if its files changed; the answer says whether that was possible.
        if serving != wish or not is_loaded or truth.can_load(wish):
            assert (status == 200) == is_loaded, (status, wish, alias_truth)

    @rule(alias=aliases, version=versions)
    def deploy(self, alias, version):
        world = self.world
        status = world.service.post("/api/deploy", alias=alias, version=version)
        world.truth.settle()
        if version not in self._there():
            assert status == 404, status
        else:
            serving = world.truth.aliases[alias].serving
            assert (status == 200) == (serving == (version, self._there()[version].digest)), (status, serving)

    @rule(alias=aliases)
    def roll_back(self, alias):
        world = self.world
        one = world.truth.aliases[alias]
        previous = one.previous or one.saved_previous
        status = world.service.post("/api/rollback", alias=alias)
        if previous is None or previous[0] not in self._there() or (one.serving and one.serving[0] == previous[0]):
            assert status == 409, status
            return
        world.truth.settle()
        assert os.path.realpath(world.root / alias) == str(world.root / previous[0])
        wish = world.truth.wish(alias)
        assert (status == 200) == (one.serving == wish), (status, wish, one)

    # --- requests

    @rule(model=st.sampled_from([*ALIASES, *VERSIONS]), number=st.sampled_from([1, 1, 3]))
    def draw(self, model, number):
        self.world.draw(model, number)

    @precondition(lambda self: self.world is not None)
    @rule(alias=aliases, version=versions, way=ways)
    def draw_across_a_flip(self, alias, version, way):
        if self.world.truth.aliases[alias].serving is not None:
            self.world.draw_across(alias, lambda: self.world.flip(alias, version, way))

    # --- runs

    @rule()
    def restart(self):
        self.world.restart(crashed=False)

    @rule()
    def kill(self):
        self.world.restart(crashed=True)


Lifecycle.TestCase.settings = settings(
    max_examples=int(os.environ.get("ZWATCH_RUNS", "1000" if LONG else "6")),
    stateful_step_count=50 if LONG else 30,
    deadline=None,
    derandomize=not LONG,
    database=None,
    print_blob=True,
    phases=(Phase.explicit, Phase.generate) if not os.environ.get("ZWATCH_SHRINK") else tuple(Phase),
    suppress_health_check=list(HealthCheck),
)
TestLifecycle = Lifecycle.TestCase
