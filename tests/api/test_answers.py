"""Request bodies, request ids and errors."""

import io
import json
import re
import socket
import time
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer, make_mocked_request

from zwatch.api.answers import (
    ID_HEADER,
    add_id,
    answer,
    encoded,
    error_answer,
    identify,
    scheme_of,
    shape_errors,
)
from zwatch.api.bodies import BODIES, MAX_IMAGE_BODY, Bodies, read_request
from zwatch.api.schema import Request
from zwatch.api.services import TIME_LIMITS, TimeLimits
from zwatch.errors import RequestError


class Settings(Request):
    """A body whose fields are all optional."""

    name: str = "default"


@asynccontextmanager
async def application(handler):
    """Run a handler behind the middlewares of the service; return a client of it."""
    app = web.Application(middlewares=[identify, shape_errors], client_max_size=100)
    app.on_response_prepare.append(add_id)
    app[TIME_LIMITS] = TimeLimits(body=0.2)
    app[BODIES] = Bodies()
    app.router.add_post("/{path:.*}", handler)
    async with TestClient(TestServer(app)) as client:
        yield client


async def post(client, path="/x", body=b"", **headers):
    """Return (status, headers, JSON body)."""
    async with client.post(path, data=body, headers=headers) as response:
        return response.status, response.headers, await response.json()


async def show_settings(request):
    asked = await read_request(request, Settings, may_be_empty="required" not in request.path)
    return answer({"name": asked.name})


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b"", "default"),
        (b" \r\n", "default"),
        (b"{}", "default"),
        (b'{"name": "x"}', "x"),
        (b'\xef\xbb\xbf{"name": "x"}', "x"),
    ],
)
async def test_an_empty_body_stands_for_the_defaults_where_it_is_allowed(body, name):
    async with application(show_settings) as client:
        assert (await post(client, body=body))[::2] == (200, {"name": name})


@pytest.mark.parametrize("body", [b"", b"  ", b"\xef\xbb\xbf", b"\xff", b"[]", b"null", b'{"name": NaN}', b"[" * 90])
async def test_a_body_that_is_not_a_json_object_is_refused(body):
    async with application(show_settings) as client:
        status, _, found = await post(client, "/required", body)
        assert (status, found["error"]["code"], found["error"]["param"]) == (400, "invalid_json", None)


@pytest.mark.parametrize("name", ["other", "\ud800", "", "n" * 80])
async def test_an_unknown_field_is_named_whatever_its_name(name):
    async with application(show_settings) as client:
        status, _, found = await post(client, body=json.dumps({name: 1}).encode())
        assert (status, found["error"]["code"]) == (400, "unknown_field")


async def test_a_body_that_is_too_large_is_a_413():
    async with application(show_settings) as client:
        status, _, found = await post(client, body=b" " * 101)
        assert (status, found["error"]["code"]) == (413, "payload_too_large")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": "\ud800"}, '{"a": "\\\\ud800"}'),
        ({"\udcff": 1}, '{"\\\\udcff": 1}'),
        (["\U0001f600", "日本"], '["\U0001f600", "日本"]'),
        ("\udc00\ud800", '"\\\\udc00\\\\ud800"'),
    ],
)
def test_lone_surrogates_are_encoded_as_visible_escapes(value, text):
    assert encoded(value).decode("utf-8") == text
    json.loads(encoded(value))


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("invalid_value", 400, "invalid_request_error"),
        ("unauthorized", 401, "authentication_error"),
        ("forbidden_host", 403, "permission_error"),
        ("not_found", 404, "invalid_request_error"),
        ("queue_full", 429, "rate_limit_error"),
        ("generation_failed", 500, "server_error"),
        ("timeout", 504, "server_error"),
    ],
)
def test_an_error_answer_has_the_status_and_the_type_of_its_code(code, status, kind):
    found = error_answer(RequestError(code, "no", param="n", headers={"X-More": "1"}, extra={"reason": None}))
    assert (found.status, found.headers["X-More"]) == (status, "1")
    error = {"message": "no", "type": kind, "param": "n", "code": code}
    assert json.loads(found.body) == {"error": error, "reason": None}


@pytest.mark.parametrize(("path", "detailed"), [("/sdapi/v1/txt2img", True), ("/generate", False), ("", False)])
def test_error_answers_to_automatic1111_calls_repeat_the_message_in_detail(path, detailed):
    found = json.loads(error_answer(RequestError("not_found", "no"), path).body)
    assert found.get("detail") == ("no" if detailed else None)
    assert ("detail" in found) is detailed


