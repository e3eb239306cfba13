"""Jobs across a handover: the old process tells about each of its jobs, and the new one shows them as its own.

A job that the old process could not end is drawn again from its request, which has the same seed and makes the same pictures.
"""

import asyncio
import base64
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import BinaryIO

from zwatch.bridge import Bridge
from zwatch.errors import RequestError
from zwatch.generation.fields import invalid
from zwatch.generation.history import History
from zwatch.generation.job import Job
from zwatch.generation.job_events import Finished, JobState, Picture
from zwatch.generation.job_store import JobStore
from zwatch.generation.loras import JobLoras
from zwatch.generation.queue import GenerationQueue
from zwatch.generation.request import GenerateRequest
from zwatch.generation.sources import Source
from zwatch.handover.channel import Channel
from zwatch.handover.described import Body, Told, described, parameters_of, state_of
from zwatch.handover.sources import needed_source, read_source_file, source_file
from zwatch.rollout.lifecycle import VersionKey

_log = logging.getLogger(__name__)

_LOST = RequestError("generation_failed", "the process that drew this job ended, and it could not be drawn again")
_AGAIN_SECONDS = 0.1
_MOST_AGAIN_SECONDS = 600.0
"""For how long a job that is drawn again waits for room in the queue, and for its version."""
_SEND_SECONDS = 10.0


class MirroredJob(Job):
    """A job of another process. `cancelled` is called when a client cancels it here."""

    def __init__(
        self, body: Body, cancelled: Callable[[Job], None], settled: Callable[[Job], None], source: Source | None = None
    ) -> None:
        """Make it as it was accepted. `source` is the image that it changes, if it came.

        Raises:
            KeyError, ValueError, TypeError: it does not describe a job.
        """
        about = body.get("source")
        super().__init__(
            GenerateRequest.model_validate(body["request"]),
            None,
            settled,
            attended=False,
            keeps_files=body["keeps_files"],
            source=source,
        )
        if about is not None and about.get("guides", False):
            self.control_digest = str(about["digest"])
        elif about is not None:
            self.source_digest, self.has_mask = str(about["digest"]), bool(about["mask"])
        self.lora_digests = {str(name): str(digest) for name, digest in body.get("loras", {}).items()}
        self.steps = int(body.get("steps", self.steps))
        self.id = str(body["id"])
        self.created = datetime.fromisoformat(body["created"])
        self.request_id, self.client_name, self.work = body["request_id"], body["client"], body["work"]
        self.client = body.get("client_key")
        self._accepted = self._clock() - body["age"]
        self._cancel_elsewhere = cancelled

    def cancel(self) -> None:
        """End it here, and where it is drawn."""
        if not self.state.is_final:
            self._cancel_elsewhere(self)
        super().cancel()

    def show(self, body: Body) -> None:
        """Take over a state that the other process has sent; ignored after the end.

        Raises:
            KeyError, ValueError, TypeError: it is not one.
        """
        if self.state.is_final:
            return
        state = JobState(body["state"])
        self.pictures = tuple(self._picture(number, row) for number, row in enumerate(body["pictures"]))
        if "key" in body and "parameters" in body and self.key is None:
            self.assign(VersionKey(*body["key"]), parameters_of(body["parameters"]))
            self.signer, self.by_share = body.get("signer"), body.get("by_share")
        if state is JobState.QUEUED:
            if self.state is JobState.RUNNING:
                self.wait_again()
            self.set_position(body["position"])
        elif self.state is JobState.QUEUED:
            self.begin()
        preview = base64.b64decode(body["preview"]) if "preview" in body else None
        self.advance(body["step"], preview)
        if state.is_final:
            self._show_end(state, body)
        else:
            self._changed()  # perhaps a picture came

    def _show_end(self, state: JobState, body: Body) -> None:
        finished, error = None, None
        if "finished" in body:
            assert self.key is not None and self.parameters is not None  # noqa: PT018 (a finished job ran)
            shown = body["finished"]
            finished = Finished(self.key, self.parameters, shown["truncated"], shown["timings"], self.pictures)
        if "error" in body:
            error = RequestError(**body["error"])
        self._end(state, finished, error)
        self.seconds = body.get("seconds", self.seconds)

    def _picture(self, number: int, row: Body) -> Picture:
        before = self.pictures[number].file if number < len(self.pictures) else None
        return Picture(row["seed"], base64.b64decode(row["file"]) if "file" in row else before, row["name"])


