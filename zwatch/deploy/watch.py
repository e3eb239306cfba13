"""The doorbell: watchdog rings it when something under the models root changes. Ringing only means "look again"."""

import logging
import os
import threading
from collections.abc import Callable
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


class Doorbell:
    """Calls `ring` from the observer's thread after a change under `root`.

    The observer is a convenience, never relied on: the supervisor looks at every tick as well, and calls `tend` there,
    so an observer that died, or watches a directory that was moved away, is replaced.
    """

    def __init__(self, root: Path, ring: Callable[[], None]) -> None:
        self._root = root
        self._handler = _Handler(ring)
        self._observer: BaseObserver | None = None
        self._watched: tuple[int, int] | None = None
        self._said_polling = False
        self._failed = False
        self._lock = threading.Lock()

    @property
    def kind(self) -> str:
        """The observer's kind: `native` (inotify on Linux), `polling`, or `none`."""
        if self._observer is None:
            return "none"
        return "polling" if isinstance(self._observer, PollingObserverVFS) else "native"

    def tend(self) -> None:
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
                _log.warning("the observer of %s stopped or lost its directory; starting another", self._root)
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
        for make in (Observer, _polling):
            observer = None
            try:
                observer = make()  # takes an inotify instance already
                observer.schedule(self._handler, where, recursive=True, event_filter=_EVENTS)
                observer.start()
            except OSError as error:
                if observer is not None:
                    observer.stop()
                self._say_polling(error)
                continue
            self._observer, self._watched, self._failed = observer, identity, False
            self._handler.ring()  # for what changed before the watch stood
            return
        if not self._failed:
            _log.warning("%s cannot be observed at all; looking every tick", self._root)
        self._failed = True

    def _say_polling(self, error: OSError) -> None:
        if not self._said_polling:
            _log.warning(
                "inotify cannot be had (%s); polling %s instead. More can be allowed with "
                "`sysctl fs.inotify.max_user_instances fs.inotify.max_user_watches`",
                error.strerror or error,
                self._root,
            )
        self._said_polling = True

    def _stop(self) -> None:
        if self._observer is not None:
            # It waits for threads of its own, for ever if one hangs; all of them end with the process.
            stopping = threading.Thread(target=_stopped, args=(self._observer,), name="zwatch-unwatch", daemon=True)
            stopping.start()
            stopping.join(_STOP_SECONDS)
            if stopping.is_alive():
                _log.warning("the observer of %s does not stop; it is left behind", self._root)
        self._observer = self._watched = None


def _stopped(observer: BaseObserver) -> None:
    observer.stop()
    if observer.is_alive():
        observer.join()


def _polling() -> BaseObserver:
    # PollingObserver follows links: it sees no stray (`v1/v2 -> v2` leads nowhere), and walks in circles.
    return PollingObserverVFS(stat=os.lstat, listdir=os.scandir, polling_interval=_POLL_SECONDS)


class _Handler(FileSystemEventHandler):
    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring

    def ring(self) -> None:
        try:
            self._ring()
        except Exception:  # an exception here would kill the observer's thread
            _log.exception("the doorbell could not be rung")

    def on_any_event(self, event: FileSystemEvent) -> None:
        self.ring()
