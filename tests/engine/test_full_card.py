"""Runs the tests of full_card.py in a process of their own: what a full card leaves behind ends with it."""

import subprocess
import sys
from pathlib import Path

import pytest

FULL_CARD = Path(__file__).with_name("full_card.py")


@pytest.mark.gpu(alone=True)
@pytest.mark.slow
def test_a_full_card():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FULL_CARD)]
    run = subprocess.run(command, cwd=FULL_CARD.parents[2], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "5 passed" in run.stdout, run.stdout
