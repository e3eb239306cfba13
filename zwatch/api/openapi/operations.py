"""Describes what looks after the service: metrics, this document, the page's cookie."""

from zwatch.api.openapi.parts import Json, body_obj, error_answer, obj, ok, operation, other, ref, text
from zwatch.generation import request as limits

_TAG = "operations"

SCHEMAS: Json = {"Said": obj({"status": text(const="success"), "message": text()})}
_SET_COOKIE = {"Set-Cookie": {"schema": text(), "description": "Where a token is set."}}

PATHS: Json = {
    "/metrics": {
        "get": operation(_TAG, "metrics", "Metrics for Prometheus", {"200": other("Text format 0.0.4.", "text/plain")})
    },
    "/openapi.json": {
        "get": operation(_TAG, "openapi", "This document", {"200": ok("OpenAPI 3.1.", {"type": "object"})})
    },
    "/login": {
        "post": operation(
            _TAG, "login", "Exchange the token for the page's cookie",
            {
                "200": ok("The cookie is set.", ref("Said"), headers=_SET_COOKIE),
                "429": error_answer(429, "Too many wrong tokens came from this address."),
            },
            401,
            body=body_obj({"token": text(minLength=1, maxLength=limits.MAX_PROMPT, pattern=r"\S")}, required=("token",)),
            is_open=True,
        ),
        "delete": operation(
            _TAG, "logout", "Take the cookie back",
            {"200": ok("The cookie is gone.", ref("Said"), headers=_SET_COOKIE)}, is_open=True,
        ),
    },
}  # fmt: skip
