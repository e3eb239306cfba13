"""A light service, what is done to it, and the comparison with the truth after everything that was done."""

import itertools
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

from tests.lifecycles.inside import GRACE
from tests.lifecycles.light import BAD
from tests.lifecycles.service import WEIGHTS, Light, make_version
from tests.lifecycles.truth import GOOD_IMAGES, Content, Truth
from tests.lifecycles.ways import STRAY_WAYS, TEXTS, WAYS, clear
from zwatch.deploy.seal import SEAL_NAME

ALIASES = ("current", "canary")
FOUND, PATTERN = "extra", "ex*"
"""An alias that is there at times, and the pattern by which it is followed then."""
VERSIONS = ("v1", "v2", "v3", "v4")
CLOCK_TICK = 0.005
"""Wishes within one tick of the kernel's clock have no order."""
ODD = {
    "dangling": "nowhere",
    "a loop": None,
    "outside": "/usr",
    "a file": "notes.txt",
    "too deep": "v1/transformer",
}
_memory = Path("/dev/shm")  # renames and fsyncs cost nothing there


class World:
    """A models root, the service that follows it, and the truth."""

    def __init__(self):
        where = _memory if os.access(_memory, os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="zwatch-lifecycles-", dir=where))
        self.root = self.folder / "models"
        self.root.mkdir()
        (self.root / "notes.txt").write_text("a file")
        self.truth = Truth(self.root, ALIASES)
        self._contents = itertools.count()
        self._kept = {}
        self.stalls = 0
        """How many loads of this run did not get on."""
        for version in VERSIONS[:3]:
            self.seal_anew(version)
        for alias in ALIASES:
            os.symlink("v1", self.root / alias)
        self.service = Light(self.root, self.folder / "state", (*ALIASES, PATTERN), first_pause=3600.0)
        self.service.start()
        self.check()

    def close(self):
        self.service.kill()
        shutil.rmtree(self.folder)

    # --- the comparison

    def check(self):
        """Compare what is so with what must be so."""
        truth = self.truth
        truth.settle()
        expected = {name: alias.serving for name, alias in truth.aliases.items()}
        shares = {name: share.serving for name, share in truth.shares.items()}
        unloaded = {name for name, alias in truth.aliases.items() if alias.unloaded is not None}
        seen = self._seen(
            lambda seen: (
                seen["serving"] == expected
                and seen["shares"] == shares
                and (seen["unloaded"], seen["resident"]) == (unloaded, truth.resident)
                and (seen["engines"], seen["leases"]) == (len(truth.resident), 0)
            )
        )
        assert seen["settled"], seen
        assert [code for _, _, code in seen["attempts"]].count("stalled") == self.stalls, seen
        assert seen["serving"] == expected, (expected, seen)
        assert seen["shares"] == shares, (shares, seen)
        assert seen["unloaded"] == unloaded, seen
        assert seen["resident"] == truth.resident, (truth.resident, seen)
        assert seen["engines"] == len(truth.resident), seen
        assert seen["leases"] == 0, seen

    def _seen(self, condition, seconds=60.0):
        """Look until a condition is true, or for so long."""
        end = time.monotonic() + seconds
        while True:
            self.service.ask("end_pauses", "fallbacks")
            seen = self.service.ask("look")
            if (seen["settled"] and condition(seen)) or time.monotonic() > end:
                return seen
            time.sleep(0.005)

    def check_quiet(self):
        """Check that nothing goes on when nothing is done, and that nothing is left over."""
        before = self.service.ask("look")
        time.sleep(0.3)
        after = self.service.ask("look")
        assert after["attempts"] == before["attempts"], "what failed is tried again and again"
        assert after["serving"] == before["serving"]
        status, _, body = self.service.call("GET", "/health")
        assert (status == 200) == (after["serving"]["current"] is not None), (status, body)
        self.check_log()
        self.service.stop()
        left = [name for name in os.listdir(self.root) if name.startswith(".")]
        left += [
            path.name
            for path in (self.folder / "state").iterdir()
            if path.name not in ("state.json", "trials.json", "lock")
        ]
        assert not left, left

    def check_log(self):
        bad = [entry for entry in self.service.new_log() if entry["level"] in ("raw", "error", "critical")]
        assert not bad, bad

    # --- links

    def wait_a_tick(self):
        time.sleep(CLOCK_TICK)

    def flip(self, name, version, way="ln -sfn", text="relative"):
        """Repoint a link."""
        if way in ("cp -PfT", "rsync -a") and (self.root / name).is_dir() and not (self.root / name).is_symlink():
            return
        WAYS[way](self.root, TEXTS[text](self.root, version), name)

    def flip_in_a_burst(self, name, flips):
        """Repoint a link several times: the last one counts, and each of the others may serve for a moment."""
        truth, alias = self.truth, self.truth.aliases[name]
        between = set()
        for version, way in flips:
            self.wait_a_tick()
            self.flip(name, version, way)
            between.add(truth.key_at(self.root / version))
        truth.settle_links()
        expected = {truth.must_serve(name)}
        if not truth.can_load(truth.wish(name)):  # the last is bad: one of those before may serve, and goes on serving
            expected |= {key for key in between if key in truth.resident or truth.can_load(key)}
        seen = self._seen(lambda seen: seen["serving"][name] in expected)
        assert seen["serving"][name] in expected, (expected, seen)
        before = {alias.serving, alias.previous, alias.saved_previous, alias.served, *alias.promoted, None}
        assert {seen["previous"][name], *seen["promoted"][name]} <= between | expected | before
        # One that made enough images for another alias has proved itself for this one as well, if it was seen.
        proved = {key for key in between if truth.images.get(key, 0) >= GOOD_IMAGES}
        assert set(seen["good"][name]) <= {*alias.good, *proved}, (seen["good"], alias.good, proved)
        if seen["serving"][name] is not None:
            truth.proved |= {*seen["good"][name]} - {*alias.good}
            alias.serving, alias.previous, alias.promoted, alias.good = (
                seen[what][name] for what in ("serving", "previous", "promoted", "good")
            )
            alias.saved_previous = alias.previous
            for key in seen["resident"] - truth.resident:
                truth.admit(key)

    def make_odd(self, name, kind):
        """Let a link lead to no version."""
        WAYS["os.replace"](self.root, ODD[kind] or name, name)

    def make_stray(self, name, version, way="ln -sf", text="relative"):
        """Type `ln -sf`, and say what that must mean."""
        self.wait_a_tick()
        place = self.root / name
        if os.path.isdir(place) and Path(os.path.realpath(place)).parent != self.root:
            return  # it would be made outside, or inside `transformer/`
        directory = Path(os.path.realpath(place)) if os.path.isdir(place) else None
        written = TEXTS[text](self.root, version)
        if directory is None:
            STRAY_WAYS["ln -sf"](self.root, written, name)
            return
        stray = directory / version
        link = self.truth.place(directory, stray)
        if stray.is_symlink():  # one that is made again is not one of those that lead anywhere
            clear(stray)
        STRAY_WAYS[way](self.root, written, name)
        if link is not None and (self.root / version).is_dir():
            self._expect_moved(link, version, stray)

    def _expect_moved(self, link, version, stray):
        """Wait until a link was moved, which is what this stray asks for."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            self.service.ask("look")
            if os.path.realpath(link) == str(self.root / version) and not os.path.lexists(stray):
                return
            time.sleep(0.002)
        raise AssertionError(f"{stray} was not followed: {link} -> {os.readlink(link)}, {self.service.ask('view')}")

    # --- shares

    def share_of(self, alias):
        """Return the name of an alias's share, if it has one."""
        self.truth.find_shares()
        return next((name for name in self.truth.shares if name.partition("@")[0] == alias), None)

    def share(self, alias, version, percent, way, text):
        """Let a share send some of an alias's requests to a version: a new one, or the one that is there with its percentage."""
        self.flip(self.share_of(alias) or f"{alias}@{percent}", version, way, text)

    def rename_share(self, alias, percent):
        """Change how many requests a share takes."""
        name = self.share_of(alias)
        self.check()  # it was seen where it is, so that it is known again
        if name is not None:
            self.truth.rename(name, f"{alias}@{percent}")

    def promote_share(self, alias):
        """Let a share's link take the name of its alias."""
        if (name := self.share_of(alias)) is not None:
            os.rename(self.root / name, self.root / alias)

    def end_share(self, alias):
        """Remove a share's link."""
        if (name := self.share_of(alias)) is not None:
            (self.root / name).unlink()

    def add_another_share(self, alias, version):
        """Make a second share for a moment: none counts, and what serves stays."""
        name = self.share_of(alias)
        if name is None or name == f"{alias}@77":
            return
        before = self.truth.aliases[alias].serving
        os.symlink(version, self.root / f"{alias}@77")
        self.service.until(lambda seen: seen["several"] == {alias})
        if before is not None:
            found = self.service.draw(None if alias == "current" else alias, "anybody")
            assert found == (before, self.truth.colours[before]), (before, found)
            self.truth.images[before] += 1
        (self.root / f"{alias}@77").unlink()
        self.service.until(lambda seen: not seen["several"])

    # --- an alias that a pattern finds

    def find_alias(self, version, way, text):
        """Make the link that the pattern matches, or repoint it. A new one has to lead to a version to be followed."""
        if os.path.lexists(self.root / FOUND) or (self.root / version).is_dir():
            self.flip(FOUND, version, way, text)
            self.truth.find_alias(FOUND)

    def lose_alias(self):
        """Remove that link for longer than a moment."""
        (self.root / FOUND).unlink(missing_ok=True)
        time.sleep(1.5 * GRACE)
        self.truth.find_alias(FOUND)

    # --- versions

    def seal_anew(self, version, *, draws=True):
        """Give a version other content and a new seal."""
        content = (b"" if draws else BAD) + b"%d of %s" % (next(self._contents), version.encode())
        digest, colour = make_version(self.root / version, content)
        self.truth.disk[version] = Content(digest, colour, loads=draws)
        self._keep(version)

    def _keep(self, version):
        directory = self.root / version
        self._kept[version] = {
            path: (directory / path).read_bytes() for path in (WEIGHTS, "model_index.json", SEAL_NAME)
        }

    def _draws(self, version):
        return BAD not in self._kept[version][WEIGHTS]

    def _files_changed(self, version):
        """Note that what failed for a reason that passes is tried again."""
        for name, alias in self.truth.followed.items():
            wish = self.truth.wish(name)
            if wish is not None and wish[0] == version:
                alias.refused = None

    def damage(self, version, how):
        """Change a sealed file of a version."""
        path = self.root / version / WEIGHTS
        data = self._kept[version][WEIGHTS]
        if how == "missing" and not path.exists():
            return
        if how == "missing":
            path.unlink()
        else:
            path.write_bytes(data[:-1] if how == "shorter" else data[:-1] + bytes([data[-1] ^ 1]))
        self.truth.disk[version].loads = False
        self._files_changed(version)

    def unseal(self, version, how):
        """Take a version's seal away, or make it unreadable."""
        path = self.root / version / SEAL_NAME
        path.unlink() if how == "missing" else path.write_bytes(b"" if how == "empty" else b"garbage\n")
        self.truth.disk[version].digest = None

    def repair(self, version):
        """Put back what was sealed."""
        directory = self.root / version
        wrong = {
            path: data
            for path, data in self._kept[version].items()
            if not (directory / path).exists() or (directory / path).read_bytes() != data
        }
        for path, data in wrong.items():
            (directory / path).write_bytes(data)
        digest_before = self.truth.disk[version].digest
        self.truth.disk[version].loads = self._draws(version)
        self.truth.disk[version].digest = self._digest(version)
        if wrong:
            self._files_changed(version)
        if digest_before is None and self._awaits(version):  # sealed again
            self.truth.crashes.pop((version, self._digest(version)), None)

    def _awaits(self, version):
        """Say whether the service looks at a version's seal: a link leads there, or it would serve instead of what cannot."""
        key = (version, self._digest(version))
        if any(os.path.realpath(self.root / alias) == str(self.root / version) for alias in self.truth.followed):
            return True
        return self.truth.crashes.get(key, (0, None))[0] < 2 and any(
            alias.serving is None and alias.unloaded is None and key in [*alias.good, *alias.promoted]
            for alias in self.truth.aliases.values()
        )

    def _digest(self, version):
        from blake3 import blake3

        return blake3(self._kept[version][SEAL_NAME]).hexdigest()

    def remove(self, version):
        """Move a version away."""
        clear(self.root / version)
        self.truth.disk.pop(version, None)

    def copy_in(self, version, order, *, looks):
        """Copy a version in file by file, in some order, with a look in between or without."""
        self.remove(version)
        elsewhere = self.folder / "elsewhere" / version
        clear(elsewhere)
        digest, colour = make_version(elsewhere, b"%d copied" % next(self._contents))
        (self.root / version / "transformer").mkdir(parents=True)
        # A link that leads there ends an unload already now, and what can serve instead does.
        self.truth.disk[version] = Content(None, colour, loads=False)
        self.check()
        for path in order:
            (self.root / version / path).write_bytes((elsewhere / path).read_bytes())
            if looks:
                self.service.ask("look")
        self.truth.disk[version] = Content(digest, colour)
        self._keep(version)

    # --- requests

    def draw(self, model, number=1, user=None):
        """Ask for pictures, and check which version made them."""
        truth = self.truth
        for _ in range(number):
            found = self.service.draw(model, user)
            is_followed = model is None or model in truth.followed
            keys = {truth.draws(model, user or "127.0.0.1")} if is_followed else {
                key for key in truth.resident if key[0] == model
            }  # fmt: skip
            keys = {key for key in keys if key is not None}
            if not keys:
                assert found == ("model_not_loaded" if is_followed else "model_not_found"), found
                return
            serving = {alias.serving for alias in truth.followed.values()}
            keys = keys & serving or keys
            assert found in [(key, truth.colours[key]) for key in keys], (model, keys, found)
            truth.images[found[0]] += 1

    def draw_across(self, name, change):
        """Let a picture be drawn while something changes: it is the work of the version that served when it was begun."""
        truth, service = self.truth, self.service
        key = truth.draws(name)
        service.ask("hold", True)
        drawn = service.ask("view")["drawing"]
        found = []
        other = Light.__new__(Light)
        other.__dict__ |= service.__dict__ | {"_http": service.new_connection()}
        thread = threading.Thread(target=lambda: found.append(other.draw(name)))
        thread.start()
        service.until(lambda seen: seen["drawing"] > drawn)
        change()
        truth.settle()
        expected = {one: alias.serving for one, alias in truth.aliases.items()}
        seen = self._seen(lambda seen: seen["serving"] == expected)
        assert seen["serving"] == expected, (expected, seen)
        assert key in seen["resident"]
        service.ask("hold", False)
        thread.join()
        other._http.close()
        assert found == [(key, truth.colours[key])], (key, found)
        if key in truth.images:
            truth.images[key] += 1

    # --- runs

    def restart(self, *, crashed, trying=None, meanwhile=lambda: None):
        """End the run, and start another; do something while none runs."""
        self.check_log()
        (self.service.kill if crashed else self.service.stop)()
        self.truth.end_run(crashed=crashed, trying=trying)
        meanwhile()
        self.stalls = 0
        self.service.start()
