"""Faults of the system below: calls that fail, descriptors that run out, inode numbers that change at every look."""

import itertools
import os
import resource
from contextlib import contextmanager

CALLS = ("stat", "open", "readlink", "listdir", "scandir", "symlink", "rename", "link", "unlink", "fsync", "dup")
READS = ("stat", "open", "readlink", "listdir", "scandir", "dup")


class FailingCalls:
    """Makes the call with one number fail with an error, counted over some functions of `os`."""

    def __init__(self, monkeypatch, code, calls=CALLS):
        self.count, self.failing, self.failed = 0, None, None
        for name in calls:
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name), code))

    def _wrapped(self, name, genuine, code):
        def call(*args, **keywords):
            self.count += 1
            if self.count == self.failing:
                self.failed = name
                raise OSError(code, os.strerror(code))
            return genuine(*args, **keywords)

        return call

    @contextmanager
    def at(self, number):
        """Let the call with this number, from now on, fail; None lets none fail."""
        self.count, self.failing, self.failed = 0, number, None
        try:
            yield self
        finally:
            self.failing = None


@contextmanager
def free_descriptors(count):
    """Leave so many free descriptors to this process."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 16, before[1]))
    try:
        try:
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        for _ in range(count):
            os.close(taken.pop())
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def change_inodes(monkeypatch):
    """Let every look at a file find another inode number, as some FUSE file systems do."""
    numbers = itertools.count(10**9)

    def changing(genuine):
        def call(*args, **keywords):
            status = genuine(*args, **keywords)
            values = list(status)
            values[1] = next(numbers)
            extra = {name: getattr(status, name) for name in ("st_atime_ns", "st_mtime_ns", "st_ctime_ns", "st_rdev")}
            return os.stat_result(values, {**extra, "st_atime": 0.0, "st_mtime": 0.0, "st_ctime": 0.0})

        return call

    for name in ("stat", "fstat", "lstat"):
        monkeypatch.setattr(os, name, changing(getattr(os, name)))
