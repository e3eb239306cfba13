"""BLAKE3 by all cores, where the system has room for its threads."""

import logging
from functools import cache

from blake3 import blake3

_log = logging.getLogger(__name__)


def parallel_hasher(prefix: bytes = b"") -> blake3:
    """Return a hasher that splits what it gets among all cores, already given `prefix`."""
    return blake3(prefix, max_threads=_threads())


@cache
def _threads() -> int:
    """Return the blake3 package's number of threads. It makes all of them at the first use; where that fails it panics then and at
    every later use, for as long as the process lives."""
    try:
        blake3(b"\0" * 2**20, max_threads=blake3.AUTO)
    except BaseException as error:  # a panic is no Exception
        _log.warning("files are hashed by one thread until the next start: %s", error)
        return 1
    return blake3.AUTO
