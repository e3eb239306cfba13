"""What a source lacks comes from the base without being copied where that is possible, and never so that a later stamp would
change both."""

import errno
import os
import shutil
import subprocess
import sys

import pytest
import torch

from tests.importing import published
from tests.importing.published import tree, weights
from tests.namespaces import Namespaces, Unavailable
from zwatch.deploy.sealing import write_seal
from zwatch.deploy.verifying import check_directory
from zwatch.importing import bases

LINKED = {"text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors"}


@pytest.fixture
def tuned(pipeline, tmp_path):
    """A training run's transformer alone."""
    run = shutil.copytree(pipeline, tmp_path / "run")
    changed = {name: tensor * 1.01 for name, tensor in weights(run, "transformer").items()}
    published.write_weights(run, "transformer", changed)
    return run / "transformer"


def inodes(version):
    return {path.relative_to(version).as_posix(): path.stat().st_ino for path in version.rglob("*") if path.is_file()}


def blocks_are_shared(root):
    """Say whether the file system has reflinks."""
    (root / "a").write_bytes(bytes(2**16))
    with open(root / "a", "rb") as source, open(root / "b", "wb") as sink:
        found = bases.clone(source.fileno(), sink.fileno())
    (root / "a").unlink()
    (root / "b").unlink()
    return found


def test_a_tuned_transformer_costs_its_own_bytes_alone(pipeline, tuned, importing):
    reflinks = blocks_are_shared(importing.root)
    v1 = importing(pipeline, "v1")
    v2 = importing(tuned, "v2", "--base", "v1")
    before, after = inodes(v1), inodes(v2)
    shared = {path for path in before if after.get(path) == before[path]}
    assert shared == (set() if reflinks else LINKED)
    assert ("by reflink" if reflinks else "by hard link") in importing.out
    assert (v2 / "text_encoder/model.safetensors").read_bytes() == (v1 / "text_encoder/model.safetensors").read_bytes()
    assert check_directory(v1, "v1") == check_directory(v2, "v2") == []


def test_sealing_the_new_version_again_leaves_the_base_alone(pipeline, tuned, importing):
    v1 = importing(pipeline, "v1")
    before = tree(v1)
    v2 = importing(tuned, "v2", "--base", "v1")
    shutil.move(v2, importing.root / "renamed")
    write_seal(importing.root / "renamed", "renamed")
    assert tree(v1) == before
    assert check_directory(v1, "v1") == check_directory(importing.root / "renamed", "renamed") == []


def test_a_transformer_of_the_base_gets_the_new_name_in_a_file_of_its_own(pipeline, importing, tmp_path):
    v1 = importing(pipeline, "v1")
    before = tree(v1)
    vae = shutil.copytree(pipeline / "vae", tmp_path / "vae")
    v2 = importing(vae, "v2", "--base", "v1")
    assert tree(v1) == before
    assert check_directory(v2, "v2") == []
    assert all(torch.equal(tensor, weights(v1, "transformer")[name]) for name, tensor in weights(v2, "transformer").items())  # fmt: skip


def test_the_base_may_be_named_by_an_alias(pipeline, tuned, importing):
    importing(pipeline, "v1")
    (importing.root / "current").symlink_to("v1")
    assert check_directory(importing(tuned, "v2", "--base", "current"), "v2") == []
    assert '"version": "v1"' in (importing.root / "v2/zwatch.json").read_text()


def test_a_damaged_transformer_of_the_base_is_not_sealed_anew(pipeline, importing, tmp_path):
    v1 = importing(pipeline, "v1")
    with open(v1 / "transformer/diffusion_pytorch_model.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    assert "the seal beside it says" in importing.refused(pipeline / "vae", "v2", "--base", "v1")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("v9", "there is no such version, expected one of v1"), ("bare", "run `zwatch seal`"), ("../elsewhere", "not directly in")],
)  # fmt: skip
def test_a_base_that_is_none_is_refused(name, expected, pipeline, tuned, importing, tmp_path):
    importing(pipeline, "v1")
    shutil.copytree(pipeline, importing.root / "bare")
    (tmp_path / "elsewhere").mkdir()
    assert expected in importing.refused(tuned, "v2", "--base", name)


def test_a_base_on_another_file_system_is_copied_and_that_is_said(pipeline, tuned, tmp_path):
    root = tmp_path / "models"
    root.mkdir()
    command = [sys.executable, "-m", "zwatch", "import"]
    subprocess.run([*command, pipeline, "v1", "--models", root], check=True)
    # A bind mount of the same directory over the version: the kernel makes no link across mounts.
    try:
        inside = Namespaces(setup=f"mount --bind {root}/v1 {root}/v1")
    except Unavailable as error:
        pytest.skip(str(error))
    try:
        done = inside.run(*command, tuned, "v2", "--models", root, "--base", "v1")
    finally:
        inside.close()
    assert done.returncode == 0, done.stderr
    if "by reflink" not in done.stdout:
        size = sum((root / "v1" / path).stat().st_size for path in LINKED)
        assert (
            f"{size:,} bytes of v1's weights are copied: it is on another file system, or behind another mount"
            in done.stderr
        )
        assert "of the base by copy" in done.stdout
    assert not set(inodes(root / "v1").values()) & set(inodes(root / "v2").values())
    assert check_directory(root / "v2", "v2") == []


@pytest.mark.parametrize(
    ("number", "owner", "why"),
    [
        (errno.EXDEV, None, "on another file system, or behind another mount"),
        (errno.EPERM, 12345, "its files belong to the user 12345, so the system does not let"),
        (errno.EPERM, None, "this file system can neither share blocks nor link here"),
        (errno.EMLINK, None, "as many hard links as its file system allows"),
    ],
)
def test_why_weights_are_copied_is_said(number, owner, why, pipeline, tuned, importing, monkeypatch):
    if blocks_are_shared(importing.root):
        pytest.skip("the file system shares blocks")
    if owner is not None and os.geteuid() != 0:
        pytest.skip("another owner needs root")
    v1 = importing(pipeline, "v1")
    for path in LINKED if owner is not None else ():
        os.chown(v1 / path, owner, owner)

    def link(*arguments, **more):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    importing(tuned, "v2", "--base", "v1")
    size = sum((v1 / path).stat().st_size for path in LINKED)
    assert f"{size:,} bytes of v1's weights are copied: " in importing.error
    assert why in importing.error
