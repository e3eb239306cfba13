"""Describes the calls that are compatible with AUTOMATIC1111's API, `/sdapi/v1/…`."""

from zwatch.service.openapi.parts import Json

SCHEMAS: Json = {}
PATHS: Json = {}
