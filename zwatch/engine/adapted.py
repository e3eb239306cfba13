"""LoRAs beside a network's weights: the same network with some linear layers that add low-rank products to their own.

A view of a network shares its parameters, and all modules that nothing changes: making one copies no weight, and whoever computes with
the network itself never sees it.
"""

from collections.abc import Mapping
from copy import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from zwatch.engine.scaled import Activations, QuantizedLinear, Scaled


class AdaptedLinear(nn.Module):
    """A linear layer and what LoRAs add to it: W x + B (s * A x).

    `down` is A of shape (rank, in), `up` is B of shape (out, rank), `scales` are float32 of shape (rank,): of several LoRAs, their ranks
    one after the other. The products are computed in the dtype of A and B; if that is the layer's own, B's is added to W x by the
    product itself, with one rounding.
    """

    def __init__(self, linear: nn.Module, down: Tensor, up: Tensor, scales: Tensor) -> None:
        super().__init__()
        self.linear = linear
        self.down, self.up, self.scales = down, up, scales

    @property
    def weight(self) -> Tensor:
        """The layer's own weight."""
        found: Tensor = self.linear.weight  # type: ignore[assignment]
        return found

    def forward(self, x: Activations) -> Tensor:
        """Return shape (..., out) for x of shape (..., in)."""
        product: Tensor = self.linear(x)
        values = x.values if isinstance(x, Scaled) else x
        hidden = functional.linear(values.reshape(-1, values.shape[-1]).to(self.down.dtype), self.down)
        if isinstance(x, Scaled):
            hidden.mul_(x.scales.reshape(-1, 1))
        hidden.mul_(self.scales)
        rows = product.view(-1, product.shape[-1])
        if hidden.dtype is rows.dtype:
            rows.addmm_(hidden, self.up.t())
        else:
            rows.add_(functional.linear(hidden, self.up))
        return product


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
