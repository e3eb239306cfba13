"""Describes deploying by HTTP."""

from zwatch.api.openapi.parts import (
    BYTES,
    DIGEST,
    FLAG,
    SECONDS,
    VERSION,
    Json,
    body_obj,
    obj,
    ok,
    operation,
    ref,
    text,
)
from zwatch.generation import request as limits

_TAG = "deploying"
_ALIAS = text(maxLength=limits.MAX_PROMPT, default="current", examples=["current"])
_OF_AN_ALIAS = body_obj({"alias": _ALIAS})

SCHEMAS: Json = {
    "Deployed": obj({"status": text(const="success"), "message": text(), "version": VERSION, "seconds": SECONDS}),
}
_DEPLOYED = {"200": ok("It serves.", ref("Deployed"))}

PATHS: Json = {
    "/api/deploy": {
        "post": operation(
            _TAG, "deploy", "Repoint an alias, and wait until the version serves or is rejected",
            {
                **_DEPLOYED,
                "202": ok(
                    "With `wait` false: it is linked.",
                    obj({"status": text(const="accepted"), "message": text(), "version": VERSION}),
                ),
            },
            404, 409,
            body=body_obj(
                {
                    "version": text(minLength=1, maxLength=limits.MAX_PROMPT, pattern=r"\S", examples=["v1", "v2"]),
                    "alias": _ALIAS,
                    "wait": {**FLAG, "default": True},
                },
                required=("version",),
            ),
        ),
    },
    "/api/rollback": {
        "post": operation(
            _TAG, "rollback", "Repoint an alias to the version that it served before", _DEPLOYED, 404, 409,
            body=_OF_AN_ALIAS, body_required=False,
        ),
    },
    "/api/load_model": {
        "post": operation(
            _TAG, "load_model", "Look at an alias now, also after a rejection or an unload", _DEPLOYED, 404, 409,
            body=_OF_AN_ALIAS, body_required=False,
        ),
    },
    "/api/unload_model": {
        "post": operation(
            _TAG, "unload_model", "Finish accepted requests, then free everything",
            {"200": ok("It is free.", obj({"status": text(const="success"), "message": text()}))}, 409,
            body=body_obj({}), body_required=False,
        ),
    },
    "/api/verify": {
        "post": operation(
            _TAG, "verify", "Hash the serving weights where they lie",
            {
                "200": ok(
                    "Every byte is as it was sealed.",
                    obj(
                        {"status": text(const="success"), "version": VERSION, "digest": DIGEST, "bytes": BYTES, "seconds": SECONDS}
                    ),
                ),
            },
            404, 409, 503, body=_OF_AN_ALIAS, body_required=False,
        ),
    },
}  # fmt: skip
