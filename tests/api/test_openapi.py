"""The OpenAPI document, compared with the calls."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import schemathesis
from openapi_spec_validator import validate

from zwatch.api import openapi
from zwatch.api.routes import CALLS
from zwatch.generation.request import ComparableRequest


def document(*, needs_token):
    """Return the document of all calls."""
    return openapi.document(CALLS, needs_token=needs_token)


def referred(node):
    """Yield every `$ref` in a document."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for one in node:
            yield from referred(one)


async def test_the_document_has_every_route_and_no_other(client):
    _, headers, described = await client.call("GET", "/openapi.json")
    assert headers["Content-Type"] == "application/json; charset=utf-8"
    calls = {(method.upper(), path) for path, item in described["paths"].items() for method in item}
    routes = {
        (route.method, route.resource.canonical) for route in client.app.router.routes() if route.method != "HEAD"
    }
    web_pages = ("/", "/page", "/page/{name}", "/page/{digest}/{name}")  # not part of the API
    assert calls == routes - {("GET", path) for path in web_pages}


def test_the_document_is_valid_openapi_and_every_reference_resolves():
    described = document(needs_token=True)
    schemathesis.openapi.from_dict(described).validate()
    for reference in referred(described):
        place = described
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


def test_the_specifications_validator_accepts_the_document():
    validate(document(needs_token=True))


CLIENT_CONFIG = """\
content_type_overrides:
  image/png: application/octet-stream
  image/jpeg: application/octet-stream
  image/webp: application/octet-stream
"""


def test_a_client_can_be_generated_with_every_call(tmp_path):
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


def test_every_call_has_a_unique_name_and_a_tag():
    operations = [one for item in document(needs_token=False)["paths"].values() for one in item.values()]
    names = [one["operationId"] for one in operations]
    assert len(set(names)) == len(names)
    assert all(one["tags"] and one["summary"] for one in operations)


def test_the_body_of_generate_has_the_fields_of_its_model():
    described = document(needs_token=False)["components"]["schemas"]["ComparableRequest"]
    assert set(described["properties"]) == set(ComparableRequest.model_fields)
    assert described["additionalProperties"] is False


@pytest.mark.parametrize("needs_token", [True, False])
def test_the_document_says_which_calls_need_a_token(needs_token):
    described = document(needs_token=needs_token)
    assert ("security" in described) == needs_token
    opened = {path for path, item in described["paths"].items() for one in item.values() if one.get("security") == []}
    assert opened == {"/health", "/health/live", "/health/ready", "/login"}


def test_every_answer_has_the_request_id_header():
    described = document(needs_token=False)
    answers = list(described["components"]["responses"].values())
    for item in described["paths"].values():
        for operation in item.values():
            answers += [one for one in operation["responses"].values() if "$ref" not in one]
            assert all(re.fullmatch("[1-5][0-9][0-9]", status) for status in operation["responses"])
    assert all("X-Request-Id" in one["headers"] for one in answers)


def test_only_errors_of_automatic1111_calls_have_a_detail():
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


@pytest.mark.parametrize(
    "name", ["ImagesRequest", "EditsRequest", "Txt2ImgRequest", "Img2ImgRequest", "SdOptionsRequest", "PngInfoRequest"]
)
def test_requests_of_compatible_apis_may_have_unknown_fields(name):
    assert "additionalProperties" not in document(needs_token=False)["components"]["schemas"][name]
