"""The description of all calls, OpenAPI 3.1: a module a group, each with its `PATHS` and `SCHEMAS`.

A group's module stands beside the routes that it describes; a test compares the two both ways.
"""

from typing import Any

from zwatch import __version__
from zwatch.api.openapi import a1111, admin, gallery, generation, openai, operations, parts, status

_GROUPS = (generation, gallery, status, admin, operations, openai, a1111)


def document(*, needs_token: bool) -> dict[str, Any]:
    """Return the whole document. Where a token is set, every call says so but those that are open to all."""
    paths: dict[str, Any] = {}
    schemas: dict[str, Any] = dict(parts.SCHEMAS)
    for group in _GROUPS:
        paths |= group.PATHS
        schemas |= group.SCHEMAS
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
            "schemas": schemas,
            "headers": parts.HEADERS,
            "responses": parts.RESPONSES,
            "securitySchemes": parts.SECURITY_SCHEMES,
        },
        **({"security": [{name: []} for name in parts.SECURITY_SCHEMES]} if needs_token else {}),
    }
