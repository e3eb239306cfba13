"""By how much stored tensors differ: every dtype against torch, blocks, NaN and infinity."""

import math
import os

import numpy as np
import pytest

from zwatch.deploy import tensor_values
from zwatch.deploy.header import ITEM_BITS, TensorInfo
from zwatch.deploy.tensor_values import Stored, compare


@pytest.fixture
def stored(tmp_path):
    """Make stored tensors; their files lie behind some bytes of a header."""
    opened = []

    def make(values: bytes, dtype: str) -> Stored:
        path = tmp_path / str(len(opened))
        path.write_bytes(b"head" + values)
        fd = os.open(path, os.O_RDONLY)
        opened.append(fd)
        return Stored(fd, path.name, TensorInfo(dtype, (len(values) * 8 // ITEM_BITS[dtype],), 4, 4 + len(values)))

    yield make
    for fd in opened:
        os.close(fd)


def f32(*values):
    return np.array(values, "<f4").tobytes()


def difference(one, other):
    """Compare, and check that the bytes are told once each."""
    told = []
    found = compare(one, other, told.append)
    assert sum(told) == one.nbytes + other.nbytes
    return found


@pytest.mark.parametrize("dtype", sorted(ITEM_BITS))
def test_every_dtype_has_torchs_values(stored, dtype):
    import torch

    names = {
        "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "I32": "int32", "U32": "uint32", "I64": "int64",
        "U64": "uint64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "F8_E4M3": "float8_e4m3fn",
        "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    }  # fmt: skip
    size = ITEM_BITS[dtype] // 8
    raw = bytearray(range(256)) * size if dtype != "BOOL" else bytearray([0, 1] * 64)
    if size > 1:
        raw = bytearray(np.random.default_rng(1).bytes(512 * size))
    with np.errstate(invalid="ignore"):  # some NaN among the random bits are signalling
        mine = tensor_values._floats(np.frombuffer(raw, np.uint8), dtype).astype(np.float64)
    theirs = torch.frombuffer(raw, dtype=getattr(torch, names[dtype])).to(torch.float64).numpy()
    assert np.array_equal(mine, theirs, equal_nan=True)


def test_a_comparison_warns_of_nothing(stored):
    """Signalling NaN, which a cast to another precision would warn of."""
    for dtype, raw in {"F16": b"\x01\x7c", "BF16": b"\x81\x7f", "F32": b"\x01\x00\x80\x7f", "F8_E5M2": b"\x7d"}.items():
        assert difference(stored(raw, dtype), stored(bytes(len(raw)), dtype)).not_finite == (1, 0)


def test_equal_tensors_do_not_differ_whatever_is_in_them(stored):
    for values in (f32(), f32(1, 2, 3), f32(math.nan, math.inf)):
        assert difference(stored(values, "F32"), stored(values, "F32")) is None


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_difference_in_any_block_is_found_and_measured_over_the_whole_tensor(stored, place):
    count = 2 * tensor_values.BLOCK + 5
    values = np.full(count, 2, "<f4")
    other = values.copy()
    at = {"first": 0, "middle": count // 2, "last": count - 1}[place]
    other[at] += 1
    found = difference(stored(values.tobytes(), "F32"), stored(other.tobytes(), "F32"))
    assert (found.elements, found.different, found.maximum) == (count, 1, 1.0)
    assert found.mean == pytest.approx(1 / count)
    assert found.relative == pytest.approx(math.sqrt(1 / (4 * count)))


def test_numbers_agree_with_numpy_for_random_values(stored):
    one, other = np.random.default_rng(2).standard_normal((2, 100_000)).astype("<f4")
    found = difference(stored(one.tobytes(), "F32"), stored(other.tobytes(), "F32"))
    gap = np.abs(one.astype(float) - other)
    assert found.maximum == pytest.approx(gap.max())
    assert found.mean == pytest.approx(gap.mean())
    assert found.relative == pytest.approx(np.linalg.norm(gap) / np.linalg.norm(one.astype(float)))
    assert found.different == 100_000


def test_a_conversion_is_measured_between_the_two_dtypes(stored):
    found = difference(stored(f32(1, 1.00390625, -2), "F32"), stored(b"\x80\x3f\x80\x3f\x00\xc0", "BF16"))
    assert (found.different, found.maximum) == (1, 0.00390625)
    exact = difference(stored(f32(1, 0.5), "F32"), stored(b"\x80\x3f\x00\x3f", "BF16"))
    assert (exact.different, exact.maximum, exact.relative) == (0, 0.0, 0.0)


def test_what_is_not_finite_is_counted_and_left_out_of_the_numbers(stored):
    one = f32(1, math.nan, math.inf, -math.inf, 5, math.nan)
    other = f32(2, math.nan, math.inf, 3, math.nan, 6)
    found = difference(stored(one, "F32"), stored(other, "F32"))
    assert found.not_finite == (4, 3)
    assert found.different == 4, "the equal NaN and the equal infinity are no difference"
    assert (found.maximum, found.mean, found.relative) == (1.0, 1.0, 1.0)
    nothing = difference(stored(f32(math.nan), "F32"), stored(f32(1), "F32"))
    assert (nothing.maximum, nothing.mean, nothing.relative, nothing.different) == (None, None, None, 1)


def test_values_whose_difference_or_square_is_no_float32_are_measured_all_the_same(stored):
    found = difference(stored(f32(3e38, 1), "F32"), stored(f32(-3e38, 1), "F32"))
    assert found.maximum == pytest.approx(6e38, rel=1e-6)
    assert (found.not_finite, found.different) == ((0, 0), 1)
    bf16 = difference(stored(b"\x7f\x7f", "BF16"), stored(b"\x7f\xff", "BF16"))
    assert bf16.maximum == pytest.approx(2 * 3.3895e38, rel=1e-3)
    wide = difference(stored(np.array([1e308]).tobytes(), "F64"), stored(np.array([-1e308]).tobytes(), "F64"))
    assert (wide.maximum, wide.relative, wide.different) == (None, None, 1)


def test_a_tensor_of_zeros_has_no_relative_difference(stored):
    found = difference(stored(f32(0, 0), "F32"), stored(f32(0, 1), "F32"))
    assert (found.maximum, found.mean, found.relative) == (1.0, 0.5, None)
    signed = difference(stored(f32(0.0), "F32"), stored(f32(-0.0), "F32"))
    assert (signed.different, signed.maximum) == (0, 0.0)


def test_a_file_that_becomes_shorter_is_an_error(stored, tmp_path):
    one, other = stored(f32(1, 2), "F32"), stored(f32(1, 2), "F32")
    os.truncate(tmp_path / "1", 6)
    with pytest.raises(OSError, match="shorter"):
        compare(one, other, lambda count: None)
