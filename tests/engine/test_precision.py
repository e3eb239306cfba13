"""Products in float32 where the processor has no instructions for a module's dtype."""

import pytest
import torch
from torch import nn

from zwatch.engine import precision
from zwatch.engine.precision import adapt, has_instructions

CPU = torch.device("cpu")


@pytest.fixture
def no_instructions(monkeypatch):
    monkeypatch.setattr(precision, "has_instructions", lambda device, dtype: dtype is torch.float32)


def module(dtype):
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 16, 4, bias=False)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_each_product_is_computed_in_float32_and_rounded(no_instructions, dtype):
    made, data = module(dtype), torch.randn(2, 3, 4, 4).to(dtype)
    convolution, _, linear = made
    weight, bias = convolution.weight.float(), convolution.bias.float()
    hidden = nn.functional.conv2d(data.float(), weight, bias, padding=1).to(dtype)
    expected = nn.functional.linear(hidden.flatten(1).float(), linear.weight.float()).to(dtype)
    adapt(made, CPU)
    found = made(data)
    assert found.dtype == dtype
    assert torch.equal(found, expected)


def test_the_weights_stay_as_they_are(no_instructions):
    made = module(torch.bfloat16)
    before = {name: parameter.data_ptr() for name, parameter in made.named_parameters()}
    adapt(made, CPU)
    assert {name: parameter.data_ptr() for name, parameter in made.named_parameters()} == before
    assert {parameter.dtype for parameter in made.parameters()} == {torch.bfloat16}


def test_a_module_with_instructions_is_not_changed():
    made = module(torch.float32)
    adapt(made, CPU)
    assert [type(part) for part in made] == [nn.Conv2d, nn.Flatten, nn.Linear]


def test_float32_and_gpus_need_no_help():
    assert has_instructions(CPU, torch.float32)
    assert has_instructions(torch.device("cuda", 0), torch.bfloat16)


def test_what_the_processor_has_is_what_torch_says():
    assert has_instructions(CPU, torch.bfloat16) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
