"""Which parts of pictures are recorded as graphs, and when: while the device has something else to do."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from zwatch.shadow.graphs import Record, Recorded

_log = logging.getLogger(__name__)

MOST_SEEN = 64
"""Keys of one network that are remembered without a graph."""
MOST = 24
"""Graphs of one network: of its last sizes, or lengths of prompts. One more costs little memory, since all share it."""

Computed = Callable[..., Tensor]
"""Computes a tensor of a network and of others, and holds neither."""


class Graphs:
    """What networks compute for requests, recorded where it was computed once.

    A request `hold`s them: the graphs share memory, so that only one request can use them at a time. A network's graphs go with
    it: they read its weights where these were.
    """

    def __init__(self, record: Record, has_room: Callable[[], bool]) -> None:
        """`has_room` says whether there is memory for one more."""
        self._record, self._has_room = record, has_room
        self._of: WeakKeyDictionary[nn.Module, OrderedDict[Hashable, Recorded | None]] = WeakKeyDictionary()
        self._wanted: WeakKeyDictionary[nn.Module, dict[Hashable, tuple[Computed, Sequence[Tensor]]]] = (
            WeakKeyDictionary()
        )
        self._seen: WeakKeyDictionary[nn.Module, dict[Hashable, None]] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def hold(self) -> bool:
        """Take them for a request, until `release`; return False if another one has them."""
        return self._lock.acquire(blocking=False)

    def release(self) -> None:
        """End a request."""
        self._lock.release()

    def run(
        self, network: nn.Module, key: Hashable, function: Computed, *inputs: Tensor, repeats: bool = False
    ) -> Tensor:
        """Return the function's result for the network and the inputs, by calling it until it is recorded. The key tells functions,
        and shapes of inputs, apart. What `repeats` is worth recording at once, other things when they are asked for again."""
        known = self._of.setdefault(network, OrderedDict())
        if key not in known:
            if repeats or self._was_seen(network, key):
                self._wanted.setdefault(network, {})[key] = function, inputs
            return function(network, *inputs)
        known.move_to_end(key)
        if (recorded := known[key]) is None:
            return function(network, *inputs)
        for place, given in zip(recorded.inputs, inputs, strict=True):
            place.copy_(given)
        recorded.replay()
        return recorded.output.clone()

    def record_one(self, network: nn.Module) -> None:
        """Record one thing that a network, or else another one, computed: to be called when the device is busy for a while."""
        if not self._wanted or not self._has_room():
            return
        if network not in self._wanted:
            network = next(iter(self._wanted))
        wanted = self._wanted[network]
        key, (function, inputs) = wanted.popitem()
        if not wanted:
            del self._wanted[network]
        known = self._of[network]
        try:
            known[key] = self._record(partial(function, network), inputs)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            known[key] = None
            _log.warning("a part of a picture is launched kernel by kernel: it cannot be recorded (%s)", error)
        if len(known) > MOST:
            known.popitem(last=False)

    def _was_seen(self, network: nn.Module, key: Hashable) -> bool:
        """Return whether a key was asked for before, and remember it."""
        seen = self._seen.setdefault(network, {})
        if key in seen:
            return True
        seen[key] = None
        if len(seen) > MOST_SEEN:
            del seen[next(iter(seen))]
        return False

    def forget(self) -> bool:
        """Release all of them; return whether there were any. Only for the request that holds them."""
        had = any(recorded is not None for known in self._of.values() for recorded in known.values())
        self._of.clear()
        self._wanted.clear()
        return had


def is_recordable(inputs: Tensor) -> bool:
    """Return whether work on such a tensor can be recorded: on a GPU, and not on its default stream."""
    return inputs.is_cuda and torch.cuda.current_stream(inputs.device) != torch.cuda.default_stream(inputs.device)
