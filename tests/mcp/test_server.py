"""`zwatch mcp` as clients use it: the SDK's own client, over standard input and output, against a real service."""

import base64
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anyio
import jsonschema
import pytest
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client
from PIL import Image

from tests.harness import pixels
from tests.services import running, serving_v1

READING = ["list_versions", "list_loras", "get_status"]
DRAWING = ["generate_image", "edit_image"]
DEPLOYING = ["deploy_version", "rollback"]
LONG = {"prompt": "a cat", "n": 4, "steps": 100, "width": 512, "height": 512}


@pytest.fixture(scope="module")
def service(tiny_versions, tmp_path_factory):
    """A real service with v1 and v2, of which v1 serves."""
    with serving_v1(tiny_versions, tmp_path_factory.mktemp("service")) as found:
        yield found


def command(url, *options, **environment):
    return StdioServerParameters(
        command=sys.executable,
        args=["-m", "zwatch", "mcp", "--url", url, *map(str, options)],
        env={"PYTHONPATH": os.getcwd(), **environment},
    )


@asynccontextmanager
async def connected(url, *options, mode="auto", **environment):
    async with Client(stdio_client(command(url, *options, **environment)), mode=mode) as client:
        yield client


async def called(client, name, arguments=None, **options):
    """Return what a tool answers, checked against the schema that it names."""
    result = await client.call_tool(name, arguments or {}, **options)
    assert not result.is_error, result.content
    [tool] = [one for one in (await client.list_tools()).tools if one.name == name]
    jsonschema.validate(result.structured_content, tool.output_schema)
    assert json.loads(result.content[0].text) == result.structured_content
    return result.structured_content, result.content[1:]


async def sentence(client, name, arguments=None):
    """Return the sentence of a call that fails."""
    result = await client.call_tool(name, arguments or {})
    assert result.is_error, result.structured_content
    assert [one.type for one in result.content] == ["text"]
    return result.content[0].text


def file_of(content):
    assert (content.type, content.mime_type) == ("image", "image/jpeg")
    return base64.b64decode(content.data)


@pytest.mark.parametrize(("mode", "version"), [("auto", "2026-07-28"), ("legacy", "2025-11-25")])
async def test_tools_are_listed_and_drawn_with_in_both_generations_of_the_protocol(service, mode, version):
    async with connected(service.url, mode=mode) as client:
        assert (client.protocol_version, client.server_info.name) == (version, "zwatch")
        assert client.instructions.startswith("zwatch draws pictures")
        tools = (await client.list_tools()).tools
        assert [tool.name for tool in tools] == [*DRAWING, *READING]
        for tool in tools:
            jsonschema.Draft202012Validator.check_schema(tool.input_schema)
            jsonschema.Draft202012Validator.check_schema(tool.output_schema)
            assert tool.annotations.read_only_hint == (tool.name in READING)
            assert tool.description
        answer, [content] = await called(client, "generate_image", {"prompt": "a cat", "seed": 3, "steps": 2})
        assert answer["pictures"][0]["version"] == "v1"
        assert Image.open(io.BytesIO(file_of(content))).size == (64, 64)


async def test_a_picture_is_described_so_that_it_can_be_fetched_and_edited(service):
    async with connected(service.url) as client:
        arguments = {"prompt": "a cat", "seed": 7, "steps": 2, "n": 2, "width": 96, "height": 64, "model": "v1"}
        answer, contents = await called(client, "generate_image", arguments)
    assert [one["seed"] for one in answer["pictures"]] == [7, 8]
    assert [one["file"] for one in answer["pictures"]] == [None, None]
    assert {one["image"] for one in answer["pictures"]} == {f"history:{name}" for name in service.names[:2]}
    status, body = service.service.post("/generate", {**arguments, "n": 1})
    assert status == 200
    assert answer["pictures"][0]["url"].startswith(f"{service.url}/history/")
    full, small = (Image.open(io.BytesIO(file)) for file in (base64.b64decode(body["images"][0]["b64_json"]), file_of(contents[0])))  # fmt: skip
    assert full.size == small.size == (96, 64)
    assert len(contents) == 2


