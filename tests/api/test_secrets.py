"""Nothing secret is in what a service tells: logs, also at the level debug, metrics, status, systemd, and the list of processes."""

import asyncio
import base64
import io
import json
import logging
import os
import select
import socket
from pathlib import Path

from PIL import Image, PngImagePlugin

from tests.api.conftest import tiny_config
from tests.harness import Server
from zwatch.logs import formatter

TOKEN = "canary-right-token-7f3a"
WRONG = "canary-wrong-token"
PROMPT = "canary prompt of a client"
SECRETS = ("canary", base64.b64encode(b"canary")[:8].decode())
DEBUG = "import logging\nold = logging.basicConfig\nlogging.basicConfig = lambda **given: old(**{**given, 'level': logging.DEBUG})\n"


def picture() -> bytes:
    chunks, file = PngImagePlugin.PngInfo(), io.BytesIO()
    chunks.add_text("parameters", f"{PROMPT}\nSteps: 1, Sampler: canary")
    Image.new("RGB", (8, 8)).save(file, "png", pnginfo=chunks)
    return file.getvalue()


def basic(password: str) -> dict:
    return {"Authorization": "Basic " + base64.b64encode(f"canary-name:{password}".encode()).decode()}


def bearer(token: str) -> dict:
    return {"Authorization": f"Bearer {token}"}


async def raw(server: Server, words: bytes, seconds: float = 5.0) -> bytes:
    """Send bytes; return what comes, until the service closes or for a while."""
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(words)
    try:
        return await asyncio.wait_for(reader.read(), seconds)
    except (TimeoutError, ConnectionResetError):
        return b""
    finally:
        writer.close()


async def send_tokens(server: Server) -> None:
    """Send right and wrong tokens in all ways."""
    few = asyncio.Semaphore(8)

    async def get(path: str, headers: dict) -> None:
        async with few, server.http.get(server.url + path, headers=headers) as response:
            await response.read()

    await asyncio.gather(*(
        get(path, headers)
        for path in ("/status", f"/history?q={WRONG}", f"/status?token={WRONG}", f"/{WRONG}", f"/jobs/{WRONG}", "/login")
        for headers in (
            bearer(TOKEN), basic(TOKEN), bearer(WRONG), basic(WRONG), {"Authorization": WRONG}, {"Authorization": f"Digest {WRONG}"},
            {"Cookie": f"zwatch={WRONG}; zwatch_session={WRONG}"}, {"X-Api-Key": WRONG}, {"Origin": f"http://{WRONG}.example"},
            {"Host": f"{WRONG}.example"}, {"User-Agent": WRONG, "X-Client-Id": WRONG, "Referer": f"http://x/?token={WRONG}"},
        )
    ))  # fmt: skip
    for given in (WRONG, TOKEN, [WRONG], {"x": WRONG}):
        async with server.http.post(server.url + "/login", json={"token": given}) as response:
            cookies = dict(response.cookies)
        async with server.http.delete(
            server.url + "/login", cookies={k: v.value for k, v in cookies.items()}
        ) as response:
            await response.read()
    words = (
        f"GET /status?token={WRONG} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {WRONG}\0\r\n\r\n",
        f"GET /status HTTP/1.1\r\nHost: localhost\r\nAuthorization Bearer {WRONG}\r\n\r\n",
        f"GET /{WRONG} HTTP/9\r\n\r\n",
        f"{WRONG}\r\n\r\n",
        "POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n" + json.dumps({"token": WRONG}),
        f"POST /login HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{WRONG}\r\n",
        f"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: {WRONG}\r\nConnection: upgrade\r\n\r\n{WRONG}",
        f"GET / HTTP/1.1\r\nHost: localhost\r\nCookie: zwatch={WRONG}\r\nExpect: {WRONG}\r\n\r\n",
    )  # fmt: skip
    await asyncio.gather(*(raw(server, one.encode(), 1.0) for one in words))