def _check_loras(job: MirroredJob, loras: JobLoras | None) -> None:
    """Check that the names of a job's LoRAs mean what they meant when it was accepted.

    Raises:
        RequestError: one does not.
    """
    for one in () if loras is None else loras.used:
        if (accepted := job.lora_digests.get(one.name, one.digest)) != one.digest:
            raise invalid(
                "loras",
                f"loras: {one.name} was {accepted[:12]} when the job was accepted, and is {one.digest[:12]} now that it is to be drawn "
                "again by another process; send the request again to draw with that",
            )


# --- the old process


class JobTeller:
    """Tells the other process about all jobs of a store."""

    def __init__(self, store: JobStore, channel: Channel, bridge: Bridge) -> None:
        self._store = store
        self._bridge = bridge
        self._sending = asyncio.Lock()
        """A job is told whole before another one, or the same by another caller."""
        self._channel = channel
        self._told: dict[str, Told] = {}

    async def tell(self) -> None:
        """Send what has changed since the last call, at first everything, also the pictures that jobs keep, without holding up requests."""
        for ended_ago, job in self._news():
            async with self._sending:
                await self._send(job, ended_ago)
            await self._channel.drained(_SEND_SECONDS)

    def _news(self) -> list[tuple[float, Job]]:
        jobs = [*self._store.ended, *((0.0, job) for job in self._store.unsettled)]
        jobs.sort(key=lambda found: found[1].created)  # a client's jobs are listed in the order in which they came
        return [(ended_ago, job) for ended_ago, job in jobs if self._is_news(job)]

    def _is_news(self, job: Job) -> bool:
        told = self._told.get(job.id)
        return told is None or (not told.is_over and told.revision != job.revision)

    async def _send(self, job: Job, ended_ago: float) -> None:
        if not self._is_news(job):
            return  # told meanwhile
        is_new = job.id not in self._told
        file = await self._file(job) if is_new else None
        told = self._told.setdefault(job.id, Told())
        told.revision, told.is_over = job.revision, job.state.is_final
        body = {"job": job.id, **state_of(job, told)}
        if is_new:
            body["new"] = described(job)
            body["ended_ago"] = ended_ago
        self._channel.send(body, () if file is None else (file.fileno(),))
        if file is not None:
            file.close()
            await self._channel.flushed(_SEND_SECONDS)  # else the pixels of many would be there twice

    async def _file(self, job: Job) -> BinaryIO | None:
        if (source := needed_source(job)) is None:
            return None
        try:
            return await self._bridge.run("encode", source_file, source)
        except (OSError, RuntimeError):  # without its image, the job is not drawn again
            return None


# --- the new process


class _Known:
    """Says whether the history has an image that the old process has named: it may not know it yet, but once it did, it knows
    better."""

    def __init__(self, history: History | None) -> None:
        self._history = history
        self._seen: set[str] = set()

    def __call__(self, name: str) -> bool:
        if self._history is None:
            return False
        if self._history.has(name):
            self._seen.add(name)
        return name not in self._seen or self._history.has(name)


