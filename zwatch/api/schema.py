"""The types that describe calls, and the common types of requests and answers.

Request bodies are pydantic models. Answers are `TypedDict`s, which mypy checks where they are built. The OpenAPI document
is made from the same types. The table of calls is in `routes`, AUTOMATIC1111's part in `a1111.table`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from aiohttp.typedefs import Handler
from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, WithJsonSchema, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from typing_extensions import TypedDict

JSON = "application/json"
FORM = "multipart/form-data"
EVENT_STREAM = "text/event-stream"
COOKIE = "zwatch"
"""The name of the session cookie."""
MARK_COOKIE = "zwatch-token"
"""The name of one that the page can read: it only says that there is a token, which copied `curl` commands have to send."""
_DETAILED = "/sdapi/"
"""Clients of the calls below this path look for an error's message in `detail`."""

# Types of fields in answers.
Seconds = Annotated[float, WithJsonSchema({"type": "number", "minimum": 0, "description": "Seconds."})]
ByteCount = Annotated[int, WithJsonSchema({"type": "integer", "minimum": 0, "description": "Bytes."})]
Number = Annotated[int, WithJsonSchema({"type": "integer", "minimum": 0})]
Fraction = Annotated[float, WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1})]
Base64 = Annotated[str, WithJsonSchema({"type": "string", "contentEncoding": "base64"})]
VersionName = Annotated[str, Field(description="A version's name.")]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="blake3 of the version's seal.")]
SignerName = Annotated[
    str, Field(description="Who signed it, as was verified; null where `--require-signature` is not given.")
]
ShareName = Annotated[
    str,
    Field(description="The share by which the version was chosen, such as `current@10`; null if it was not by one."),
]
Time = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time", "description": "UTC, to the second."})]
Null = Annotated[None, WithJsonSchema({"type": "null"})]

IMAGE_HEADERS = {
    "X-Zwatch-Version": "With images: the version that made them.",
    "X-Zwatch-Digest": "With images: the version's digest.",
    "X-Zwatch-Signer": "With images: who signed the version, where a signature is required.",
    "X-Zwatch-Share": "With images: the share by which that version was chosen, such as `current@10`.",
    "X-Zwatch-Seed": "With images: the seed of the first.",
    "X-Zwatch-Width": "With images: their width, pixels.",
    "X-Zwatch-Height": "With images: their height, pixels.",
    "X-Zwatch-Job": "With images: the id of the job.",
}
"""Headers of an answer that has images."""


def choice(*values: str) -> WithJsonSchema:
    """Return the annotation of a string that is one of these."""
    return WithJsonSchema({"type": "string", "enum": list(values)})


class Request(BaseModel):
    """The body of a native call. Unknown fields are refused, so that a misspelled one is noticed."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class LenientRequest(BaseModel):
    """The body of a call for clients of other services. Null stands for a field's default; unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, body: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in body.items() if value is not None}

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        found = handler.resolve_ref_schema(handler(schema))
        required = found.get("required", ())
        found["properties"] = {
            name: field if name in required else _or_null(field) for name, field in found["properties"].items()
        }
        return found


def _or_null(field: JsonSchemaValue) -> JsonSchemaValue:
    kept: dict[str, Any] = {name: field[name] for name in ("description", "default", "examples") if name in field}
    rule = {name: value for name, value in field.items() if name not in kept}
    options = rule.get("anyOf", [rule])
    return {"anyOf": [one for one in options if one != {"type": "null"}] + [{"type": "null"}], **kept}


class ErrorObject(TypedDict):
    """An error; `param` is the name of the field in question, `code` is stable."""

    message: str
    type: str
    param: str | None
    code: str


class Error(TypedDict):
    """The body of an error answer."""

    error: ErrorObject


class DetailedError(TypedDict):
    """The body of an error answer to AUTOMATIC1111 calls; `detail` repeats the message."""

    error: ErrorObject
    detail: str


class Rejected(TypedDict, total=False):
    """The body of a 409: the version was rejected; `reason` is the attempt, or what was found."""

    error: ErrorObject
    reason: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer of a call. `body` is the type of its JSON; `media_types` are others, whose content has no schema."""

    description: str
    body: Any = None
    media_types: Sequence[str] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    """Descriptions of headers by name."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Calls that take the answer's `id`: the parameter by the call's name."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter in a call's path, query or headers. `rule` is its type."""

    name: str
    description: str
    rule: Any = str
    default: Any = None
    example: str | None = None
    place: Literal["query", "header"] = "query"
    """Where it is, unless the call's path has it."""
    required: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the API, from which its route and its part of the document are made.

    `errors` are the statuses of its own errors; the document adds those that all calls share.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    handler: Handler
    tag: str
    name: str
    summary: str
    answers: Mapping[int, Answer]
    errors: Sequence[int] = ()
    body: type[BaseModel] | None = None
    body_required: bool = True
    takes_file: bool = False
    """Whether its body is a file."""
    parameters: Sequence[Parameter] = ()
    is_open: bool = False
    """Whether it needs no token."""
    checks_host: bool = True
    error_texts: Mapping[int, str] = field(default_factory=dict)
    """Descriptions of errors by status, where they differ from other calls."""

    @property
    def error_body(self) -> type:
        """The type of an error answer's body."""
        return DetailedError if has_detail(self.path) else Error

    @property
    def streams(self) -> bool:
        """Whether it answers with nothing but a stream of server-sent events; then HEAD is not allowed."""
        return any(answer.media_types == (EVENT_STREAM,) for answer in self.answers.values())


def has_detail(path: str) -> bool:
    """Return whether error answers below this path repeat their message in `detail`."""
    return path.startswith(_DETAILED)
