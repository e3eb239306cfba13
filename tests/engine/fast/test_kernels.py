"""Each Triton kernel computes what the operations in torch say. Without a GPU it runs in Triton's interpreter."""

import os
import sys

import pytest
import torch

from tests.engine.fast.interpreted import triton_operations as make_operations
from zwatch.engine.fast.operations import GroupNorm, Norm, Rotation, TorchOperations
from zwatch.engine.scaled import FP8, Scaled

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.bfloat16, torch.float32, torch.float16]
if not os.environ.get("ZWATCH_LONG"):
    DTYPES = DTYPES[:1]  # the interpreter is slow
STEP = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-9, FP8: 2**-3}
"""Most relative difference: two results that are rounded to neighbouring numbers."""
SHAPES = [(1, 5, 64), (3, 2, 33)]

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # of SiLU far below 0

torch_operations, triton_operations = TorchOperations(), make_operations()
module = sys.modules[type(triton_operations).__module__]


@pytest.fixture(autouse=True)
def _always_the_same_numbers():
    torch.manual_seed(1)


def numbers(*shape, dtype=torch.float32):
    return torch.randn(shape).to(DEVICE, dtype)


def norm(batch, width, *, centred=False):
    return Norm(numbers(batch, width), 1e-5, centred)


def check(found, expected):
    """Compare what a kernel made with what it should be."""
    if isinstance(expected, Scaled):
        assert (found.values.dtype, found.values.shape) == (FP8, expected.values.shape)
        torch.testing.assert_close(found.scales, expected.scales, rtol=1e-5, atol=0)
        largest, step = expected.float().abs().amax(), STEP[FP8]
        torch.testing.assert_close(found.float(), expected.float(), rtol=step, atol=float(largest) * 2**-9)
        assert (found.values.float() == expected.values.float()).float().mean() > 0.98
        return
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    step = STEP[expected.dtype]
    torch.testing.assert_close(found, expected, rtol=step, atol=step / 16)
    if expected.dtype is not torch.float32:
        assert (found == expected).float().mean() > 0.98  # differences are rare: only where a sum's last bit decides


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scaled", [False, True], ids=["", "fp8"])
@pytest.mark.parametrize("centred", [False, True], ids=["rms", "layer"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_norm(shape, centred, scaled, dtype):
    x = numbers(*shape, dtype=dtype) + 0.5
    for factors in (1, shape[0]):
        with_factor = norm(factors, shape[-1], centred=centred)
        found = triton_operations.norm(x, with_factor, scaled=scaled)
        check(found, torch_operations.norm(x, with_factor, scaled=scaled))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scaled", [False, True], ids=["", "fp8"])
@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_residual_and_the_norm_that_follows(shape, normed, scaled, dtype):
    x, change = numbers(*shape, dtype=dtype), numbers(*shape, dtype=dtype)
    first = norm(shape[0], shape[-1]) if normed else None
    for following in (norm(1, shape[-1]), norm(shape[0], shape[-1], centred=True)):
        total, found = triton_operations.residual_norm(x, change, first, following, scaled=scaled)
        check(total, torch_operations.residual(x, change, first))
        check(found, torch_operations.norm(total, following, scaled=scaled))
    check(triton_operations.residual(x, change, first), total)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "neighbours"])
@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize(("heads", "keys", "head"), [(3, 1, 24), (2, 2, 6)])
def test_heads_are_rotated_in_place_also_inside_one_product(heads, keys, head, normed, interleaved, dtype):
    product = numbers(2, 5, (heads + 2 * keys) * head, dtype=dtype)
    norms = (Norm(numbers(1, head), 1e-5), Norm(numbers(1, head), 1e-5)) if normed else None
    angles = numbers(5, head // 2)
    rotation = Rotation(angles.cos(), angles.sin(), interleaved)

    def run(operations, product):
        query, key, _ = (
            part.unflatten(-1, (-1, head)) for part in product.split([heads * head, keys * head, keys * head], dim=-1)
        )
        operations.heads(query, key, norms, rotation)
        return product

    expected = run(torch_operations, product.clone())
    found = run(triton_operations, product.clone())
    check(found, expected)
    assert torch.equal(found[..., -keys * head :], product[..., -keys * head :])  # the values
    apart = product.split([heads * head, keys * head, keys * head], dim=-1)
    query, key = (part.contiguous().unflatten(-1, (-1, head)) for part in apart[:2])
    triton_operations.heads(query, key, norms, rotation)
    assert torch.equal(torch.cat([query.flatten(2), key.flatten(2)], dim=-1), found[..., : -keys * head])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scaled", [False, True], ids=["", "fp8"])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 2, 2100)], ids=str)
def test_a_gate_also_inside_one_product(shape, scaled, dtype):
    both = numbers(*shape[:-1], 2 * shape[-1], dtype=dtype) * 4
    left, right = both.chunk(2, dim=-1)
    expected = torch_operations.gated(left, right, scaled=scaled)
    check(triton_operations.gated(left, right, scaled=scaled), expected)
    check(triton_operations.gated(left.contiguous(), right.contiguous(), scaled=scaled), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_as_fp8(shape, dtype):
    x = numbers(*shape, dtype=dtype) * 100
    x[0, 0] = 0
    found = triton_operations.scaled(x)
    check(found, torch_operations.scaled(x))
    assert not found.float()[0, 0].any()
    torch.testing.assert_close(found.float(), x.float(), rtol=2**-4, atol=float(x.abs().max()) * 2**-9)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_shortcut", [False, True], ids=["", "shortcut"])
@pytest.mark.parametrize("with_bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize(
    ("batch", "channels", "groups", "size"), [(2, 24, 4, (7, 9)), (1, 32, 32, (17, 23)), (1, 12, 3, (1, 1))],
    ids=str,
)  # fmt: skip
def test_a_group_norm_with_silu(batch, channels, groups, size, with_bias, with_shortcut, dtype):
    def image():
        return numbers(batch, channels, *size, dtype=dtype).contiguous(memory_format=torch.channels_last)

    x, bias, shortcut = image() * 3 + 2, numbers(channels, dtype=dtype), image()
    parameters = GroupNorm(numbers(channels, dtype=dtype), numbers(channels, dtype=dtype), groups, 1e-6)
    given = {"bias": bias if with_bias else None, "shortcut": shortcut if with_shortcut else None}
    for found, expected in zip(
        triton_operations.group_norm(x, parameters, **given),
        torch_operations.group_norm(x, parameters, **given), strict=True,
    ):  # fmt: skip
        assert found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found, expected, rtol=STEP[dtype], atol=STEP[dtype] / 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "channels", "size"), [(2, 24, (3, 5)), (1, 64, (9, 11))], ids=str)
