"""Hashing files with every core: some threads read pieces of files into one ring of memory, and each piece is hashed in order.

Files are read, not mapped: a mapped file that becomes shorter ends the process (SIGBUS). Reading costs less processor time, too:
on one core 1 GiB in the page cache takes 0.19 s read in pieces of 2 MiB and hashed, 0.25 s mapped and hashed. Reading ahead
goes on across files, so that no core waits at their ends. The blake3 package splits what it gets among all cores.
"""

import mmap
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from blake3 import blake3

from zwatch.deploy.parallel import parallel_hasher
from zwatch.errors import Rejection
from zwatch.lanes import start_thread

PIECE = 2 * 2**20
"""Bytes read at a time: Python's work for a piece, some 8 us, does not show beside reading it."""
_CORES_A_READER = 3
_MOST_READERS = 16
_PIECES_A_CORE = 4
_LEAST_PIECES, _MOST_PIECES = 6, 60
_MOST_TOGETHER = 16
"""The ring by the number of cores. With 16 cores and 20 GB in the page cache, 5 threads that read, 60 pieces and 16 or more of them
hashed at once took 1.16 s; 8 readers, 24 pieces and 8 at once 1.45 s; 16 readers, 64 and 16 at once 1.28 s. To split a piece among all
cores and to wait for the last of them takes as long as to hash some more. With 2 cores, 6 pieces took less than 8 (new memory costs)."""
_SMALL = 2**20
"""Fewer bytes are hashed by one thread: to wake others takes longer."""
_LEAVE_SECONDS = 2.0

Advance = Callable[[str, int], None]
"""Called with a file's path and how many more of its bytes are done."""


@dataclass(frozen=True, slots=True)
class Source:
    """What is hashed as one: `prefix`, then an open file's bytes from `start` on."""

    path: str
    opened: Callable[[], AbstractContextManager[int]]
    prefix: bytes = b""
    start: int = 0


@dataclass(frozen=True, slots=True)
class Hashed:
    """A source that was hashed. Its file is open until the next one is asked for; `status` was taken before it was read.

    One that could not be opened or read has `error` instead of a digest.
    """

    source: Source
    fd: int
    digest: str
    status: os.stat_result | None
    error: OSError | Rejection | None

    @property
    def has_changed(self) -> bool:
        """Whether the file was written to while it was read, as its size and its time of change tell."""
        return self.status is None or fingerprint(os.fstat(self.fd)) != fingerprint(self.status)


def fingerprint(status: os.stat_result) -> tuple[int, int]:
    """Return what changes when a file is written to: not its ctime, which a new hard link changes, nor its inode's number, which
    some network file systems change at will."""
    return status.st_size, status.st_mtime_ns


def hashed(sources: Iterable[Source], advance: Advance = lambda path, done: None) -> Iterator[Hashed]:
    """Hash sources and return them in their order. `advance` is called in the thread that iterates.

    Raises:
        Whatever the iterator of sources raises.
    """
    with _Reading(iter(sources)) as reading:
        while parts := reading.take():
            file = parts[0].file
            file.update(reading.memory(parts), parts)
            reading.release(len(parts))
            advance(file.source.path, sum(part.count for part in parts))
            if parts[-1].is_last:
                advance(file.source.path, len(file.source.prefix))
                yield file.result()
                file.close()


def hash_file(fd: int, advance: Callable[[int], None] = lambda done: None) -> str:
    """Return the blake3 of an open file's bytes as hex. `advance` gets the bytes done since its last call.

    Raises:
        OSError: it could not be read.
    """
    for result in hashed([Source("", lambda: nullcontext(fd))], lambda path, done: advance(done)):
        if result.error is not None:
            raise result.error
        return result.digest
    raise AssertionError("one source has one result")


