"""Hashing on the CPU: slice by slice, the hash of the whole."""

import pytest
import torch
from blake3 import blake3

from zwatch.errors import Abandoned
from zwatch.shadow.hashing import HostHasher


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 130])
def test_hashing_in_slices_gives_the_hash_of_the_whole_and_calls_between_them(length):
    data = torch.arange(length, dtype=torch.uint8)
    asked = []
    found = HostHasher(slice_size=64).begin(data, lambda: asked.append(1))
    found.advance(length)
    found.finish()
    assert asked == [], "nothing is done before it is asked for"
    assert found.hexdigest() == blake3(bytes(range(length))).hexdigest()
    assert len(asked) == -(-length // 64)


def test_the_callback_between_slices_may_stop_the_hashing():
    asked = []

    def second():
        asked.append(1)
        if len(asked) == 2:
            raise Abandoned

    with pytest.raises(Abandoned):
        HostHasher(slice_size=64).begin(torch.zeros(1000, dtype=torch.uint8), second).hexdigest()
    assert len(asked) == 2
