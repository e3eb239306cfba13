"""A text encoder whose weights stay in host memory: each layer is copied to the device when a prompt gets there, and dropped.

The device needs room for one layer instead of all of them, and what it computes has the bits of a text encoder that is on the device.
Nothing of the network changes meanwhile, so that several threads may encode at the same time.
"""

from typing import Any

import torch
from torch import Tensor, nn

from zwatch.engine.library import encode as encode_by_library
from zwatch.engine.networks.text_encoder import Qwen3Encoder
from zwatch.shadow.host import copy_from_slab


class StreamedEncoder(nn.Module):
    """A text encoder with its weights in host memory, which computes on a device."""

    def __init__(self, network: Any, device: torch.device) -> None:
        """Take over a network with weights in host memory: from here on, only this may call it."""
        super().__init__()
        self.network = network
        self.config = network.config
        network.embed_tokens = _OnHost(network.embed_tokens, device)
        network.layers = nn.ModuleList(_Visiting(layer, device) for layer in network.layers)
        network.norm = _Visiting(network.norm, device)

    def encode(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """As `Qwen3Encoder.encode`; `tokens` may be anywhere."""
        if isinstance(self.network, Qwen3Encoder):
            return self.network.encode(tokens, mask)
        return encode_by_library(self.network, tokens, mask)


class _OnHost(nn.Module):
    """An embedding, which is looked up in host memory: its table is the largest of all weights, and few rows of it are used."""

    def __init__(self, embedding: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.inner = embedding
        self._device = device

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the rows of tokens, on the device."""
        found: Tensor = self.inner(tokens.to("cpu"))
        return found.to(self._device)


class _Visiting(nn.Module):
    """A part that is copied to the device for each call."""

    def __init__(self, part: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.inner = part
        self._device = device

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the part does."""
        return _copied(self.inner, self._device)(*args, **kwargs)


def _copied(module: nn.Module, device: torch.device) -> nn.Module:
    """Return a module with the same weights on a device; everything else is the given one's."""
    made = module.__new__(type(module))
    made.__dict__ = module.__dict__.copy()
    made._parameters = {  # noqa: SLF001  # as torch's own replicas are made
        name: None if one is None else nn.Parameter(copy_from_slab(one, device), requires_grad=False)
        for name, one in module._parameters.items()  # noqa: SLF001
    }
    made._modules = {  # noqa: SLF001
        name: None if part is None else _copied(part, device)
        for name, part in module._modules.items()  # noqa: SLF001
    }
    return made
