"""The factors of LoRAs on a device, and networks that draw with them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zwatch.deploy.loras import Matrix, OpenedLora
from zwatch.engine.adapted import AdaptedLinear, view_of
from zwatch.shadow.buffers import DATA_ALIGNMENT
from zwatch.shadow.converted import Buffer
from zwatch.shadow.host import Shadow

DOWN, UP = ".lora_A.weight", ".lora_B.weight"


class Lora:
    """A LoRA of which every byte was verified, on the device, in the dtype that it is computed in."""

    def __init__(self, opened: OpenedLora, buffer: Buffer, dtype: torch.dtype) -> None:
        self.name, self.digest = opened.name, opened.digest
        self.matrices: Mapping[str, Matrix] = opened.matrices
        self.buffer, self.dtype = buffer, dtype
        self.tensors = buffer.tensors()

    @property
    def nbytes(self) -> int:
        """Bytes that it takes on the device."""
        return self.buffer.nbytes

    def factors(self, path: str) -> tuple[Tensor, Tensor]:
        """Return A and B of the layer at a path."""
        return self.tensors[path + DOWN], self.tensors[path + UP]


class Joined:
    """The factors of those layers that several LoRAs change, their ranks one after the other: a copy in memory of its own, hashed when
    it is made."""

    def __init__(self, loras: Sequence[Lora], shadow: Shadow) -> None:
        parts = {path: [lora.factors(path) for lora in loras if path in lora.matrices] for path in _paths(loras)}
        self._parts = {path: factors for path, factors in parts.items() if len(factors) > 1}
        self.names = " and ".join(lora.name for lora in loras)
        self.shadow = shadow
        self.nbytes = sum(_span(down) + _span(up) for factors in self._parts.values() for down, up in factors)
        self.nbytes += 2 * DATA_ALIGNMENT * len(self._parts)
        self._data = shadow.allocate(self, self.nbytes).zero_()  # the gaps are hashed, too
        self._place = 0
        self._dtype = loras[0].dtype
        self.factors = {
            path: (self._joined([down for down, _ in factors], 0), self._joined([up for _, up in factors], 1))
            for path, factors in self._parts.items()
        }
        del self._parts  # they hold the LoRAs
        self._hash = shadow.hasher.begin(self._data).hexdigest()

    def _joined(self, tensors: Sequence[Tensor], dimension: int) -> Tensor:
        shape = list(tensors[0].shape)
        shape[dimension] = sum(tensor.shape[dimension] for tensor in tensors)
        nbytes = shape[0] * shape[1] * self._dtype.itemsize
        made = self._data[self._place : self._place + nbytes].view(self._dtype).view(shape)
        torch.cat(list(tensors), dim=dimension, out=made)
        self._place += -(-nbytes // DATA_ALIGNMENT) * DATA_ALIGNMENT
        return made

    def begin_check(self) -> Callable[[], str | None]:
        """As `FileBuffer.begin_check`."""
        hashing = self.shadow.hasher.begin(self._data)
        hashing.finish()
        text = f"{self.names}: the copy of their factors together has changed on the device"
        return lambda: None if hashing.hexdigest() == self._hash else text


def _span(tensor: Tensor) -> int:
    return -(-tensor.nbytes // DATA_ALIGNMENT) * DATA_ALIGNMENT


def _paths(loras: Sequence[Lora]) -> list[str]:
    return list(dict.fromkeys(path for lora in loras for path in lora.matrices))


@dataclass(eq=False)
class Adapted:
    """A view of a network that draws with LoRAs, in an order; their scales are set for each request."""

    network: nn.Module
    loras: tuple[Lora, ...]
    joined: Joined | None
    vectors: list[tuple[tuple[tuple[int, int], ...], Tensor]]
    """What AdaptedLinears multiply with, float32 on the device, and of what each consists: (number of the LoRA, rank) in order."""
    scales: tuple[float, ...] | None = None
    """Those that are in the vectors."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes on the device beside its LoRAs'."""
        return 0 if self.joined is None else self.joined.nbytes

    def scaled(self, scales: Sequence[float]) -> nn.Module:
        """Return the network with the LoRAs' scales set, in the order of torch's current stream: what was launched on it before is
        computed with the scales of before."""
        wanted = tuple(scales)
        if wanted != self.scales:
            self.scales = None
            for parts, vector in self.vectors:
                values = [wanted[number] for number, rank in parts for _ in range(rank)]
                vector.copy_(torch.tensor(values))
            self.scales = wanted
        return self.network


def adapted(network: nn.Module, layers: Mapping[str, nn.Module], loras: Sequence[Lora], shadow: Shadow) -> Adapted:
    """Make a view of a network, with these linear layers by path, that draws with LoRAs of the dtype that they are computed in; to be
    called inside `shadow.beside`.

    Raises:
        torch.OutOfMemoryError, MemoryError: there is not enough memory for the factors of several together.
    """
    joined = Joined(loras, shadow) if len(loras) > 1 else None
    vectors: dict[tuple[tuple[int, int], ...], Tensor] = {}
    replaced: dict[str, nn.Module] = {}
    for path in _paths(loras):
        having = [(number, lora) for number, lora in enumerate(loras) if path in lora.matrices]
        parts = tuple((number, lora.matrices[path].rank) for number, lora in having)
        if joined is not None and path in joined.factors:
            down, up = joined.factors[path]
        else:
            down, up = having[0][1].factors(path)
        if parts not in vectors:
            vectors[parts] = torch.zeros(down.shape[0], device=down.device)
        replaced[path] = AdaptedLinear(layers[path], down, up, vectors[parts])
    return Adapted(view_of(network, replaced), tuple(loras), joined, list(vectors.items()))
