"""The products of a transformer's blocks: its own weights, or copies of them, as fp8 or joined where they take the same input."""

import torch
from torch import Tensor, nn

from zwatch.engine.adapted import products
from zwatch.engine.networks.layers import Linear
from zwatch.engine.networks.transformer import Block, ZImageTransformer
from zwatch.engine.scaled import Activations, QuantizedLinear


class Products:
    """Products with a network's own weights. `scaled`: they take fp8 activations."""

    def __init__(self, *, scaled: bool = False) -> None:
        self.scaled = scaled

    def of(self, x: Activations, *linears: nn.Module) -> tuple[Tensor, ...]:
        """Return the product of x with each of the layers."""
        return products(x, linears)


class CopiedProducts(Products):
    """Products with copies of the weights of a network's blocks.

    `scaled`: as fp8. `joined`: those that take the same input in one product, whose parts are views of one result.
    """

    def __init__(self, network: ZImageTransformer, *, scaled: bool = False, joined: bool = False) -> None:
        super().__init__(scaled=scaled)
        self._joined = joined
        self._copies: dict[tuple[nn.Module, ...], nn.Module] = {}
        for block in network.modules():
            if isinstance(block, Block):
                attention, gated = block.attention, block.feed_forward
                self._copy(attention.to_q, attention.to_k, attention.to_v)
                self._copy(gated.w1, gated.w3)
                self._copy(attention.to_out[0])
                self._copy(gated.w2)

    def of(self, x: Activations, *linears: nn.Module) -> tuple[Tensor, ...]:
        """As `Products.of`."""
        if len(linears) > 1 and self._joined:
            together: Tensor = self._copies[linears](x)
            return torch.split(together, [_weight(linear).shape[0] for linear in linears], dim=-1)
        return tuple(self._copies.get((linear,), linear)(x) for linear in linears)

    @torch.no_grad()
    def _copy(self, *linears: nn.Module) -> None:
        if self._joined and len(linears) > 1:
            self._copies[linears] = self._made(torch.cat([_weight(linear) for linear in linears]))
        elif self.scaled:
            for linear in linears:
                self._copies[linear,] = self._made(_weight(linear))

    def _made(self, weight: Tensor) -> nn.Module:
        if self.scaled:
            return QuantizedLinear.of(weight)
        with torch.device("meta"):
            made = Linear(weight.shape[1], weight.shape[0], bias=False)
        made.weight = nn.Parameter(weight, requires_grad=False)
        return made


def _weight(linear: nn.Module) -> Tensor:
    assert isinstance(linear, nn.Linear)
    return linear.weight
