"""Jobs as JSON, for another process: what never changes of them, and their state."""

import base64
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from zwatch.generation.job import Job
from zwatch.generation.request import GenerateRequest
from zwatch.handover.sources import about_source

if TYPE_CHECKING:
    from zwatch.engine.parameters import GenerationParameters

Body = dict[str, Any]
"""What the channel carries: JSON."""


class Told:
    """What the other process knows of a job."""

    def __init__(self) -> None:
        self.revision, self.previews = -1, 0
        self.files: set[int] = set()
        self.is_over = False


def described(job: Job) -> Body:
    """Return what never changes of a job."""
    return {
        "id": job.id,
        "request": job.request.model_dump(mode="json", include=set(GenerateRequest.model_fields), exclude_none=True),
        "created": job.created.isoformat(),
        "age": job.age,
        "steps": job.steps,
        "request_id": job.request_id,
        "client": job.client_name,
        "client_key": job.client,
        "attended": job.attended,
        "keeps_files": job.keeps_files,
        "work": job.work,
        "source": about_source(job),
        "loras": job.lora_digests if job.loras is None else {one.name: one.digest for one in job.loras.used},
    }


def state_of(job: Job, told: Told) -> Body:
    """Return the state of a job; its preview and its files only if they were not sent before."""
    body: Body = {"state": job.state.value, "position": job.position, "step": job.step, "pictures": []}
    if job.preview is not None and job.previews > told.previews:
        body["preview"] = base64.b64encode(job.preview).decode()
    for number, picture in enumerate(job.pictures):
        name = job.stored_name(picture)
        row: Body = {"seed": picture.seed, "name": name}
        # Of a job whose client waits, the answer has the files.
        if name is None and job.keeps_files and picture.file is not None and number not in told.files:
            row["file"] = base64.b64encode(picture.file).decode()
            told.files.add(number)
        body["pictures"].append(row)
    if job.key is not None:
        body["key"], body["signer"], body["by_share"] = [job.key.version, job.key.digest], job.signer, job.by_share
    if job.parameters is not None:
        body["parameters"] = asdict(job.parameters)
    if job.finished is not None:
        body["finished"] = {"truncated": job.finished.truncated, "timings": job.finished.timings}
    if (error := job.error) is not None:
        body["error"] = {
            name: getattr(error, name) for name in ("code", "message", "status", "param", "headers", "extra")
        }
    if job.seconds is not None:
        body["seconds"] = job.seconds
    told.previews = job.previews
    return body


def parameters_of(body: Body) -> "GenerationParameters":
    """Return what images are made from, as `state_of` has it.

    Raises:
        KeyError, ValueError, TypeError: it is not that.
    """
    from zwatch.engine.parameters import ControlImage, GenerationParameters, InitialImage, UsedLora

    known = {field.name: body[field.name] for field in fields(GenerationParameters) if field.name in body}
    source = known.get("source")
    known |= {"seeds": tuple(known["seeds"]), "source": None if source is None else InitialImage(**source)}
    control = known.get("control")
    known["control"] = None if control is None else ControlImage(**control)
    known["loras"] = tuple(UsedLora(**lora) for lora in known.get("loras", ()))
    return GenerationParameters(**known)
