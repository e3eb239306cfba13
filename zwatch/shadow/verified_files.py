"""Weight files on disk that were hashed before: one that is shared instead of loaded is verified there, but read at most once."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from zwatch.deploy import seal
from zwatch.deploy.resolving import Directory, FileStamp
from zwatch.shadow.control import LoadControl

RACY_NS = 10**9
"""A file that changed so short a time ago may change again without a new time stamp; many times the clock's 4 ms tick."""
HashFile = Callable[[int, str, int, Callable[[int], None]], str]
"""Hashes an open file; see `Device.hash_file`."""


@dataclass(frozen=True, slots=True)
class DiskStamp:
    """What changes on disk when a file's bytes do; `is_old` if it surely would change with the next write."""

    device: int
    file: FileStamp
    is_old: bool


KEPT_DIGESTS = 4096
"""Files whose hashes are remembered, the ones last hashed: versions come and go for as long as the service runs."""


class VerifiedFiles:
    """Files on disk that were hashed before, by their stamps.

    A component that is shared instead of loaded is verified on disk too, but read at most once. `now_ns` is the clock.
    """

    def __init__(self, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._now_ns = now_ns
        self._digests: dict[tuple[int, FileStamp], str] = {}

    def stamp(self, fd: int) -> DiskStamp:
        """Return an open file's stamp; to be taken before its bytes are read."""
        status = os.fstat(fd)
        # A write within one clock tick of the last one leaves the stamp as it is: trust only what is older.
        is_old = self._now_ns() - status.st_ctime_ns > RACY_NS
        return DiskStamp(status.st_dev, FileStamp.of(status), is_old)

    def note(self, stamp: DiskStamp, digest: str) -> None:
        """Remember a file's hash under the stamp that was taken before its bytes were read."""
        if stamp.is_old:
            self._digests.pop((stamp.device, stamp.file), None)
            self._digests[stamp.device, stamp.file] = digest
            while len(self._digests) > KEPT_DIGESTS:
                del self._digests[next(iter(self._digests))]

    def check(
        self,
        directory: Directory,
        sealed: seal.Seal,
        paths: list[str],
        control: LoadControl,
        hash_file: HashFile,
    ) -> None:
        """Verify weight files on disk by their seal, reading those that changed or were never read.

        Raises:
            Rejection: a file is missing or differs from the seal.
            Abandoned: `control` was told to abandon the load.
            OSError: a read failed.
        """
        for path in paths:
            control.begin(f"reading {path}")
            with seal.opened_sealed(directory.fd, sealed, path) as fd:
                stamp = self.stamp(fd)
                digest = self._digests.get((stamp.device, stamp.file))
                if digest is None:
                    control.bytes_total += stamp.file.size
                    digest = hash_file(fd, path, stamp.file.size, control.advance)
                    self.note(stamp, digest)
            seal.check_hash(path, digest, sealed.files[path])
