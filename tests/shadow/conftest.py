"""Weight files written byte by byte, so that a test decides where each tensor is."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from blake3 import blake3

from zwatch.deploy.header import read_header
from zwatch.deploy.resolving import Directory
from zwatch.deploy.seal import Seal
from zwatch.errors import Rejection
from zwatch.shadow.buffers import FileBuffer
from zwatch.shadow.device import Device
from zwatch.shadow.loader import LoadControl, Plan, load_weights
from zwatch.shadow.verified_files import VerifiedFiles

BUDGET = 64 * 2**20
Entry = tuple[str, tuple[int, ...], bytes]


def safetensors_bytes(tensors: dict[str, Entry], header_length: int | None = None) -> bytes:
    """Return a file with these tensors (dtype, shape, bytes) one behind the other, in this order, unpadded."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (dtype, shape, data) in tensors.items():
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + len(data)]}
        position += len(data)
    text = json.dumps(table).encode()
    if header_length is not None:
        assert len(text) <= header_length
        text = text.ljust(header_length)
    return len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values())


@dataclass
class WeightFolder:
    """A directory of weight files and the plan that a seal of them would lead to."""

    path: Path

    def write(self, name: str, data: bytes) -> str:
        (self.path / name).write_bytes(data)
        return name

    def plan(self, *names: str) -> Plan:
        hashes = {name: blake3((self.path / name).read_bytes()).hexdigest() for name in names}
        headers = {}
        for name in names:
            with open(self.path / name, "rb") as file:
                headers[name] = read_header(file.fileno(), name)
        return Plan("v1", Seal("0" * 64, hashes), headers, {})

    def open(self) -> Directory:
        return Directory(os.open(self.path, os.O_RDONLY | os.O_DIRECTORY), "v1")

    def load(self, name: str, device: Device) -> FileBuffer:
        return load_weights(self.open(), self.plan(name), [name], device, LoadControl(), VerifiedFiles())[name]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "weights"
    path.mkdir()
    return WeightFolder(path)


@pytest.fixture
def device():
    """A CPU with a budget, so that what is free is exactly what is not held."""
    return Device("cpu", budget=BUDGET)


def weights_bytes(device: Device) -> int:
    """Return the bytes that weights hold on a device with the budget above."""
    return BUDGET - device.memory()[0]


def rejection_of(call: Callable[[], object]) -> tuple[str, str]:
    """Return code and reason of the rejection that a call raises, and keep nothing of its frames alive."""
    try:
        call()
    except Rejection as rejection:
        return rejection.code, rejection.reason
    pytest.fail("it was not rejected")
