"""The factors of LoRAs on a device, and networks that draw with them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zwatch.deploy.loras import Matrix, OpenedLora
from zwatch.engine.adapted import AdaptedLinear, Down, view_of
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


_ALIGNED = 8
"""Ranks are multiples of this, filled up with zeros: else CUDA's products read numbers of 16 bits one by one."""
_TOGETHER = {"to_q": "qkv", "to_k": "qkv", "to_v": "qkv", "w1": "gated", "w3": "gated"}
"""Layers that take the same input, which the fast way computes together."""

Parts = tuple[tuple[int, int], ...]
"""What the ranks of a factor belong to: (number of the LoRA, ranks) in order; the number is -1 for those that are filled up."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a layer's factors are: rows of the first factors of its group, from `begin` on."""

    path: str
    parts: Parts
    begin: int

    @property
    def rank(self) -> int:
        """How many rows it has there."""
        return sum(count for _, count in self.parts)


def _groups(loras: Sequence[Lora]) -> list[list[_Place]]:
    """Return the places of all layers that LoRAs change, those that take the same input together."""
    groups: dict[tuple[str, int], list[_Place]] = {}
    for path in dict.fromkeys(path for lora in loras for path in lora.matrices):
        having = [(number, lora.matrices[path]) for number, lora in enumerate(loras) if path in lora.matrices]
        parts = [(number, matrix.rank) for number, matrix in having]
        if missing := -sum(matrix.rank for _, matrix in having) % _ALIGNED:
            parts.append((-1, missing))
        parent, _, name = path.rpartition(".")
        group = groups.setdefault((f"{parent}.{_TOGETHER.get(name, name)}", having[0][1].columns), [])
        group.append(_Place(path, tuple(parts), sum(place.rank for place in group)))
    return list(groups.values())


def packed_bytes(loras: Sequence[Lora]) -> int:
    """Return the bytes that `Packed` takes of LoRAs."""
    itemsize = loras[0].dtype.itemsize
    return sum(_span(*shape, itemsize) for group in _groups(loras) for shape in _shapes(group, loras))


def _span(rows: int, columns: int, itemsize: int) -> int:
    return -(-rows * columns * itemsize // DATA_ALIGNMENT) * DATA_ALIGNMENT


class Packed:
    """The factors of LoRAs as they are computed: the first ones of layers that take the same input together, of several LoRAs one after
    the other, ranks filled up. A copy in memory of its own, hashed when it is made; second factors that are right as they are stay where
    they are."""

    def __init__(self, loras: Sequence[Lora], shadow: Shadow) -> None:
        self.groups = _groups(loras)
        self.names = " and ".join(lora.name for lora in loras)
        self.shadow = shadow
        self._dtype, self._place = loras[0].dtype, 0
        self.nbytes = packed_bytes(loras)
        self._data = shadow.allocate(self, self.nbytes).zero_()  # the gaps are hashed, too
        self.down: list[Tensor] = []
        """Of each group, shape (ranks, in)."""
        self.up: dict[str, Tensor] = {}
        for group in self.groups:
            down, *ups = (self._made(*shape) for shape in _shapes(group, loras))
            self.down.append(down)
            for place in group:
                begin = place.begin
                for lora, count in _having(place, loras):
                    down[begin : begin + count].copy_(lora.factors(place.path)[0])
                    begin += count
                if not _is_copied(place):
                    self.up[place.path] = loras[place.parts[0][0]].factors(place.path)[1]
                    continue
                up, column = ups.pop(0), 0
                for lora, count in _having(place, loras):
                    up[:, column : column + count].copy_(lora.factors(place.path)[1])
                    column += count
                self.up[place.path] = up
        self._hash = shadow.hasher.begin(self._data).hexdigest()

    def _made(self, rows: int, columns: int) -> Tensor:
        nbytes = rows * columns * self._dtype.itemsize
        made = self._data[self._place : self._place + nbytes].view(self._dtype).view(rows, columns)
        self._place += _span(rows, columns, self._dtype.itemsize)
        return made

    def begin_check(self) -> Callable[[], str | None]:
        """As `FileBuffer.begin_check`."""
        hashing = self.shadow.hasher.begin(self._data)
        hashing.finish()
        text = f"{self.names}: the copy of the factors that is computed with has changed on the device"
        return lambda: None if hashing.hexdigest() == self._hash else text


def _is_copied(place: _Place) -> bool:
    """Return whether a layer's second factor is not one that a LoRA has as it is."""
    return len(place.parts) > 1


def _shapes(group: Sequence[_Place], loras: Sequence[Lora]) -> list[tuple[int, int]]:
    """Return the shapes of what is copied of a group: its first factors together, and those of its second factors that are."""
    matrices = [loras[place.parts[0][0]].matrices[place.path] for place in group]
    ups = [(matrix.rows, place.rank) for matrix, place in zip(matrices, group, strict=True) if _is_copied(place)]
    return [(sum(place.rank for place in group), matrices[0].columns), *ups]


def _having(place: _Place, loras: Sequence[Lora]) -> list[tuple[Lora, int]]:
    return [(loras[number], count) for number, count in place.parts if number >= 0]


@dataclass(eq=False)
class Adapted:
    """A view of a network that draws with LoRAs, in an order; their scales are set for each request."""

    network: nn.Module
    loras: tuple[Lora, ...]
    packed: Packed
    vectors: list[tuple[Parts, Tensor]]
    """What is multiplied with, float32 on the device, and of what each consists."""
    scales: tuple[float, ...] | None = None
    """Those that are in the vectors."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes on the device beside its LoRAs'."""
        return self.packed.nbytes

    def scaled(self, scales: Sequence[float]) -> nn.Module:
        """Return the network with the LoRAs' scales set, in the order of torch's current stream: what was launched on it before is
        computed with the scales of before."""
        wanted = tuple(scales)
        if wanted != self.scales:
            self.scales = None
            for parts, vector in self.vectors:
                values = [0.0 if number < 0 else wanted[number] for number, count in parts for _ in range(count)]
                vector.copy_(torch.tensor(values))
            self.scales = wanted
        return self.network


def adapted(network: nn.Module, layers: Mapping[str, nn.Module], loras: Sequence[Lora], shadow: Shadow) -> Adapted:
    """Make a view of a network, with these linear layers by path, that draws with LoRAs of the dtype that they are computed in; to be
    called inside `shadow.beside`.

    Raises:
        torch.OutOfMemoryError, MemoryError: there is not enough memory for what is copied of them.
    """
    packed = Packed(loras, shadow)
    vectors: dict[Parts, Tensor] = {}
    replaced: dict[str, nn.Module] = {}
    for group, factors in zip(packed.groups, packed.down, strict=True):
        parts = tuple(part for place in group for part in place.parts)
        if parts not in vectors:
            vectors[parts] = torch.zeros(factors.shape[0], device=factors.device)
        down = Down(factors, vectors[parts])
        for place in group:
            replaced[place.path] = AdaptedLinear(layers[place.path], down, packed.up[place.path], place.begin)
    return Adapted(view_of(network, replaced), tuple(loras), packed, list(vectors.items()))
