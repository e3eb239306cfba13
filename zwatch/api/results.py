"""What clients are told of a job and its pictures, as JSON."""

import base64
from typing import Any

from zwatch.api.answers import encoded, error_object
from zwatch.generation.image_files import data_url
from zwatch.generation.job import Finished, Job, JobState, Picture


def finished_body(job: Job, finished: Finished) -> bytes:
    """Return the JSON of a finished job with its pictures inside.

    It has megabytes of base64, which needs no escaping: joined here, in a thread and image by image, so that the event
    loop never waits for it.
    """
    images = [
        b'%b, "b64_json": "%b"}' % (encoded(picture_view(job, number))[:-1], base64.b64encode(picture.file or b""))
        for number, picture in enumerate(finished.pictures)
    ]
    return b'%b, "images": [%b]}' % (encoded(_finished_view(job, finished))[:-1], b", ".join(images))


def served_headers(job: Job, finished: Finished) -> dict[str, str]:
    """Return the headers that say what made a job's first picture."""
    return {
        "X-Zwatch-Version": finished.key.version,
        "X-Zwatch-Digest": str(finished.key.digest),
        "X-Zwatch-Seed": str(job.request.seed),
        "X-Zwatch-Job": job.id,
    }


def job_view(job: Job) -> dict[str, Any]:
    """Return a job: where it stands, and what came of it. Its pictures are named by URL."""
    view: dict[str, Any] = {"id": job.id, "state": job.state.value, "step": job.step, "steps": job.steps}
    if job.state is JobState.QUEUED:
        view["position"] = job.position
    if job.state is JobState.RUNNING:
        view["preview"] = None if job.preview is None else data_url(job.preview)
    if job.error is not None:
        view["error"] = error_object(job.error)
    if job.finished is not None:
        pictures = [picture_view(job, number) for number in range(len(job.finished.pictures))]
        view |= {**_finished_view(job, job.finished), "images": pictures}
    return view


def picture_view(job: Job, number: int) -> dict[str, Any]:
    """Return a picture of a finished job without its bytes: its seed, its name in the history, and where it can be
    fetched; null where it is not kept."""
    assert job.finished is not None  # asked only then
    picture = job.finished.pictures[number]
    return {"seed": picture.seed, "name": picture.name, "url": picture_url(job, number, picture)}


def picture_url(job: Job, number: int, picture: Picture) -> str | None:
    """Return where a picture can be fetched: from the history, else from the job itself while that keeps it."""
    if picture.name is not None:
        return f"/history/{picture.name}"
    return f"/jobs/{job.id}/images/{number}" if job.keeps_files and picture.file is not None else None


def _finished_view(job: Job, finished: Finished) -> dict[str, Any]:
    return {
        "id": job.id,
        "version": finished.key.version,
        "digest": finished.key.digest,
        "model": job.request.model,
        "truncated": finished.truncated,
        "timings": {name: round(seconds, 4) for name, seconds in finished.timings.items()},
    }
