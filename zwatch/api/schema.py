"""The type of a call, the types that answers are made of, and the OpenAPI document of a table of calls.

A call's body is a pydantic model, its answers are `TypedDict`s, which mypy checks where they are built: the document is
made from the same types. `routes` has the table.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from aiohttp.typedefs import Handler
from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, TypeAdapter, WithJsonSchema, model_validator
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import CoreSchema, core_schema
from typing_extensions import TypedDict

from zwatch import __version__
from zwatch.errors import REQUEST_ERRORS

JSON = "application/json"
EVENT_STREAM = "text/event-stream"
COOKIE = "zwatch"
"""The name of the page's cookie."""
_SCHEMAS = "#/components/schemas/{model}"
_RETRY_AFTER = (429, 503)
"""Statuses whose answers always say when to try again."""

# The types of answers' fields.
Seconds = Annotated[float, WithJsonSchema({"type": "number", "minimum": 0, "description": "Seconds."})]
ByteCount = Annotated[int, WithJsonSchema({"type": "integer", "minimum": 0, "description": "Bytes."})]
Number = Annotated[int, WithJsonSchema({"type": "integer", "minimum": 0})]
Fraction = Annotated[float, WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1})]
Base64 = Annotated[str, WithJsonSchema({"type": "string", "contentEncoding": "base64"})]
VersionName = Annotated[str, Field(description="A version's name.")]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="blake3 of the version's seal.")]
Time = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time", "description": "UTC, to the second."})]


def choice(*values: str) -> WithJsonSchema:
    """Return the marker of a string that is one of these."""
    return WithJsonSchema({"type": "string", "enum": list(values)})


class Request(BaseModel):
    """The body of a call of our own: a field that it does not have is refused, so that a typing error is noticed."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class LenientRequest(BaseModel):
    """The body of a call that clients of other services make: null stands for a field's default, and fields that are not
    described are ignored."""

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
    """What went wrong; `param` names the field."""

    message: str
    type: str
    param: str | None
    code: str


class Error(TypedDict):
    """The answer for an error."""

    error: ErrorObject


class DetailedError(TypedDict):
    """The answer for an error of AUTOMATIC1111's calls; `detail` is the error's message."""

    error: ErrorObject
    detail: str


class Rejected(TypedDict, total=False):
    """The answer for what was decided against; `reason` is the attempt, or what was found."""

    error: ErrorObject
    reason: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Answer:
    """One good answer of a call. `body` is the type of its JSON; `media_types` are those whose bytes are not described."""

    description: str
    body: Any = None
    media_types: Sequence[str] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers by name, with what each says."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Calls that take the `id` of the answer, by operation."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A part of a call's path, or of its query. `rule` is a type."""

    name: str
    description: str
    rule: Any = str
    default: Any = None
    example: str | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One call. The router and the document are made from it.

    `errors` are the statuses of its own errors; the document adds those that every call shares.
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
    parameters: Sequence[Parameter] = ()
    is_open: bool = False
    """Whether it needs no token."""
    checks_host: bool = True
    error_body: type = Error
    error_texts: Mapping[int, str] = field(default_factory=dict)
    """What an error of this call means where that is not what the status means elsewhere."""

    @property
    def streams(self) -> bool:
        """Whether it answers with server-sent events alone; HEAD makes no sense there."""
        return all(answer.media_types == (EVENT_STREAM,) for answer in self.answers.values())


def document(calls: Iterable[Call], *, needs_token: bool) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document. Where a token is set, every call says so but those that are open to all."""
    calls = list(calls)
    schemas = _Schemas(calls)
    paths: dict[str, dict[str, Any]] = {}
    for call in calls:
        paths.setdefault(call.path, {})[call.method.lower()] = _operation(call, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "zwatch",
            "version": __version__,
            "summary": "A text-to-image server that is deployed by a symlink",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "headers": _HEADERS,
            "responses": {
                **{_error_name(status, Error): _error(status, Error) for status in _STATUSES},
                **{_error_name(status, DetailedError): _error(status, DetailedError) for status in _STATUSES},
            },
            "securitySchemes": _SECURITY_SCHEMES,
        },
        **({"security": [{name: []} for name in _SECURITY_SCHEMES]} if needs_token else {}),
    }


class _Schemas:
    """The JSON schemas of all types that calls use; what has a name is among the `components`."""

    def __init__(self, calls: Iterable[Call]) -> None:
        adapters: dict[tuple[Any, str], TypeAdapter[Any]] = {
            (kind, "serialization"): TypeAdapter(kind) for kind in (Error, DetailedError, Rejected)
        }
        for call in calls:
            for answer in call.answers.values():
                if answer.body is not None:
                    adapters[answer.body, "serialization"] = TypeAdapter(answer.body)
            for kind in (call.body, *(parameter.rule for parameter in call.parameters)):
                if kind is not None:
                    adapters[kind, "validation"] = TypeAdapter(kind)
        self._found, definitions = TypeAdapter.json_schemas(
            [(kind, mode, adapter) for (kind, mode), adapter in adapters.items()],  # type: ignore[misc]
            ref_template=_SCHEMAS,
            schema_generator=_Generator,
        )
        self.components: dict[str, Any] = definitions["$defs"]

    def of_answer(self, kind: Any) -> JsonSchemaValue:
        """Return the schema of a type that is answered."""
        return self._found[kind, "serialization"]

    def of_request(self, kind: Any) -> JsonSchemaValue:
        """Return the schema of a type that is asked for."""
        return self._found[kind, "validation"]


class _Generator(GenerateJsonSchema):
    """Leaves out what tells a reader nothing: titles that repeat names, and defaults of null."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        if schema.get("default", 0) is None:
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        return _without_title(super().model_schema(schema))

    def typed_dict_schema(self, schema: core_schema.TypedDictSchema) -> JsonSchemaValue:
        return _without_title(super().typed_dict_schema(schema))


