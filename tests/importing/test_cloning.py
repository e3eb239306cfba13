"""Blocks that do not change are shared with the source where the file system can, below a header of the version's own."""

import fcntl
import os
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.importing.published import rewritten, tree, weights
from zwatch.deploy.header import BLOCK
from zwatch.deploy.verifying import check_directory
from zwatch.importing import cloning

FILE = "transformer/diffusion_pytorch_model.safetensors"


class Reflinks:
    """FICLONE and FICLONERANGE as ioctl_ficlonerange(2) describes them, on a file system without: the bytes are copied, by the
    kernel's rules. `ranges` are the bytes of each call."""

    def __init__(self):
        self.ranges = []

    def __call__(self, sink, request, argument):
        if request == cloning._FICLONE:
            source, begin, length, at = argument, 0, 0, 0
        else:
            assert request == cloning._FICLONERANGE
            source, begin, length, at = struct.unpack("=qQQQ", argument)
        size = os.fstat(source).st_size
        end = begin + length if length else size
        if begin % BLOCK or at % BLOCK or end > size or (end % BLOCK and end != size):
            raise OSError(22, "Invalid argument")
        os.pwrite(sink, os.pread(source, end - begin, begin), at)
        self.ranges.append(end - begin)
        return 0


def tensor_bytes(version):
    return sum(one.nbytes for one in weights(version, "transformer").values())


@pytest.fixture
def reflinks(monkeypatch):
    made = Reflinks()
    monkeypatch.setattr(fcntl, "ioctl", made)
    return made


def test_a_vae_alone_costs_only_itself_and_the_headers(pipeline, importing, reflinks):
    v1 = importing(pipeline, "v1")
    before = tree(v1)
    reflinks.ranges.clear()
    v2 = importing(pipeline / "vae", "v2", "--base", "v1")
    assert max(reflinks.ranges) > tensor_bytes(v2) - BLOCK
    assert "in blocks shared with their source" in importing.out
    assert "written again" not in importing.error
    assert tree(v1) == before
    assert check_directory(v1, "v1") == check_directory(v2, "v2") == []
    assert all(torch.equal(one, weights(v1, "transformer")[name]) for name, one in weights(v2, "transformer").items())


@pytest.mark.parametrize("extra", [0, 8, 1000, BLOCK - 8])
def test_a_published_transformer_is_shared_wherever_its_tensors_begin(extra, pipeline, importing, reflinks):
    tensors = load_file(pipeline / FILE)
    importing(pipeline, "v1")
    file = importing.root.parent / "tuned.safetensors"
    save_file(tensors, file, {"format": "pt", "note": "x" * extra})
    reflinks.ranges.clear()
    v2 = importing(file, "v2", "--base", "v1")
    assert max(reflinks.ranges) > tensor_bytes(v2) - BLOCK
    assert check_directory(v2, "v2") == []
    assert all(torch.equal(one, tensors[name]) for name, one in weights(v2, "transformer").items())


def test_what_is_converted_shares_nothing(pipeline, importing, reflinks, tmp_path):
    source = shutil.copytree(pipeline, tmp_path / "fp32")
    rewritten(source, torch.float32, ["transformer"])
    reflinks.ranges.clear()
    v2 = importing(source, "v2")
    assert not reflinks.ranges or max(reflinks.ranges) < tensor_bytes(v2) - BLOCK
    assert check_directory(v2, "v2") == []
    assert {one.dtype for one in weights(v2, "transformer").values()} == {torch.bfloat16}


def test_where_blocks_cannot_be_shared_it_is_said_what_was_written_again(pipeline, importing, monkeypatch):
    def ioctl(*arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    importing(pipeline, "v1")
    v2 = importing(pipeline / "vae", "v2", "--base", "v1")
    assert f"transformer: {(v2 / FILE).stat().st_size:,} bytes of v1 were written again" in importing.error


@pytest.mark.parametrize("fits", [True, False])
def test_room_is_needed_only_for_what_is_not_shared(fits, pipeline, importing, monkeypatch, request):
    importing(pipeline, "v1")
    if fits:
        request.getfixturevalue("reflinks")
    else:
        monkeypatch.setattr(cloning, "_FICLONE", 0)  # no file system knows this request
    status = os.statvfs(importing.root)
    free = 2**20 + 2**19
    monkeypatch.setattr(
        os, "statvfs", lambda path: os.statvfs_result((status[0], 1, status[2], status[3], free, *status[5:]))
    )
    assert sum(path.stat().st_size for path in pipeline.rglob("*.safetensors")) > free - 2**20
    importing(pipeline, "v2", status=0 if fits else 1)
    assert fits or "bytes are to be written" in importing.error
