"""CUDA graphs: work that was launched once, kernel by kernel, is launched again as a whole."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

import torch
from torch import Tensor

GRAPH_ROOM = 2**30
"""Bytes that have to be free beyond what requests and the next load need before a graph is recorded: a step at 1024 x 1024 takes
less than half of it."""


class Recorded(Protocol):
    """Work that can be done again."""

    inputs: Sequence[Tensor]
    """What it reads, to be written before each `replay`."""
    output: Tensor
    """What it writes; the next `replay` of anything overwrites it."""

    def replay(self) -> None:
        """Do it again, in the order of torch's current stream."""


Record = Callable[[Callable[..., Tensor], Sequence[Tensor]], Recorded]
"""Records what a function launches for inputs of such shapes, without doing it.

Raises:
    RuntimeError: it cannot be recorded, or memory ran out.
"""


class CudaGraph:
    """A recorded graph; see `Recorded`."""

    def __init__(self, graph: torch.cuda.CUDAGraph, inputs: Sequence[Tensor], output: Tensor) -> None:
        self._graph, self.inputs, self.output = graph, inputs, output

    def replay(self) -> None:
        """As `Recorded.replay`."""
        self._graph.replay()


class CudaRecorder:
    """Records graphs of one device. All of them work in the same memory: only one may run at a time, and what it wrote has to be
    read before the next one runs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._first: torch.cuda.CUDAGraph | None = None
        self.held = 0
        """Bytes that the allocator keeps for graphs alone."""

    def __call__(self, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Recorded:
        """As `Record`; on torch's current stream, which must not be the default one."""
        static = tuple(one.clone() for one in inputs)
        if self._first is None:
            # Their memory exists as long as one graph does: this one outlives those of any version.
            first = torch.cuda.CUDAGraph()
            self._capture(first, torch.cuda.graph_pool_handle(), lambda: torch.zeros(1, device=self._device))
            self._first = first
        graph = torch.cuda.CUDAGraph()
        reserved = torch.cuda.memory_reserved(self._device)
        try:
            output = self._capture(graph, self._first.pool(), function, *static)
        finally:
            if not self.held or torch.cuda.memory_reserved(self._device) != reserved:
                self._measure()  # it goes through all memory of the process
        return CudaGraph(graph, static, output)

    def forget(self) -> None:
        """Let the memory be freed when the last graph is gone."""
        self._first = None
        self.held = 0

    def _capture(
        self, graph: torch.cuda.CUDAGraph, pool: "torch.cuda._POOL_HANDLE", function: Callable[..., Tensor], *inputs: Tensor
    ) -> Tensor:  # fmt: skip
        # Other threads copy to the device meanwhile, and allocate there.
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            output = function(*inputs)
        except BaseException:
            with suppress(RuntimeError):
                graph.capture_end()
            raise
        graph.capture_end()
        return output

    def _measure(self) -> None:
        if self._first is None:
            return
        pool = tuple(self._first.pool())
        segments = torch.cuda.memory_snapshot()
        self.held = sum(one["total_size"] for one in segments if tuple(one["segment_pool_id"]) == pool)
