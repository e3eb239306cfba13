"""Watching the models root with watchdog. An event only means "look again"."""

import ctypes
import errno
import logging
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from watchdog.events import DirModifiedEvent, FileSystemEvent, FileSystemEventHandler
from watchdog.observers.api import BaseObserver, EventEmitter, EventQueue, ObservedWatch
from watchdog.observers.inotify_c import InotifyConstants, inotify_add_watch, inotify_init, inotify_rm_watch

from zwatch.deploy.oserrors import close_quietly
from zwatch.deploy.shares import MARK

if TYPE_CHECKING:
    from watchdog.observers.inotify_c import WatchDescriptor

_log = logging.getLogger(__name__)

# What the kernel reports of a directory and the entries in it, not of what lies deeper. Not IN_MODIFY: a copy of 20 GB makes
# one event a write. Not IN_ACCESS, IN_OPEN and IN_CLOSE_NOWRITE: our own reading does.
_EVENTS = (
    InotifyConstants.IN_CREATE
    | InotifyConstants.IN_DELETE
    | InotifyConstants.IN_MOVE
    | InotifyConstants.IN_CLOSE_WRITE
    | InotifyConstants.IN_ATTRIB
    | InotifyConstants.IN_ONLYDIR
)
_MAX_FOLDERS = 512
"""How many directories are watched at most; changes in others are seen by the tick."""
_PAUSE_SECONDS = 0.05
"""The time between two calls of `on_change` while events keep coming."""
_FIRST_PEEK, _LONGEST_PEEK = 0.0005, 0.005
"""Seconds between two looks at the names of events within that time; doubled each time while only others' events come."""
_NAMED_SECONDS = 0.01
"""The same as `_PAUSE_SECONDS` after an event of a link that is followed."""
_BEFORE_NAME = b"\0" if sys.byteorder == "little" else b""
"""The byte before the name in an `inotify_event`: the highest of its length, which is below 2^24."""
_READ_BYTES = 2**16
_MAX_READS = 256
"""Reads of one draining: more than an inotify queue holds (16,384 events of at most 272 bytes)."""
_STOP_SECONDS = 2.0
_LOG_SECONDS = 60.0
"""The time between two log lines about an observer that ends again and again."""


class RootWatcher:
    """Calls `on_change` from the observer's thread after a change in the models root or in one of the given folders.

    Nothing relies on it: the supervisor looks at every tick as well. So it watches only directories in which a change may
    matter, each without its subdirectories, and where inotify is not available it watches nothing. `ensure_running` is
    called every second: it replaces an observer that ended, and watches what has the folders' names by then.
    """

    def __init__(
        self,
        root: Path,
        on_change: Callable[[], None],
        names: Iterable[str] = (),
        *,
        pause_seconds: float = _PAUSE_SECONDS,
    ) -> None:
        """`pause_seconds` is the shortest time between two calls of `on_change`, except for events of these names: the links
        that are followed. A link is made under another name and renamed: without this, the rename would wait for the pause."""
        self._root = root
        self._handler = _Handler(on_change)
        self._names: list[bytes] = []  # the thread that reads events has it too
        self.follow(names)
        self._pause_seconds = pause_seconds
        self._observer: BaseObserver | None = None
        self.problem: str | None = None
        """Why not all is watched that should be; None if it is."""
        self._log_next = 0.0
        self._lock = threading.Lock()

    def follow(self, names: Iterable[str]) -> None:
        """Report events of these links at once: they are those that are followed now. Their shares are, too."""
        raw = [_BEFORE_NAME + os.fsencode(name) for name in names]
        self._names[:] = [name + end for name in raw for end in (b"\0", MARK.encode())]

    @property
    def kind(self) -> str:
        """`native` while inotify watches the models root, else `none`: only the tick sees changes."""
        with self._lock:
            emitter = self._emitter()
            return "native" if emitter is not None and emitter.watches(str(self._root)) else "none"

    def ensure_running(self, folders: Iterable[str] = ()) -> None:
        """Watch the models root and these folders, paths below it or absolute ones; start or replace the observer if there
        is none that works. Never raises."""
        paths = [str(self._root), *(os.path.join(self._root, folder) for folder in folders)][:_MAX_FOLDERS]
        with self._lock:
            try:
                emitter = self._emitter()
                if emitter is None:
                    emitter = self._start()
                new, problem = emitter.watch_only(paths)
            except (OSError, RuntimeError) as error:  # RuntimeError: no more threads
                new, problem = False, str(getattr(error, "strerror", None) or error)
            if problem is not None and self.problem is None:
                _log.warning(
                    "inotify is not available (%s); changes in %s are seen by the check every 250 ms. Raise the limits "
                    "with `sysctl fs.inotify.max_user_instances fs.inotify.max_user_watches`",
                    problem,
                    self._root,
                )
            self.problem = problem
        if new:
            self._handler.report()  # for what changed before the watch was set up

    def stop(self) -> None:
        """Stop the observer's threads."""
        with self._lock:
            self._stop()

    def _emitter(self) -> "_Emitter | None":
        """Return the thread that reads events, if it works."""
        if self._observer is None or not self._observer.is_alive():
            return None
        return next((one for one in self._observer.emitters if isinstance(one, _Emitter) and one.is_alive()), None)

    def _start(self) -> "_Emitter":
        if self._observer is not None and time.monotonic() >= self._log_next:
            _log.warning("the observer of %s ended; replacing it", self._root)
            self._log_next = time.monotonic() + _LOG_SECONDS
        self._stop()
        emitters: list[_Emitter] = []

        def make(queue: EventQueue, watch: ObservedWatch, **_: object) -> _Emitter:
            emitters.append(_Emitter(queue, watch, self._pause_seconds, self._names))
            return emitters[0]

        observer = BaseObserver(make)  # type: ignore[arg-type] # a class, or what makes its objects
        # The path is a label only, see `_Emitter.watch_only`. watchdog would take one that is a file for a moment for a file.
        observer.schedule(self._handler, os.sep)
        observer.start()
        self._observer = observer
        return emitters[0]

    def _stop(self) -> None:
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.stop()
            if observer.is_alive():
                observer.join(_STOP_SECONDS)


