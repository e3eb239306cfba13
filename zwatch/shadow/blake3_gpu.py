"""BLAKE3 of bytes that are on a CUDA device, computed there: what `b3sum` gives, at the pace of the device's memory.

Data is hashed in slices, one lane per chunk of 1024 bytes; each slice's part of the tree is reduced at once, in
scratch that the next slice uses again. No bytes leave the device but the digest's 32.
"""

import importlib
from typing import Any

import torch
from blake3 import blake3

CHUNK = 1024
"""Bytes of a chunk, the leaf of BLAKE3's tree (the BLAKE3 paper, section 2.1)."""
SLICE = 512 * 2**20
"""Bytes hashed by one launch: CHUNK times a power of two, so that a slice is a complete subtree; at most 1 GiB."""
VALUE_WORDS = 8
"""32-bit words of a chaining value, and of a digest."""

CHUNK_WARPS = 4
"""Warps per program of `hash_chunks`; each of their lanes hashes one chunk."""
MERGE_GROUP = 1024
"""Chaining values that one program of `merge` reduces to one: as many programs per slice as an H100 has schedulers."""
MERGE_WARPS = 1
"""Warps per program of `merge`; more would only wait for each other."""
LANES = 32
"""Lanes of a warp."""

VARIANTS = (0, 1)
"""Bytes behind a multiple of 8 at which data may begin, one for each compiled variant of `hash_chunks`."""


