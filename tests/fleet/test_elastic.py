"""`--replicas MIN..MAX` with Ray's own autoscaler: hosts come for a queue and go without one. It takes a minute or two."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.namespaces import Namespaces, Unavailable

pytest.importorskip("ray", reason="needs ray")
REPOSITORY = Path(__file__).parent.parent.parent


@pytest.mark.skipif(os.environ.get("ZWATCH_LONG") != "1", reason="takes two minutes: ZWATCH_LONG=1")
def test_hosts_come_for_a_queue_and_go_without_one_and_no_request_fails(tiny_versions, tmp_path):
    shutil.copytree(tiny_versions, tmp_path / "models")
    (tmp_path / "models" / "current").symlink_to("v1")
    try:
        inside = Namespaces("pid", "net", setup="ip link set lo up; mount -t tmpfs none /mnt")
    except Unavailable as reason:
        pytest.skip(str(reason))
    try:
        done = inside.run(
            "env", f"--chdir={REPOSITORY}", f"PYTHONPATH={REPOSITORY}", sys.executable, "-m", "tests.fleet.autoscaled", tmp_path,
            timeout=600,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        pytest.fail((tmp_path / "controller.log").read_text()[-5000:])
    finally:
        inside.close()
    log = tmp_path / "controller.log"
    assert done.returncode == 0, done.stderr[-3000:] + (log.read_text()[-3000:] if log.exists() else "")
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert (found["hosts at first"], found["hosts under load"], found["hosts at the end"]) == (1, 3, 1)
    assert found["statuses"] == [200]
    assert set(found["drawn"]) == {"r0", "r1", "r2"}
    assert all(found["drawn"].values()), "each of them draws"
