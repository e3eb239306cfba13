"""Answers and events of OpenAI's images API, with the serving version as additional fields."""

import base64
import time
from collections.abc import Mapping
from typing import Annotated, NamedTuple, NotRequired

from pydantic import Field, WithJsonSchema
from typing_extensions import TypedDict

from zwatch.api.answers import encoded, error_object
from zwatch.api.openai.requests import with_client_names
from zwatch.api.schema import Base64, Digest, Number, ShareName, VersionName, choice
from zwatch.errors import RequestError
from zwatch.generation.image_files import enlarged_preview
from zwatch.generation.job import Job
from zwatch.generation.job_events import Finished
from zwatch.generation.request import ImageFormat
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.lifecycle import Resident
from zwatch.rollout.supervisor import Supervisor


class EventNames(NamedTuple):
    """The types of the events of a stream."""

    partial: str
    completed: str


OF_GENERATION = EventNames("image_generation.partial_image", "image_generation.completed")
OF_EDIT = EventNames("image_edit.partial_image", "image_edit.completed")
ERROR = "error"
Zero = Annotated[int, WithJsonSchema({"type": "integer", "const": 0})]
_BACKGROUND, _QUALITY = "opaque", "high"
"""The same for every picture, whatever was requested. OpenAI's types allow only certain values for a quality."""
_USAGE: "Usage" = {
    "input_tokens": 0,
    "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}


class InputTokens(TypedDict):
    """Tokens are not counted."""

    text_tokens: Zero
    image_tokens: Zero


class Usage(TypedDict):
    """Tokens are not counted, but some clients require all of these fields."""

    input_tokens: Zero
    input_tokens_details: InputTokens
    output_tokens: Zero
    total_tokens: Zero


class ImagesMetadata(TypedDict):
    """What holds for all pictures of an answer; `id` is the job's, `model` the alias or version that the request came to,
    `truncated` says that the prompt was cut for its length."""

    background: Annotated[str, choice("opaque")]
    quality: Annotated[str, choice("high")]
    output_format: Annotated[str, choice(*ImageFormat)]
    size: Annotated[str, Field(pattern="^[0-9]+x[0-9]+$")]
    usage: Usage
    id: str
    version: VersionName
    digest: Digest | None
    share: ShareName | None
    model: str
    truncated: bool


class ImageData(TypedDict):
    """One picture: its file, where it can be fetched, or both."""

    seed: Number
    url: NotRequired[Annotated[str, WithJsonSchema({"type": "string", "format": "uri"})]]
    b64_json: NotRequired[Base64]


class ImagesAnswer(ImagesMetadata):
    """The pictures of a request; `created` is in seconds since 1970."""

    created: Number
    data: list[ImageData]


class Model(TypedDict):
    """A name that a request's `model` may give: an alias, or a resident version. `created` is in seconds since 1970, 0
    while an alias serves nothing."""

    id: str
    object: Annotated[str, choice("model")]
    created: Number
    owned_by: Annotated[str, choice("zwatch")]
    version: VersionName | None
    digest: Digest | None


class Models(TypedDict):
    """The aliases, then the resident versions."""

    object: Annotated[str, choice("list")]
    data: list[Model]


def images_body(job: Job, finished: Finished, urls: list[str] | None, *, files: bool) -> bytes:
    """Return the JSON of a finished job, with the `urls` of its pictures, with their files, or both. To be called in a
    thread, as `results.finished_body`."""
    data = []
    for number, picture in enumerate(finished.pictures):
        head: ImageData = {"seed": picture.seed}
        if urls is not None:
            head["url"] = urls[number]
        data.append(_with_file(head, picture.file or b"") if files else encoded(head))
    return b'%b, "data": [%b]}' % (encoded({"created": _now(), **_metadata(job, finished)})[:-1], b", ".join(data))


def is_due(step: int, steps: int, sent: int, wanted: int) -> bool:
    """Return whether the next of `wanted` partial images is due: they are spread evenly over the steps, and a late one does
    not replace another."""
    return sent < wanted and step * (wanted + 1) >= steps * (sent + 1)


def partial_event(job: Job, number: int, preview: bytes, names: EventNames) -> bytes:
    """Return the JSON of a partial image made from a preview. To be called in a thread."""
    file, (width, height) = enlarged_preview(preview, job.request.format)
    return _with_file(
        {
            "type": names.partial,
            "partial_image_index": number,
            "created_at": _now(),
            "background": _BACKGROUND,
            "quality": _QUALITY,
            "output_format": job.request.format,
            "size": f"{width}x{height}",
            "id": job.id,
        },
        file,
    )


def completed_event(job: Job, finished: Finished, names: EventNames) -> bytes:
    """Return the JSON of a finished job's one picture. To be called in a thread."""
    [picture] = finished.pictures
    head = {"type": names.completed, "created_at": _now(), **_metadata(job, finished), "seed": picture.seed}
    return _with_file(head, picture.file or b"")


def error_event(error: RequestError) -> bytes:
    """Return the JSON of an error event."""
    return encoded({"type": ERROR, "error": error_object(with_client_names(error)), **error.extra})


def model_views(supervisor: Supervisor, engines: EngineRegistry) -> dict[str, Model]:
    """Return a model object for every valid `model` of a request, by name: the aliases, then their shares, then the resident
    versions."""
    views = {name: _model_view(name, supervisor.traffic.find(name)) for name in supervisor.names}
    for resident in engines.residents:
        name = resident.key.version
        if name not in views:
            views[name] = _model_view(name, engines.find(name))
    return views


def _model_view(name: str, resident: Resident | None) -> Model:
    return {
        "id": name,
        "object": "model",
        "created": 0 if resident is None else int(resident.since.timestamp()),
        "owned_by": "zwatch",
        "version": None if resident is None else resident.key.version,
        "digest": None if resident is None else resident.key.digest,
    }


def _metadata(job: Job, finished: Finished) -> ImagesMetadata:
    return {
        "background": _BACKGROUND,
        "quality": _QUALITY,
        "output_format": job.request.format,
        "size": f"{finished.parameters.width}x{finished.parameters.height}",
        "usage": _USAGE,
        "id": job.id,
        "version": finished.key.version,
        "digest": finished.key.digest,
        "share": job.by_share,
        "model": job.request.model,
        "truncated": finished.truncated,
    }


def _with_file(head: Mapping[str, object], file: bytes) -> bytes:
    """Return JSON with an image added as base64, which needs no escaping."""
    return b'%b, "b64_json": "%b"}' % (encoded(head)[:-1], base64.b64encode(file))


def _now() -> int:
    return int(time.time())