def is_available(device: torch.device) -> bool:
    """Return whether a GpuHasher can be made for this device: a CUDA device, with triton installed."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    try:
        import triton  # noqa: F401
    except Exception:
        return False
    return True


def forget_kernels() -> None:
    """Forget what was compiled or read in this process, so that the next GpuHasher begins anew."""
    from zwatch.shadow import _blake3_kernels

    importlib.reload(_blake3_kernels)


class GpuHasher:
    """BLAKE3 of bytes that are on a CUDA device, computed there.

    All work is launched on torch's current stream. Several Hashings may be open at once, but all are used from one
    thread at a time and on one stream: they share scratch (a 32nd of `slice_size`), in the stream's order.

    The constructor compiles every kernel there is and tries each: it takes seconds, less if Triton's disk cache
    ($TRITON_CACHE_DIR) has them; no later call compiles.

    Raises:
        RuntimeError: the device gave a wrong digest, or Triton found no C compiler for its launchers.
        ImportError: triton is not installed (see `is_available`).
    """

    def __init__(self, device: torch.device, *, slice_size: int = SLICE, merge_group: int = MERGE_GROUP) -> None:
        from zwatch.shadow import _blake3_kernels

        self.device = torch.empty(0, device=device).device  # with its index, as tensors have it
        self.slice_chunks = slice_size // CHUNK
        self.merge_group = merge_group
        self.slice_groups = self.groups(self.slice_chunks)
        self._kernels: Any = _blake3_kernels
        self._chunk_values = self.new_values(self.slice_chunks)
        self._try_every_variant()

    def begin(self, data: torch.Tensor) -> "Hashing":
        """Return a Hashing of a contiguous uint8 tensor of shape (n,) on the device, beginning at any byte."""
        if data.dtype != torch.uint8 or data.dim() != 1 or not data.is_contiguous() or data.device != self.device:
            raise ValueError(
                f"the data to hash is {data.dtype} of shape {tuple(data.shape)} on {data.device};"
                f" it must be contiguous torch.uint8 of shape (n,) on {self.device}"
            )
        return Hashing(self, data)

    def new_values(self, count: int) -> torch.Tensor:
        """Return room for chaining values, uint32, shape (8, count): the same word of all of them is contiguous."""
        return torch.empty((VALUE_WORDS, count), dtype=torch.uint32, device=self.device)

    def groups(self, count: int) -> int:
        """Return how many chaining values `merge` makes of `count`."""
        return -(-count // self.merge_group)

    def hash_slice(self, data: torch.Tensor, first: int, count: int) -> torch.Tensor:
        """Hash chunks `first` to `first + count` of the data; return their chaining values, uint32, shape (8, count).

        They are in scratch, until the next call. The data's very last chunk is hashed apart, unless it is whole; it
        becomes the root if it is the only one.
        """
        values = self._chunk_values[:, :count]
        stride = values.stride(0)
        size = data.numel()
        whole = count
        if size < CHUNK * (first + count) or size <= CHUNK:
            whole -= 1
            last = first + whole
            self._kernels.hash_last_chunk[(1,)](
                data, values[:, whole:], last, size - last * CHUNK, data.data_ptr() % 4, stride, int(last == 0), num_warps=1
            )  # fmt: skip
        if whole:
            lanes = CHUNK_WARPS * LANES
            address = data.data_ptr()
            self._kernels.hash_chunks[(-(-whole // lanes),)](
                data, values, first, whole, address % 4, stride,
                FUNNEL=address % 8 != 0, SIZE=lanes, num_warps=CHUNK_WARPS,
            )  # fmt: skip
        return values

    def merge(self, children: torch.Tensor, into: torch.Tensor, *, root: bool) -> None:
        """Reduce each `merge_group` of chaining values, shape (8, count), to one of `into`, shape (8, groups).

        The children are overwritten. `root`: what comes out, a single value, is the root of the whole tree.
        """
        self._kernels.merge[(into.shape[1],)](
            children, into, children.shape[1], children.stride(0), into.stride(0), int(root),
            GROUP=self.merge_group, SIZE=MERGE_WARPS * LANES, num_warps=MERGE_WARPS,
        )  # fmt: skip

    def _try_every_variant(self) -> None:
        made_up = torch.arange(max(VARIANTS) + 2 * CHUNK + 1, device=self.device).to(torch.uint8)
        for offset in VARIANTS:
            data = made_up[offset : offset + 2 * CHUNK + 1]
            found, expected = self.begin(data).hexdigest(), blake3(data.cpu().numpy().data).hexdigest()
            if found != expected:
                raise RuntimeError(f"blake3 on {self.device} is wrong: {found} for bytes whose digest is {expected}")


class Hashing:
    """The hash of one piece of data, computed while the data arrives: begin, advance any number of times, finish."""

    def __init__(self, hasher: GpuHasher, data: torch.Tensor) -> None:
        self._hasher = hasher
        self._data = data
        self._chunks = max(1, -(-data.numel() // CHUNK))
        self._slices = -(-self._chunks // hasher.slice_chunks)
        self._next_slice = 0
        chunks_in_last = self._chunks - (self._slices - 1) * hasher.slice_chunks
        groups = (self._slices - 1) * hasher.slice_groups + hasher.groups(chunks_in_last)
        self._values = hasher.new_values(groups)
        self._digest = hasher.new_values(1)
        self._finished = False

    def advance(self, landed: int) -> None:
        """Hash the slices that are complete now that the first `landed` bytes are there, in the stream's order.

        The last slice waits for `finish`.
        """
        complete = landed // (self._hasher.slice_chunks * CHUNK)
        self._hash_until(min(complete, self._slices - 1))

    def finish(self) -> None:
        """Hash the rest, all bytes being there in the stream's order; the digest is then on the device."""
        if self._finished:
            return
        self._hash_until(self._slices)
        with torch.cuda.device(self._hasher.device):
            values = self._values
            while values.shape[1] > 1:
                groups = self._hasher.groups(values.shape[1])
                above = self._digest if groups == 1 else self._hasher.new_values(groups)
                self._hasher.merge(values, above, root=groups == 1)
                values = above
        self._finished = True

    def hexdigest(self) -> str:
        """Finish, wait for the device, and return the digest as hex."""
        self.finish()
        return self._digest.cpu().numpy().tobytes().hex()

    def _hash_until(self, end: int) -> None:
        if self._next_slice >= end:
            return
        with torch.cuda.device(self._hasher.device):
            while self._next_slice < end:
                self._hash_slice(self._next_slice)
                self._next_slice += 1

    def _hash_slice(self, index: int) -> None:
        hasher = self._hasher
        first = index * hasher.slice_chunks
        chunks = hasher.hash_slice(self._data, first, min(hasher.slice_chunks, self._chunks - first))
        alone = self._values.shape[1] == 1
        begin = index * hasher.slice_groups
        into = self._digest if alone else self._values[:, begin : begin + hasher.groups(chunks.shape[1])]
        hasher.merge(chunks, into, root=alone)
