"""GpuHasher: the digest that b3sum gives, of bytes that are on the GPU, wherever they begin and however they arrive."""

import pytest
import torch
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from zwatch.shadow.blake3_gpu import CHUNK, GpuHasher, is_available

MIB = 2**20
LARGEST = 300 * MIB
BOUNDARIES = [0, 1, 64, CHUNK, *(chunks * CHUNK for chunks in (2, 3, 4, 5, 7, 8, 9, 128, 1023, 1024, 1025, 2048, 4096))]
"""Lengths at which the input, a block, a chunk or a subtree is complete."""
OFFSETS = st.one_of(st.integers(0, 16).map(lambda words: 8 * words), st.integers(0, 131))
"""Where data begins behind an aligned address: a header of safetensors' own is padded to 8 bytes, others are not."""
LENGTHS = st.one_of(
    st.sampled_from(BOUNDARIES).flatmap(lambda length: st.integers(max(0, length - 1), length + 1)),
    st.integers(0, 5 * CHUNK),
    st.integers(0, MIB),
)
property_test = settings(max_examples=200, deadline=None)


@pytest.fixture(scope="module")
def cuda():
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(scope="module")
def hasher(cuda):
    return GpuHasher(cuda)


@pytest.fixture(scope="module")
def host():
    """Random bytes, the same ones in every test."""
    generator = torch.Generator().manual_seed(20)
    return torch.randint(0, 256, (LARGEST + 256,), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def device(host, cuda):
    """The same bytes on the GPU, behind an aligned address."""
    return host.to(cuda)


@pytest.fixture(scope="module")
def small_slices(cuda):
    """A hasher whose slices hold 16 chunks, and whose merges take 4 values, so that small data has many of each."""
    return GpuHasher(cuda, slice_size=16 * CHUNK, merge_group=4)


def digest(data):
    return blake3(data.numpy().data, max_threads=blake3.AUTO).hexdigest()


def test_it_is_not_available_on_a_cpu():
    assert not is_available(torch.device("cpu"))


@pytest.mark.gpu
def test_it_is_available_on_a_gpu(cuda):
    assert is_available(cuda)


@pytest.mark.gpu
@pytest.mark.parametrize("length", BOUNDARIES)
@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4, 8], ids="offset{}".format)
def test_at_and_next_to_every_boundary_the_digest_is_blake3s(hasher, host, device, length, offset):
    for near in (max(0, length - 1), length, length + 1):
        assert hasher.begin(device[offset : offset + near]).hexdigest() == digest(host[offset : offset + near]), near


@pytest.mark.gpu
@property_test
@given(offset=OFFSETS, length=LENGTHS)
def test_of_any_length_beginning_anywhere_the_digest_is_blake3s(hasher, host, device, offset, length):
    assert hasher.begin(device[offset : offset + length]).hexdigest() == digest(host[offset : offset + length])


@pytest.mark.gpu
@settings(max_examples=15, deadline=None)
@given(offset=OFFSETS, length=st.integers(MIB, LARGEST))
def test_of_hundreds_of_megabytes_the_digest_is_blake3s(hasher, host, device, offset, length):
    assert hasher.begin(device[offset : offset + length]).hexdigest() == digest(host[offset : offset + length])


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("offset", [0, 5], ids="offset{}".format)
def test_beyond_four_gibibytes_the_digest_is_blake3s(hasher, host, cuda, offset):
    size = 2**32 + 3 * CHUNK + 5
    if torch.cuda.mem_get_info(cuda)[0] < size + 2**30:
        pytest.skip("needs 5.5 GB free on the GPU")
    data = torch.empty(offset + size, dtype=torch.uint8, device=cuda)
    expected = blake3(max_threads=blake3.AUTO)
    for number, begin in enumerate(range(offset, offset + size, LARGEST)):
        piece = host[number : number + min(LARGEST, offset + size - begin)]  # no two pieces alike
        data[begin : begin + piece.numel()].copy_(piece)
        expected.update(piece.numpy().data)
    assert hasher.begin(data[offset:]).hexdigest() == expected.hexdigest()


@pytest.mark.gpu
@property_test
@given(offset=OFFSETS, length=st.integers(0, 600 * CHUNK), steps=st.lists(st.integers(0, 100 * CHUNK), max_size=20))
def test_hashing_while_bytes_arrive_gives_the_same_digest(small_slices, host, device, offset, length, steps):
    hashing = small_slices.begin(device[offset : offset + length])
    landed = 0
    for step in steps:
        landed = min(length, landed + step)
        hashing.advance(landed)
    assert hashing.hexdigest() == digest(host[offset : offset + length])


@pytest.mark.gpu
def test_it_reads_only_what_has_landed(small_slices, host, cuda):
    size = 100 * CHUNK + 17
    data = torch.zeros(size, dtype=torch.uint8, device=cuda)
    hashing = small_slices.begin(data)
    for begin in range(0, size, 1000):
        data[begin : begin + 1000].copy_(host[begin : min(size, begin + 1000)])
        hashing.advance(min(size, begin + 1000))
    assert hashing.hexdigest() == digest(host[:size])


@pytest.mark.gpu
@property_test
@given(
    lengths=st.lists(st.integers(1, 200 * CHUNK), min_size=2, max_size=4),
    order=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 200 * CHUNK)), max_size=20),
)
def test_several_hashings_may_be_open_at_once(small_slices, host, device, lengths, order):
    hashings = [small_slices.begin(device[:length]) for length in lengths]
    landed = [0] * len(lengths)
    for number, position in order:
        which = number % len(lengths)
        landed[which] = max(landed[which], min(position, lengths[which]))
        hashings[which].advance(landed[which])
    for hashing in hashings:
        hashing.finish()
    assert [hashing.hexdigest() for hashing in hashings] == [digest(host[:length]) for length in lengths]


@pytest.mark.gpu
@property_test
@given(length=st.integers(1, MIB), position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_changes_the_digest(hasher, device, length, position, bit):
    data = device[:length].clone()
    before = hasher.begin(data).hexdigest()
    data[int(position * length)] ^= 1 << bit
    assert hasher.begin(data).hexdigest() != before


@pytest.mark.gpu
def test_bytes_around_the_data_do_not_change_the_digest(hasher, device):
    around = device[: 10 * CHUNK].clone()
    data = around[7 : 9 * CHUNK + 6]
    before = hasher.begin(data).hexdigest()
    around[:7] ^= 0xFF
    around[9 * CHUNK + 6 :] ^= 0xFF
    assert hasher.begin(data).hexdigest() == before


@pytest.mark.gpu
def test_finishing_twice_and_advancing_afterwards_changes_nothing(hasher, host, device):
    hashing = hasher.begin(device[: 3 * MIB])
    hashing.finish()
    hashing.finish()
    hashing.advance(3 * MIB)
    assert hashing.hexdigest() == hashing.hexdigest() == digest(host[: 3 * MIB])


@pytest.mark.gpu
def test_data_that_is_not_contiguous_bytes_on_the_device_is_refused(hasher, host, device):
    for wrong in (device[:10:2], device[:16].view(torch.int32), device[:16].view(4, 4), host[:16]):
        with pytest.raises(ValueError, match=r"must be contiguous torch.uint8 of shape \(n,\) on cuda"):
            hasher.begin(wrong)


@pytest.mark.gpu
def test_a_device_that_hashes_wrongly_is_noticed_at_once(cuda):
    class WrongHasher(GpuHasher):
        def merge(self, children, into, *, root):
            into.zero_()

    with pytest.raises(RuntimeError, match="is wrong"):
        WrongHasher(cuda)
