"""Comparisons and their pictures as JSON: one answer with the images of several models, each with the version that drew it."""

import base64
from typing import NotRequired

from typing_extensions import TypedDict

from zwatch.api.answers import encoded, error_object
from zwatch.api.results import (
    AskedView,
    JobStateName,
    PictureView,
    SourceDigest,
    Timings,
    asked_view,
    control_view,
    lora_views,
    picture_view,
    timings_view,
)
from zwatch.api.schema import (
    Base64,
    Digest,
    ErrorObject,
    Number,
    Seconds,
    ShareName,
    SignerName,
    Time,
    VersionName,
)
from zwatch.api.views import time_text
from zwatch.generation.comparison import Comparison
from zwatch.generation.image_files import data_url
from zwatch.generation.job import Job
from zwatch.generation.job_events import JobState
from zwatch.generation.kept_image import LoraView


class ComparedPicture(PictureView):
    """A picture of a comparison: `model` as requested, and the version that drew it."""

    model: str
    version: VersionName
    digest: Digest | None
    signer: SignerName | None
    share: ShareName | None
    width: Number
    height: Number


class ComparedPictureWithFile(ComparedPicture):
    """A picture of a comparison, with its file in base64."""

    b64_json: Base64


class _ComparedResult(TypedDict):
    id: str
    jobs: list[str]
    model: list[str]
    truncated: bool
    loras: list[LoraView]
    control: SourceDigest | None
    control_scale: float | None
    timings: Timings


class Compared(_ComparedResult):
    """The result of a request to several models: the images of the first, then those of the next. `jobs` are the ids of their jobs,
    `truncated` says that a version cut the prompt, `timings` are summed, but `total`, which is that of the last."""

    images: list[ComparedPictureWithFile]


class ComparedRequestView(AskedView):
    """What a comparison was asked for."""

    models: list[str]


class ComparisonView(TypedDict):
    """The state of a comparison, as that of a job: `steps` are those of all models, `error` names the model that failed."""

    id: str
    jobs: list[str]
    state: JobStateName
    created: Time
    request: ComparedRequestView
    step: Number
    steps: Number
    position: NotRequired[Number]
    preview: NotRequired[str | None]
    remaining: NotRequired[Seconds | None]
    images: list[ComparedPicture]
    error: NotRequired[ErrorObject]
    model: NotRequired[list[str]]
    truncated: NotRequired[bool]
    loras: NotRequired[list[LoraView]]
    control: NotRequired[SourceDigest | None]
    control_scale: NotRequired[float | None]
    timings: NotRequired[Timings]


def compared_body(comparison: Comparison) -> bytes:
    """Return the JSON of a comparison that is done, with its pictures. To be called in a thread, as `results.finished_body`."""
    images = [
        b'%b, "b64_json": "%b"}' % (encoded(_picture(job, number))[:-1], base64.b64encode(picture.file or b""))
        for job in comparison.jobs
        for number, picture in enumerate(job.pictures)
    ]
    return b'%b, "images": [%b]}' % (encoded(_result(comparison))[:-1], b", ".join(images))


def comparison_view(comparison: Comparison) -> ComparisonView:
    """Return the state of a comparison, and its result with pictures by URL."""
    state, models = comparison.state, _models(comparison)
    view: ComparisonView = {
        "id": comparison.id, "jobs": [job.id for job in comparison.jobs], "state": state.value,
        "created": time_text(comparison.created), "request": {**asked_view(comparison.jobs[0]), "models": models},
        "step": comparison.step, "steps": comparison.steps,
        "images": [_picture(job, number) for job in comparison.jobs for number in range(len(job.pictures))],
    }  # fmt: skip
    if state is JobState.QUEUED:
        view["position"] = comparison.position
    if state is JobState.RUNNING:
        preview, remaining = comparison.preview, comparison.remaining
        view["preview"] = None if preview is None else data_url(preview)
        view["remaining"] = None if remaining is None else round(remaining, 2)
    if (error := comparison.error) is not None:
        view["error"] = error_object(error)
    if state is JobState.DONE:
        view = {**view, **_result(comparison)}
    return view


def _picture(job: Job, number: int) -> ComparedPicture:
    assert job.key is not None and job.parameters is not None  # noqa: PT018 (it has a picture)
    return {
        **picture_view(job, number),
        "model": job.request.model,
        "version": job.key.version,
        "digest": job.key.digest,
        "signer": job.signer,
        "share": job.by_share,
        "width": job.parameters.width,
        "height": job.parameters.height,
    }


def _result(comparison: Comparison) -> _ComparedResult:
    results = [job.finished for job in comparison.jobs if job.finished is not None]
    timings = {name: sum(one.timings[name] for one in results) for name in Timings.__annotations__}
    timings["total"] = max(one.timings["total"] for one in results)
    return {
        "id": comparison.id,
        "jobs": [job.id for job in comparison.jobs],
        "model": _models(comparison),
        "truncated": any(one.truncated for one in results),
        "loras": lora_views(results[0].parameters),
        **control_view(results[0].parameters),
        "timings": timings_view(timings),
    }


def _models(comparison: Comparison) -> list[str]:
    return [job.request.model for job in comparison.jobs]