async def test_an_unexpected_exception_is_a_500_with_the_id_that_is_in_the_log(caplog):
    async def broken(request):
        raise ZeroDivisionError("secret")

    async with application(broken) as client:
        status, headers, found = await post(client, "/sdapi/x")
    assert (status, found["error"]["code"]) == (500, "internal_error")
    assert "secret" not in json.dumps(found)
    assert re.fullmatch("[0-9a-f]{32}", headers[ID_HEADER])
    [record] = [one for one in caplog.records if one.name == "zwatch.api.answers"]
    assert (record.levelname, record.exc_info[0]) == ("ERROR", ZeroDivisionError)


@pytest.mark.parametrize(
    ("given", "kept"),
    [("mine-7", True), ("x" * 128, True), ("x" * 129, False), ("", False), ("two words", False), ("é", False)],
)
async def test_a_request_has_the_clients_id_if_it_is_valid(given, kept):
    async with application(show_settings) as client:
        _, headers, _ = await post(client, **{ID_HEADER: given})
        assert (headers[ID_HEADER] == given) is kept
        assert kept or re.fullmatch("[0-9a-f]{32}", headers[ID_HEADER])


@pytest.mark.parametrize(
    ("forwarded", "scheme"),
    [
        (None, "http"), ("", "http"), ("https", "https"), (" HTTPS ", "https"), ("https, http", "https"),
        ("http, https", "http"), ("javascript", "http"), ("https;q=1", "http"), (",https", "http"), ("https\u200b", "http"),
    ],
)  # fmt: skip
def test_the_scheme_is_the_first_that_a_proxy_names(forwarded, scheme):
    headers = {} if forwarded is None else {"X-Forwarded-Proto": forwarded}
    assert scheme_of(make_mocked_request("GET", "/", headers=headers)) == scheme


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/generate", b"{", 400, "invalid_json"),
        ("POST", "/generate", b'{"prompt": "x", "colour": 1}', 400, "unknown_field"),
        ("POST", "/generate", b'{"prompt": "' + b"x" * MAX_IMAGE_BODY + b'"}', 413, "payload_too_large"),
        ("POST", "/api/deploy", b'{"version": "' + b"x" * 2**20 + b'"}', 413, "payload_too_large"),
        ("GET", "/generate", None, 405, "method_not_allowed"),
        ("GET", "/nothing", None, 404, "not_found"),
        ("POST", "/api/deploy", b"{}", 400, "invalid_value"),
        ("POST", "/api/deploy", b'{"version": "../v1"}', 404, "not_found"),
        ("POST", "/api/deploy", b'{"version": "v2", "alias": "stable"}', 404, "not_found"),
        ("POST", "/api/deploy", b'{"version": "v2", "wait": "no"}', 400, "invalid_value"),
        ("POST", "/api/rollback", b"", 409, "rejected"),
        ("POST", "/api/unload_model", b'{"now": true}', 400, "unknown_field"),
    ],
)
async def test_all_errors_have_the_same_shape(client, method, path, body, status, code):
    data = None if body is None else io.BytesIO(body)
    found, headers, answer = await client.call(method, path, data=data)
    assert (found, answer["error"]["code"]) == (status, code)
    assert answer["error"].keys() == {"message", "type", "param", "code"}
    assert headers["X-Request-Id"]


async def test_the_answer_repeats_a_valid_request_id_of_the_client(client):
    _, headers, _ = await client.call("GET", "/status", headers={"X-Request-Id": "mine-7"})
    assert headers["X-Request-Id"] == "mine-7"
    _, headers, _ = await client.call("GET", "/status", headers={"X-Request-Id": "not\tsane"})
    assert headers["X-Request-Id"] != "not\tsane"


async def test_a_body_that_does_not_arrive_is_a_408(start):
    async with start(TimeLimits(body=0.1)) as client:
        line = await client.first_line(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
        assert b" 408 " in line


async def test_an_aborted_request_does_not_affect_others(client):
    with socket.create_connection(client.address) as aborted:
        aborted.sendall(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
    begun = time.monotonic()
    await client.png()
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_body_that_contradicts_its_content_encoding_is_a_400(client, encoding):
    head = (
        f"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: {encoding}\r\nContent-Length: 5\r\n\r\nhello"
    )
    assert await client.first_line(head.encode()) == b"HTTP/1.1 400 Bad Request"


@pytest.mark.parametrize(
    ("header", "status"),
    [(b"Authorization: Bearer \xff", 200), (b"Authorization: Basic \xc3\xa9", 200), (b"Origin: http://[", 403)],
)
async def test_invalid_bytes_in_headers_are_not_an_internal_error(client, header, status):
    head = b"POST /api/load_model HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n" + header + b"\r\n\r\n"
    assert (await client.first_line(head)).startswith(b"HTTP/1.1 %d " % status)
