"""Bodies: forms, encodings, byte order marks, and clients that send half of one. Also paths and methods that clients probe."""

import asyncio
import base64
import gzip
import io
import json
from urllib.parse import urlencode

import pytest
from PIL import Image, PngImagePlugin
from pydantic import BaseModel

from zwatch.api.a1111.pnginfo import PngInfoRequest
from zwatch.api.a1111.txt2img import SdOptionsRequest
from zwatch.api.bodies import Bodies, fields_of
from zwatch.errors import RequestError, retry_after
from zwatch.generation.request import GenerateRequest, parse_generate, parse_json

BOUNDARY = "multipart/form-data; boundary=XX"


def multipart(*parts: tuple[str, bytes]) -> bytes:
    lines = [
        b"--XX\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (head.encode(), data) for head, data in parts
    ]
    return b"".join([*lines, b"--XX--\r\n"])


def test_the_fields_of_a_form_become_numbers_where_no_text_is_expected():
    form = multipart(
        ('name="prompt"', "7 日本".encode()), ('name="steps"', b"3"), ('name="guidance_scale"', b"1.5"), ('name="seed"', b""),
        ('name="format"', b"webp"), ('name="negative_prompt"', b"42"),
    )  # fmt: skip
    asked = parse_generate(fields_of(BOUNDARY, form, GenerateRequest))
    found = (asked.prompt, asked.steps, asked.guidance_scale, asked.format.value, asked.negative_prompt)
    assert found == ("7 日本", 3, 1.5, "webp", "42")


@pytest.mark.parametrize(
    ("form", "content_type", "param", "words"),
    [
        (multipart(('name="prompt"; filename="x.txt"', b"a cat")), BOUNDARY, "prompt", "is a file"),
        (multipart(('name="prompt"', b"\xff")), BOUNDARY, "prompt", "not UTF-8"),
        (multipart(('name="prompt"', b"a")).replace(b"--XX--", b""), BOUNDARY, None, "not complete"),
        (multipart(*[('name="prompt"', b"a")] * 101), BOUNDARY, None, "too many parts"),
        (multipart(("other", b"a")), BOUNDARY, None, "no name"),
        (multipart(('name="prompt"', b"a")), "multipart/form-data", None, "no boundary"),
        (b"", BOUNDARY, None, "not complete"),
        (multipart(('name="prompt"', b"a"), ('name="prompt"', b"b")), BOUNDARY, "prompt", "twice"),
        (multipart(('name="prompt"', b"a"), ('name="steps"', b"many")), BOUNDARY, "steps", "a whole number"),
    ],
)
def test_a_form_that_cannot_be_used_says_why(form, content_type, param, words):
    with pytest.raises(RequestError, match=words) as caught:
        parse_generate(fields_of(content_type, form, GenerateRequest))
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_json_in_another_encoding_is_named(encoding):
    with pytest.raises(RequestError, match=r"UTF-(16|32).*expected UTF-8"):
        parse_json('{"prompt": "x"}'.encode(encoding))


def _image() -> bytes:
    """Return an image with the text of AUTOMATIC1111, in base64."""
    chunks, file = PngImagePlugin.PngInfo(), io.BytesIO()
    chunks.add_text("parameters", "a cat\nSteps: 1, Sampler: Euler")
    Image.new("RGB", (8, 8)).save(file, "png", pnginfo=chunks)
    return base64.b64encode(file.getvalue())


IMAGE = _image()
FORM = "application/x-www-form-urlencoded"
MARK = b"\xef\xbb\xbf"


def test_a_byte_order_mark_is_taken():
    assert parse_json(MARK + b'{"prompt": "x"}') == {"prompt": "x"}
    for content_type, body in (
        ("application/json", b'{"prompt": "x"}'),
        (FORM, b"prompt=x"),
        (FORM, b'{"prompt": "x"}'),
    ):
        assert fields_of(content_type, MARK + body, GenerateRequest) == {"prompt": "x"}


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (GenerateRequest, '{"prompt": "a cat"}'),
        (PngInfoRequest, '{"image": "the file in base64"}'),
        (SdOptionsRequest, '{"sd_model_checkpoint": "current"}'),
    ],
)
def test_a_body_that_is_neither_json_nor_a_form_gets_an_example_of_this_calls_body(model, example):
    for content_type, body in (
        ("", b"a cat"),
        ("text/plain", b"name=value"),
        (FORM, b"a cat"),
        ("no media type", b""),
        (BOUNDARY, multipart(('name="prompt"; filename="x.png"', b"\x89PNG"))),
        (BOUNDARY, b"a cat"),
    ):
        with pytest.raises(RequestError) as caught:
            fields_of(content_type, body, model)
        assert example in caught.value.message, (content_type, body)


