"""What the tools take and answer. The service judges the values: its sentences name the field and what to do."""

import json
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MOST_PICTURES = 4
"""Of one call: more would be too small in one result."""


def _parsed(value: object) -> object:
    """Return a list or an object that a client sent as text of JSON, as some do."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


class Arguments(BaseModel):
    """The arguments of a tool. An unknown one is an error: a size that is silently ignored misleads an agent."""

    model_config = ConfigDict(extra="forbid")


class NoArguments(Arguments):
    """None."""


class Lora(Arguments):
    """A LoRA to draw with."""

    name: str = Field(description="A name that list_loras answers.")
    scale: float = Field(1.0, description="How strong it is; 1 is as trained.")


class DrawArguments(Arguments):
    """What to draw."""

    prompt: str = Field(description="What the picture shows, in English or Chinese.")
    width: int | None = Field(None, description="Pixels, a multiple of 16. The model's own size if left out.")
    height: int | None = Field(None, description="Pixels, a multiple of 16. The model's own size if left out.")
    steps: int | None = Field(None, description="Denoising steps; 8 if left out, which is right for a turbo model.")
    seed: int | None = Field(
        None, description="The same seed, prompt, version and size give the same picture; random if left out."
    )
    n: int = Field(1, ge=1, le=MOST_PICTURES, description="How many pictures; picture i uses seed + i.")
    model: str | None = Field(
        None, description="An alias or a resident version that list_versions answers; `current` if left out."
    )
    loras: Annotated[list[Lora], BeforeValidator(_parsed)] = Field(default=[], description="LoRAs to draw with.")
    save_as: str | None = Field(
        None,
        description="A .png, .jpg or .webp file to write, in the directory that the user allowed; several are numbered. No file is replaced.",
    )


class GuidedArguments(DrawArguments):
    """What to draw, and what guides it."""

    control_image: str | None = Field(
        None,
        description="A picture of edges, a pose, depth or the like that the new one follows: history:NAME, a data URL, or a file in the directory "
        "that the user allowed. Needs a version with a controlnet, as get_status shows.",
    )
    control_scale: float | None = Field(
        None, description="How strongly it guides: 0 not at all, 1 fully, at most 2; 0.75 if left out."
    )


class EditArguments(DrawArguments):
    """What to change, in which picture."""

    prompt: str = Field(description="What the whole picture shows afterwards, not only the change.")
    image: str = Field(
        description="The picture to change: history:NAME as an earlier result has it, a data URL, or a file in the directory that the user allowed."
    )
    mask: str | None = Field(
        None, description="As image: what is white in it is painted anew, what is black stays. Without it all changes."
    )
    strength: float | None = Field(
        None, description="How much is changed: 0 nothing, 1 everything; 0.6 if left out. 0.3 keeps the composition."
    )
    mask_blur: int | None = Field(None, description="How soft the mask's edge is, pixels; 0 if left out.")


class DeployArguments(Arguments):
    """What to deploy."""

    version: str = Field(description="A version that list_versions answers.")
    alias: str = Field("current", description="The link to repoint.")


class RollbackArguments(Arguments):
    """What to roll back."""

    alias: str = Field("current", description="The link to repoint.")


class Answer(BaseModel):
    """What a tool answers, of what the service answered."""


class DrawnPicture(Answer):
    """A picture that was drawn."""

    seed: int
    version: str = Field(description="The version that drew it.")
    image: str | None = Field(description="What edit_image takes as image; null where no history is kept.")
    url: str | None = Field(description="Where the picture is in full size, as long as the service keeps it.")
    file: str | None = Field(description="Where it was written.")


class UsedLora(Answer):
    """A LoRA that pictures were drawn with."""

    name: str
    scale: float
    digest: str


class Drawn(Answer):
    """What was drawn. The copies beside it are scaled down if the pictures are large."""

    pictures: list[DrawnPicture]
    width: int = Field(description="Pixels, in full size.")
    height: int
    loras: list[UsedLora]
    truncated: bool = Field(description="The end of the prompt had no effect, because it is too long.")
    seconds: float


class Version(Answer):
    """A version of the model."""

    name: str
    serving: bool
    resident: bool = Field(description="It is in memory, and can be named as model.")
    aliases: list[str] = Field(description="The links that point to it.")
    digest: str | None
    bytes: int
    problem: str | None = Field(description="Why it cannot be deployed.")


class Versions(Answer):
    """All versions."""

    versions: list[Version]


class KnownLora(Answer):
    """A LoRA that requests may name."""

    name: str
    digest: str | None
    rank: int | None = None
    problem: str | None = Field(None, description="Why it cannot be used.")


class Loras(Answer):
    """All LoRAs."""

    loras: list[KnownLora]


class Fault(Answer):
    """What is wrong with a link."""

    code: str
    message: str


class Attempt(Answer):
    """The last try to bring a version into service."""

    version: str
    state: str
    reason: str | None
    progress: float | None


class Alias(Answer):
    """A link that the service follows."""

    link: str | None
    serving: str | None
    fault: Fault | None
    attempt: Attempt | None


class Serving(Answer):
    """What serves `current`."""

    version: str
    digest: str | None
    since: str
    images: int
    default_size: int = Field(description="Side of a picture if none is asked for, pixels.")
    max_size: int


class Queue(Answer):
    """The requests."""

    waiting: int
    running: int
    limit: int


class Status(Answer):
    """The state of the service."""

    status: str = Field(description="ok, degraded or unavailable")
    reasons: list[str]
    serving: Serving | None
    aliases: dict[str, Alias]
    queue: Queue


class Deployed(Answer):
    """How a deploy ended."""

    message: str
    version: str | None
    seconds: float


def schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return a model's JSON schema, as what is read or, of an answer, as what is written."""
    return model.model_json_schema(mode="serialization" if issubclass(model, Answer) else "validation")
