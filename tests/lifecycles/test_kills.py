"""kill -9 at random moments: the next start serves what the rules say, nothing is left over, and no state is lost.

`ZWATCH_LONG=1` makes 1,000 kills of a light service, and 30 of a whole one with small models.
"""

import os
import shutil
import time

import pytest

from tests.lifecycles.killing import VERSIONS, Killer
from tests.lifecycles.service import WEIGHTS, Light, make_version
from tests.lifecycles.whole import Whole
from tests.test_deploy_under_load import digest_of
from zwatch.deploy.sealing import write_seal

LONG = os.environ.get("ZWATCH_LONG") == "1"
KILLS = int(os.environ.get("ZWATCH_RUNS", "1000" if LONG else "8"))
WHOLE_KILLS = 30


class Contents:
    """A version's files, which can be damaged and repaired."""

    def __init__(self, directory, digest):
        self.digest, self._file = digest, directory / WEIGHTS
        self._data = self._file.read_bytes()

    def damage(self):
        self._file.write_bytes(self._data[:-1] + bytes([self._data[-1] ^ 1]))

    def repair(self):
        self._file.write_bytes(self._data)


def test_a_light_service_that_is_killed_at_any_moment_starts_again_by_the_rules(tmp_path):
    root = tmp_path / "models"
    root.mkdir()
    contents = {
        version: Contents(root / version, make_version(root / version, version.encode())[0]) for version in VERSIONS
    }
    (root / "current").symlink_to("v1")
    killer = Killer(Light(root, tmp_path / "state", history=True), contents, 30)
    for number in range(KILLS):
        if number % 10 == 9:
            killer.run_takeover(killer.draw.uniform(0.0, 0.4))
        else:
            killer.run(killer.draw.uniform(0.0, 0.5))  # the first tenth of a second is the start
        killer.rename_share()
        killer.check()
        if number % 100 == 99:
            print(f"{number + 1} kills", flush=True)


@pytest.mark.skipif(not LONG, reason="takes ten minutes; ZWATCH_LONG=1 runs it")
def test_a_whole_service_that_is_killed_at_any_moment_starts_again_by_the_rules(models, tmp_path):
    shutil.copytree(models / "v2", models / "v3")
    write_seal(models / "v3", "v3")
    contents = {version: Contents(models / version, digest_of(models / version)) for version in VERSIONS}
    killer = Killer(Whole(models, tmp_path / "state"), contents, 31)
    killer.service.start()
    begun = time.monotonic()
    killer.settled()
    start = 1.0 + time.monotonic() - begun  # until it serves; how long that takes depends on the machine
    killer.service.stop()
    for number in range(WHOLE_KILLS):
        if number % 5 == 4:
            killer.run_takeover(killer.draw.uniform(0.0, 2 * start))
        else:
            killer.run(killer.draw.uniform(0.0, 3 * start))
        killer.rename_share()
        killer.check()
        print(f"{number + 1} kills of a whole service", flush=True)
