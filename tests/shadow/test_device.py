"""Device: how a file's bytes get there, and whose memory is whose."""

import os

import pytest
import torch

from tests.shadow.conftest import BUDGET, held, rejection_of
from zwatch.errors import Abandoned
from zwatch.shadow import device as device_module
from zwatch.shadow.device import Device
from zwatch.shadow.loader import LoadControl


@pytest.fixture
def opened(tmp_path):
    """Write a file of some bytes and open it."""
    fds = []

    def write(data):
        path = tmp_path / "file"
        path.write_bytes(data)
        fds.append(os.open(path, os.O_RDONLY))
        return fds[-1]

    yield write
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 250])
def test_a_file_lands_byte_for_byte_in_chunks_told_in_order(device, opened, monkeypatch, size):
    monkeypatch.setattr(device_module, "CHUNK", 100)
    data = os.urandom(size)
    destination = torch.zeros(size, dtype=torch.uint8)
    landed = []
    device.fill(destination, opened(data), "w", lambda piece: landed.append(bytes(piece.numpy())))
    assert bytes(destination.numpy()) == data
    assert b"".join(landed) == data
    assert [len(piece) for piece in landed] == [min(100, size - begin) for begin in range(0, size, 100)]


@pytest.mark.parametrize(
    ("on_disk", "what"),
    [(0, "ended after 0 bytes, expected 250"), (120, "ended after 120 bytes"), (251, "grew beyond 250 bytes")],
    ids=["empty", "short", "grown"],
)
def test_a_file_of_another_length_is_rejected_with_both_sizes(device, opened, monkeypatch, on_disk, what):
    monkeypatch.setattr(device_module, "CHUNK", 100)
    fd = opened(bytes(on_disk))
    destination = torch.zeros(250, dtype=torch.uint8)
    code, reason = rejection_of(lambda: device.fill(destination, fd, "vae/w.safetensors", lambda piece: None))
    assert code == "size_mismatch"
    assert reason.startswith("vae/w.safetensors: ")
    assert what in reason


def test_an_abandoned_load_reads_no_further_chunk(device, opened, monkeypatch):
    monkeypatch.setattr(device_module, "CHUNK", 100)
    control = LoadControl()

    def landed(piece):
        if control.bytes_done == 100:
            control.abandon()
        control.advance(piece.numel())

    destination = torch.full((1000,), 7, dtype=torch.uint8)
    with pytest.raises(Abandoned):
        device.fill(destination, opened(bytes(1000)), "w", landed)
    assert control.bytes_done == 200
    assert destination[:200].sum() == 0
    assert bool((destination[200:] == 7).all())


class Owner:
    """Something that holds memory."""


def test_memory_is_held_while_its_owner_lives(device):
    owner, other = Owner(), Owner()
    device.allocate(owner, 1000)
    device.allocate(owner, 24)
    device.allocate(other, 500)
    assert held(device) == 1524
    del owner
    assert held(device) == 500
    del other
    assert held(device) == 0


def test_a_budget_caps_what_is_free_and_what_there_is(device):
    assert device.memory() == (BUDGET, BUDGET)
    owner = Owner()
    device.allocate(owner, BUDGET + 1)
    assert device.memory() == (0, BUDGET)


def test_without_a_budget_the_machines_memory_counts():
    free, total = Device("cpu").memory()
    assert 0 < free <= total
    assert total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_auto_takes_a_gpu_where_there_is_one():
    assert Device("auto").torch_device.type == ("cuda" if torch.cuda.is_available() else "cpu")