def _ring(cores: int) -> tuple[int, int, int]:
    """Return how many threads read, how many pieces the ring has and how many are hashed at once at least, while the file has more."""
    readers = max(2, min(_MOST_READERS, cores // _CORES_A_READER))
    pieces = max(_LEAST_PIECES, min(_MOST_PIECES, (cores - 1) * _PIECES_A_CORE))
    return readers, pieces, min(_MOST_TOGETHER, cores)


class _File:
    """A source while it is read and hashed."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.size, self.fd = 0, -1
        self._status: os.stat_result | None = None
        self._error: OSError | Rejection | None = None
        self._open = ExitStack()
        try:
            self.fd = self._open.enter_context(source.opened())
            self._status = os.fstat(self.fd)
            self.size = max(0, self._status.st_size - source.start)
        except (OSError, Rejection) as error:
            self._error = error
        self._hasher = parallel_hasher(source.prefix) if self.size >= _SMALL else blake3(source.prefix)

    def update(self, data: memoryview, parts: "list[_Part]") -> None:
        """Hash what parts of the file have read."""
        self._error = self._error or next((part.error for part in parts if part.error is not None), None)
        if self._error is None:
            self._hasher.update(data)

    def result(self) -> Hashed:
        digest = "" if self._error is not None else self._hasher.hexdigest()
        return Hashed(self.source, self.fd, digest, self._status, self._error)

    def close(self) -> None:
        self._open.close()


@dataclass(slots=True)
class _Part:
    """A piece of a file, and how much of it was read: less than `length` where the file ends."""

    file: _File
    begin: int
    length: int
    is_last: bool
    count: int = 0
    error: OSError | None = None

    def read(self, memory: memoryview) -> None:
        try:
            while self.count < self.length:
                count = os.preadv(self.file.fd, [memory[self.count : self.length]], self.begin + self.count)
                if count == 0:
                    break
                self.count += count
        except OSError as error:
            error.filename = self.file.source.path
            self.error = error


class _Reading:
    """The threads that read, and the ring that they read into. Piece `n` goes into slot `n` modulo the number of slots, which is
    free by then: slots are released in the order of the pieces."""

    def __init__(self, sources: Iterator[Source]) -> None:
        count, self._slots, self._together = _ring(len(os.sched_getaffinity(0)))
        self._ring = mmap.mmap(-1, self._slots * PIECE)
        with suppress(OSError, AttributeError):  # a kernel without them
            self._ring.madvise(mmap.MADV_HUGEPAGE)
        self._view = memoryview(self._ring)
        self._free = threading.Semaphore(self._slots)
        self._splitting = threading.Lock()
        self._parts = _split(sources)
        self._changed = threading.Condition()
        self._read: dict[int, _Part] = {}
        self._begun = self._taken = self._first = 0
        self._is_alone = True
        self._is_ending = False
        self._failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._run, name="zwatch-hash", daemon=True) for _ in range(count)
        ]  # fmt: skip

    def __enter__(self) -> Self:
        with suppress(OSError):  # where no more threads may be started, fewer read, or the one that hashes
            for thread in self._threads:
                start_thread(thread)
                self._is_alone = False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_ending = True
        for _ in self._threads:
            self._free.release()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(_LEAVE_SECONDS)  # a read from a server that is gone is left
        for part in self._read.values():
            part.file.close()

    def take(self) -> list[_Part]:
        """Wait for the next piece; return it with those of the same file that are there too and follow it in memory. Nothing is left
        to read if it returns none."""
        if self._is_alone and (taken := self._next()) is not None:
            self._fill(*taken)
        with self._changed:
            while not (parts := self._there()) and self._failure is None:
                if self._is_ending and self._taken >= self._begun:
                    break
                self._changed.wait()
            if self._failure is not None:
                raise self._failure
            for number in range(len(parts)):
                del self._read[self._taken + number]
            self._first = self._taken % self._slots
            self._taken += len(parts)
            return parts

    def _there(self) -> list[_Part]:
        """Return the next pieces that can be hashed together; none while too few are there."""
        parts: list[_Part] = []
        while (part := self._read.get(number := self._taken + len(parts))) is not None:
            parts.append(part)
            if part.is_last or part.count < PIECE or (number + 1) % self._slots == 0:
                return parts
        return parts if len(parts) >= self._together or self._is_alone else []

    def memory(self, parts: list[_Part]) -> memoryview:
        """Return what was read by the parts that were taken last."""
        begin = self._first * PIECE
        return self._view[begin : begin + sum(part.count for part in parts)]

    def release(self, count: int) -> None:
        """Let `count` slots be read into again."""
        self._free.release(count)

    def _run(self) -> None:
        try:
            while (taken := self._next()) is not None:
                self._fill(*taken)
        except BaseException as error:  # an iterator of sources failed
            self._failure = error
        with self._changed:
            self._is_ending = True
            self._free.release()  # the next thread sees the end
            self._changed.notify()

    def _fill(self, number: int, part: _Part) -> None:
        slot = number % self._slots * PIECE
        part.read(self._view[slot : slot + PIECE])
        with self._changed:
            self._read[number] = part
            self._changed.notify()

    def _next(self) -> tuple[int, _Part] | None:
        self._free.acquire()
        with self._splitting:
            if self._is_ending or (part := next(self._parts, None)) is None:
                self._is_ending = True
                return None
            self._begun += 1
            return self._begun - 1, part


def _split(sources: Iterator[Source]) -> Iterator[_Part]:
    """Open files one by one and return their pieces; an empty file has an empty one."""
    for source in sources:
        file = _File(source)
        begins = range(0, file.size, PIECE) or range(1)
        for begin in begins:
            length = min(PIECE, file.size - begin)
            yield _Part(file, source.start + begin, length, begin == begins[-1])