def test_doubled_images(batch, channels, size, dtype):
    def image():
        return numbers(batch, channels, *size, dtype=dtype).contiguous(memory_format=torch.channels_last)

    x, bias, shortcut = image(), numbers(channels), image()
    for given in ({}, {"bias": bias}, {"shortcut": shortcut}, {"bias": bias, "shortcut": shortcut}):
        found = triton_operations.doubled(x, **given)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(found, torch_operations.doubled(x, **given))


def test_a_group_norm_without_silu():
    x = numbers(1, 16, 5, 5).contiguous(memory_format=torch.channels_last)
    parameters = GroupNorm(numbers(16), numbers(16), 4, 1e-6)
    found = triton_operations.group_norm(x, parameters, silu=False)[0]
    torch.testing.assert_close(found, torch_operations.group_norm(x, parameters, silu=False)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("with_shortcut", [False, True], ids=["", "shortcut"])
def test_an_images_bits_do_not_depend_on_the_others_in_its_batch(with_shortcut):
    images = numbers(3, 16, 20, 9).contiguous(memory_format=torch.channels_last)
    parameters = GroupNorm(numbers(16), numbers(16), 4, 1e-6)
    shortcut = images.flip(2).contiguous(memory_format=torch.channels_last) if with_shortcut else None
    together = triton_operations.group_norm(images, parameters, shortcut=shortcut)[0]
    for number in range(3):
        one = slice(number, number + 1)
        alone = triton_operations.group_norm(
            images[one], parameters, shortcut=None if shortcut is None else shortcut[one]
        )
        assert torch.equal(alone[0], together[one])


def test_images_in_another_layout_are_not_misread():
    x, shortcut = numbers(1, 16, 5, 3), numbers(1, 16, 5, 3)
    parameters = GroupNorm(numbers(16), numbers(16), 4, 1e-6)
    found = triton_operations.group_norm(x, parameters, shortcut=shortcut)
    expected = torch_operations.group_norm(x, parameters, shortcut=shortcut)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    doubled = triton_operations.doubled(x, shortcut=shortcut)
    assert torch.equal(doubled, torch_operations.doubled(x, shortcut=shortcut))


def test_a_piece_of_an_image_may_need_several_looks(monkeypatch):
    monkeypatch.setattr(module, "MOST_PIECES", 2)
    monkeypatch.setattr(module, "_TILE", 256)
    x = numbers(1, 16, 13, 17).contiguous(memory_format=torch.channels_last)
    parameters = GroupNorm(numbers(16), numbers(16), 4, 1e-6)
    found = triton_operations.group_norm(x, parameters)[0]
    torch.testing.assert_close(found, torch_operations.group_norm(x, parameters)[0], rtol=1e-5, atol=1e-5)


def test_a_group_norm_is_right_far_from_zero():
    x = (numbers(1, 8, 16, 16) + 1000).contiguous(memory_format=torch.channels_last)
    parameters = GroupNorm(torch.ones(8, device=DEVICE), torch.zeros(8, device=DEVICE), 2, 1e-6)
    found = triton_operations.group_norm(x, parameters)[0]
    exact = torch.nn.functional.silu(torch.nn.functional.group_norm(x.double(), 2, eps=1e-6))
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("operations", [torch_operations, triton_operations], ids=["torch", "triton"])
def test_nan_is_never_hidden(operations):
    x = numbers(1, 3, 32)
    x[0, 1, 5] = torch.nan
    gated = operations.gated(x, x, scaled=True)
    assert gated.float()[0, 1].isnan().any()
    assert not gated.float()[0, [0, 2]].isnan().any()
