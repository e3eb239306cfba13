"""LoRAs beside a network's weights: the same network with some linear layers that add low-rank products to their own.

A view of a network shares its parameters, and all modules that nothing changes: making one copies no weight, and whoever computes with
the network itself never sees it.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from zwatch.engine.scaled import Activations, QuantizedLinear, Scaled


@dataclass(frozen=True, eq=False)
class Down:
    """The first factors of layers that take the same input, one below the other: `factors` are A of shape (ranks, in), `scales` float32
    of shape (ranks,)."""

    factors: Tensor
    scales: Tensor

    def __call__(self, x: Activations) -> Tensor:
        """Return s * A x, shape (rows, ranks), for x of shape (..., in)."""
        values = x.values if isinstance(x, Scaled) else x
        hidden = functional.linear(values.reshape(-1, values.shape[-1]).to(self.factors.dtype), self.factors)
        if isinstance(x, Scaled):
            hidden.mul_(x.scales.reshape(-1, 1))
        return hidden.mul_(self.scales)

    def part(self, begin: int, end: int) -> "Down":
        """Return some of them."""
        return Down(self.factors[begin:end], self.scales[begin:end])


class AdaptedLinear(nn.Module):
    """A linear layer and what LoRAs add to it: W x + B (s * A x).

    `down` has A and the scales, of several LoRAs their ranks one after the other; it is part of `shared`, from `begin` on. `up` is B of
    shape (out, rank). The products are computed in the dtype of A and B; if that is the layer's own, B's is added to W x by the product
    itself, with one rounding.
    """

    def __init__(self, linear: nn.Module, shared: Down, up: Tensor, begin: int = 0) -> None:
        super().__init__()
        self.linear = linear
        self.shared, self.up = shared, up
        self.begin, self.end = begin, begin + up.shape[1]
        self.down = shared.part(self.begin, self.end)

    @property
    def weight(self) -> Tensor:
        """The layer's own weight."""
        found: Tensor = self.linear.weight  # type: ignore[assignment]
        return found

    def forward(self, x: Activations) -> Tensor:
        """Return shape (..., out) for x of shape (..., in)."""
        return self.added(x, self.down(x))

    def added(self, x: Activations, hidden: Tensor) -> Tensor:
        """As `forward`, where s * A x is known."""
        product: Tensor = self.linear(x)
        rows = product.view(-1, product.shape[-1])
        if hidden.dtype is rows.dtype:
            rows.addmm_(hidden, self.up.t())
        else:
            rows.add_(functional.linear(hidden, self.up))
        return product


def products(x: Activations, layers: Sequence[nn.Module]) -> tuple[Tensor, ...]:
    """Return the products of x with each of the layers; those that have LoRAs read x once for all of their first factors."""
    hidden: dict[Down, Tensor] = {}
    made = []
    for layer in layers:
        if not isinstance(layer, AdaptedLinear):
            made.append(layer(x))
            continue
        if layer.shared not in hidden:
            hidden[layer.shared] = layer.shared(x)
        made.append(layer.added(x, hidden[layer.shared][:, layer.begin : layer.end]))
    return tuple(made)


def linears(network: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of a network that LoRAs can change, by their paths."""
    return {path: part for path, part in network.named_modules() if isinstance(part, nn.Linear | QuantizedLinear)}


def shapes_of(network: nn.Module) -> dict[str, tuple[int, int]]:
    """Return the shapes (out, in) of the weights of a network's linear layers, by their paths."""
    return {path: (int(part.weight.shape[0]), int(part.weight.shape[1])) for path, part in linears(network).items()}  # type: ignore[index]


def view_of(network: nn.Module, replaced: Mapping[str, nn.Module]) -> nn.Module:
    """Return a network that has other modules at these paths, and shares everything else with `network`."""
    below: dict[str, dict[str, nn.Module]] = {}
    children = dict(network.named_children())
    for path, module in replaced.items():
        name, _, rest = path.partition(".")
        if rest:
            below.setdefault(name, {})[rest] = module
        else:
            children[name] = module
    made = copy(network)
    made.__dict__["_modules"] = {
        name: view_of(child, below[name]) if name in below else child for name, child in children.items()
    }
    return made


def adapter_dtype(network: nn.Module, *, has_instructions: bool) -> torch.dtype:
    """Return the dtype that LoRAs of a network are computed in: the network's own, or float32 where the device has no instructions
    for it."""
    dtype: torch.dtype = network.dtype  # type: ignore[assignment]
    return dtype if has_instructions else torch.float32
