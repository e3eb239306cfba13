"""Jobs and their pictures as JSON."""

import base64
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from zwatch.api.answers import encoded, error_object
from zwatch.api.schema import (
    Base64,
    Digest,
    ErrorObject,
    Fraction,
    Number,
    Seconds,
    ShareName,
    SignerName,
    Time,
    VersionName,
    choice,
)
from zwatch.api.views import time_text
from zwatch.generation.comparison import Comparison
from zwatch.generation.image_files import data_url
from zwatch.generation.job import Job
from zwatch.generation.job_events import Finished, JobState, Picture
from zwatch.generation.kept_image import LoraView
from zwatch.generation.picture_settings import LoraFound, loras_of
from zwatch.generation.request import ImageFormat

if TYPE_CHECKING:
    from zwatch.engine.parameters import GenerationParameters

FormatName = Annotated[str, choice(*(image_format.value for image_format in ImageFormat))]
SourceDigest = Annotated[
    str,
    Field(pattern="^[0-9a-f]{64}$", description="blake3 of the file of the image that is changed; null if none is."),
]
JobStateName = Annotated[str, choice(*(state.value for state in JobState))]


class Timings(TypedDict):
    """How long each phase of a request took; `total` is from acceptance to the result."""

    queue: Seconds
    encode: Seconds
    denoise: Seconds
    decode: Seconds
    write: Seconds
    total: Seconds


class PictureView(TypedDict):
    """A picture of a job; `name` is null if it is not in the history, `url` if it can no longer be fetched."""

    seed: Number
    name: str | None
    url: str | None


class PictureWithFile(PictureView):
    """A picture, with its file in base64."""

    b64_json: Base64


class Result(TypedDict):
    """The result of a job; `model` is as requested, `truncated` says that the prompt was too long and was cut; `control` and
    `control_scale` are null where no image guided."""

    id: str
    version: VersionName
    digest: Digest | None
    signer: SignerName | None
    share: ShareName | None
    model: str
    width: Number
    height: Number
    truncated: bool
    loras: list[LoraView]
    control: SourceDigest | None
    control_scale: float | None
    timings: Timings


class Generated(Result):
    """The result of a request, with its pictures."""

    images: list[PictureWithFile]


class Accepted(TypedDict):
    """An accepted job; `position` other jobs are before it. `jobs` are the ids of those of a comparison, `source` is the digest of
    the image that is changed, if one is, `control` of that which guides, if one does."""

    id: str
    state: JobStateName
    position: Number
    jobs: NotRequired[list[str]]
    source: NotRequired[SourceDigest]
    control: NotRequired[SourceDigest]


class AskedView(TypedDict):
    """What a job was asked for; the sides are null until it is known which version draws it, `strength` where no image is changed,
    `mask_blur` where there is no mask, and `control_scale` where no image guides."""

    prompt: str
    negative_prompt: str
    width: Number | None
    height: Number | None
    steps: Number
    guidance_scale: float
    seed: Number
    n: Number
    format: FormatName
    quality: Number
    model: str
    loras: list[LoraFound]
    source: SourceDigest | None
    strength: Fraction | None
    mask: bool
    mask_blur: Number | None
    control: SourceDigest | None
    control_scale: float | None


class JobView(TypedDict):
    """The state of a job: `position` while it waits; while it runs `preview` (a data URL of a JPEG) and the estimated seconds
    that are `remaining`, null before the first step; the version from when it runs; `images` that are stored so far; `error` if
    it failed or was cancelled; the other optional fields when it is done."""

    id: str
    state: JobStateName
    created: Time
    request: AskedView
    step: Number
    steps: Annotated[int, Field(ge=1)]
    position: NotRequired[Number]
    preview: NotRequired[str | None]
    remaining: NotRequired[Seconds | None]
    images: list[PictureView]
    error: NotRequired[ErrorObject]
    version: NotRequired[VersionName]
    digest: NotRequired[Digest | None]
    signer: NotRequired[SignerName | None]
    share: NotRequired[ShareName | None]
    model: NotRequired[str]
    width: NotRequired[Number]
    height: NotRequired[Number]
    truncated: NotRequired[bool]
    loras: NotRequired[list[LoraView]]
    control: NotRequired[SourceDigest | None]
    control_scale: NotRequired[float | None]
    timings: NotRequired[Timings]


def finished_body(job: Job, finished: Finished) -> bytes:
    """Return the JSON of a finished job with its pictures. To be called in a thread: it is megabytes of base64.

    Base64 needs no JSON escaping, so the parts are joined as bytes, which is faster than encoding one large object.
    """
    images = [
        b'%b, "b64_json": "%b"}' % (encoded(picture_view(job, number))[:-1], base64.b64encode(picture.file or b""))
        for number, picture in enumerate(finished.pictures)
    ]
    return b'%b, "images": [%b]}' % (encoded(_result(job, finished))[:-1], b", ".join(images))


def failed_fields(what: object) -> dict[str, str]:
    """Return what an answer says beside the error of a job, or of the job with which a comparison failed: the `version` that was to
    draw it, and the `share` by which it was. Nothing if no version began to draw it."""
    job = what.failed if isinstance(what, Comparison) else what
    if not isinstance(job, Job) or job.key is None:
        return {}
    return {"version": job.key.version, **({} if job.by_share is None else {"share": job.by_share})}


def failed_headers(what: object) -> dict[str, str]:
    """Return `failed_fields` as headers."""
    return {f"X-Zwatch-{name.capitalize()}": value for name, value in failed_fields(what).items()}