class _Emitter(EventEmitter):
    """Reads from one inotify instance that something changed, and drops what.

    watchdog's own emitter makes Python objects of every event, adds a watch for each subdirectory, and keeps to the
    directories that had the names when it started. This one empties the queue, and reports at most once in `pause` seconds,
    unless one of `names` (each with what is before and after it in an event) is among the events: thousands of others cost as
    much as one, and events that do not fit into the queue are not missed.
    """

    def __init__(self, queue: EventQueue, watch: ObservedWatch, pause: float, names: Sequence[bytes]) -> None:
        super().__init__(queue, watch)
        self._pause = pause
        self._names = names
        self._inotify = self._wake = -1
        self._watches: dict[str, int] = {}
        self._using = threading.Lock()  # the descriptors

    def start(self) -> None:
        """Start the thread.

        Raises:
            OSError, RuntimeError: there is no inotify instance, descriptor or thread left.
        """
        try:
            super().start()
        except BaseException:
            self._close()
            raise

    def on_thread_start(self) -> None:
        """Make the inotify instance."""
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._inotify = _checked(inotify_init())
        os.set_inheritable(self._inotify, False)
        os.set_blocking(self._inotify, False)

    def on_thread_stop(self) -> None:
        """Wake the thread; it ends."""
        with self._using:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def run(self) -> None:
        """Read until stopped, or until the instance cannot be read."""
        try:
            super().run()
        except OSError:
            pass  # the next `ensure_running` replaces and logs it
        finally:
            self._close()

    def queue_events(self, timeout: float) -> None:
        """Wait for events and report one change for all of them; within the pause after it, report only the given names."""
        self._wait(None)
        if self.stopped_event.is_set():
            return
        self._read()
        self._report()
        while self._reports_after_pause() and not self.stopped_event.is_set():
            pass

    def _reports_after_pause(self) -> bool:
        """Return whether there was a change within the pause that is reported after it; the given names are reported in it."""
        end, peek, pending = time.monotonic() + self._pause, _FIRST_PEEK, False
        while (left := end - time.monotonic()) > 0:
            if self.stopped_event.wait(min(peek, left)):
                return False
            if not self._wait(max(0.0, end - time.monotonic())):
                break
            if self._read():
                self._report()
                self.stopped_event.wait(_NAMED_SECONDS)
                return False
            pending, peek = True, min(2 * peek, _LONGEST_PEEK)
        if pending and not self.stopped_event.is_set():
            self._report()
        return pending

    def _report(self) -> None:
        self.queue_event(DirModifiedEvent(self.watch.path))

    def _wait(self, seconds: float | None) -> bool:
        """Wait for an event or the end; return whether one of them is there."""
        poll = select.poll()
        poll.register(self._inotify, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        return bool(poll.poll(None if seconds is None else seconds * 1000))

    def _read(self) -> bool:
        """Empty the queue; return whether one of the names is in it. Done before the report: what happens after it must be
        reported anew."""
        found = False
        for _ in range(_MAX_READS):
            try:
                raw = os.read(self._inotify, _READ_BYTES)
            except BlockingIOError:
                break
            found = found or any(name in raw for name in self._names)
        return found

    def watch_only(self, paths: Sequence[str]) -> tuple[bool, str | None]:
        """Watch what these paths lead to now and nothing else; return whether a directory is new among them, and why one
        that is there cannot be watched.

        Done again and again: a directory that was moved away and made again is another one with the same path. The kernel
        returns the number that it has already if it is not.

        Raises:
            OSError: the thread has ended.
        """
        with self._using:
            if self._inotify < 0:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            watches: dict[str, int] = {}
            problem = None
            for path in paths:
                try:
                    watches[path] = _checked(inotify_add_watch(self._inotify, os.fsencode(path), _EVENTS))
                except OSError as error:
                    if error.errno in (errno.ENOSPC, errno.ENOMEM):  # not: it is missing, a file, or not readable
                        problem = error.strerror if error.errno == errno.ENOMEM else "no more watches"
                        break
                except ValueError:
                    continue
            before, now = set(self._watches.values()), set(watches.values())
            for number in before - now:
                inotify_rm_watch(
                    self._inotify, cast("WatchDescriptor", number)
                )  # fails if the directory is gone, and the watch with it
            self._watches = watches
            return bool(now - before), problem

    def watches(self, path: str) -> bool:
        """Say whether the directory with this path is watched."""
        return path in self._watches

    def _close(self) -> None:
        with self._using:
            for fd in (self._inotify, self._wake):
                if fd >= 0:
                    close_quietly(fd)
            self._inotify = self._wake = -1
            self._watches = {}


class _Handler(FileSystemEventHandler):
    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change

    def report(self) -> None:
        try:
            self._on_change()
        except Exception:  # an exception here would kill the observer's thread
            _log.exception("on_change failed")

    def on_any_event(self, event: FileSystemEvent) -> None:
        self.report()


def _checked(result: int) -> int:
    """Return what a system call returned.

    Raises:
        OSError: it failed.
    """
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
