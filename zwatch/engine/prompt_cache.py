"""Encoded prompts that are kept: a client that tries seeds sends the same prompt again and again."""

import threading
from collections import OrderedDict
from collections.abc import Hashable

import torch

from zwatch.engine.sampling import EncodedText

MOST_BYTES = 64 * 2**20
"""Host memory for them: some hundred prompts of the published encoder, whose token takes 5 KiB."""


class PromptCache:
    """Encoded prompts in host memory, the most recently used of them. Keys name all that an embedding depends on, so that it
    holds for every version, loaded or not; a kept embedding has the very bits of one that is computed."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most = most_bytes
        self._bytes = 0
        self._kept: OrderedDict[Hashable, EncodedText] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, device: torch.device) -> EncodedText | None:
        """Return what is kept under a key, on a device."""
        with self._lock:
            if (found := self._kept.get(key)) is None:
                return None
            self._kept.move_to_end(key)
        return EncodedText(found.embedding.to(device, non_blocking=True), found.is_truncated)

    def put(self, key: Hashable, text: EncodedText) -> None:
        """Keep an encoded prompt; waits for the device."""
        if text.embedding.nbytes > self._most:
            return
        copied = EncodedText(text.embedding.to("cpu", copy=True), text.is_truncated)
        with self._lock:
            if key in self._kept:
                return
            self._kept[key] = copied
            self._bytes += copied.embedding.nbytes
            while self._bytes > self._most:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= oldest.embedding.nbytes

    def clear(self) -> None:
        """Drop all that is kept."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0
