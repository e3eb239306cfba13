"""The networks with the Triton kernels, in the interpreter where there is no GPU."""

import os

import pytest
import torch

from tests.engine.fast import networks
from tests.engine.fast.interpreted import triton_operations
from tests.engine.fast.networks import error
from zwatch.engine.fast import autoencoder
from zwatch.engine.fast.attention import KERNELS
from zwatch.engine.fast.computing import FastComputing
from zwatch.engine.fast.operations import TorchOperations
from zwatch.engine.fast.products import CopiedProducts, Products
from zwatch.engine.fast.transformer import Step, Steps

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")

TRITON, TORCH = triton_operations(), TorchOperations()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _no_gradients():
    torch.manual_seed(2)
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("products", ["own", "joined fp8"] if os.environ.get("ZWATCH_LONG") else ["joined fp8"])
def test_velocities(products):
    # With only a few blocks: the interpreter needs a second for each.
    transformer = networks.transformer(torch.bfloat16, DEVICE, n_layers=2 if os.environ.get("ZWATCH_LONG") else 1)
    made = Products()
    if products != "own":
        made = CopiedProducts(transformer, scaled="fp8" in products, joined="joined" in products)
    latents, prompts = torch.randn(1, 16, 8, 4), [torch.randn(5, 24)]

    def run(operations):
        step = Step(operations, KERNELS["torch"], made, (8, 4))
        given = [prompt.to(DEVICE, torch.bfloat16) for prompt in prompts]
        steps = Steps(transformer, step, given, torch.tensor([0.6]).to(DEVICE))
        return steps.velocity(latents.to(DEVICE, torch.bfloat16), 0)

    assert error(run(TRITON), run(TORCH)) < (0.05 if "fp8" in products else 0.01)


def test_decoding():
    network = networks.autoencoder(torch.bfloat16, DEVICE, block_out_channels=[8, 8, 16, 16])
    latents = torch.randn(2, 16, 2, 2).to(DEVICE, torch.bfloat16)
    found, expected = (autoencoder.decode(network, latents, operations=operations) for operations in (TRITON, TORCH))
    assert error(found, expected) < 0.01


def test_encoding():
    network = networks.text_encoder(torch.bfloat16, DEVICE)
    tokens, mask = torch.randint(0, 100, (32,)).to(DEVICE), torch.arange(32) < 7
    found, expected = (FastComputing(operations).encode(network, tokens, mask) for operations in (TRITON, TORCH))
    assert error(found, expected) < 0.01
