"""Request bodies, request ids and errors."""

import io
import socket
import time

import pytest

from zwatch.api.services import TimeLimits


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/generate", b"{", 400, "invalid_json"),
        ("POST", "/generate", b'{"prompt": "x", "colour": 1}', 400, "unknown_field"),
        ("POST", "/generate", b'{"prompt": "' + b"x" * 2**20 + b'"}', 413, "payload_too_large"),
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
