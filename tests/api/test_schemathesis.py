"""Whatever schemathesis makes of the description, the service answers as described, and never with a 5xx of its own.

docs/operations.md has the command for a longer run by hand, which also follows links from call to call.
"""

import asyncio
import shutil
import zlib

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.harness import Server
from zwatch.api.routes import CALLS
from zwatch.api.schema import document

# How much is too much depends on several fields, on the version that serves and on --max-work, and what is an image or a
# number within a text on its characters, which a schema cannot say: some bodies that satisfy it are refused, with a 400
# that is described. tests/generation/test_limits.py has which.
BEYOND_A_SCHEMA = [positive_data_acceptance]
NOT_ALL_SAID = ("/jobs", "/v1/images/generations", "/sdapi/v1/txt2img", "/sdapi/v1/png-info")
ACCEPTED = ("image/*", "application/json", "text/event-stream")

api = schemathesis.openapi.from_dict(document(CALLS, needs_token=False))


@pytest.fixture(scope="module")
def url(tiny_versions, tmp_path_factory):
    """Run a service in a process of its own; return where it is."""
    folder = tmp_path_factory.mktemp("schemathesis")
    shutil.copytree(tiny_versions, folder / "models")
    (folder / "models" / "current").symlink_to("v1")
    # A description cannot say what 2048 x 2048 x 100 x 16 is too much of: such requests are refused, and end in no time.
    server = Server(folder / "models", folder / "state", "--max-work", "0.05")
    with asyncio.Runner() as runner:
        runner.run(server.__aenter__())
        runner.run(server.serves("v1"))
        yield server.url
        runner.run(server.__aexit__())


bounded = settings(
    max_examples=10, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)  # fmt: skip


# /events is a stream without an end: tests/api/native/test_calls.py reads it. /generate: see below.
@api.exclude(path=["/events", "/generate"]).parametrize()
@bounded
def test_every_answer_is_as_described(case, url):
    response = case.call(base_url=url, timeout=60)
    if case.operation.path == "/api/unload_model":  # the other calls shall find something that serves
        requests.post(f"{url}/api/load_model", timeout=60)
    case.validate_response(response, excluded_checks=BEYOND_A_SCHEMA if case.operation.path in NOT_ALL_SAID else [])


@api.include(path="/generate").parametrize()
@bounded
def test_every_answer_of_generate_is_as_described(case, url):
    # What a body decides comes before what Accept does: not every body is worth a call with each of them.
    accept = ACCEPTED[zlib.crc32(repr(case.body).encode("utf-8", "surrogatepass")) % len(ACCEPTED)]
    response = case.call(base_url=url, timeout=60, headers={"Accept": accept})
    case.validate_response(response, excluded_checks=BEYOND_A_SCHEMA)
