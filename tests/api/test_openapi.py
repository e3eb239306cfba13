"""The description of the calls, against the calls."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import schemathesis
from openapi_spec_validator import validate

from zwatch.api import schema
from zwatch.api.routes import CALLS
from zwatch.generation.request import GenerateRequest


def document(*, needs_token):
    """Return the description of all calls."""
    return schema.document(CALLS, needs_token=needs_token)


def referred(node):
    """Give every `$ref` in a document."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for one in node:
            yield from referred(one)


async def test_every_route_is_described_and_everything_described_is_a_route(client):
    _, headers, described = await client.call("GET", "/openapi.json")
    assert headers["Content-Type"] == "application/json; charset=utf-8"
    calls = {(method.upper(), path) for path, item in described["paths"].items() for method in item}
    routes = {
        (route.method, route.resource.canonical) for route in client.app.router.routes() if route.method != "HEAD"
    }
    pages = {("GET", "/"), ("GET", "/page"), ("GET", "/page/{name}")}  # for people, with nothing to describe
    assert calls == routes - pages


def test_it_is_valid_openapi_and_every_reference_leads_somewhere():
    described = document(needs_token=True)
    schemathesis.openapi.from_dict(described).validate()
    for reference in referred(described):
        place = described
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


def test_it_is_valid_to_the_validator_of_the_specification():
    validate(document(needs_token=True))


CLIENT_CONFIG = """\
content_type_overrides:
  image/png: application/octet-stream
  image/jpeg: application/octet-stream
  image/webp: application/octet-stream
"""


def test_a_client_is_generated_that_knows_every_call(tmp_path):
    (tmp_path / "openapi.json").write_text(json.dumps(document(needs_token=True)))
    (tmp_path / "config.yaml").write_text(CLIENT_CONFIG)
    generated = subprocess.run(
        [sys.executable, "-m", "openapi_python_client", "generate", "--path", "openapi.json", "--config", "config.yaml",
         "--output-path", "client", "--meta", "none"],
        cwd=tmp_path, env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert generated.returncode == 0, generated.stdout + generated.stderr
    assert "WARNING" not in generated.stdout + generated.stderr
    calls = {path.stem for path in (tmp_path / "client" / "api").glob("*/*.py")} - {"__init__"}
    assert calls == {call.name for call in CALLS}


def test_every_call_has_a_name_of_its_own_and_a_tag():
    operations = [one for item in document(needs_token=False)["paths"].values() for one in item.values()]
    names = [one["operationId"] for one in operations]
    assert len(set(names)) == len(names)
    assert all(one["tags"] and one["summary"] for one in operations)


def test_the_body_of_generate_has_the_fields_that_are_parsed():
    described = document(needs_token=False)["components"]["schemas"]["GenerateRequest"]
    assert set(described["properties"]) == set(GenerateRequest.model_fields)
    assert described["additionalProperties"] is False


@pytest.mark.parametrize("needs_token", [True, False])
def test_it_says_where_a_token_is_needed(needs_token):
    described = document(needs_token=needs_token)
    assert ("security" in described) == needs_token
    opened = {path for path, item in described["paths"].items() for one in item.values() if one.get("security") == []}
    assert opened == {"/health", "/health/live", "/health/ready", "/login"}


def test_what_every_answer_has_is_described_with_every_answer():
    described = document(needs_token=False)
    answers = list(described["components"]["responses"].values())
    for item in described["paths"].values():
        for operation in item.values():
            answers += [one for one in operation["responses"].values() if "$ref" not in one]
            assert all(re.fullmatch("[1-5][0-9][0-9]", status) for status in operation["responses"])
    assert all("X-Request-Id" in one["headers"] for one in answers)


def test_the_errors_that_have_a_detail_are_those_of_automatic1111s_calls():
    described = document(needs_token=True)
    errors = [
        (path, described["components"]["responses"].get(one.get("$ref", "").rpartition("/")[2], one))
        for path, item in described["paths"].items()
        for operation in item.values()
        for status, one in operation["responses"].items()
        if status >= "400"
    ]
    for path, error in errors:
        schema = error["content"]["application/json"]["schema"]
        assert (schema == {"$ref": "#/components/schemas/DetailedError"}) == path.startswith("/sdapi/")


@pytest.mark.parametrize("name", ["ImagesRequest", "Txt2ImgRequest", "SdOptionsRequest", "PngInfoRequest"])
def test_clients_that_were_made_for_others_may_send_fields_that_mean_nothing_here(name):
    assert "additionalProperties" not in document(needs_token=False)["components"]["schemas"][name]
