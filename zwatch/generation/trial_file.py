"""Keeps the results of trials in the state directory, so that a restart begins none anew."""

import asyncio
import json
import logging
from pathlib import Path

from zwatch.bridge import Bridge, Pulse
from zwatch.deploy.durable import make_directory, put_aside, read_regular, write_durably
from zwatch.generation.trial_results import TrialResults

_log = logging.getLogger(__name__)

FILE = "trials.json"
SAVE_SECONDS = 5.0
"""Seconds of counts that a crash loses at most."""
_MOST_BYTES = 16 * 2**20


class TrialFile:
    """Reads and writes the results in a state directory."""

    def __init__(self, bridge: Bridge, directory: Path, results: TrialResults, changes: Pulse) -> None:
        self._bridge = bridge
        self._directory = directory
        self.results = results
        self._changes = changes
        self._is_told = False

    async def run(self) -> None:
        """Take over the saved results, then save what changes, until cancelled."""
        await self._load()
        looking = asyncio.create_task(self._look(), name="look at trials")
        try:
            while True:
                coming = self._changes.next()
                self.results.look()
                if self.results.is_changed:
                    await self._save()
                    await asyncio.sleep(SAVE_SECONDS)
                else:
                    await asyncio.shield(coming)
        finally:
            looking.cancel()
            self.results.look()
            if self.results.is_changed:
                await self._save()

    async def _look(self) -> None:
        """See each change until cancelled: what begins and ends while the file is left alone is a trial, too."""
        while True:
            coming = self._changes.next()
            self.results.look()
            await asyncio.shield(coming)

    def _write(self, data: bytes) -> None:
        make_directory(self._directory)  # it may have been removed
        write_durably(self._directory, FILE, data)

    async def _load(self) -> None:
        path = self._directory / FILE
        try:
            self.results.restore(json.loads(await self._bridge.run("votes", read_regular, path, _MOST_BYTES)))
        except FileNotFoundError:
            pass
        except OSError as error:
            _log.warning("%s: the results of trials cannot be read: %s; they begin anew", path, error)
        except (ValueError, RecursionError) as error:
            aside = await self._bridge.run("votes", put_aside, path)
            _log.warning("%s: %s; the results of trials begin anew, see %s", path, error, aside)

    async def _save(self) -> None:
        data = json.dumps(self.results.saved()).encode()
        self.results.is_changed = False
        try:
            await self._bridge.run("votes", self._write, data)
            self._is_told = False
        except OSError as error:
            self.results.is_changed = True
            if not self._is_told:  # once, not every few seconds
                _log.warning("%s: the results of trials cannot be kept: %s", self._directory / FILE, error)
            self._is_told = True
