"""A version of which any byte was changed, or that ends anywhere, is rejected with the file's name, and never draws.

`make chaos` (ZWATCH_LONG=1) changes 10,000 bytes, else a sample.
"""

import random
import re
import shutil
from contextlib import suppress

import pytest

from tests.chaos.driver import LONG
from tests.chaos.versions import VERIFYING, Loads, changed_byte, files, other_length
from zwatch.deploy.header import read_header
from zwatch.deploy.seal import SEAL_NAME
from zwatch.errors import Rejection

CHANGES = 10_000 if LONG else 250
FRAMED = 8
"""Bytes before and after each border at which a file is cut off."""


@pytest.fixture(scope="module")
def loads(tiny_versions, tmp_path_factory):
    """Loads of `current -> v2`, and v1 in memory, which shares text encoder and VAE with it."""
    models = tmp_path_factory.mktemp("corrupt") / "models"
    shutil.copytree(tiny_versions, models)
    (models / "current").symlink_to("v1")
    loads = Loads(models)
    loads.resident = loads.load()
    (models / "current").unlink()
    (models / "current").symlink_to("v2")
    yield loads
    loads.resident.close()


@pytest.fixture(scope="module")
def alone(tiny_versions, tmp_path_factory):
    """Loads of `current -> v2` with nothing in memory."""
    models = tmp_path_factory.mktemp("alone") / "models"
    shutil.copytree(tiny_versions, models)
    (models / "current").symlink_to("v2")
    return Loads(models)


def position_in(path, dice):
    """Return a random position; half of those in weights are in the header, which is small."""
    size = path.stat().st_size
    if path.suffix == ".safetensors" and dice.random() < 0.5:
        size = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    return dice.randrange(size)


def assert_rejected(loads, path, names, what):
    """Assert that loading says which file is wrong."""
    found = loads.rejection()
    assert found is not None, f"{what} was not noticed"
    assert found.code in VERIFYING, f"{what}: {found.code}: {found.reason}"
    # A changed line of the seal tells of the file in that line, if it is still a line.
    named = [SEAL_NAME, *names] if path == SEAL_NAME else [path]
    is_named = any(name in found.reason for name in named) or (path == SEAL_NAME and "the seal names" in found.reason)
    assert is_named, f"{what}: {found.reason}"


@pytest.mark.parametrize("which", ["loads", "alone"])
def test_whichever_byte_of_a_version_is_changed_it_is_rejected(which, request):
    loads, dice = request.getfixturevalue(which), random.Random(which)
    version = loads.models / "v2"
    names = files(version)
    for number in range(CHANGES // 2):
        path = names[number % len(names)]
        position, mask = position_in(version / path, dice), dice.randrange(1, 256)
        with changed_byte(version / path, position, mask):
            assert_rejected(loads, path, names, f"{path}: byte {position} changed by {mask:#x}")
    loads.load().close()


def test_a_byte_of_the_seal_that_changes_between_the_look_and_the_load_is_noticed(alone):
    version, dice = alone.models / "v2", random.Random(1)
    target = alone.looker.look().targets["current"]
    for _ in range(400 if LONG else 40):
        position = position_in(version / SEAL_NAME, dice)
        with changed_byte(version / SEAL_NAME, position, 1 << dice.randrange(8)):
            with pytest.raises(Rejection) as caught:
                alone.factory.plan(target.directory, target.digest)
            assert caught.value.code in ("seal_invalid", "seal_changed")
            assert SEAL_NAME in caught.value.reason


def borders(version, path):
    """Return the positions in a file between which its parts are: header, tensors; of other files, some."""
    file = version / path
    if file.suffix == ".safetensors":
        with open(file, "rb") as opened:
            header = read_header(opened.fileno(), path)
        return sorted({0, 8, header.data_start, *(tensor.end for tensor in header.tensors.values())})
    if path == SEAL_NAME:
        return [0, *(match.end() for match in re.finditer(rb"\n", file.read_bytes()))]
    return [0, file.stat().st_size // 2, file.stat().st_size]


@pytest.mark.parametrize("which", ["loads", "alone"])
def test_wherever_a_file_of_a_version_ends_it_is_rejected(which, request):
    loads, dice = request.getfixturevalue(which), random.Random(which)
    version = loads.models / "v2"
    names = files(version)
    lengths = sorted(
        {
            (path, border + off)
            for path in names
            for border in borders(version, path)
            for off in range(-FRAMED, FRAMED + 1)
            if border + off >= 0 and border + off != (version / path).stat().st_size
        }
    )
    for path, length in lengths if LONG else dice.sample(lengths, 80):
        with other_length(version / path, length):
            assert_rejected(loads, path, names, f"{path}: {length} bytes long")
    loads.load().close()


def test_a_seal_without_its_last_lines_is_rejected_wherever_the_lines_of_needed_files_end(alone):
    version = alone.models / "v2"
    whole = (version / SEAL_NAME).read_bytes()
    lines = whole.splitlines(keepends=True)
    try:
        for count in range(len(lines)):
            (version / SEAL_NAME).write_bytes(b"".join(lines[:count]))
            found = alone.rejection()
            assert found is not None, f"the first {count} lines are enough"
            assert found.code in ("seal_invalid", "file_missing"), found.reason
    finally:
        (version / SEAL_NAME).write_bytes(whole)
    alone.load().close()


def test_a_missing_file_of_a_version_is_rejected_with_its_name(alone):
    version = alone.models / "v2"
    for path in files(version):
        (version / path).rename(version / "aside")
        found = alone.rejection()
        with suppress(FileNotFoundError):
            (version / "aside").rename(version / path)
        assert found is not None
        assert found.code in ("seal_missing", "file_missing")
        assert path in found.reason
    alone.load().close()
