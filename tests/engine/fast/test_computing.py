"""The fast way computes what the exact way does, closer to the true result than that in 16 bits."""

import pytest
import torch

from tests.engine.fast import networks
from tests.engine.fast.networks import error
from zwatch.engine.computing import EXACT
from zwatch.engine.fast.computing import FastComputing
from zwatch.engine.fast.operations import GroupNorm, ProcessorOperations, TorchOperations
from zwatch.engine.fast.products import CopiedProducts
from zwatch.engine.networks.layers import Linear
from zwatch.engine.precision import _IN_FLOAT32
from zwatch.engine.schedule import EulerSchedule

FAST, ON_A_PROCESSOR = FastComputing(TorchOperations()), FastComputing(ProcessorOperations())
CLOSE = {torch.float32: 2e-5, torch.bfloat16: 0.02, torch.float16: 0.003}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _no_gradients():
    torch.manual_seed(2)
    with torch.inference_mode():
        yield


def drawn(transformer, computing, lengths, size=(8, 6), steps=3):
    """Return where some latents move at each step."""
    torch.manual_seed(3)
    latents = torch.randn(1, 16, *size)
    prompts = [torch.randn(length, 24).to(transformer.dtype) for length in lengths]
    timeline = EulerSchedule(shift=3.0).timeline(steps, 12, latents.device)
    at = computing.velocities(transformer, timeline, prompts, latents)
    return [found for number in range(steps) for found in at(latents, number)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", [[32], [1], [20, 30], [70, 20]], ids=str)
@pytest.mark.parametrize("change", [{}, {"qk_norm": False, "n_refiner_layers": 2}], ids=["", "other"])
def test_velocities(change, lengths, dtype):
    transformer = networks.transformer(dtype, **change)
    found, exact = (drawn(transformer, computing, lengths) for computing in (FAST, EXACT))
    assert [one.shape for one in found] == [one.shape for one in exact]
    assert error(found, exact) < CLOSE[dtype]


def test_in_16_bits_velocities_are_closer_to_the_true_ones_than_the_exact_ways():
    true = drawn(networks.transformer(torch.float32), EXACT, [20])
    rounded = networks.transformer(torch.bfloat16)
    assert error(drawn(rounded, FAST, [20]), true) < error(drawn(rounded, EXACT, [20]), true)


@pytest.mark.parametrize("size", [(2, 2), (16, 4)], ids=str)
def test_velocities_of_images_with_padding_and_without(size):
    transformer = networks.transformer(torch.float32)
    assert error(drawn(transformer, FAST, [20], size), drawn(transformer, EXACT, [20], size)) < 2e-5


def test_a_pictures_bits_do_not_depend_on_the_prompt_beside_it():
    transformer = networks.transformer(torch.bfloat16)
    alone = drawn(transformer, FAST, [20])
    assert all(map(torch.equal, alone, drawn(transformer, FAST, [20, 70])[::2]))
    assert all(map(torch.equal, alone, drawn(transformer, FAST, [20])))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "change", [{}, {"mid_block_add_attention": False}, {"layers_per_block": 2, "use_post_quant_conv": False}],
    ids=["", "no attention", "two"],
)  # fmt: skip
def test_decoding(change, dtype):
    autoencoder = networks.autoencoder(dtype, **change)
    latents = torch.randn(2, 16, 6, 4).to(dtype)
    for fast in (FAST, ON_A_PROCESSOR):
        assert error(fast.decode(autoencoder, latents), EXACT.decode(autoencoder, latents)) < CLOSE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_shortcut", [False, True], ids=["", "shortcut"])