async def test_a_picture_is_edited_by_its_name_its_url_a_file_and_a_data_url(service, tmp_path):
    async with connected(service.url, "--files", tmp_path) as client:
        first, _ = await called(
            client, "generate_image", {"prompt": "a cat", "seed": 1, "height": 96, "save_as": "cat.png"}
        )
        [cat] = first["pictures"]
        mask = io.BytesIO()
        Image.new("L", (64, 96), 255).save(mask, "PNG")
        (tmp_path / "mask.png").write_bytes(mask.getvalue())
        data = f"data:image/png;base64,{base64.b64encode((tmp_path / 'cat.png').read_bytes()).decode()}"
        files = []
        for number, image in enumerate((cat["image"], cat["url"], "cat.png", cat["file"], data)):
            arguments = {"prompt": "a dog", "image": image, "strength": 0.5, "seed": 2, "save_as": f"dog{number}.png"}
            answer, _ = await called(client, "edit_image", arguments)
            assert (answer["width"], answer["height"]) == (64, 96)
            files.append(pixels((tmp_path / f"dog{number}.png").read_bytes()))
        assert len(set(files)) == 1
        status, body = service.service.post(
            "/generate", {"prompt": "a dog", "image": cat["image"], "strength": 0.5, "seed": 2}
        )
        assert (status, pixels(base64.b64decode(body["images"][0]["b64_json"]))) == (200, files[0])
        masked = {"prompt": "a dog", "image": cat["image"], "mask": "mask.png", "mask_blur": 1}
        await called(client, "edit_image", masked)
        assert "strength" in await sentence(client, "edit_image", {**masked, "strength": 2})
        assert "nowhere.png" in await sentence(client, "edit_image", {**masked, "image": "history:nowhere.png"})


async def test_the_client_sees_the_progress(service):
    seen = []

    async def note(progress, total, message):
        seen.append((progress, total, message))

    async with connected(service.url) as client:
        slow = {"prompt": "a cat", "steps": 40, "width": 256, "height": 256}
        await called(client, "generate_image", slow, progress_callback=note)
    values = [progress for progress, _, _ in seen]
    assert values == sorted(set(values)), "each is more than the one before"
    steps = [(progress, total, message) for progress, total, message in seen if total is not None]
    assert len(steps) > 3
    for progress, total, message in steps:  # between two of them, where the service is slow to make the next
        assert (total, message) == (42, f"step {math.floor(progress) - 1} of 40")
        assert progress < total