@pytest.mark.parametrize(
    "kind", ["multipart/form-data; boundary={}", "{}", "{}/x; y={}", "application/json; charset={}"]
)
@pytest.mark.parametrize("word", ["\u75e5", "\udcff", "\u75e5\udcff", "\x80\udc80"])
def test_a_content_type_that_is_not_ascii_is_no_failure(kind, word):
    """As a header arrives: UTF-8, and what is not UTF-8 as surrogates."""
    content_type = kind.replace("{}", word)
    if kind.startswith("multipart"):
        with pytest.raises(RequestError, match="multipart/form-data"):
            fields_of(content_type, b"--x--", GenerateRequest)
    else:
        assert fields_of(content_type, b'{"prompt": "x"}', GenerateRequest) == {"prompt": "x"}


@pytest.mark.parametrize(("seconds", "header"), [(0, "1"), (0.2, "1"), (1.2, "2"), (59.5, "60"), (7200, "60")])
def test_clients_are_asked_to_wait_1_to_60_seconds(seconds, header):
    assert retry_after(seconds) == {"Retry-After": header}


async def test_the_body_that_has_been_arriving_for_longest_is_given_up_when_too_much_is_held():
    bodies = Bodies(most=100)
    async with asyncio.timeout(60) as first, asyncio.timeout(60) as second:
        slow, quick, whole = bodies.begin(), bodies.begin(), bodies.begin()
        slow.timeout, quick.timeout = first, second
        bodies.grow(whole, 30)
        bodies.grow(slow, 40)
        bodies.grow(quick, 40)
        assert (slow.is_evicted, quick.is_evicted, whole.is_evicted) == (True, False, False)
        bodies.grow(quick, 30)
        assert not quick.is_evicted, "what was given up is not counted any more"
        first.reschedule(None)
        for held in (slow, quick, whole):
            bodies.end(held)
        assert bodies._bytes == 0


@pytest.fixture
async def lonely(start, models):
    """A service that serves nothing, which is quick to start."""
    (models / "current").unlink()
    async with start() as client:
        yield client


async def test_calls_that_clients_probe_with_and_bodies_as_they_send_them(lonely):
    """One service for all of it: none of this needs a model."""
    client = lonely

    async def status_of(method, path, **options):
        async with client.http.request(method, client.url + path, **options) as response:
            return response.status, response.headers, await response.text()

    for method in ("GET", "HEAD"):
        assert (await status_of(method, "/"))[0] == 200
    for path, allowed in {
        "/": "GET, HEAD, OPTIONS",
        "/generate": "OPTIONS, POST",
        "/jobs/j-1": "DELETE, GET, HEAD, OPTIONS",
    }.items():
        status, headers, _ = await status_of("OPTIONS", path)
        assert (status, headers["Allow"]) == (204, allowed)
    assert (await status_of("OPTIONS", "/nothing"))[0] == 404

    reader, writer = await client.connect()
    for path, found in {
        "//health//live": 200, "//sdapi/v1/options": 200, "/sdapi//v1/samplers?x=a//b": 200, "///": 200, "//nothing.example": 404,
    }.items():  # fmt: skip
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert int(head.split()[1]) == found, path
        assert b"Location" not in head
        [length] = [line.split()[1] for line in head.split(b"\r\n") if line.startswith(b"Content-Length")]
        await reader.readexactly(int(length))
    writer.close()

    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for data, headers in (
        (multipart(('name="prompt"', b"a cat")), {"Content-Type": BOUNDARY}),
        (b"prompt=a+cat&steps=3", form),
        (b'{"prompt": "a = cat"}', form),
        (b'\xef\xbb\xbf{"prompt": "a = cat"}', form),
        (gzip.compress(b'{"prompt": "a cat"}'), {"Content-Encoding": "gzip"}),
        (b'{"prompt": "a cat"}', {"Content-Encoding": "identity"}),
    ):
        status, answered, text = await status_of("POST", "/generate", data=data, headers=headers)
        assert (status, json.loads(text)["error"]["code"]) == (503, "model_not_loaded"), text
        assert 1 <= int(answered["Retry-After"]) <= 60
    for path, answered in (("/sdapi/v1/options", "null"), ("/sdapi/v1/png-info", '"Sampler": "Euler"')):
        for data, headers in (
            (
                multipart(('name="sd_model_checkpoint"', b"current"), ('name="image"', IMAGE)),
                {"Content-Type": BOUNDARY},
            ),
            (MARK + urlencode({"sd_model_checkpoint": "current", "image": IMAGE}).encode(), form),
        ):
            status, _, text = await status_of("POST", path, data=data, headers=headers)
            assert status == 200, text
            assert answered in text
    assert (await status_of("POST", "/api/unload_model", data=MARK))[0] == 200
    for data, headers, status, words in (
        (b"hello", form, 400, 'such as {"prompt": "a cat"}'),
        (b"{'prompt': 1}", {}, 400, "send a JSON object"),
        (b"steps=x&prompt=y", form, 400, "steps must be a whole number"),
        (b"x", {"Content-Encoding": "compress"}, 415, "'compress' is not supported"),
        (b"x", {"Content-Encoding": "gzip, gzip"}, 415, "not supported"),
    ):
        found, _, text = await status_of("POST", "/generate", data=data, headers=headers)
        assert found == status, text
        assert words in json.loads(text)["error"]["message"]
    try:
        import brotli  # noqa: F401
    except ImportError:
        found, _, text = await status_of("POST", "/generate", data=b"x", headers={"Content-Encoding": "br"})
        assert (found, json.loads(text)["error"]["code"]) == (415, "unsupported_encoding")
        assert "'br'" in json.loads(text)["error"]["message"]


