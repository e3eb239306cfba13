"""OpenAI's images call on its way out: its objects and events, with what served beside what its clients look for."""

import base64
import time
from collections.abc import Iterable
from typing import Any

from zwatch.api.answers import encoded, error_object
from zwatch.api.openai.requests import in_their_words
from zwatch.errors import RequestError
from zwatch.generation.image_files import enlarged_preview
from zwatch.generation.job import Finished, Job
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.lifecycle import Resident

PARTIAL = "image_generation.partial_image"
COMPLETED = "image_generation.completed"
ERROR = "error"
_MADE = {"background": "opaque", "quality": "high"}
"""What holds for every image, whatever was asked for. The clients' types know no other words for one quality."""
_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}
"""Nobody counts tokens here, but some clients refuse an answer without every one of these."""


def images_body(job: Job, finished: Finished, urls: list[str] | None, *, files: bool) -> bytes:
    """Return the JSON of a finished job, with the `urls` of its pictures, with their files, or both. To be called in a
    thread, as `results.finished_body`."""
    data = []
    for number, picture in enumerate(finished.pictures):
        head = {"seed": picture.seed} if urls is None else {"seed": picture.seed, "url": urls[number]}
        data.append(_with_file(head, picture.file or b"") if files else encoded(head))
    return b'%b, "data": [%b]}' % (encoded({"created": _now(), **_made(job, finished)})[:-1], b", ".join(data))


def is_due(step: int, steps: int, sent: int, wanted: int) -> bool:
    """Say whether it is time for another partial image: they are spread evenly over the steps; one that is late makes
    no other one drop out."""
    return sent < wanted and step * (wanted + 1) >= steps * (sent + 1)


def partial_event(job: Job, number: int, preview: bytes) -> bytes:
    """Return the JSON of a partial image made from a preview. To be called in a thread."""
    file, (width, height) = enlarged_preview(preview, job.request.format)
    return _with_file(
        {
            "type": PARTIAL,
            "partial_image_index": number,
            "created_at": _now(),
            **_MADE,
            "output_format": job.request.format,
            "size": f"{width}x{height}",
            "id": job.id,
        },
        file,
    )


def completed_event(job: Job, finished: Finished) -> bytes:
    """Return the JSON of a finished job's one picture. To be called in a thread."""
    [picture] = finished.pictures
    head = {"type": COMPLETED, "created_at": _now(), **_made(job, finished), "seed": picture.seed}
    return _with_file(head, picture.file or b"")


def error_event(error: RequestError) -> bytes:
    """Return the JSON of an error in the middle of a stream."""
    return encoded({"type": ERROR, "error": error_object(in_their_words(error)), **error.extra})


def model_views(engines: EngineRegistry, aliases: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return every name that a request may give, as a model object: the aliases, then the resident versions."""
    views = {alias: _model_view(alias, engines.serving(alias)) for alias in aliases}
    for resident in engines.residents:
        name = resident.key.version
        if name not in views:
            views[name] = _model_view(name, engines.find(name))
    return views


def _model_view(name: str, resident: Resident | None) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": 0 if resident is None else int(resident.since.timestamp()),
        "owned_by": "zwatch",
        "version": None if resident is None else resident.key.version,
        "digest": None if resident is None else resident.key.digest,
    }


def _made(job: Job, finished: Finished) -> dict[str, Any]:
    return {
        **_MADE,
        "output_format": job.request.format,
        "size": f"{finished.parameters.width}x{finished.parameters.height}",
        "usage": _USAGE,
        "id": job.id,
        "version": finished.key.version,
        "digest": finished.key.digest,
        "model": job.request.model,
        "truncated": finished.truncated,
    }


def _with_file(head: dict[str, Any], file: bytes) -> bytes:
    """Return JSON with an image inside: megabytes of base64, which needs no escaping."""
    return b'%b, "b64_json": "%b"}' % (encoded(head)[:-1], base64.b64encode(file))


def _now() -> int:
    return int(time.time())