class Waiting(BaseHTTPRequestHandler):
    """Answers a request for pictures with comments, as the service does while a long queue stands still, then with an error."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(b'event: queued\ndata: {"position": 2}\n\n')
        self.wfile.write(b": still here\n\n" * 30)
        self.wfile.write(b'event: error\ndata: {"error": {"message": "the service stops"}}\n\n')

    def log_message(self, *arguments):
        pass


async def test_a_request_that_waits_makes_progress_too():
    seen = []

    async def note(progress, total, message):
        seen.append((progress, message))

    with ThreadingHTTPServer(("127.0.0.1", 0), Waiting) as waiting:
        threading.Thread(target=waiting.serve_forever, daemon=True).start()
        async with connected(f"http://127.0.0.1:{waiting.server_port}") as client:
            result = await client.call_tool("generate_image", {"prompt": "a cat"}, progress_callback=note)
        waiting.shutdown()
    assert (result.is_error, result.content[0].text) == (True, "the service stops")
    values = [progress for progress, _ in seen]
    assert (len(values), values) == (31, sorted(set(values)))
    assert values[-1] < 1
    assert {message for _, message in seen} == {"queued, 2 before it"}


async def test_a_call_that_is_cancelled_cancels_what_is_drawn(service):
    before = service.names
    async with connected(service.url) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call_tool, "generate_image", LONG)
            await anyio.to_thread.run_sync(service.until, lambda: service.status["queue"]["running"])
            tasks.cancel_scope.cancel()
        await anyio.to_thread.run_sync(service.until, lambda: not service.status["queue"]["running"], 20)
        assert (await called(client, "get_status"))[0]["status"] == "ok", "the connection goes on"
    assert len(service.names) - len(before) < 4


def started(url):
    """Start the server as a process that a test speaks to itself."""
    command = [sys.executable, "-m", "zwatch", "mcp", "--url", url]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def say(process, method, params, identity=None):
    """Send a request, or a notification, which has no identity."""
    message = {"jsonrpc": "2.0", "method": method, "params": params}
    process.stdin.write(json.dumps(message if identity is None else {**message, "id": identity}) + "\n")
    process.stdin.flush()


def test_a_client_that_leaves_cancels_what_is_drawn(service):
    with started(service.url) as process:
        say(process, "initialize", {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}, 1)  # fmt: skip
        assert json.loads(process.stdout.readline())["result"]["protocolVersion"] == "2025-06-18"
        say(process, "notifications/initialized", {})
        say(process, "tools/call", {"name": "generate_image", "arguments": LONG}, 2)
        service.until(lambda: service.status["queue"]["running"])
        process.stdin.close()
        assert process.wait(timeout=20) == 0
    service.until(lambda: not service.status["queue"]["running"], 20)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_at_once(service, number):
    with started(service.url) as process:
        say(process, "ping", {}, 1)
        assert '"id":1' in process.stdout.readline()
        process.send_signal(number)
        assert process.wait(timeout=20) == (130 if number == signal.SIGINT else -number)


async def test_calls_do_not_wait_for_each_other(service):
    async with connected(service.url) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(client.call_tool, "generate_image", LONG)
        await anyio.to_thread.run_sync(service.until, lambda: service.status["queue"]["running"])
        status, _ = await called(client, "get_status")
        assert status["queue"]["running"] == 1
        tasks.cancel_scope.cancel()


async def test_what_is_read_is_what_the_service_answers(service):
    async with connected(service.url) as client:
        status, none = await called(client, "get_status")
        versions, _ = await called(client, "list_versions")
    assert none == []
    assert (status["serving"]["version"], status["aliases"]["current"]["serving"]) == ("v1", "v1")
    assert {(one["name"], one["serving"]) for one in versions["versions"]} == {("v1", True), ("v2", False)}
    assert versions["versions"][0]["digest"] == service.get("/versions")["versions"][0]["digest"]


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("generate_image", {"prompt": "a cat", "width": 100}, "width must be a multiple of 16, got 100"),
        ("generate_image", {"prompt": " "}, "prompt"),
        ("generate_image", {}, "prompt is missing"),
        ("generate_image", {"prompt": "a cat", "size": "64x64"}, "there is no argument 'size'; there are prompt, width"),
        ("generate_image", {"prompt": "a cat", "n": 9}, "n: input should be less than or equal to 4, got 9"),
        ("generate_image", {"prompt": "a cat", "steps": "many"}, "steps: "),
        ("generate_image", {"prompt": "a cat", "model": "v9"}, "'v9' is neither an alias nor a resident version"),
        ("generate_image", {"prompt": "a cat", "save_as": "cat.png"}, "zwatch mcp --files DIR"),
        ("edit_image", {"prompt": "a cat"}, "image is missing"),
        ("edit_image", {"prompt": "a cat", "image": "/etc/passwd"}, "expected history:NAME, or a data URL"),
        ("get_status", {"x": 1}, "there is no argument 'x'; there are none"),
    ],
)  # fmt: skip
async def test_what_goes_wrong_is_a_sentence_for_the_agent(service, name, arguments, words):
    async with connected(service.url) as client:
        assert words in await sentence(client, name, arguments)


async def test_a_tool_that_is_not_there_is_an_error_of_the_protocol(service):
    async with connected(service.url) as client:
        with pytest.raises(MCPError, match="there is no tool 'deploy_version'"):
            await client.call_tool("deploy_version", {"version": "v2"})
    assert service.status["serving"]["version"] == "v1"


async def test_versions_are_deployed_only_where_that_is_allowed(service):
    messages = []

    async def note(progress, total, message):
        messages.append(message)

    async with connected(service.url, "--allow-deploy") as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert list(tools) == [*DRAWING, *READING, *DEPLOYING]
        assert all(tools[name].annotations.destructive_hint for name in DEPLOYING)
        deployed, _ = await called(client, "deploy_version", {"version": "v2"}, progress_callback=note)
        assert (deployed["version"], deployed["message"]) == ("v2", "v2 is serving")
        assert service.status["serving"]["version"] == "v2"
        back, _ = await called(client, "rollback")
        assert back["version"] == "v1"
        assert "there is no version 'v9'" in await sentence(client, "deploy_version", {"version": "v9"})
        seal = service.server.models / "v2" / "BLAKE3SUMS"
        shutil.copytree(service.server.models / "v2", service.server.models / "v3")
        (service.server.models / "v3" / "BLAKE3SUMS").write_bytes(seal.read_bytes()[:-2])
        assert "BLAKE3SUMS" in await sentence(client, "deploy_version", {"version": "v3"})
        assert service.status["serving"]["version"] == "v1", "the old one serves on"
        await called(client, "deploy_version", {"version": "v1"})
        assert service.status["serving"]["version"] == "v1"


async def test_the_token_is_taken_from_the_environment(models, tmp_path):
    token = tmp_path / "token"
    token.write_text("secret\n")
    with running(models, tmp_path / "state", "--token-file", str(token), token="secret") as service:
        async with connected(service.url) as client:
            assert "token" in await sentence(client, "get_status")
        async with connected(service.url, ZWATCH_TOKEN="secret") as client:
            assert (await called(client, "get_status"))[0]["status"] == "ok"
        async with connected(service.url, "--token-file", token) as client:
            await called(client, "generate_image", {"prompt": "a cat", "steps": 1})


async def test_without_a_service_it_starts_and_says_so():
    async with connected("http://127.0.0.1:9") as client:
        assert (await client.list_tools()).tools
        for name, arguments in (("get_status", {}), ("generate_image", {"prompt": "a cat"})):
            assert "no service at http://127.0.0.1:9" in await sentence(client, name, arguments)


async def test_pictures_are_saved_only_in_the_directory_that_is_allowed(service, tmp_path):
    allowed = tmp_path / "project"
    (allowed / "icons").mkdir(parents=True)
    (allowed / "outside").symlink_to(tmp_path)
    (allowed / "mine.png").write_bytes(b"mine")
    async with connected(service.url, "--files", allowed) as client:
        answer, _ = await called(
            client, "generate_image", {"prompt": "a cat", "seed": 7, "steps": 1, "save_as": "icons/cat.webp"}
        )
        [picture] = answer["pictures"]
        assert picture["file"] == str(allowed / "icons" / "cat.webp")
        written = (allowed / "icons" / "cat.webp").read_bytes()
        assert written.startswith(b"RIFF"), "the full picture, in the format of its name"
        for name, words in (
            ("../cat.png", "outside"), (str(tmp_path / "cat.png"), "outside"), ("outside/cat.png", "outside"), ("~/cat.png", "outside"),
            ("mine.png", "is there already"), ("icons", "expected the name of a .png"), ("icons/cat.gif", ".gif"), ("a\0b.png", "save_as"), ("x/cat.png", "no directory"),
        ):  # fmt: skip
            assert words in await sentence(client, "generate_image", {"prompt": "a cat", "save_as": name}), name
    assert (allowed / "mine.png").read_bytes() == b"mine"
    assert sorted(os.listdir(tmp_path)) == ["project"]


async def test_files_that_are_no_pictures_or_elsewhere_are_not_sent(service, tmp_path):
    allowed = tmp_path / "project"
    allowed.mkdir()
    (allowed / "secret.png").write_bytes(b"password\n")
    (tmp_path / "cat.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    async with connected(service.url, "--files", allowed) as client:
        for image, words in (
            ("secret.png", "not a picture"), ("../cat.png", "outside"), (str(tmp_path / "cat.png"), "outside"), ("nowhere.png", "no such file"),
            ("data:image/png;base64,AAA", "not base64"),
        ):  # fmt: skip
            assert words in await sentence(client, "edit_image", {"prompt": "a cat", "image": image}), image


def test_without_the_package_the_command_says_what_to_install(tmp_path):
    code = "import sys, importlib.util as u; find = u.find_spec; u.find_spec = lambda name, *rest: None if name == 'mcp' else find(name, *rest); from zwatch.cli import main; sys.exit(main(['mcp']))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == "zwatch: zwatch mcp needs the package mcp: `pip install 'zwatch[mcp]'`\n"
