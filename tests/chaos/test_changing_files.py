"""Files that another process writes while they are loaded, in any order, at any time and in any way: what is loaded is wholly
the old content or wholly the new one, or nothing.

`make chaos` (ZWATCH_LONG=1) does it 1,500 times, else a sample.
"""

import os
import random
import shutil
import threading
import time
from collections import Counter

import pytest

from tests.chaos.driver import LONG
from tests.chaos.versions import VERIFYING, Loads, files, picture
from zwatch.deploy.seal import SEAL_NAME
from zwatch.errors import Rejection

TIMES = 1500 if LONG else 24


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """Two directories with sealed versions v2: every weight differs between them."""
    import random_pipeline

    from zwatch.deploy.sealing import write_seal

    root = tmp_path_factory.mktemp("contents")
    with pytest.MonkeyPatch.context() as patch:
        for number, name in enumerate(("old", "new")):
            patch.setattr(random_pipeline, "SHARED_SEED", number)
            random_pipeline.write_pipeline(root / name, random_pipeline.PRESETS["tiny"], 10 + number)
            write_seal(root / name, "v2")
    return root


class Writer:
    """Writes one content over another, file by file, each in a random way."""

    def __init__(self, version, content, dice):
        self.version, self.content, self.dice = version, content, dice

    def write(self):
        """Write all files: the seal first, last, or anywhere."""
        names = files(self.content)
        self.dice.shuffle(names)
        if (place := self.dice.choice(("first", "last", "anywhere"))) != "anywhere":
            names.remove(SEAL_NAME)
            names.insert(0 if place == "first" else len(names), SEAL_NAME)
        for name in names:
            way = self.dice.choice((self.in_place, self.by_rename, self.cut_and_grown, self.longer_first))
            way(self.version / name, (self.content / name).read_bytes())
            self.pause()

    def pause(self):
        if self.dice.random() < 0.5:
            time.sleep(self.dice.random() * 0.004)

    def in_place(self, path, data):
        with open(path, "r+b") as file:
            for begin in range(0, len(data), max(1, len(data) // 3)):
                file.seek(begin)
                file.write(data[begin : begin + max(1, len(data) // 3)])
                file.flush()
                self.pause()
            file.truncate()

    def by_rename(self, path, data):
        temporary = path.with_name(".being-copied")
        temporary.write_bytes(data)
        os.replace(temporary, path)

    def cut_and_grown(self, path, data):
        with open(path, "r+b") as file:
            file.truncate(0)
            self.pause()
            file.write(data[: len(data) // 2])
            file.flush()
            self.pause()
            file.write(data[len(data) // 2 :])

    def longer_first(self, path, data):
        with open(path, "r+b") as file:
            file.write(data + b"x" * 1000)
            file.flush()
            self.pause()
            file.truncate(len(data))


@pytest.fixture(scope="module")
def pictures(contents, tmp_path_factory):
    """What each content draws, by its digest."""
    found = {}
    for name in ("old", "new"):
        models = tmp_path_factory.mktemp(name)
        shutil.copytree(contents / name, models / "v2")
        (models / "current").symlink_to("v2")
        engine = Loads(models).load()
        found[engine.digest] = picture(engine)
        engine.close()
    assert len(set(found.values())) == 2
    return found


def outcome(loads, pictures):
    """Load once; return the digest that was loaded or the code of its rejection."""
    try:
        engine = loads.load()
    except Rejection as rejection:
        code, reason = rejection.code, rejection.reason
    else:
        return drawn(engine, pictures)
    assert code in VERIFYING, reason
    return code


def drawn(engine, pictures):
    """Return an engine's digest, after comparing its picture."""
    assert picture(engine) == pictures[engine.digest], "a mixed version"
    digest = engine.digest
    engine.close()
    return digest


@pytest.mark.slow
def test_files_that_change_while_they_are_loaded_never_make_a_mixed_version(contents, pictures, tmp_path):
    models, dice, found = tmp_path / "models", random.Random(3), Counter()
    (models / "v2").mkdir(parents=True)
    shutil.copytree(contents / "old", models / "v2", dirs_exist_ok=True)
    (models / "current").symlink_to("v2")
    loads = Loads(models)
    outcome(loads, pictures)  # not slower than the others
    for number in range(TIMES):
        to = ("new", "old")[number % 2]
        writer = threading.Thread(target=Writer(models / "v2", contents / to, dice).write)
        late = dice.random() < 0.7
        if late:
            writer.start()
            time.sleep(dice.random() * 0.03)
            found[outcome(loads, pictures)] += 1
        else:
            loading = threading.Thread(target=lambda: found.update([outcome(loads, pictures)]))
            loading.start()
            time.sleep(dice.random() * 0.02)
            writer.start()
            loading.join(60)
        writer.join(60)
        assert sum(found.values()) == number + 1, "the load in the thread failed, see above"
        settled = outcome(loads, pictures)
        assert settled in pictures, settled
        assert (models / "v2" / SEAL_NAME).read_bytes() == (contents / to / SEAL_NAME).read_bytes()
    print(f"\nfiles that change: {dict(found)}")
    assert found.keys() & VERIFYING, "no load met a change: the test tests nothing"
    assert found.keys() & pictures.keys()


def test_a_file_that_changes_after_it_was_loaded_changes_no_picture(contents, pictures, tmp_path):
    models, dice = tmp_path / "models", random.Random(4)
    models.mkdir()
    shutil.copytree(contents / "old", models / "v2")
    (models / "current").symlink_to("v2")
    engine = Loads(models).load()
    Writer(models / "v2", contents / "new", dice).write()
    for name in files(models / "v2"):
        os.truncate(models / "v2" / name, 0)
    assert picture(engine) == pictures[engine.digest]
    assert engine.verify_resident()[1] == []
    engine.close()
