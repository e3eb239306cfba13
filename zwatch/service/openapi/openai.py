"""Describes the calls that are compatible with the OpenAI API, `/v1/…`."""

from zwatch.service.openapi.parts import Json

SCHEMAS: Json = {}
PATHS: Json = {}
