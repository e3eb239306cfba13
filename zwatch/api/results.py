"""What clients are told of a job and its pictures, as JSON."""

import base64
from typing import Annotated, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from zwatch.api.answers import encoded, error_object
from zwatch.api.schema import Base64, Digest, ErrorObject, Number, Seconds, VersionName, choice
from zwatch.generation.image_files import data_url
from zwatch.generation.job import Finished, Job, JobState, Picture

JobStateName = Annotated[str, choice(*(state.value for state in JobState))]


class Timings(TypedDict):
    """How long the phases took."""

    queue: Seconds
    encode: Seconds
    denoise: Seconds
    decode: Seconds
    write: Seconds
    total: Seconds


class PictureView(TypedDict):
    """A picture of a finished job; `name` is null where the history has it not, `url` where it can no longer be fetched."""

    seed: Number
    name: str | None
    url: str | None


class PictureWithFile(PictureView):
    """A picture with its file."""

    b64_json: Base64


class Result(TypedDict):
    """What came of a job; `model` is as the request had it, `truncated` says that the prompt was cut for its length."""

    id: str
    version: VersionName
    digest: Digest | None
    model: str
    truncated: bool
    timings: Timings


class Generated(Result):
    """What came of a request, with its pictures."""

    images: list[PictureWithFile]


class Accepted(TypedDict):
    """A job that waits; `position` others are before it."""

    id: str
    state: JobStateName
    position: Number


class JobView(TypedDict):
    """Where a job stands: `position` while it waits, `preview` (a data URL of a JPEG) while it runs, `error` if it failed
    or was cancelled, the rest when it is done."""

    id: str
    state: JobStateName
    step: Number
    steps: Annotated[int, Field(ge=1)]
    position: NotRequired[Number]
    preview: NotRequired[str | None]
    error: NotRequired[ErrorObject]
    version: NotRequired[VersionName]
    digest: NotRequired[Digest | None]
    model: NotRequired[str]
    truncated: NotRequired[bool]
    timings: NotRequired[Timings]
    images: NotRequired[list[PictureView]]


def finished_body(job: Job, finished: Finished) -> bytes:
    """Return the JSON of a finished job with its pictures inside.

    It has megabytes of base64, which needs no escaping: joined here, in a thread and image by image, so that the event
    loop never waits for it.
    """
    images = [
        b'%b, "b64_json": "%b"}' % (encoded(picture_view(job, number))[:-1], base64.b64encode(picture.file or b""))
        for number, picture in enumerate(finished.pictures)
    ]
    return b'%b, "images": [%b]}' % (encoded(_result(job, finished))[:-1], b", ".join(images))


def served_headers(job: Job, finished: Finished) -> dict[str, str]:
    """Return the headers that say what made a job's first picture."""
    return {
        "X-Zwatch-Version": finished.key.version,
        "X-Zwatch-Digest": str(finished.key.digest),
        "X-Zwatch-Seed": str(job.request.seed),
        "X-Zwatch-Job": job.id,
    }


def job_view(job: Job) -> JobView:
    """Return a job: where it stands, and what came of it. Its pictures are named by URL."""
    view: JobView = {"id": job.id, "state": job.state.value, "step": job.step, "steps": job.steps}
    if job.state is JobState.QUEUED:
        view["position"] = job.position
    if job.state is JobState.RUNNING:
        view["preview"] = None if job.preview is None else data_url(job.preview)
    if job.error is not None:
        view["error"] = error_object(job.error)
    if job.finished is not None:
        pictures = [picture_view(job, number) for number in range(len(job.finished.pictures))]
        view = {**view, **_result(job, job.finished), "images": pictures}
    return view


def picture_view(job: Job, number: int) -> PictureView:
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


def _result(job: Job, finished: Finished) -> Result:
    timings = finished.timings
    return {
        "id": job.id,
        "version": finished.key.version,
        "digest": finished.key.digest,
        "model": job.request.model,
        "truncated": finished.truncated,
        "timings": {
            "queue": round(timings["queue"], 4),
            "encode": round(timings["encode"], 4),
            "denoise": round(timings["denoise"], 4),
            "decode": round(timings["decode"], 4),
            "write": round(timings["write"], 4),
            "total": round(timings["total"], 4),
        },
    }
