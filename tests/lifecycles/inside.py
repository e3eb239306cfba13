"""What runs in the process of a light service: the real `zwatch.serving` with a light engine, and a pipe to the test."""

import asyncio
import logging
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

from tests.lifecycles.light import Faults, LightEngine, LightFactory, key_of
from zwatch import app, logs, serving
from zwatch.config import Config
from zwatch.deploy import followed, look
from zwatch.errors import Retry
from zwatch.generation.history import History
from zwatch.rollout.load_thread import LoadLimits
from zwatch.rollout.supervisor import Supervisor

for _module in (
    "zwatch.generation.png",
    "zwatch.api.openapi",
    "zwatch.handover.beside",
    "PIL.PngImagePlugin",
    "sqlite3",
):
    __import__(_module)  # what a start imports late is imported before the fork

DEADLINE = 30.0
GRACE = 0.1
"""Seconds that a link may be missing before that counts, here."""
LOOK_SECONDS = 1.0
"""Seconds between two looks at the folder of images, here."""
LIMITS = LoadLimits(abandoned=0.05, unwinding=0.05)


class Inside:
    """The end of the pipe in the service: each command is a method."""

    def __init__(self, pipe, services, faults):
        self._pipe, self._supervisor, self._engines, self._faults = pipe, services.supervisor, services.engines, faults
        self._tasks = set()
        asyncio.get_running_loop().add_reader(pipe.fileno(), self._read)

    def _read(self):
        try:
            command, *arguments = self._pipe.recv()
        except (EOFError, OSError):  # the test has ended
            os._exit(9)
        task = asyncio.create_task(self._answer(command, arguments))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, command, arguments):
        found = getattr(self, command)(*arguments)
        self._pipe.send(await found if asyncio.iscoroutine(found) else found)

    def view(self):
        """Return what is so at this moment."""
        supervisor, engines = self._supervisor, self._engines
        serving = {name: engines.serving(name) for name in supervisor.aliases}
        return {
            "settled": supervisor.settled_once
            and not self._awaits_changes()
            and not supervisor.runner._closer.is_closing
            and (supervisor.state._writing is None or supervisor.state._writing.done())
            and (supervisor.state.problem is not None or supervisor.state._links == supervisor.state.saved.links()),
            "several": {alias for alias, share in supervisor.seen.shares.items() if share.is_ambiguous},
            "shares": {
                record.name: (None if record.serving is None else key_of(record.serving))
                for record in supervisor.records.shares
            },
            "serving": {name: None if one is None else key_of(one) for name, one in serving.items()},
            "previous": {name: _pair(supervisor.previous(name)) for name in supervisor.aliases},
            "promoted": {
                name: [_pair(key) for key in record.saved.promoted] for name, record in supervisor.records.items()
            },
            "good": {name: [_pair(key) for key in record.saved.good] for name, record in supervisor.records.items()},
            "unloaded": {name for name in supervisor.aliases if supervisor.is_unloaded(name)},
            "resident": {key_of(one) for one in engines.residents},
            "leases": sum(one.leases for one in engines.residents),
            "engines": LightEngine.open,
            "stopped_in": self._faults.stopped_in,
            "drawing": self._faults.drawing,
            "attempts": [
                (one.key.version, one.state.value, one.rejection.code if one.rejection else None)
                for one in supervisor.attempts
            ],
            "strays": {stray.path: stray.reason for stray in supervisor.seen.strays},
            "faults": {name: fault.code for name, fault in supervisor.seen.faults.items()},
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")),
            "memory": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        }

    def _awaits_changes(self):
        """Say whether files have changed for which a version is tried again as soon as they stay as they are."""
        changed = self._supervisor._looker._looker._unsettled
        return any(
            id(refusal.awaited) in changed
            and not refusal.file_changed
            and (refusal.rejection.retry is not Retry.NEVER or refusal.awaits_seal)
            for record in self._supervisor.records.values()
            for refusal in record.refusals.awaiting()
        )

    async def look(self):
        """Look again, and return what is so when there is nothing to do, or when a load stopped as a test wants."""
        await self._supervisor.look_now()
        end = time.monotonic() + DEADLINE
        while not self.view()["settled"] and self._faults.stopped_in is None and time.monotonic() < end:
            if self._awaits_changes():
                self._supervisor.ring()
            await asyncio.sleep(0.002)
        return self.view()

    def set_faults(self, values):
        """Set what the next load does, see `Faults`."""
        for name, value in values.items():
            setattr(self._faults, name, value)

    def go_on(self):
        """Let the load go on that is slow."""
        self._faults.go_on.set()

    def hold(self, held):
        """Stop all images, or let them go on."""
        (self._faults.held.clear if held else self._faults.held.set)()

    def give_up(self):
        """Give up the load that hangs, as if its time without progress had passed."""
        thread, listeners = self._supervisor.runner._thread, self._supervisor.on_end

        def ended(attempt):
            thread._limits = LIMITS
            listeners.remove(ended)

        listeners.append(ended)
        thread._limits = replace(LIMITS, stalled=0.0, slow=0.0)

    def end_pauses(self, which):
        """Let what failed for a reason that passes be tried again: of all versions, or only of fallbacks."""
        for record in self._supervisor.records.values():
            for (_, fallback), refusal in record.refusals._entries.items():
                if refusal.retry_at is not None and (fallback or which == "all"):
                    refusal.retry_at = 0.0
        self._supervisor.ring()


def _pair(key):
    return None if key is None else (key.version, key.digest)


def main(root, state, aliases, pipe, log, options):
    """Serve, in this process, until SIGTERM. `options`: `takeover`, and `first_pause` in seconds."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    logs.set_up("json")
    faults = Faults()
    _replace(pipe, faults, options.get("first_pause", 1.0))
    config = Config(
        models=root, aliases=tuple(aliases), strict_links=False, device="cpu", memory_budget=None, state_dir=state,
        host="127.0.0.1", port=0, token=None, insecure_no_token=False, allowed_hosts=(), queue=64, timeout=60.0,
        max_work=600.0, history=options.get("history", False), output_dir=state.with_name(f"{state.name}.images"),
        history_max_images=50, history_max_bytes=None, log="json", takeover=options.get("takeover", False),
    )  # fmt: skip
    status = 1
    try:
        ended = asyncio.run(serving.serve(config))
        status = 0 if ended.failure is None else ended.failure.status
    except BaseException:
        logging.getLogger("zwatch").exception("the service ended")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os._exit(status)  # without the fork server's own end


def _replace(pipe, faults, first_pause):
    """Put the light engine in the place of the genuine one, and let the pipe see the parts."""
    wired, listen, init = app._wired, app.listen, Supervisor.__init__

    def wired_and_seen(config, bridge, state_file, slot):
        services = wired(config, bridge, state_file, slot)
        Inside(pipe, services, faults)
        return services

    async def listen_and_tell(*arguments, **named):
        listening = await listen(*arguments, **named)
        pipe.send(("url", listening.url))
        return listening

    def with_limits(self, *arguments, **options):
        init(self, *arguments, **options, first_pause=first_pause, limits=LIMITS)

    app._wired, app.listen, Supervisor.__init__ = wired_and_seen, listen_and_tell, with_limits
    app.make_factory = serving.make_factory = lambda config, control, slot=None: LightFactory(faults)
    followed.MISSING_GRACE = GRACE
    History.__init__.__kwdefaults__["look_seconds"] = LOOK_SECONDS
    look.SETTLED = 0.02  # seconds that files must stay as they are: nothing is copied slowly here