@pytest.mark.parametrize("with_bias", [False, True], ids=["", "bias"])
def test_a_processors_operations_change_none_of_their_arguments(with_bias, with_shortcut, dtype):
    image, shortcut = (
        torch.randn(2, 12, 6, 4).to(dtype).contiguous(memory_format=torch.channels_last) for _ in range(2)
    )
    bias = torch.randn(12)
    norm = GroupNorm(torch.randn(12).to(dtype), torch.randn(12).to(dtype), 4, 1e-6)
    given = {"bias": bias if with_bias else None, "shortcut": shortcut if with_shortcut else None}
    before = [one.clone() for one in (image, shortcut, bias)]
    for silu in (False, True):
        found, expected = (
            operations.group_norm(image, norm, silu=silu, **given)
            for operations in (ProcessorOperations(), TorchOperations())
        )
        assert error([found[0]], [expected[0]]) < CLOSE[dtype]
        assert error([found[1]], [expected[1]]) < CLOSE[dtype]
    found, expected = (operations.doubled(image, **given) for operations in (ProcessorOperations(), TorchOperations()))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert error([found], [expected]) < CLOSE[dtype]
    assert all(map(torch.equal, before, (image, shortcut, bias)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("change", [{}, {"attention_bias": True, "num_key_value_heads": 4}], ids=["", "other"])
@pytest.mark.parametrize("mask", [[1] * 3 + [0] * 29, [1] * 32, [0] * 20 + [1] * 12], ids=["end", "full", "begin"])
def test_encoding_without_the_padding(mask, change, dtype):
    text_encoder = networks.text_encoder(dtype, **change)
    tokens, present = torch.randint(0, 100, (32,)), torch.tensor(mask).bool()
    found, exact = (computing.encode(text_encoder, tokens, present) for computing in (FAST, EXACT))
    assert found.shape == exact.shape
    assert error(found, exact) < CLOSE[dtype]


def test_modules_that_were_adapted_to_the_processor_are_called_as_such():
    autoencoder = networks.autoencoder(torch.bfloat16)
    latents = torch.randn(1, 16, 4, 4).to(torch.bfloat16)
    before = [fast.decode(autoencoder, latents) for fast in (FAST, ON_A_PROCESSOR)]
    for part in autoencoder.modules():
        if (kind := _IN_FLOAT32.get(type(part))) is not None:
            part.__class__ = kind
    for fast, one in zip((FAST, ON_A_PROCESSOR), before, strict=True):
        assert error(fast.decode(autoencoder, latents), one) < 0.02


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_joined_products_change_nothing(dtype):
    transformer = networks.transformer(dtype)
    joined = FastComputing(TorchOperations(), products=CopiedProducts(transformer, joined=True))
    assert error(drawn(transformer, joined, [20]), drawn(transformer, FAST, [20])) < CLOSE[dtype] / 2


@pytest.mark.parametrize("joined", [False, True], ids=["", "joined"])
def test_fp8_products_are_close(joined):
    transformer = networks.transformer(torch.bfloat16)
    products = CopiedProducts(transformer, scaled=True, joined=joined)
    found = drawn(transformer, FastComputing(TorchOperations(), products=products), [20])
    assert error(found, drawn(transformer, EXACT, [20])) < 0.1
    assert sum(isinstance(part, Linear) for part in transformer.modules()) == 37  # the network's own stay


def test_other_classes_are_computed_exactly():
    from diffusers import AutoencoderKL, ZImageTransformer2DModel

    transformer = networks.filled(ZImageTransformer2DModel.from_config(networks.TRANSFORMER), torch.float32)
    autoencoder = networks.filled(AutoencoderKL.from_config(networks.VAE), torch.float32)
    assert all(map(torch.equal, drawn(transformer, FAST, [20]), drawn(transformer, EXACT, [20])))
    latents = torch.randn(1, 16, 4, 4)
    assert torch.equal(FAST.decode(autoencoder, latents), EXACT.decode(autoencoder, latents))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "change", [{}, {"mid_block_add_attention": False}, {"layers_per_block": 2, "use_quant_conv": False}],
    ids=["", "no attention", "two"],
)  # fmt: skip
def test_encoding_an_image(change, dtype):
    autoencoder = networks.autoencoder(dtype, **change)
    pixels = torch.rand(2, 3, 48, 32).mul(2).sub(1).to(dtype)
    for fast in (FAST, ON_A_PROCESSOR):
        found, exact = fast.encode_image(autoencoder, pixels), EXACT.encode_image(autoencoder, pixels)
        assert found.shape == exact.shape
        assert error(found, exact) < CLOSE[dtype]
