"""What the groups build their part of the document from: schemas, answers, operations."""

from typing import Any

from zwatch.api.session import COOKIE

Json = dict[str, Any]

_ERROR_CODES = {
    400: ("Bad", "The request is wrong; `param` names the field."),
    401: ("Unauthorized", "The token is missing or wrong."),
    403: ("Forbidden", "A `Host` that is not ours, or a foreign `Origin` on a state change."),
    404: ("Missing", "It is not there."),
    406: ("NotAcceptable", "Nothing that `Accept` names is there."),
    408: ("BodyTimeout", "The body did not arrive in time."),
    409: ("Conflict", "It was decided against, or cancelled."),
    413: ("TooLarge", "The body is longer than 1 MiB."),
    429: ("QueueFull", "No more may wait."),
    500: ("Failed", "It failed, and the service goes on; the log has the reason under the request's id."),
    503: ("Unavailable", "Nothing serves, or the service stops."),
    504: ("Timeout", "The request's own limit has passed."),
}
_RETRY_AFTER = (429, 503)


def ref(name: str) -> Json:
    """Point to a schema."""
    return {"$ref": f"#/components/schemas/{name}"}


def obj(properties: Json, *, optional: tuple[str, ...] = (), **more: Any) -> Json:
    """Describe an object of an answer: all properties are there, but the optional ones; others may be added one day."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, **more}


def body_obj(properties: Json, required: tuple[str, ...] = ()) -> Json:
    """Describe an object of a request: unknown fields are refused."""
    found: Json = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**found, "required": list(required)} if required else found


def lenient_obj(properties: Json, required: tuple[str, ...] = ()) -> Json:
    """Describe an object of a request that was made for another service: unknown fields are ignored."""
    found: Json = {"type": "object", "properties": properties, "description": "All other fields are ignored."}
    return {**found, "required": list(required)} if required else found


def array(items: Json) -> Json:
    """Describe a list."""
    return {"type": "array", "items": items}


def nullable(schema: Json) -> Json:
    """Describe what may be null."""
    if isinstance(schema.get("type"), str) and "enum" not in schema:
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def text(**more: Any) -> Json:
    """Describe a string."""
    return {"type": "string", **more}


def whole(**more: Any) -> Json:
    """Describe a whole number."""
    return {"type": "integer", **more}


def number(**more: Any) -> Json:
    """Describe a number."""
    return {"type": "number", **more}


FLAG: Json = {"type": "boolean"}
TIME = text(format="date-time", description="UTC, to the second.")
SECONDS = number(minimum=0, description="Seconds.")
BYTES = whole(minimum=0, description="Bytes.")
VERSION = text(description="A version's name.")
DIGEST = nullable(text(pattern="^[0-9a-f]{64}$", description="blake3 of the version's seal."))


def content(schema: Json, media_type: str = "application/json") -> Json:
    """Describe a body."""
    return {media_type: {"schema": schema}}


def ok(description: str, schema: Json, *, headers: Json | None = None, links: Json | None = None) -> Json:
    """Describe a good answer of JSON."""
    found: Json = {"description": description, "headers": {**_ID, **(headers or {})}, "content": content(schema)}
    return {**found, "links": links} if links else found


def other(description: str, *media_types: str, headers: Json | None = None) -> Json:
    """Describe a good answer that is no JSON; its bytes are not described further."""
    return {
        "description": description,
        "headers": {**_ID, **(headers or {})},
        "content": {media_type: {} for media_type in media_types},
    }


def operation(
    tag: str,
    name: str,
    summary: str,
    good: Json,
    *errors: int,
    body: Json | None = None,
    body_required: bool = True,
    parameters: tuple[Json, ...] = (),
    is_open: bool = False,
    has_guard: bool = True,
    has_detail: bool = False,
) -> Json:
    """Describe a call. `good` is its good answers by status; `errors` are the statuses of its own errors, those that every
    call shares are added: 401 unless it `is_open`, 403 where its Host is checked, 408 and 413 where it takes a body, 500.
    Errors that have AUTOMATIC1111's `detail` too are those of a call that `has_detail`."""
    shared = [500]
    shared += [] if is_open else [401]
    shared += [403] if has_guard else []
    shared += [400, 408, 413] if body is not None else []
    responses = {
        **good,
        **{
            str(status): answer(status, has_detail=has_detail)
            for status in sorted({*errors, *shared})
            if str(status) not in good
        },
    }
    found: Json = {"tags": [tag], "operationId": name, "summary": summary, "responses": responses}
    if body is not None:
        found["requestBody"] = {"required": body_required, "content": content(body)}
    if parameters:
        found["parameters"] = list(parameters)
    return {**found, "security": []} if is_open else found


def answer(status: int, *, has_detail: bool = False) -> Json:
    """Point to the answer for an error."""
    return {"$ref": f"#/components/responses/{_ERROR_CODES[status][0]}{'Detailed' if has_detail else ''}"}


def error_answer(status: int, description: str, *, has_detail: bool = False) -> Json:
    """Describe the answer for an error."""
    schema = "DetailedError" if has_detail else "Rejected" if status == 409 else "Error"
    headers = {
        **_ID,
        **({"Retry-After": {"$ref": "#/components/headers/RetryAfter"}} if status in _RETRY_AFTER else {}),
    }
    return {"description": description, "headers": headers, "content": content(ref(schema))}


def in_path(name: str, description: str, **schema: Any) -> Json:
    """Describe a part of the path."""
    return {"name": name, "in": "path", "required": True, "description": description, "schema": text(**schema)}


def in_query(name: str, description: str, schema: Json) -> Json:
    """Describe a part of the query."""
    return {"name": name, "in": "query", "description": description, "schema": schema}


MADE: Json = {
    f"X-Zwatch-{name}": {"schema": text(), "description": f"With an image: its {name.lower()}."}
    for name in ("Version", "Digest", "Seed", "Job")
}
"""Headers that say what made an image."""
_ID: Json = {"X-Request-Id": {"$ref": "#/components/headers/RequestId"}}
HEADERS: Json = {
    "RequestId": {
        "required": True,
        "schema": text(),
        "description": "The client's own, if it sent one; the log has it too.",
    },
    "RetryAfter": {"required": True, "schema": whole(minimum=1), "description": "Seconds."},
}
_ERROR = obj({"message": text(), "type": text(), "param": nullable(text()), "code": text()})
SCHEMAS: Json = {
    "Error": obj({"error": _ERROR}),
    "DetailedError": obj({"error": _ERROR, "detail": text(description="The error's message.")}),
    "Rejected": obj(
        {"error": _ERROR, "reason": nullable(obj({}, description="The attempt, or what was found."))},
        optional=("reason",),
    ),
}
RESPONSES: Json = {
    **{name: error_answer(status, said) for status, (name, said) in _ERROR_CODES.items()},
    **{f"{name}Detailed": error_answer(status, said, has_detail=True) for status, (name, said) in _ERROR_CODES.items()},
}
SECURITY_SCHEMES: Json = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "basic": {"type": "http", "scheme": "basic", "description": "The token is the password, the name may be any."},
    "cookie": {"type": "apiKey", "in": "cookie", "name": COOKIE, "description": "What `POST /login` sets."},
}
