"""The traffic of a soak: each function is what one client does in one visit, over one of the APIs."""

import asyncio
import base64
import io
import json
import random
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from PIL import Image
from soak_calls import PROMPTS, SEEDS, Client, Failure, Judge, events

JSON = {"Accept": "application/json"}
STREAM = {"Accept": "text/event-stream"}
WORDS = ("cat", "house", "red", "sea", "墨镜", "nothing")

Visit = Callable[[Client, Judge, int], Awaitable[None]]
"""What a client does; the number is the version's own side, pixels."""


def wanted(client: Client) -> tuple[str, int]:
    """Return a prompt and a seed whose picture is known."""
    return client.chance.choice(PROMPTS), client.chance.choice(SEEDS)


def side(client: Client, own: int) -> int:
    """Return another side than the version's own, a multiple of 16."""
    return max(64, own * client.chance.choice((2, 3, 4, 5, 6)) // 4 // 16 * 16)


async def picture(client: Client, judge: Judge, own: int) -> None:
    """A picture as a file."""
    (prompt, seed), begun = wanted(client), time.monotonic()
    answer, file = await client.call("picture", "POST", "/generate", json={"prompt": prompt, "seed": seed})
    version = answer.headers["X-Zwatch-Version"]
    judge.drew("picture", begun, version, answer.headers["X-Zwatch-Digest"])
    await judge.look("picture", file, version, prompt, seed)


async def pictures(client: Client, judge: Judge, own: int) -> None:
    """Two pictures of one request as JSON, all by one version."""
    prompt, begun = client.chance.choice(PROMPTS), time.monotonic()
    body = {"prompt": prompt, "seed": SEEDS[0], "n": 2}
    found = await client.json("pictures", "POST", "/generate", json=body, headers=JSON)
    judge.drew("pictures", begun, found["version"], found["digest"])
    for one in found["images"]:
        await judge.look("pictures", base64.b64decode(one["b64_json"]), found["version"], prompt, one["seed"])


async def other_picture(client: Client, judge: Judge, own: int) -> None:
    """A picture of another size, seed, format and number of steps."""
    kinds, begun = client.chance.choice(("png", "jpeg", "webp")), time.monotonic()
    body = {
        "prompt": f"{client.chance.choice(PROMPTS)} {client.chance.getrandbits(24)}", "width": side(client, own),
        "height": side(client, own), "steps": client.chance.randrange(2, 9), "format": kinds,
    }  # fmt: skip
    answer, _ = await client.call("other picture", "POST", "/generate", json=body)
    judge.drew("other picture", begun, answer.headers["X-Zwatch-Version"], answer.headers["X-Zwatch-Digest"])


async def named_picture(client: Client, judge: Judge, own: int) -> None:
    """A picture by a version that is asked for by its name, if it is loaded."""
    engines = (await client.json("status", "GET", "/status"))["engines"]
    if not engines:
        return
    name, (prompt, seed), begun = client.chance.choice(engines)["version"], wanted(client), time.monotonic()
    answer, file = await client.call(
        "named picture", "POST", "/generate", json={"prompt": prompt, "seed": seed, "model": name}, expected=(200, 404)
    )
    if answer.status == 404:  # it was freed meanwhile
        client.book.provoked["404 of a version that is not loaded any more"] += 1
        return
    judge.drew("named picture", begun, answer.headers["X-Zwatch-Version"], answer.headers["X-Zwatch-Digest"], name)
    await judge.look("named picture", file, name, prompt, seed)


async def streamed(client: Client, judge: Judge, own: int) -> None:
    """A picture with its events and previews."""
    (prompt, seed), begun = wanted(client), time.monotonic()
    found = await client.stream("stream", "POST", "/generate", json={"prompt": prompt, "seed": seed}, headers=STREAM)
    name, data = found[-1] if found else ("nothing", {})
    if name != "done":
        _ended_otherwise(client, "stream", begun, name, data)
        return
    judge.drew("stream", begun, data["version"], data["digest"])
    await judge.look("stream", base64.b64decode(data["images"][0]["b64_json"]), data["version"], prompt, seed)


async def job(client: Client, judge: Judge, own: int) -> None:
    """A job, followed by its events, and its picture and thumbnail from the history."""
    (prompt, seed), begun = wanted(client), time.monotonic()
    body = {"prompt": prompt, "seed": seed}
    name = (await client.json("job", "POST", "/jobs", json=body, expected=(202,)))["id"]
    await client.stream("job events", "GET", f"/jobs/{name}/events")
    found = await client.json("job", "GET", f"/jobs/{name}")
    if found["state"] != "done":
        _ended_otherwise(client, "job", begun, found["state"], found)
        return
    judge.drew("job", begun, found["version"], found["digest"])
    url = found["images"][0]["url"]
    # Other clients delete pictures, and so does the limit of the history.
    answer, file = await client.call("history", "GET", url, expected=(200, 404))
    if answer.status == 200:
        await judge.look("job", file, found["version"], prompt, seed)
        await client.call("thumbnail", "GET", f"{url}/thumbnail", expected=(200, 404))


async def cancelled_job(client: Client, judge: Judge, own: int) -> None:
    """A job that is cancelled, waiting or running."""
    body = {"prompt": client.chance.choice(PROMPTS), "steps": 20}
    name = (await client.json("job", "POST", "/jobs", json=body, expected=(202,)))["id"]
    await asyncio.sleep(client.chance.random() * 0.5)
    state = (await client.json("cancel", "DELETE", f"/jobs/{name}"))["state"]
    if state not in ("cancelled", "done", "queued", "running"):
        client.book.fails("cancel", f"the job is {state}")


async def leaving(client: Client, judge: Judge, own: int) -> None:
    """A client that closes its connection in the middle of a call."""
    body = {"prompt": "a cat", "steps": 20, "stream": True}
    path, headers = client.chance.choice(
        (("/generate", {}), ("/generate", STREAM), ("/v1/images/generations", {}), ("/sdapi/v1/txt2img", {}))
    )
    if path == "/generate":
        del body["stream"]
    await client.leaves("leaving", "POST", path, client.chance.random() * 0.6, json=body, headers=headers)


async def half_a_request(client: Client, judge: Judge, own: int) -> None:
    """A client that leaves before its request is complete."""
    host, port = client.url.removeprefix("http://").split(":")
    client.book.calls["half a request"] += 1
    _, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /generate HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {client.token}\r\n"
    writer.write(client.chance.choice((b"PO", head.encode(), f"{head}Content-Length: 500\r\n\r\n{{".encode())))
    await asyncio.sleep(client.chance.random())
    writer.close()


async def changed_picture(client: Client, judge: Judge, own: int) -> None:
    """A picture made of another one: of one in the history, or of one that is uploaded, with or without a mask."""
    chance, begun = client.chance, time.monotonic()
    body = {"prompt": chance.choice(PROMPTS), "seed": SEEDS[0], "strength": chance.choice((0.3, 0.6, 1.0))}
    if chance.random() < 0.5:
        images = (await client.json("history", "GET", "/history?limit=20"))["images"]
        if not images:
            return
        body["image"] = f"history:{chance.choice(images)['name']}"
    else:
        body |= await asyncio.to_thread(_drawn_files, chance.getrandbits(32), own)
    # Other clients delete pictures, and so does the limit of the history.
    answer, _ = await client.call("changed picture", "POST", "/generate", json=body, expected=(200, 404))
    if answer.status == 200:
        judge.drew("changed picture", begun, answer.headers["X-Zwatch-Version"], answer.headers["X-Zwatch-Digest"])


def _drawn_files(seed: int, own: int) -> dict[str, str]:
    """Return an image and a mask in base64."""
    chance, files = random.Random(seed), {}
    size = own * chance.choice((2, 3, 4)) // 4, own * chance.choice((2, 3, 4)) // 4
    for name, mode in (("image", "RGB"), ("mask", "L")):
        with io.BytesIO() as file, Image.new(mode, size) as image:
            image.paste(255 if mode == "L" else (200, 30, 60), (0, 0, size[0] // 2, size[1]))
            image.save(file, chance.choice(("PNG", "WEBP")))
            files[name] = base64.b64encode(file.getvalue()).decode()
    return files


async def comparison(client: Client, judge: Judge, own: int) -> None:
    """The same prompt and seed by what serves and by another version, if one is loaded."""
    engines = (await client.json("status", "GET", "/status"))["engines"]
    if not engines:
        return
    (prompt, seed), named = wanted(client), client.chance.choice(engines)["version"]
    body = {"prompt": prompt, "seed": seed, "model": ["current", named]}
    answer, raw = await client.call("comparison", "POST", "/generate", json=body, headers=JSON, expected=(200, 404))
    if answer.status == 404:  # it was freed meanwhile
        client.book.provoked["404 of a version that is not loaded any more"] += 1
        return
    images = json.loads(raw)["images"]
    for number, one in enumerate(images):
        await judge.look(f"comparison {number}", base64.b64decode(one["b64_json"]), one["version"], prompt, seed)
    if images[-1]["version"] != named:
        client.book.wrong(f"comparison: asked for {named}, drawn by {images[-1]['version']}")


async def openai(client: Client, judge: Judge, own: int) -> None:
    """OpenAI's call, now and then as a stream with partial images."""
    (prompt, seed), begun = wanted(client), time.monotonic()
    body: dict[str, Any] = {"prompt": prompt, "seed": seed, "model": "gpt-image-1"}
    path = "/v1/images/generations"
    if client.chance.random() < 0.5:
        body |= {"stream": True, "partial_images": client.chance.randrange(4)}
        found = await client.stream("OpenAI stream", "POST", path, json=body)
        data = found[-1][1] if found else {}
        if data.get("type") != "image_generation.completed":
            _ended_otherwise(client, "OpenAI stream", begun, str(data.get("type")), data)
            return
        file = data["b64_json"]
    else:
        data = await client.json("OpenAI", "POST", path, json=body)
        file = data["data"][0]["b64_json"]
    judge.drew("OpenAI", begun, data["version"], data["digest"])
    await judge.look("OpenAI", base64.b64decode(file), data["version"], prompt, seed)
    await client.json("OpenAI models", "GET", "/v1/models")


async def a1111(client: Client, judge: Judge, own: int) -> None:
    """AUTOMATIC1111's calls as its clients make them: options, a picture, the progress beside it, the settings in the file."""
    for path in ("options", "sd-models", "samplers"):
        await client.json("A1111", "GET", f"/sdapi/v1/{path}")
    if client.chance.random() < 0.3:
        choice = {"sd_model_checkpoint": client.chance.choice(("current", ""))}
        await client.json("A1111 options", "POST", "/sdapi/v1/options", json=choice)
    (prompt, seed), begun = wanted(client), time.monotonic()
    asked = asyncio.create_task(
        client.json("A1111 picture", "POST", "/sdapi/v1/txt2img", json={"prompt": prompt, "seed": seed, "steps": 8})
    )
    try:
        while not asked.done():
            await client.json("A1111 progress", "GET", "/sdapi/v1/progress")
            await asyncio.wait([asked], timeout=0.25)
    finally:
        await asyncio.wait([asked])
    found = asked.result()
    judge.drew("A1111", begun, found["zwatch"]["version"], found["zwatch"]["digest"])
    file = found["images"][0]
    await judge.look("A1111", base64.b64decode(file), found["zwatch"]["version"], prompt, seed)
    await client.json("A1111 png-info", "POST", "/sdapi/v1/png-info", json={"image": file})


async def page(client: Client, judge: Judge, own: int) -> None:
    """The page: its files, its events for some seconds with a job meanwhile, the history and the versions."""
    _, html = await client.call("page", "GET", "/")
    for piece in html.decode().split('"'):
        if piece.startswith("/page/"):
            await client.call("page", "GET", piece)
    name = f"page-{client.chance.getrandbits(48):x}"
    seconds, begun = 2 + 8 * client.chance.random(), time.monotonic()
    async with client.open("page events", "GET", f"/events?client={name}") as response:
        found = events(response)
        await anext(found)
        body = {"prompt": client.chance.choice(PROMPTS)}
        await client.json("job", "POST", "/jobs", json=body, expected=(202,), headers={"X-Client-Id": name})
        try:
            async with asyncio.timeout(seconds):
                while time.monotonic() < begun + seconds:
                    await anext(found)
        except TimeoutError:
            pass
        await client.json("history", "GET", "/history?limit=50")
        await client.json("versions", "GET", "/versions")


async def looking(client: Client, judge: Judge, own: int) -> None:
    """What monitoring asks."""
    for path in (
        "/status",
        "/metrics",
        "/health",
        "/health/live",
        "/health/ready",
        "/attempts",
        "/versions",
        "/openapi.json",
    ):
        expected = (200, 503) if path.startswith("/health") else (200,)
        await client.call("monitoring", "GET", path, expected=expected)


async def searching(client: Client, judge: Judge, own: int) -> None:
    """The history: pages, searches, thumbnails, the settings in a file; now and then a picture is deleted."""
    chance, names = client.chance, []
    for query in ("limit=50", f"q={chance.choice(WORDS)}", f"q={chance.choice(WORDS)}&seed=1", "version=v1&limit=20"):
        found = await client.json("history", "GET", f"/history?{query}")
        names += [one["name"] for one in found["images"]]
    for name in chance.sample(names, min(4, len(names))):
        await client.call("thumbnail", "GET", f"/history/{name}/thumbnail", expected=(200, 404))
    if names:
        name = chance.choice(names)
        answer, file = await client.call("history", "GET", f"/history/{name}", expected=(200, 404))
        if answer.status == 200:
            await client.json("settings", "POST", "/api/picture_settings", data=file)
        if chance.random() < 0.2:
            await client.call("delete", "DELETE", f"/history/{name}", expected=(200, 404))


WRONG: tuple[tuple[str, str, dict[str, Any], int], ...] = (
    ("POST", "/generate", {"data": b'{"prompt": '}, 400),
    ("POST", "/generate", {"json": {"prompt": "a cat", "width": 100}}, 400),
    ("POST", "/generate", {"json": {"prompt": "", "seed": 1}}, 400),
    ("POST", "/generate", {"json": {"prompt": "a cat", "colour": "red"}}, 400),
    ("POST", "/generate", {"json": {"prompt": "a cat", "model": "v99"}}, 404),
    ("POST", "/generate", {"data": b"[" * 5000}, 400),
    ("POST", "/generate", {"data": b"x" * (2**20 + 1)}, 400),  # not too long: it might have a picture
    ("POST", "/api/deploy", {"data": b"x" * (2**20 + 1)}, 413),
    ("POST", "/jobs", {"json": {"prompt": "a cat", "seed": -5}}, 400),
    ("POST", "/generate", {"json": {"prompt": "a cat"}, "headers": {"Authorization": "Bearer wrong"}}, 401),
    ("POST", "/generate", {"json": {"prompt": "a cat"}, "headers": {"Origin": "https://elsewhere.example"}}, 403),
    ("GET", "/status", {"headers": {"Host": "elsewhere.example"}}, 403),
    ("POST", "/v1/images/generations", {"json": {"prompt": "a cat", "size": "7x7"}}, 400),
    ("POST", "/sdapi/v1/png-info", {"json": {"image": "AAAA"}}, 400),
    ("POST", "/api/deploy", {"json": {"version": "v99"}}, 404),
    ("DELETE", "/jobs/j-0123456789abcdef", {}, 404),
    ("GET", "/history/20000101_000000_seed1.png", {}, 404),
    ("GET", "/history?limit=many", {}, 400),
    ("PUT", "/generate", {}, 405),
    ("GET", "/nothing/here", {}, 404),
)
"""Wrong requests, and what each gets."""


async def wrong(client: Client, judge: Judge, own: int) -> None:
    """Requests that are wrong, and their errors."""
    for method, path, sent, status in client.chance.sample(WRONG, 6):
        answer, body = await client.call("wrong", method, path, expected=(status,), **sent)
        if not json.loads(body)["error"]["message"]:
            client.book.fails("wrong", f"{method} {path}: no message")
        client.book.provoked[f"{answer.status} of a wrong request"] += 1


async def session(client: Client, judge: Judge, own: int) -> None:
    """A person who logs in on the page, and out again; sometimes with a wrong token first."""
    if client.is_unique and client.chance.random() < 0.5:
        await client.call("login", "POST", "/login", json={"token": "wrong"}, expected=(401,))
        client.book.provoked["401 of a wrong login"] += 1
    answer, _ = await client.call("login", "POST", "/login", json={"token": client.token})
    cookie = {"Cookie": answer.headers["Set-Cookie"].split(";")[0], "Authorization": ""}
    await client.call("status", "GET", "/status", headers=cookie)
    await client.call("logout", "DELETE", "/login", headers=cookie)


VISITS: tuple[tuple[Visit, int], ...] = (
    (picture, 8), (pictures, 2), (other_picture, 5), (named_picture, 3), (streamed, 4), (changed_picture, 4), (comparison, 3), (job, 5), (cancelled_job, 6),
    (leaving, 6), (half_a_request, 3), (openai, 5), (a1111, 4), (page, 4), (looking, 4), (searching, 4), (wrong, 5),
    (session, 2),
)  # fmt: skip
"""Each visit and how often it is made."""


def _ended_otherwise(client: Client, kind: str, begun: float, state: str, data: dict[str, Any]) -> None:
    """Judge a request that was accepted and not finished: allowed only where the model was unloaded meanwhile."""
    if "model_not_loaded" in json.dumps(data) and client.book.was_unloaded(begun, time.monotonic()):
        client.book.provoked["503 while unloaded"] += 1
    else:
        client.book.fails(kind, f"expected it done, it ended as {state}: {json.dumps(data)[:300]}", begun)


async def visit(client: Client, judge: Judge, own: int) -> None:
    """Make one visit of a random kind; a failure is noted."""
    does: Visit = client.chance.choices([one for one, _ in VISITS], [weight for _, weight in VISITS])[0]
    begun = time.monotonic()
    try:
        await does(client, judge, own)
    except Failure:
        pass
    except Exception as error:  # an answer of another form than it should have
        lines = [one for one in traceback.extract_tb(error.__traceback__) if "/benchmarks/" in one.filename]
        where = f"{Path(lines[-1].filename).name}:{lines[-1].lineno}: {lines[-1].line}"
        client.book.fails(does.__name__, f"{type(error).__name__}: {error} ({where})", begun)