def _without_title(schema: JsonSchemaValue) -> JsonSchemaValue:
    return {name: value for name, value in schema.items() if name != "title"}


def _operation(call: Call, schemas: _Schemas) -> dict[str, Any]:
    shared = [500]
    shared += [] if call.is_open else [401]
    shared += [403] if call.checks_host else []
    shared += [400, 408, 413] if call.body is not None else []
    responses: dict[str, Any] = {str(status): _good(answer, schemas) for status, answer in call.answers.items()}
    for status in sorted({*call.errors, *shared} - call.answers.keys()):
        if status in call.error_texts:
            responses[str(status)] = _error(status, call.error_body, call.error_texts[status])
        else:
            responses[str(status)] = {"$ref": f"#/components/responses/{_error_name(status, call.error_body)}"}
    found: dict[str, Any] = {
        "tags": [call.tag],
        "operationId": call.name,
        "summary": call.summary,
        "responses": responses,
    }
    if call.body is not None:
        found["requestBody"] = {
            "required": call.body_required,
            "content": {JSON: {"schema": schemas.of_request(call.body)}},
        }
    if call.parameters:
        found["parameters"] = [_parameter(call, one, schemas) for one in call.parameters]
    return {**found, "security": []} if call.is_open else found


def _good(answer: Answer, schemas: _Schemas) -> dict[str, Any]:
    content: dict[str, Any] = {media_type: {} for media_type in answer.media_types}
    if answer.body is not None:
        content[JSON] = {"schema": schemas.of_answer(answer.body)}
    headers = {
        name: {"schema": {"type": "string"}, "description": description} for name, description in answer.headers.items()
    }
    found = {"description": answer.description, "headers": {**_ID, **headers}, "content": content}
    if answer.links:
        found["links"] = {
            name: {"operationId": name, "parameters": {parameter: "$response.body#/id"}}
            for name, parameter in answer.links.items()
        }
    return found


def _parameter(call: Call, parameter: Parameter, schemas: _Schemas) -> dict[str, Any]:
    in_path = f"{{{parameter.name}}}" in call.path
    schema = dict(schemas.of_request(parameter.rule))
    if parameter.default is not None:
        schema["default"] = parameter.default
    if parameter.example is not None:
        schema["examples"] = [parameter.example]
    place: dict[str, Any] = {"in": "path", "required": True} if in_path else {"in": "query"}
    return {"name": parameter.name, **place, "description": parameter.description, "schema": schema}


def _error_name(status: int, body: type) -> str:
    return f"Error{status}Detailed" if body is DetailedError else f"Error{status}"


def _error(status: int, body: type, description: str | None = None) -> dict[str, Any]:
    """Describe the answer for an error."""
    if description is None:
        codes = [code for code, error in REQUEST_ERRORS.items() if error.status == status]
        description = " ".join(f"`{code}`: {REQUEST_ERRORS[code].meaning}" for code in codes)
    kind = Rejected if status == 409 and body is Error else body
    retry = {"Retry-After": {"$ref": "#/components/headers/RetryAfter"}} if status in _RETRY_AFTER else {}
    return {
        "description": description,
        "headers": {**_ID, **retry},
        "content": {JSON: {"schema": {"$ref": _SCHEMAS.format(model=kind.__name__)}}},
    }


_STATUSES = sorted({error.status for error in REQUEST_ERRORS.values()})
_ID = {"X-Request-Id": {"$ref": "#/components/headers/RequestId"}}
_HEADERS = {
    "RequestId": {
        "required": True,
        "schema": {"type": "string"},
        "description": "The client's own, if it sent one; the log has it too.",
    },
    "RetryAfter": {"required": True, "schema": {"type": "integer", "minimum": 1}, "description": "Seconds."},
}
_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "basic": {"type": "http", "scheme": "basic", "description": "The token is the password, the name may be any."},
    "cookie": {"type": "apiKey", "in": "cookie", "name": COOKIE, "description": "What `POST /login` sets."},
}