class JobMirror:
    """Keeps the jobs of the old process in the store of this one."""

    def __init__(self, queue: GenerationQueue, history: History | None, channel: Channel, bridge: Bridge) -> None:
        self._queue = queue
        self._bridge = bridge
        self._history = history
        self._channel = channel
        self._jobs: dict[str, MirroredJob] = {}
        self._attended: set[str] = set()
        """Those whose clients are connected to the old process."""
        self._redrawing: set[asyncio.Task[None]] = set()

    async def note(self, body: Body, fds: Sequence[int] = ()) -> None:
        """Take over what the old process says of a job, with the descriptors that came with it, which stay the caller's.

        Raises:
            KeyError, ValueError, TypeError, OSError: it is not that.
        """
        job = self._jobs.get(body["job"])
        if job is None:
            if "new" in body:  # else it was cancelled here
                self._add(body, await self._source(body["new"], fds))
            return
        if body.get("error", {}).get("code") == "shutting_down" and job.id not in self._attended:
            return  # it waited for a version that was not loaded there: it is drawn here, as those that were not ended
        known = {picture.name for picture in job.pictures}
        if self._history is not None and any(row["name"] not in {None, *known} for row in body["pictures"]):
            await self._history.look_now()  # else it would not know the picture for some seconds
        job.show(body)

    async def _source(self, new: Body, fds: Sequence[int]) -> Source | None:
        """Return the image that a job changes, if it came."""
        if not fds or (about := new.get("source")) is None:
            return None
        return await self._bridge.run("encode", read_source_file, about, os.fdopen(os.dup(fds[0]), "rb"))

    def _add(self, body: Body, source: Source | None) -> None:
        job = MirroredJob(body["new"], self._cancel, self._settle, source)
        job.has_image = _Known(self._history)
        if JobState(body["state"]).is_final:
            job.show(body)
            self._queue.jobs.adopt(job, float(body.get("ended_ago", 0.0)))
            return
        self._jobs[job.id] = job
        if body["new"]["attended"]:
            self._attended.add(job.id)
        self._queue.jobs.add(job)
        job.show(body)

    def tell_watched(self) -> None:
        """Tell the old process which jobs a client of this one watches: previews are made for those alone."""
        for job in self._jobs.values():
            if job.is_watched and job.state is JobState.RUNNING:
                self._channel.send({"watched": job.id})

    def _settle(self, job: Job) -> None:
        if self._jobs.pop(job.id, None) is not None:
            self._queue.jobs.settle(job)

    def _cancel(self, job: Job) -> None:
        self._channel.send({"cancel": job.id})

    def redraw(self) -> None:
        """Draw all jobs that have not ended: the old process has."""
        for job in list(self._jobs.values()):
            has_lost_source = job.source is None and (job.source_digest or job.control_digest) is not None
            if job.id in self._attended or has_lost_source:  # its client has lost its connection
                job.fail(_LOST)
                continue
            _log.warning("%s was not ended by the process that was taken over; it is drawn again", job.id)
            job.wait_again()
            task = asyncio.create_task(self._redraw(job), name="redraw")
            self._redrawing.add(task)
            task.add_done_callback(self._redrawing.discard)

    async def _redraw(self, job: MirroredJob) -> None:
        """Draw a job by another one, and show what becomes of that."""
        again = await self._submitted(job)
        told = Told()
        while again is not None and not job.state.is_final:
            coming = again.changes.next()
            if job.is_cancelled:
                break
            again.note_poll()
            if again.state is not JobState.QUEUED or again.position != job.position:
                job.has_image = again.has_image
                job.show(state_of(again, told))
            if again.state.is_final:
                break
            with suppress(TimeoutError):
                async with asyncio.timeout(_AGAIN_SECONDS):
                    await asyncio.shield(coming)
        if again is not None and job.is_cancelled:
            self._queue.cancel(again)
        job.fail(_LOST)  # ignored if it has ended

    async def _submitted(self, job: MirroredJob) -> Job | None:
        """Return the job that draws it; None if it was cancelled, or cannot be drawn."""
        end = time.monotonic() + _MOST_AGAIN_SECONDS
        while not job.is_cancelled:
            try:
                loras = await self._queue.loras.opened(job.request.loras)
                _check_loras(job, loras)
                return self._queue.submit(
                    job.request,
                    attended=False,
                    keeps_files=job.keeps_files,
                    client=job.client,
                    source=job.source,
                    loras=loras,
                )
            except RequestError as error:
                if error.status not in (429, 503) or error.code == "shutting_down" or time.monotonic() > end:
                    job.fail(error)
                    return None
            await asyncio.sleep(_AGAIN_SECONDS)
        return None

    async def stop(self) -> None:
        """Draw nothing again any more."""
        for task in self._redrawing:
            task.cancel()
        await asyncio.gather(*self._redrawing, return_exceptions=True)
