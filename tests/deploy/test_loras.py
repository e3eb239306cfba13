"""LoRAs under the LoRA root: what a look says of them, and what is opened."""

import json
import os
import shutil
from pathlib import Path

import pytest
from blake3 import blake3

from tests.deploy.factory import AS_ROOT, framed, reseal_by_hand, write_version
from tests.deploy.loras import WEIGHTS, matrices, packed, write_lora
from zwatch.deploy.lora_files import Matrix, is_lora_directory
from zwatch.deploy.loras import FoundLora, LoraRoot
from zwatch.deploy.seal import SEAL_NAME, format_seal
from zwatch.errors import Rejection

TRANSFORMER = Path(__file__).parents[2] / "models/v1/transformer"


@pytest.fixture
def root(tmp_path):
    return tmp_path / "loras"


@pytest.fixture
def ink(root):
    return write_lora(root, "ink", TRANSFORMER, rank=3)


def seal_again(directory):
    files = {path.name: blake3(path.read_bytes()).hexdigest() for path in directory.iterdir() if path.name != SEAL_NAME}
    (directory / SEAL_NAME).write_bytes(format_seal(files))


def only(root) -> FoundLora:
    [found] = LoraRoot(root).look()
    return found


def test_a_root_that_is_not_there_has_no_loras(root):
    loras = LoraRoot(root)
    assert loras.look() == []
    assert loras.fault is None
    with pytest.raises(Rejection, match="there is no LoRA 'ink'") as refused:
        loras.open_lora("ink")
    assert refused.value.code == "file_missing"


def test_a_look_tells_what_the_seal_and_the_header_say(root, ink):
    found = only(root)
    assert (found.name, found.rank, found.problem, found.code) == ("ink", 3, None, None)
    assert found.digest == blake3((ink / SEAL_NAME).read_bytes()).hexdigest()
    assert found.bytes == (ink / WEIGHTS).stat().st_size
    assert found.modules == sum(".attention.to_" in module for module in matrices(TRANSFORMER))
    assert found.sealed_at is not None


def test_an_opened_lora_has_the_shapes_of_the_weights_that_it_changes(root, ink):
    lora = LoraRoot(root).open_lora("ink")
    assert lora.matrices["layers.0.attention.to_q"] == Matrix(3, 144, 144)
    assert set(lora.matrices) == {module for module in matrices(TRANSFORMER) if ".attention.to_" in module}
    with lora.opened() as fd:
        assert blake3(os.pread(fd, 2**24, 0)).hexdigest() == lora.seal.files[WEIGHTS]
    lora.close()


def test_an_unchanged_lora_is_not_opened_again(root, ink, monkeypatch):
    loras = LoraRoot(root)
    first = loras.look()
    monkeypatch.setattr("zwatch.deploy.loras.describe", None)
    assert loras.look() == first


def test_a_lora_sealed_anew_is_another_one(root, ink):
    loras = LoraRoot(root)
    [before] = loras.look()
    write_lora(root, "ink", TRANSFORMER, rank=3, seed=1)
    [after] = loras.look()
    assert after.digest != before.digest
    shutil.rmtree(ink)
    assert loras.look() == []


def stamped(directory, name):
    write_lora(directory.parent, name, TRANSFORMER)
    shutil.rmtree(directory)
    (directory.parent / name).rename(directory)


def rewrite(directory, data):
    (directory / WEIGHTS).write_bytes(data)
    seal_again(directory)


def replaced(directory, make):
    shutil.rmtree(directory)
    make(directory)


def linked(directory):
    directory.rename(directory.with_name(".elsewhere"))
    directory.symlink_to(".elsewhere")


def fifo(path):
    path.unlink()
    os.mkfifo(path)


def link(path):
    path.rename(path.with_name("other"))
    path.symlink_to("other")


