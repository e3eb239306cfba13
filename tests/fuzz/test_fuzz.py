"""The parsers of what others write, fuzzed for a moment: with atheris, which finds inputs that reach new code, or without it.

With ZWATCH_LONG=1 (`make fuzz`) a quarter of an hour each. tests/fuzz/run.py says how to go on from an input that fails.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutation import mutated
from tests.fuzz.targets import TARGETS
from zwatch.deploy.seal import Seal

ROOT = Path(__file__).parent.parent.parent
CORPUS = Path(__file__).parent / "corpus"
IS_LONG = os.environ.get("ZWATCH_LONG") == "1"
SECONDS = 900 if IS_LONG else 8
HAS_ATHERIS = importlib.util.find_spec("atheris") is not None

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.*")


def corpus(name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


@pytest.mark.parametrize("name", TARGETS)
def test_the_inputs_that_were_found_before_keep_every_promise(name):
    paths = sorted((CORPUS / name).iterdir())
    assert len(paths) > 5
    for path in paths:
        try:
            TARGETS[name](path.read_bytes())
        except Exception as error:
            error.add_note(f"the input is {path}")
            raise


@pytest.mark.skipif(not HAS_ATHERIS, reason="atheris is not installed; the next test does without")
@pytest.mark.parametrize("name", TARGETS)
def test_atheris_finds_no_input_that_breaks_a_promise(name, tmp_path):
    shutil.copytree(CORPUS / name, tmp_path / "corpus")
    command = [
        sys.executable, "-m", "tests.fuzz.run", name, f"-max_total_time={SECONDS}", "-timeout=60", "-max_len=8192", "-verbosity=0",
        f"-artifact_prefix={tmp_path}/", str(tmp_path / "corpus"),
    ]  # fmt: skip
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
    failed = [path.read_bytes() for path in tmp_path.glob("*-*")]
    assert found.returncode == 0, f"{failed}\n{found.stderr[-3000:]}"
    assert not failed


@pytest.mark.skipif(HAS_ATHERIS and not IS_LONG, reason="the test before has done more")
@pytest.mark.parametrize("name", TARGETS)
def test_no_changed_input_breaks_a_promise(name):
    @settings(
        max_examples=100_000 if IS_LONG else 1000,
        deadline=None,
        database=None,
        derandomize=not IS_LONG,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(corpus(name)), st.integers(0, 2**32))
    def check(data, seed):
        TARGETS[name](mutated(data, Random(seed)))

    @settings(max_examples=10_000 if IS_LONG else 200, deadline=None, database=None, derandomize=not IS_LONG)
    @given(st.binary(max_size=300))
    @example(b"")
    def check_any(data):
        TARGETS[name](data)

    check()
    check_any()


def test_a_target_fails_where_a_promise_is_broken(monkeypatch):
    """So that a fuzzer which finds nothing has looked."""
    from tests.fuzz import targets

    monkeypatch.setattr(targets.headers, "_check_coverage", lambda *given: None)
    with pytest.raises(AssertionError):
        targets.header(b'j{"a": {"dtype": "U8", "shape": [1], "data_offsets": [5, 6]}}')
    monkeypatch.setattr(targets, "parse_seal", lambda data: Seal("x", {"../x": "a" * 64}))
    with pytest.raises(AssertionError):
        targets.seal(b"x")