async def test_bodies_that_are_half_sent_delay_no_other(lonely):
    writers = []
    for path in ["/sdapi/v1/png-info", "/sdapi/v1/txt2img"] * 10:
        _, writer = await lonely.connect()
        writer.write(
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n".encode() + b"{" * 50_000
        )
        writers.append(writer)
    await asyncio.sleep(0.1)
    async with asyncio.timeout(50):
        status, _, body = await lonely.call("POST", "/sdapi/v1/png-info", json={"image": "no image"})
    assert (status, body["error"]["param"]) == (400, "image")
    for writer in writers:
        writer.close()


class Named(BaseModel):
    name: str = ""


def test_a_field_of_plain_text_stays_text():
    assert fields_of(FORM, b"name=7", Named) == {"name": "7"}


async def test_an_unloaded_alias_names_what_loads_it_and_details_that_fail_are_null(client, monkeypatch):
    device = client.services.supervisor.factory.device

    def fail():
        raise OSError(24, "Too many open files", "/proc/meminfo")

    monkeypatch.setattr(type(device), "memory", lambda self: fail())
    status, _, body = await client.call("GET", "/status")
    assert (status, body["device"]["free"], body["device"]["total"]) == (200, None, None)
    async with client.http.get(client.url + "/metrics") as response:
        assert response.status == 200
    monkeypatch.undo()
    assert (await client.call("POST", "/api/unload_model"))[0] == 200
    for path, sent in {
        "/generate": {"prompt": "x"}, "/jobs": {"prompt": "x"}, "/v1/images/generations": {"prompt": "x"},
        "/sdapi/v1/txt2img": {"prompt": "x"}, "/api/verify": {},
    }.items():  # fmt: skip
        status, headers, body = await client.call("POST", path, json=sent)
        assert (status, "/api/load_model" in body["error"]["message"]) == (503, True), path
        assert 1 <= int(headers["Retry-After"]) <= 60


async def test_the_call_that_an_unloaded_alias_names_loads_that_alias(start, models):
    (models / "canary").symlink_to("v1")
    async with start(aliases=("current", "canary")) as client:
        await client.serves()
        assert (await client.call("POST", "/api/unload_model"))[0] == 200
        for alias in ("canary", "current"):
            asked = {"prompt": "x", "model": alias}
            said = (await client.error("/generate", asked, 503))["message"].removeprefix(f"{alias} is unloaded; POST ")
            path, _, advised = said.removesuffix(" loads it").partition(" with ")
            assert (await client.call("POST", path, json=json.loads(advised or "{}")))[0] == 200
            accept = {"Accept": "application/json"}
            assert (await client.call("POST", "/generate", json=asked, headers=accept))[0] == 200
