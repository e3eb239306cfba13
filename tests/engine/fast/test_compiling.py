"""The kernels compile for GPUs, which the interpreter cannot tell. No GPU is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed: it comes with torch's builds for GPUs")
pytestmark = pytest.mark.skipif(not os.environ.get("ZWATCH_LONG"), reason="half a minute; with ZWATCH_LONG=1")


def test_each_kernel_compiles_for_hopper_keeps_its_rows_in_registers_and_reads_8_bytes_at_a_time(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "tests.engine.fast.compiled"], cwd=Path(__file__).parents[3], check=True, text=True,
        capture_output=True, env=os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
    )  # fmt: skip
    found = json.loads(ended.stdout)
    assert len(found) >= 20
    assert {name: facts for name, facts in found.items() if facts["stack"]} == {}
    slow = {name: facts["widest_read"] for name, facts in found.items() if facts["widest_read"] < 8}
    assert {name.split()[0] for name in slow} <= {"group_whole"}, "which reads next to nothing"
