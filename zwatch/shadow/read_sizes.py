"""How files are read: in which pieces, by how many threads, and how much memory that takes. Needs no torch."""

import os

CHUNK = 8 * 2**20
"""Bytes read at a time: small enough to abandon a load quickly and for the pinned pieces to stay in the CPU's cache, large
enough that a call's cost does not show. 4 MiB is as fast, 2 and 16 MiB are slower."""
SLOTS = 3
"""Pieces of pinned memory per thread: one is read into, one waits to be sent, one is being sent. Two were slower (0.60 s)."""
THREADS = 14
"""Most threads that read at once. On 16 cores 14 were faster than 12 and 16 (0.54 s for 20.3 GB, 0.60, 0.61): the driver and
the thread that makes images need cores too."""


def thread_count() -> int:
    """Return how many threads read at once on this machine."""
    return max(2, min(THREADS, len(os.sched_getaffinity(0)) * 7 // 8))


def pinned_bytes() -> int:
    """Return the bytes of pinned memory by which they read for a GPU."""
    return thread_count() * SLOTS * CHUNK