METADATA = {"version": "ink"}
LYING = framed({"a.lora_A.weight": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 4]}}, b"0123")
FAULTS = {
    "no seal": ("seal_missing", lambda ink: (ink / SEAL_NAME).unlink(), "zwatch seal"),
    "an empty seal": ("seal_invalid", reseal_by_hand, "empty"),
    "a seal with ..": ("seal_invalid", lambda ink: reseal_by_hand(ink, f"{'0' * 64}  ../x"), "line 1"),
    "a seal of other files": ("weights_mismatch", lambda ink: reseal_by_hand(ink, f"{'0' * 64}  zwatch.json"), "no lora"),
    "no factors": ("file_missing", lambda ink: (ink / WEIGHTS).unlink(), WEIGHTS),
    "factors that are a link": ("file_not_regular", lambda ink: link(ink / WEIGHTS), "a symlink"),
    "factors that are a FIFO": ("file_not_regular", lambda ink: fifo(ink / WEIGHTS), "a FIFO"),
    "cut short": ("size_mismatch", lambda ink: os.truncate(ink / WEIGHTS, 80_000), "is the copy complete"),
    "a header that lies": ("header_invalid", lambda ink: rewrite(ink, LYING), "spans 4 bytes"),
    "another name": ("version_mismatch", lambda ink: stamped(ink, "night"), "version 'night', the directory is 'ink'"),
    "no name": ("version_mismatch", lambda ink: rewrite(ink, unnamed()), "no version"),
    "no LoRA": ("weights_mismatch", lambda ink: rewrite(ink, framed({"__metadata__": METADATA, "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"0")), "'a' is no factor"),
    "no tensors": ("weights_mismatch", lambda ink: rewrite(ink, framed({"__metadata__": METADATA})), "no tensors"),
    "a file": ("file_not_regular", lambda ink: replaced(ink, lambda path: path.write_bytes(b"x")), "zwatch import FILE NAME --lora"),
    "a FIFO": ("file_not_regular", lambda ink: replaced(ink, os.mkfifo), "found a FIFO"),
    "a link": ("file_not_regular", linked, "found a symlink"),
}  # fmt: skip


def unnamed():
    return packed(shaped((2, 4), (4, 2)), "F32", {})


def shaped(down, up, dtype="F32"):
    import numpy as np

    return {"a.lora_A.weight": np.zeros(down, np.float32), "a.lora_B.weight": np.zeros(up, np.float32)}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_has_its_code_and_a_sentence(fault, root, ink):
    code, spoil, what = FAULTS[fault]
    spoil(ink)
    found = only(root)
    assert (found.name, found.code) == ("ink", code)
    assert what in found.problem
    with pytest.raises(Rejection) as refused:
        LoraRoot(root).open_lora("ink")
    assert (refused.value.code, refused.value.reason) == (code, found.problem)


@pytest.mark.parametrize(("down", "up"), [((2, 4), (4, 3)), ((2, 4, 1), (4, 2)), ((0, 4), (4, 0))])
def test_factors_that_do_not_fit_each_other_are_refused_with_their_shapes(down, up, root, ink):
    rewrite(ink, packed(shaped(down, up), "F32", METADATA))
    found = only(root)
    assert found.code == "weights_mismatch"
    assert f"lora_A {list(down)} and lora_B {list(up)}" in found.problem


def test_half_a_pair_and_another_dtype_are_refused(root, ink):
    both = shaped((2, 4), (4, 2))
    rewrite(ink, packed({name: one for name, one in both.items() if "_B" in name}, "F32", METADATA))
    assert "'a' has only its lora_B" in only(root).problem
    mixed = {"a.lora_A.weight": ("F16", [1, 1], 0, 2), "a.lora_B.weight": ("F32", [1, 1], 2, 6)}
    table = {name: {"dtype": one, "shape": shape, "data_offsets": [begin, end]} for name, (one, shape, begin, end) in mixed.items()}  # fmt: skip
    rewrite(ink, framed({"__metadata__": METADATA, **table}, b"0" * 6))
    assert "its tensors are F16 and F32, expected one of BF16, F16, F32" in only(root).problem


def test_what_was_read_and_refused_says_so_until_a_file_changes(root, ink):
    loras = LoraRoot(root)
    [found] = loras.look()
    loras.refuse(loras.open_lora("ink"), Rejection("hash_mismatch", "lora.safetensors: blake3 is …"))
    [refused] = loras.look()
    assert (refused.code, refused.problem) == ("hash_mismatch", "lora.safetensors: blake3 is …")
    os.utime(ink / WEIGHTS)
    assert loras.look() == [found]


def test_what_was_opened_before_it_was_copied_again_says_nothing_of_the_copy(root, ink):
    loras = LoraRoot(root)
    before = loras.open_lora("ink")
    copied_again(ink)
    [found] = loras.look()
    loras.refuse(before, Rejection("hash_mismatch", "lora.safetensors: blake3 is …"))
    assert before.digest == found.digest
    assert loras.look() == [found]


def copied_again(directory):
    """Remove a directory, and put a copy with the same bytes where it was."""
    copy = directory.with_name(f".{directory.name}")
    shutil.copytree(directory, copy)
    shutil.rmtree(directory)
    copy.rename(directory)


def test_what_was_opened_can_be_read_though_it_is_removed(root, ink):
    lora = LoraRoot(root).open_lora("ink")
    files = {path: (ink / path).read_bytes() for path in lora.seal.files}
    assert len(files) > 1
    shutil.rmtree(ink)
    for path, data in files.items():
        for _ in range(2):
            with lora.opened(path) as fd:
                assert os.read(fd, len(data) + 1) == data
    before = len(os.listdir("/proc/self/fd"))
    lora.close()
    lora.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1 - len(files)


def test_a_passing_fault_is_not_kept(root, ink):
    loras = LoraRoot(root)
    [found] = loras.look()
    loras.refuse(loras.open_lora("ink"), Rejection("io_error", "Input/output error"))
    assert loras.look() == [found]


def test_texts_and_what_an_import_has_left_are_no_loras(root, ink):
    (root / "README.md").write_text("our LoRAs")
    (root / ".gitignore").write_text("*.tmp")
    (root / ".night.importing").mkdir()
    (root / "night.safetensors").write_bytes(b"a download")
    names = {found.name: found.code for found in LoraRoot(root).look()}
    assert names == {"ink": None, "night.safetensors": "file_not_regular"}


def test_a_name_that_no_lora_can_have_is_said(root, ink):
    ink.rename(root / "ink pen")
    assert "has the character ' '" in only(root).problem


def test_a_root_that_is_a_file_is_a_fault(root):
    root.write_text("no directory")
    loras = LoraRoot(root)
    assert loras.look() == []
    assert loras.fault == f"{root}: Not a directory; expected the LoRA root, see --loras"


@pytest.mark.skipif(AS_ROOT, reason="root may read everything")
def test_one_that_may_not_be_read_is_looked_at_again(root, ink):
    ink.chmod(0)
    loras = LoraRoot(root)
    assert loras.look()[0].code == "io_error"
    ink.chmod(0o755)
    assert loras.look()[0].problem is None


def test_a_version_is_no_lora(root, ink, tmp_path):
    assert is_lora_directory(ink)
    assert not is_lora_directory(write_version(tmp_path / "models", "v1"))


def test_the_helper_of_these_tests_writes_the_same_bytes_again(root, ink, tmp_path):
    other = write_lora(tmp_path / "again", "ink", TRANSFORMER, rank=3)
    assert json.loads((other / "zwatch.json").read_bytes())["source"]["kind"] == "lora"
    assert {path.name: path.read_bytes() for path in ink.iterdir()} == {
        path.name: path.read_bytes() for path in other.iterdir()
    }
