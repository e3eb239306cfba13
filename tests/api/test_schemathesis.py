"""schemathesis generates requests from the OpenAPI document: every answer must match it, and none may be a 5xx but a documented 503.

With ZWATCH_LONG=1 there are 10,000 and more, which are counted. docs/operations.md has the command for a longer manual run, which also
follows links between calls.
"""

import asyncio
import os
import shutil
import zlib
from collections import Counter

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.harness import Server
from zwatch.api.openapi import document
from zwatch.api.routes import CALLS

# A schema cannot express limits that depend on several fields, on the serving version or on --max-work, nor whether a
# string is an image: some bodies that satisfy it are refused, with a documented 400. See tests/generation/test_limits.py.
BEYOND_A_SCHEMA = [positive_data_acceptance]
WITH_OTHER_LIMITS = (
    "/jobs",
    "/v1/images/generations",
    "/v1/images/edits",
    "/sdapi/v1/txt2img",
    "/sdapi/v1/img2img",
    "/sdapi/v1/png-info",
    "/api/picture_settings",
)
ACCEPTED = ("image/*", "application/json", "text/event-stream")

IS_LONG = os.environ.get("ZWATCH_LONG") == "1"
LONG_CASES = 10_000
EXAMPLES = 600 if IS_LONG else 10
"""Cases for each call; one without parameters has very few."""
seen: Counter[int] = Counter()
"""How many answers had which status."""

api = schemathesis.openapi.from_dict(document(CALLS, needs_token=False))


@pytest.fixture(scope="module")
def url(tiny_versions, tmp_path_factory):
    """Run a service in a separate process; return its URL."""
    folder = tmp_path_factory.mktemp("schemathesis")
    shutil.copytree(tiny_versions, folder / "models")
    (folder / "models" / "current").symlink_to("v1")
    # A low limit: the schema allows 2048 x 2048 pixels x 100 steps x 16 images, which would take hours.
    server = Server(folder / "models", folder / "state", "--max-work", "0.05")
    with asyncio.Runner() as runner:
        runner.run(server.__aenter__())
        runner.run(server.serves("v1"))
        yield server.url
        runner.run(server.__aexit__())


def has_whole_float(value):
    """Return whether there is a number such as 70.0 in JSON: to a schema it is an integer, to the service it is none."""
    if isinstance(value, dict | list):
        return any(map(has_whole_float, value.values() if isinstance(value, dict) else value))
    return isinstance(value, float) and value.is_integer()


bounded = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)  # fmt: skip


# /events is a stream without an end: tests/api/native/test_status.py reads it. /generate: see below.
@api.exclude(path=["/events", "/generate"]).parametrize()
@bounded
def test_every_answer_matches_the_document(case, url):
    response = case.call(base_url=url, timeout=60)
    seen[response.status_code] += 1
    if case.operation.path == "/api/unload_model":  # so that the other calls find a serving version
        requests.post(f"{url}/api/load_model", timeout=60)
    is_beyond = case.operation.path in WITH_OTHER_LIMITS or has_whole_float(case.body)
    case.validate_response(response, excluded_checks=BEYOND_A_SCHEMA if is_beyond else [])


@api.include(path="/generate").parametrize()
@bounded
def test_every_answer_of_generate_matches_the_document(case, url):
    # The body is checked before Accept, so one Accept for each body is enough.
    accept = ACCEPTED[zlib.crc32(repr(case.body).encode("utf-8", "surrogatepass")) % len(ACCEPTED)]
    response = case.call(base_url=url, timeout=60, headers={"Accept": accept})
    seen[response.status_code] += 1
    case.validate_response(response, excluded_checks=BEYOND_A_SCHEMA)


@pytest.mark.skipif(not IS_LONG, reason="ZWATCH_LONG=1 makes 10,000 requests")
def test_there_were_thousands_of_answers_and_no_failure_of_the_service(url):
    print(seen)
    assert seen.total() >= LONG_CASES, seen
    assert not [status for status in seen if status >= 500 and status != 503], seen