async def send_prompts(server: Server) -> None:
    """Send prompts and pictures, that are drawn and that are refused."""
    image = base64.b64encode(picture()).decode()
    for path, body in (
        ("/generate", {"prompt": PROMPT, "negative_prompt": PROMPT, "seed": 1}),
        ("/generate", {"prompt": PROMPT * 1000}),
        ("/generate", {"prompt": PROMPT, "seed": PROMPT}),
        ("/generate", {"prompt": PROMPT, PROMPT: 1}),
        ("/generate", {"prompt": [PROMPT]}),
        ("/generate", {"prompt": PROMPT, "model": PROMPT}),
        ("/generate", {"prompt": PROMPT, "steps": 100, "width": 2048, "height": 2048, "n": 16}),
        ("/generate", {"prompt": PROMPT + "\ud800"}),
        ("/v1/images/generations", {"prompt": PROMPT, "size": PROMPT, "user": PROMPT}),
        ("/v1/images/generations", {"prompt": PROMPT, "size": "64x64", "user": PROMPT}),
        ("/sdapi/v1/txt2img", {"prompt": PROMPT, "width": 64, "height": 64, "sampler_name": PROMPT}),
        ("/sdapi/v1/png-info", {"image": image}),
        ("/sdapi/v1/png-info", {"image": PROMPT}),
        ("/sdapi/v1/options", {"sd_model_checkpoint": PROMPT}),
        ("/api/deploy", {"version": PROMPT, "alias": PROMPT}),
        ("/jobs", {"prompt": PROMPT, "steps": 20}),
    ):
        async with server.http.post(
            server.url + path, json=body, headers={**bearer(TOKEN), "X-Client-Id": WRONG}
        ) as response:
            found = await response.read()
            assert response.status < 500, (path, found)
        if path == "/jobs":
            async with server.http.delete(
                f"{server.url}/jobs/{json.loads(found)['id']}", headers=bearer(TOKEN)
            ) as response:
                assert response.status == 200
    for data, headers in (
        (PROMPT.encode(), {}),
        (b'{"prompt": "' + PROMPT.encode(), {}),
        (f"prompt={PROMPT}&x={PROMPT}".encode(), {"Content-Type": "application/x-www-form-urlencoded"}),
        (PROMPT.encode(), {"Content-Type": f"multipart/form-data; boundary={WRONG}"}),
        (PROMPT.encode(), {"Content-Type": f"multipart/form-data; boundary=\u75e5; x={WRONG}"}),
    ):
        for path in ("/generate", "/sdapi/v1/png-info", "/api/picture_settings"):
            async with server.http.post(server.url + path, data=data, headers={**bearer(TOKEN), **headers}) as response:
                await response.read()
                assert response.status < 500, (path, data, headers)
    async with server.http.post(
        server.url + "/api/picture_settings", data=picture(), headers=bearer(TOKEN)
    ) as response:
        assert PROMPT in await response.text(), "the client itself gets it"
    words = (
        f"POST /generate HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 1000\r\n\r\n"
    )
    await asyncio.gather(
        raw(server, words.encode() + b'{"prompt": "' + PROMPT.encode(), 30.0),
        raw(
            server,
            words.encode().replace(b"1000", b"100") + json.dumps({"prompt": PROMPT, "steps": 50}).ljust(100).encode(),
            0.2,
        ),
    )


async def told(server: Server, notices: socket.socket) -> dict[str, str]:
    """Return all that a service tells, by where."""
    found = {"log": server.log.read_text()}
    for path in ("/metrics", "/status", "/health", "/versions", "/attempts", "/openapi.json"):
        async with server.http.get(server.url + path, headers=bearer(TOKEN)) as response:
            assert response.status == 200
            found[path] = await response.text()
    lines = []
    while select.select([notices], [], [], 0)[0]:
        lines.append(notices.recv(4096).decode())
    assert any("STATUS=" in line for line in lines)
    found["systemd"] = "".join(lines)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = process.joinpath("stat").read_text().rpartition(")")[2].split()[1]
            if str(server.process.pid) in (process.name, parent):
                found[f"ps {process.name}"] = process.joinpath("cmdline").read_bytes().decode()
        except OSError:
            continue
    return found


async def test_no_secret_is_told(models, tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(DEBUG)
    notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notices.bind(str(tmp_path / "notify"))
    notices.setblocking(False)
    environment = {
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(Path(__file__).parent.parent.parent)]),
        "PYTHONASYNCIODEBUG": "1",
        "ZWATCH_TOKEN": WRONG,  # the file counts
    }
    options = ("--token-file", str(tmp_path / "token"), "--max-work", "1", "--log", "json")
    server = Server(models, tmp_path / "state", *options, environment=environment)
    server.start()
    try:
        await server.connect()
        server.url = server.url.rstrip('",}')
        server.http.headers.update(bearer(TOKEN))
        await server.serves("v1")
        del server.http.headers["Authorization"]
        await asyncio.gather(send_tokens(server), send_prompts(server))
        await asyncio.sleep(1.5)  # refusals are logged once a second
        found = await told(server, notices)
    finally:
        await server.http.close()
        server.stop()
        notices.close()
    found["log"] = server.log.read_text()
    assert '"level": "debug"' in found["log"]
    assert "invalid HTTP" in found["log"]
    assert "Traceback" not in found["log"]
    assert any("serve" in text for place, text in found.items() if place.startswith("ps"))
    for place, text in found.items():
        lines = [line for line in text.splitlines() if any(word in line for word in SECRETS)]
        assert not lines, (place, lines[:5])


async def test_a_prompt_that_a_library_repeats_in_its_error_is_not_logged(start, monkeypatch, caplog):
    """Neither its traceback nor the line of the request nor the answer has it."""
    caplog.set_level(logging.DEBUG)
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(formatter("json").format(record))
    logging.getLogger().addHandler(handler)
    try:
        async with start() as client:
            await client.serves()
            engine = client.services.engines.serving("current").engine

            def fail(self, parameters, *given, **named):
                try:
                    raise ValueError(f"inner {parameters.prompt}")
                except ValueError as error:
                    raise RuntimeError(
                        f"cannot draw {parameters.prompt!r} without {parameters.negative_prompt}"
                    ) from error

            monkeypatch.setattr(type(engine), "generate", fail)
            body = {"prompt": "canary\none 'x'", "negative_prompt": "canary two"}
            status, _, answer = await client.call("POST", "/generate", json=body)
            assert (status, answer["error"]["code"]) == (500, "generation_failed")
            monkeypatch.undo()
    finally:
        logging.getLogger().removeHandler(handler)
    text = "\n".join(lines)
    assert "cannot draw" in text
    assert "Traceback" in text
    assert "canary" not in text
    assert "canary" not in str(answer)


def test_the_settings_do_not_show_the_token(tmp_path):
    assert "canary" not in repr(tiny_config(tmp_path, tmp_path, token="canary"))
