"""Watching the models root with watchdog. An event only means "look again"."""

import logging
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver
from watchdog.observers.polling import PollingObserverVFS

_log = logging.getLogger(__name__)

# Not FileModified: a copy of 20 GB makes one event a write. Not FileOpened and FileClosedNoWrite: our own reading does.
_EVENTS: list[type[FileSystemEvent]] = [
    FileCreatedEvent, FileDeletedEvent, FileMovedEvent, FileClosedEvent, DirCreatedEvent, DirDeletedEvent, DirMovedEvent,
]  # fmt: skip
_POLL_SECONDS = 1.0
_STOP_SECONDS = 2 * _POLL_SECONDS


class RootWatcher:
    """Calls `on_change` from the observer's thread after a change under `root`.

    Nothing relies on it: the supervisor looks at every tick as well. `ensure_running` replaces an observer that died, or
    that watches a directory which was moved away; it is called every second.
    """

    def __init__(
        self,
        root: Path,
        on_change: Callable[[], None],
        *,
        poll_seconds: float = _POLL_SECONDS,
        stop_seconds: float = _STOP_SECONDS,
    ) -> None:
        """`poll_seconds` is the time between two looks without inotify; `stop_seconds` limits how long a stop waits for the
        observer's threads.
        """
        self._poll_seconds = poll_seconds
        self._stop_seconds = stop_seconds
        self._root = root
        self._handler = _Handler(on_change)
        self._observer: BaseObserver | None = None
        self._watched: tuple[int, int] | None = None
        self._logged_polling = False
        self._logged_failure = False
        self._lock = threading.Lock()

    @property
    def kind(self) -> str:
        """The observer's kind: `native` (inotify on Linux), `polling`, or `none`."""
        if self._observer is None:
            return "none"
        return "polling" if isinstance(self._observer, PollingObserverVFS) else "native"

    def ensure_running(self) -> None:
        """Start the observer, or replace one that died or watches what is no longer the models root."""
        with self._lock:
            try:
                status = os.stat(self._root)
            except OSError:
                self._stop()
                return
            identity = (status.st_dev, status.st_ino)
            if self._observer is not None and self._alive(self._observer) and identity == self._watched:
                return
            if self._observer is not None:
                _log.warning("the observer of %s stopped or lost its directory; replacing it", self._root)
            self._stop()
            self._start(identity)

    def stop(self) -> None:
        """Stop the observer's threads."""
        with self._lock:
            self._stop()

    @staticmethod
    def _alive(observer: BaseObserver) -> bool:
        # A root that is removed ends the emitter, and one made again may have the same inode number.
        return observer.is_alive() and all(emitter.is_alive() for emitter in observer.emitters)

    def _start(self, identity: tuple[int, int]) -> None:
        # A symlinked root gives no events: watch what it resolves to.
        where = os.path.realpath(self._root)
        for make in (Observer, partial(_polling, self._poll_seconds)):
            observer = None
            try:
                observer = make()  # takes an inotify instance already
                observer.schedule(self._handler, where, recursive=True, event_filter=_EVENTS)
                observer.start()
            except OSError as error:
                if observer is not None:
                    observer.stop()
                self._log_polling(error)
                continue
            self._observer, self._watched, self._logged_failure = observer, identity, False
            self._handler.report()  # for what changed before the watch was set up
            return
        if not self._logged_failure:
            _log.warning("%s cannot be watched; checking every 250 ms", self._root)
        self._logged_failure = True

    def _log_polling(self, error: OSError) -> None:
        if not self._logged_polling:
            _log.warning(
                "inotify is not available (%s); polling %s instead. Raise the limits with "
                "`sysctl fs.inotify.max_user_instances fs.inotify.max_user_watches`",
                error.strerror or error,
                self._root,
            )
        self._logged_polling = True

    def _stop(self) -> None:
        if self._observer is not None:
            # `stop` waits for the observer's threads, without a limit if one hangs; all of them end with the process.
            stopping = threading.Thread(target=_stopped, args=(self._observer,), name="zwatch-unwatch", daemon=True)
            stopping.start()
            stopping.join(self._stop_seconds)
            if stopping.is_alive():
                _log.warning("the observer of %s does not stop; abandoning it", self._root)
        self._observer = self._watched = None


def _stopped(observer: BaseObserver) -> None:
    observer.stop()
    if observer.is_alive():
        observer.join()


def _polling(seconds: float) -> BaseObserver:
    # PollingObserver follows links: it does not see strays (`v1/v2 -> v2` leads nowhere), and links in a circle never end.
    return PollingObserverVFS(stat=os.lstat, listdir=os.scandir, polling_interval=seconds)


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