def served_headers(job: Job, finished: Finished) -> dict[str, str]:
    """Return the headers that identify the version, the seed of the first picture, and the job."""
    signed = {} if job.signer is None else {"X-Zwatch-Signer": job.signer}
    shared = {} if job.by_share is None else {"X-Zwatch-Share": job.by_share}
    loras = ", ".join(f"{lora.name}:{lora.scale:g}:{lora.digest}" for lora in finished.parameters.loras)
    return {
        "X-Zwatch-Version": finished.key.version,
        "X-Zwatch-Digest": str(finished.key.digest),
        **({"X-Zwatch-Loras": loras} if loras else {}),
        **signed,
        **shared,
        "X-Zwatch-Seed": str(job.request.seed),
        "X-Zwatch-Width": str(finished.parameters.image_size[0]),
        "X-Zwatch-Height": str(finished.parameters.image_size[1]),
        "X-Zwatch-Job": job.id,
    }


def job_view(job: Job, *, with_preview: bool = True) -> JobView:
    """Return the state of a job, and its result with pictures by URL."""
    view: JobView = {
        "id": job.id, "state": job.state.value, "created": time_text(job.created), "request": asked_view(job),
        "step": job.step, "steps": job.steps, "images": [picture_view(job, number) for number in range(len(job.pictures))],
    }  # fmt: skip
    if job.state is JobState.QUEUED:
        view["position"] = job.position
    if job.state is JobState.RUNNING:
        view["preview"] = None if job.preview is None or not with_preview else data_url(job.preview)
        view["remaining"] = None if job.remaining is None else round(job.remaining, 2)
    if job.key is not None:
        view["version"], view["digest"], view["signer"] = job.key.version, job.key.digest, job.signer
        view["share"] = job.by_share
    if job.parameters is not None:
        view["loras"] = lora_views(job.parameters)
    if job.error is not None:
        view["error"] = error_object(job.error)
    if job.finished is not None:
        view = {**view, **_result(job, job.finished)}
    return view


def picture_view(job: Job, number: int) -> PictureView:
    """Return picture `number` of a job, without its file."""
    picture = job.pictures[number]
    return {"seed": picture.seed, "name": job.stored_name(picture), "url": picture_url(job, number, picture)}


def picture_url(job: Job, number: int, picture: Picture) -> str | None:
    """Return the path of a picture: in the history, else of the job while it keeps the file, else None. What is answered exists
    at that moment."""
    if (name := job.stored_name(picture)) is not None:
        return f"/history/{name}"
    return f"/jobs/{job.id}/images/{number}" if job.keeps_files and picture.file is not None else None


def picture_name(job: Job, number: int) -> str:
    """Return the file name of a picture of a job: as in the history, or as it would be there."""
    picture = job.pictures[number]
    return picture.name or f"{job.created:%Y%m%d_%H%M%S}_seed{picture.seed}.{job.request.format.suffix}"


def disposition(name: str) -> dict[str, str]:
    """Return the header by which clients save an image under this name (`curl -OJ`), and browsers still show it."""
    return {"Content-Disposition": f'inline; filename="{name}"'}


def asked_view(job: Job) -> AskedView:
    """Return what a job was asked for."""
    asked, known = job.request, job.parameters
    return {
        "prompt": asked.prompt,
        "negative_prompt": asked.negative_prompt,
        "width": asked.width if known is None else known.width,
        "height": asked.height if known is None else known.height,
        "steps": asked.steps,
        "guidance_scale": asked.guidance_scale,
        "seed": asked.seed,
        "n": asked.n,
        "format": asked.format.value,
        "quality": asked.quality,
        "model": asked.model,
        "loras": loras_of(asked),
        "source": job.source_digest,
        "strength": None if job.source_digest is None else asked.strength,
        "mask": job.has_mask,
        "mask_blur": asked.mask_blur if job.has_mask else None,
        "control": job.control_digest,
        "control_scale": None if job.control_digest is None else asked.control_scale,
    }


def lora_views(parameters: "GenerationParameters") -> list[LoraView]:
    """Return the LoRAs that images are drawn with."""
    return [{"name": lora.name, "scale": lora.scale, "digest": lora.digest} for lora in parameters.loras]


class ControlView(TypedDict):
    """The digest of the image that guided, and how strongly it did; null if none did."""

    control: SourceDigest | None
    control_scale: float | None


def control_view(parameters: "GenerationParameters") -> ControlView:
    """Return what guided images."""
    found = parameters.control
    return {
        "control": None if found is None else found.digest,
        "control_scale": None if found is None else found.scale,
    }


def _result(job: Job, finished: Finished) -> Result:
    return {
        "id": job.id,
        "version": finished.key.version,
        "digest": finished.key.digest,
        "signer": job.signer,
        "share": job.by_share,
        "model": job.request.model,
        "width": finished.parameters.image_size[0],
        "height": finished.parameters.image_size[1],
        "truncated": finished.truncated,
        "loras": lora_views(finished.parameters),
        **control_view(finished.parameters),
        "timings": timings_view(finished.timings),
    }


def timings_view(timings: Mapping[str, float]) -> Timings:
    """Return how long each phase took, in seconds."""
    return {
        "queue": round(timings["queue"], 4),
        "encode": round(timings["encode"], 4),
        "denoise": round(timings["denoise"], 4),
        "decode": round(timings["decode"], 4),
        "write": round(timings["write"], 4),
        "total": round(timings["total"], 4),
    }
