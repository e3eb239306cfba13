"""Killing a service at random moments, and what its next start must serve. For light services and for whole ones."""

import contextlib
import os
import random
import signal
import threading
import time

from tests.lifecycles.service import Gone
from tests.lifecycles.ways import STRAY_WAYS, WAYS
from zwatch.rollout.saved import schema

VERSIONS = ("v1", "v2", "v3")
PERCENTS = (0, 10, 50, 100)
ALLOWED = (
    "the previous run crashed: that counts for",  # that is what a kill is
    "the previous run ended by itself: the process ended without a word",
    "in a row, and had not proved itself",  # set aside
    "ln -sfn",  # a stray was followed, or could not be
    "is rejected (",
    "nothing with that name exists",  # while a version is away
    "is not a version directly under",
    "was not followed: it is older than the alias",  # a stray that the next flip overtook
)


class Killer:
    """One models root and state directory, on which runs are killed again and again.

    It knows what each rule needs: where the link leads, whether the last answered call unloaded it, and what has surely
    proved itself. What a call that was cut off has done is read from the disk, or may be either.
    """

    def __init__(self, service, contents, seed):
        self.service, self.draw = service, random.Random(seed)
        self.contents = contents
        """By version: its digest, and a function that damages or repairs it."""
        self.damaged = set()
        self.unloaded = {False}
        self.known = set()
        """Versions that surely were promoted, and saved so."""
        self.used_at_kills = dict.fromkeys(VERSIONS, 0)
        """Kills since a version served until an orderly end: at two or more, it may be set aside."""
        self.pixels = {}
        self.share_perhaps_unloaded = False
        """Whether there was an unload since the share's link was made."""

    # --- what is done until the kill

    def run(self, seconds):
        """Start a run, do things with it, and kill it that many seconds after its start."""
        self.service.begin()
        pid = self.service.process.pid
        timer = threading.Timer(seconds, lambda: kill(pid))
        timer.start()
        try:
            self.service.connect()
            while True:
                self.step()
        except Gone:
            pass
        finally:
            timer.join()
            self.service.kill()
        self.note_killed()

    def run_takeover(self, seconds):
        """Let a second process take over from one that serves, and kill one of them that many seconds after that began."""
        service, other = self.service, type(self.service)(self.service.root, self.service.state, **self.service.options)
        service.start()
        self.settled()
        other.begin(takeover=True)
        both = [service, other]
        self.draw.shuffle(both)
        pid = both[0].process.pid
        timer = threading.Timer(seconds, lambda: kill(pid))
        timer.start()
        timer.join()
        time.sleep(self.draw.uniform(0.0, 0.3))
        for one in both:
            one.kill()
        self.note_killed()
        self.note_killed()  # if the old one died first, the new one has gone on alone: that is a crash each

    def step(self):
        """Do one thing."""
        what = self.draw.choices(
            (
                self.flip, self.deploy, self.unload, self.load, self.make_pictures, self.change_files, self.roll_back,
                self.make_share, self.rename_share, self.end_share,
            ),
            (5, 2, 1, 1, 3, 1, 1, 2, 2, 1),
        )[0]  # fmt: skip
        what()
        time.sleep(self.draw.choice((0.0, 0.006, 0.02)))

    def flip(self):
        version = self.draw.choice(VERSIONS)
        way = self.draw.choice([*WAYS.values(), *STRAY_WAYS.values()])
        time.sleep(0.006)
        with self.perhaps_loaded():
            way(self.service.root, version, "current")

    @contextlib.contextmanager
    def perhaps_loaded(self):
        """Note that an unload has ended, once the link is there; until then it may have."""
        self.unloaded = self.unloaded | {False}
        yield
        self.unloaded = {False}

    def deploy(self):
        with self.perhaps_loaded():
            assert self.service.post("/api/deploy", version=self.draw.choice(VERSIONS)) in (200, 409)

    def roll_back(self):
        self.unloaded = self.unloaded | {False}
        if self.service.post("/api/rollback") == 200:
            self.unloaded = {False}

    def unload(self):
        before, self.unloaded = self.unloaded, self.unloaded | {True}
        self.share_perhaps_unloaded = True
        status = self.service.post("/api/unload_model")
        # 409: a flip that was seen only now is newer
        self.unloaded = {True} if status == 200 else before | {False}

    def load(self):
        with self.perhaps_loaded():
            assert self.service.post("/api/load_model") in (200, 409)

    def share(self):
        """Return the name of the share's link, None if there is none."""
        return next((path.name for path in self.service.root.glob("current@*") if path.is_symlink()), None)

    def make_share(self):
        """Let a share serve a version: a new one, or the one that is there."""
        time.sleep(0.006)
        name = self.share() or f"current@{self.draw.choice(PERCENTS)}"
        self.draw.choice([*WAYS.values()])(self.service.root, self.draw.choice(VERSIONS), name)
        self.share_perhaps_unloaded = False

    def rename_share(self):
        """Change how many requests a share takes, also while nothing runs."""
        if (name := self.share()) is not None:
            time.sleep(0.006)
            os.rename(self.service.root / name, self.service.root / f"current@{self.draw.choice(PERCENTS)}")

    def end_share(self):
        """End a share, by a promotion or without."""
        if (name := self.share()) is None:
            return
        if self.draw.random() < 0.5:
            (self.service.root / name).unlink()
        else:
            time.sleep(0.006)
            with self.perhaps_loaded():
                os.rename(self.service.root / name, self.service.root / "current")

    def make_pictures(self):
        for number in range(3):
            found = self.service.draw() if number else self.service.draw(None, f"client-{self.draw.randrange(20)}")
            if isinstance(found, str):
                assert found in ("model_not_loaded", "shutting_down"), found
                return
            key, pixel = found
            assert self.pixels.setdefault(key, pixel) == pixel, "a picture of another version"

    def change_files(self):
        """Damage a version that the link does not ask for, or repair one."""
        version = self.draw.choice(VERSIONS)
        if version in self.damaged:
            self.contents[version].repair()
            self.damaged.discard(version)
        elif version != self.linked():
            self.damaged.add(version)
            self.contents[version].damage()

    # --- what must be so after it

    def linked(self):
        """Return the name of the version to which the link leads, None if to none."""
        try:
            return os.path.basename(os.path.realpath(self.service.root / "current", strict=True))
        except OSError:
            return None

    def note_killed(self):
        for version in VERSIONS:
            self.used_at_kills[version] += 1
        file = self.service.state / "state.json"
        if file.exists():
            schema().validate_json(file.read_bytes(), strict=True)  # whole, whenever it was killed

    def check(self):
        """Start once more, and compare what serves with the rules; end this run in one way or the other."""
        service = self.service
        service.start()
        status = self.settled()
        alias, attempts = status["aliases"]["current"], service.call("GET", "/attempts")[2]["attempts"]
        wish = alias["target"]  # a stray that was made before the kill may have been followed now
        serving = alias["serving"]
        codes = {attempt["code"] for attempt in attempts if attempt["version"] == wish}
        what = (serving, wish, self.unloaded, self.damaged, attempts)
        if alias["unloaded"]:
            assert True in self.unloaded, what
            assert serving is None, what
        elif self.unloaded == {True}:
            raise AssertionError(f"it was unloaded, and is not: {what}")
        elif wish is not None and wish not in self.damaged and "set_aside" not in codes:
            assert serving == wish, what
        elif "set_aside" in codes and serving is not None:
            assert self.used_at_kills[wish] >= 2, what
        self.check_share()
        if serving is not None:
            self.check_serves(serving, wish)
        elif not alias["unloaded"]:  # what surely served before would be better than nothing
            better = self.known - self.damaged - {wish}
            assert all(self.used_at_kills[version] >= 2 for version in better), (better, what)
        self.check_history()
        self.check_log()
        if self.draw.random() < 0.7:
            service.stop()
            self.check_left_over()
            self.known |= {serving} - {None}
            self.used_at_kills[serving] = 0
        else:
            service.kill()
            self.note_killed()

    def settled(self):
        """Wait until the wish is decided, and return the status."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            status = self.service.call("GET", "/status")[2]
            alias = status["aliases"]["current"]
            attempt = alias["attempt"]
            is_decided = attempt is not None and attempt["state"] == "PROMOTED"
            # Before the first look it is not known whether the link was made again since the unload
            is_unloaded = alias["unloaded"] and alias["target"] is not None
            if is_unloaded or (is_decided and attempt["version"] == alias["target"] == alias["serving"]):
                return status
            if attempt is not None and attempt["state"] == "REJECTED" and self.service.is_settled():
                return self.service.call("GET", "/status")[2]
            time.sleep(0.01)
        raise AssertionError(f"not decided after a minute: {status}")

    def check_share(self):
        """Check that a share serves what its link asks for, if that can be, and that nothing is known of one that is gone."""
        name, end = self.share(), time.monotonic() + 60
        while time.monotonic() < end:
            shares = self.service.call("GET", "/status")[2]["shares"]
            if set(shares) == {name} - {None} and (name is None or self._is_right(shares[name])):
                return
            time.sleep(0.01)
        raise AssertionError(f"the share {name} is not as it must be: {shares}, {self.damaged}, {self.used_at_kills}")

    def _is_right(self, share):
        target, attempt = share["target"], share["attempt"]
        if share["unloaded"]:
            return self.share_perhaps_unloaded and share["serving"] is None
        if attempt is not None and attempt["version"] == target and attempt["state"] == "REJECTED":
            is_set_aside = attempt["code"] == "set_aside" and self.used_at_kills[target] >= 2
            return share["serving"] is None and (is_set_aside or target in self.damaged)
        return share["serving"] == target is not None

    def check_serves(self, serving, wish):
        found = self.service.draw()
        assert not isinstance(found, str), found
        (version, digest), pixel = found
        assert (version, digest) == (serving, self.contents[serving].digest)
        assert self.pixels.setdefault((version, digest), pixel) == pixel, "a picture of another version"
        assert serving == wish or serving not in self.damaged

    def check_left_over(self):
        """Check that nothing is left over of what the kill interrupted."""
        assert {name for name in os.listdir(self.service.root) if name.startswith(".zwatch")} == set()
        state = sorted(path.name for path in self.service.state.iterdir())
        assert not [name for name in state if name.startswith(".") or ".bad" in name or name.endswith(".damaged")], (
            state
        )
        images = self.service.images
        names = sorted(path.name for path in images.iterdir()) if images.exists() else []
        # A part of an image goes when it is an hour old: until then it may be another process's
        hidden = [name for name in names if name.startswith(".") and not name.endswith(".part")]
        assert hidden in ([], [".zwatch-order"]), names

    def check_history(self):
        """Check that each picture that is listed is whole."""
        listed = self.service.call("GET", "/history?limit=200")[2]["images"]
        for one in listed[:3]:
            status, _, data = self.service.call("GET", one["url"])
            assert status == 200
            assert data.endswith(b"IEND\xaeB`\x82"), one

    def check_log(self):
        for entry in self.service.new_log():
            if entry["level"] in ("info", "debug") or any(text in entry["message"] for text in ALLOWED):
                assert "exception" not in entry, entry
                continue
            raise AssertionError(entry)


def kill(pid):
    """End a process as `kill -9` does, if it has not ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
