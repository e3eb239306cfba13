"""The OpenAPI document of a table of calls."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import core_schema

from zwatch import __version__
from zwatch.api.schema import COOKIE, FORM, JSON, Answer, Call, DetailedError, Error, Parameter, Rejected
from zwatch.errors import REQUEST_ERRORS
from zwatch.generation.fields import file_fields

_SCHEMAS = "#/components/schemas/{model}"
_RETRY_AFTER = (429, 503)
"""Statuses whose answers always have `Retry-After`."""


def document(calls: Sequence[Call], *, needs_token: bool) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document. With `needs_token`, every call but the open ones requires one.

    Raises:
        ValueError: two calls have the same name, or the same method and path.
    """
    _check_unique("name", [call.name for call in calls])
    _check_unique("method and path", [f"{call.method} {call.path}" for call in calls])
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


def _check_unique(what: str, values: Sequence[str]) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise ValueError(f"several calls have the same {what}: {', '.join(twice)}")


class _Schemas:
    """The JSON schemas of all types that calls use; those of named types are in `components`."""

    def __init__(self, calls: Iterable[Call]) -> None:
        adapters: dict[tuple[Any, JsonSchemaMode], TypeAdapter[Any]] = {
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
            [(kind, mode, adapter) for (kind, mode), adapter in adapters.items()],
            ref_template=_SCHEMAS,
            schema_generator=_Generator,
        )
        self.components: dict[str, Any] = definitions["$defs"]

    def of_answer(self, kind: Any) -> JsonSchemaValue:
        """Return the schema of an answer's type."""
        return self._found[kind, "serialization"]

    def of_request(self, kind: Any) -> JsonSchemaValue:
        """Return the schema of the type of a body or a parameter."""
        return self._found[kind, "validation"]


class _Generator(GenerateJsonSchema):
    """Omits titles, which only repeat names, and defaults of null."""

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
    """Return the description of a call."""
    shared = [500]
    shared += [] if call.is_open else [401]
    shared += [403] if call.checks_host else []
    shared += [400, 408, 413, 415] if call.body is not None or call.takes_file else []
    responses: dict[str, Any] = {str(status): _success(answer, schemas) for status, answer in call.answers.items()}
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
            "content": {JSON: {"schema": schemas.of_request(call.body)}, **_form(call, schemas)},
        }
    if call.takes_file:
        content = {"schema": {"type": "string", "format": "binary"}}
        found["requestBody"] = {"required": True, "content": {"application/octet-stream": content}}
    if call.parameters:
        found["parameters"] = [_parameter(call, one, schemas) for one in call.parameters]
    return {**found, "security": []} if call.is_open else found


def _form(call: Call, schemas: _Schemas) -> dict[str, Any]:
    """Return the content of a call's body as a form, if that may have files: the same fields, with files instead of their texts."""
    if call.body is None or not (files := file_fields(call.body)):
        return {}
    described: dict[str, Any] = schemas.components[call.body.__name__]
    fields = {
        name: {"type": "string", "format": "binary", "description": field.get("description", "")}
        if files.get(name)
        else field
        for name, field in described["properties"].items()
    }
    return {FORM: {"schema": {**described, "properties": fields}}}


def _success(answer: Answer, schemas: _Schemas) -> dict[str, Any]:
    """Return the description of a successful answer."""
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
    place: dict[str, Any] = {"in": "path" if in_path else parameter.place}
    if in_path or parameter.required:
        place["required"] = True
    return {"name": parameter.name, **place, "description": parameter.description, "schema": schema}


def _error_name(status: int, body: type) -> str:
    return f"Error{status}Detailed" if body is DetailedError else f"Error{status}"


def _error(status: int, body: type, description: str | None = None) -> dict[str, Any]:
    """Return the description of an error answer."""
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
        "description": "The client's own, if it sent a valid one; also in the log.",
    },
    "RetryAfter": {"required": True, "schema": {"type": "integer", "minimum": 1}, "description": "Seconds."},
}
_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "basic": {
        "type": "http",
        "scheme": "basic",
        "description": "The token is the password; any user name is accepted.",
    },
    "cookie": {"type": "apiKey", "in": "cookie", "name": COOKIE, "description": "Set by `POST /login`."},
}
