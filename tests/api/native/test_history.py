"""The history over HTTP."""

import asyncio
import base64
import errno
import io
import json
import os
import shutil
import time

import pytest
from PIL import Image, PngImagePlugin


@pytest.fixture
async def filled(client):
    """A service with three images; returns (client, their names, newest first)."""
    names = []
    for seed in (1, 2, 3):
        body = {"prompt": f"cat {seed}", "seed": seed, "format": ("png", "jpeg", "webp")[seed - 1]}
        _, _, answer = await client.call("POST", "/generate", json=body, headers={"Accept": "application/json"})
        names.append(answer["images"][0]["name"])
    return client, names[::-1]


async def read(client, path):
    async with client.http.get(client.url + path) as response:
        return response.status, response.headers, await response.read()


async def test_every_image_is_listed_with_its_parameters(filled, tmp_path):
    client, names = filled
    status, _, page = await client.call("GET", "/history")
    assert (status, page["next"], page["total"]) == (200, None, 3)
    assert [image["name"] for image in page["images"]] == names
    serving = client.services.engines.serving("current").key
    for seed, image in zip((3, 2, 1), page["images"], strict=True):
        assert image.pop("created").startswith(f"{image['name'][:4]}-{image['name'][4:6]}-")
        assert image == {
            "name": image["name"], "url": f"/history/{image['name']}", "version": "v1", "digest": serving.digest, "share": None,
            "trial": None, "seed": seed, "prompt": f"cat {seed}", "negative_prompt": "", "width": 64, "height": 64, "steps": 8,
            "guidance_scale": 0.0, "model": "current", "format": ("png", "jpeg", "webp")[seed - 1], "quality": 92,
            "loras": [], "source": None, "mask": False, "strength": None, "mask_blur": None, "control": None, "control_scale": None,
            "bytes": (tmp_path / "output" / image["name"]).stat().st_size,
            "votes": {"up": 0, "down": 0, "mine": 0},
        }  # fmt: skip


async def test_the_next_page_continues_after_the_previous_one(filled):
    client, names = filled
    _, _, first = await client.call("GET", "/history?limit=2")
    assert ([image["name"] for image in first["images"]], first["next"]) == (names[:2], names[1])
    _, _, second = await client.call("GET", f"/history?limit=2&before={first['next']}")
    assert ([image["name"] for image in second["images"]], second["next"]) == (names[2:], None)


async def test_a_picture_is_answered_as_the_stored_file(filled, tmp_path):
    client, names = filled
    for name, kind in zip(names, ("webp", "jpeg", "png"), strict=True):
        status, headers, body = await read(client, f"/history/{name}")
        assert (status, headers["Content-Type"]) == (200, f"image/{kind}")
        assert body == (tmp_path / "output" / name).read_bytes()


async def test_one_picture_or_all_can_be_deleted(filled, tmp_path):
    client, names = filled
    assert (await client.call("DELETE", f"/history/{names[1]}"))[0] == 200
    assert (await client.call("DELETE", f"/history/{names[1]}"))[0] == 404
    assert (await read(client, f"/history/{names[1]}"))[0] == 404
    _, _, page = await client.call("GET", "/history")
    assert [image["name"] for image in page["images"]] == [names[0], names[2]]
    assert (await client.call("DELETE", "/history"))[2] == {"deleted": 2}
    assert (await client.call("GET", "/history"))[2] == {"images": [], "next": None, "offset": 0, "total": 0}
    assert list((tmp_path / "output").iterdir()) == []


async def test_files_removed_from_the_directory_are_not_listed_and_the_page_is_still_full(filled, tmp_path):
    client, names = filled
    (tmp_path / "output" / names[0]).unlink()
    _, _, page = await client.call("GET", "/history?limit=2")
    assert [image["name"] for image in page["images"]] == names[1:]
    assert page["next"] is None


async def test_a_file_that_is_not_an_image_is_listed_without_parameters(start, tmp_path):
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "20990101_000000_seed5.png").write_bytes(b"hello")
    async with start() as client:
        _, _, page = await client.call("GET", "/history?limit=1")
    assert page["images"][0] == {
        "name": "20990101_000000_seed5.png", "url": "/history/20990101_000000_seed5.png", "version": None, "digest": None, "share": None,
        "seed": 5, "prompt": None, "negative_prompt": None, "width": None, "height": None, "steps": None,
        "guidance_scale": None, "model": None, "format": "png", "quality": None, "loras": [], "source": None, "mask": False, "strength": None, "mask_blur": None, "control": None, "control_scale": None, "bytes": 5,
        "created": "2099-01-01T00:00:00Z", "trial": None, "votes": {"up": 0, "down": 0, "mine": 0},
    }  # fmt: skip


@pytest.mark.parametrize(
    "request_text",
    ['{"prompt": NaN, "seed": -Infinity, "width": Infinity}', '{"prompt": ["x"], "seed": "5", "steps": {}, "height": true}',
     '{"prompt": ' + "[" * 900 + "]" * 900 + ', "seed": ' + "9" * 4000 + "}"],
)  # fmt: skip
async def test_invalid_metadata_in_a_file_does_not_break_the_list(start, tmp_path, request_text):
    (tmp_path / "output").mkdir()
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("zwatch_request", request_text)
    chunks.add_text("zwatch_digest", "none")
    Image.new("RGB", (8, 8)).save(tmp_path / "output" / "20990101_000000_seed5.png", pnginfo=chunks)
    async with start() as client, client.http.get(client.url + "/history?limit=1") as response:
        [row] = json.loads(await response.read(), parse_constant=pytest.fail)["images"]
    assert [row[name] for name in ("digest", "prompt", "seed", "width", "height", "steps")] == [None] * 6


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=501", "limit=x", "limit=-1", "limit=", "before=x", "before=../x.png"]
)
async def test_an_invalid_query_is_a_400(client, query):
    status, _, body = await client.call("GET", f"/history?{query}")
    assert (status, body["error"]["code"], body["error"]["param"]) == (400, "invalid_value", query.partition("=")[0])


@pytest.mark.parametrize("name", ["..%2F..%2Fetc%2Fpasswd", "..%2F", "x.png", "20260101_000000_seed1.png", "%00"])
async def test_only_pictures_can_be_fetched_or_deleted(client, name):
    assert (await read(client, f"/history/{name}"))[0] == 404
    assert (await client.call("DELETE", f"/history/{name}"))[0] == 404


async def test_requests_succeed_with_a_warning_while_the_history_cannot_be_written(start, tmp_path, caplog):
    (tmp_path / "output").write_text("a file where the directory should be")
    async with start() as client:
        await client.serves()
        for _ in range(2):
            _, _, body = await client.call(
                "POST", "/generate", json={"prompt": "x"}, headers={"Accept": "application/json"}
            )
            assert (body["images"][0]["name"], body["images"][0]["url"]) == (None, None)
            assert body["images"][0]["b64_json"]
        _, _, status = await client.call("GET", "/status")
        assert str(tmp_path / "output") in status["history"]["fault"]
        assert caplog.text.count("images cannot be kept") == 1
        _, _, job = await client.call("POST", "/jobs", json={"prompt": "x"})
        while (found := (await client.call("GET", f"/jobs/{job['id']}"))[2])["state"] != "done":
            pass
        assert (await read(client, found["images"][0]["url"]))[0] == 200, "the job keeps what the history cannot store"
        (tmp_path / "output").unlink()
        _, _, body = await client.call(
            "POST", "/generate", json={"prompt": "x"}, headers={"Accept": "application/json"}
        )
        assert body["images"][0]["name"]
        _, _, status = await client.call("GET", "/status")
        assert (status["history"]["fault"], status["history"]["images"]) == (None, 1)


async def test_without_a_history_nothing_is_stored_and_its_calls_are_a_404(start, tmp_path):
    async with start(history=False) as client:
        await client.serves()
        await client.call("POST", "/generate", json={"prompt": "x"}, headers={"Accept": "application/json"})
        assert not (tmp_path / "output").exists()
        status, _, body = await client.call("GET", "/history")
        assert (status, body["error"]["code"]) == (404, "not_found")
        assert "--no-history" in body["error"]["message"]
        assert (await client.call("GET", "/status"))[2]["history"] is None


async def test_the_oldest_images_beyond_the_limit_are_deleted(start, tmp_path):
    async with start(history_max_images=2) as client:
        await client.serves()
        body = {"prompt": "x", "seed": 1, "n": 4}
        await client.call("POST", "/generate", json=body, headers={"Accept": "application/json"})
        _, _, page = await client.call("GET", "/history")
        assert [image["seed"] for image in page["images"]] == [4, 3]


async def test_a_stored_image_has_a_name_even_if_older_ones_cannot_be_deleted(start, tmp_path, monkeypatch, caplog):
    unlink = os.unlink

    def stuck(path, **options):
        if str(path).endswith("_seed1.png"):
            raise PermissionError(errno.EPERM, "Operation not permitted")
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", stuck)
    async with start(history_max_images=1) as client:
        await client.serves()
        for seed in (1, 2):
            body = {"prompt": "x", "seed": seed}
            _, _, made = await client.call("POST", "/generate", json=body, headers={"Accept": "application/json"})
            assert (tmp_path / "output" / made["images"][0]["name"]).exists()
        _, _, status = await client.call("GET", "/status")
        assert status["history"]["fault"].endswith("old images cannot be deleted: Operation not permitted")
        assert "old images cannot be deleted" in caplog.text


async def test_the_history_survives_a_restart(start, tmp_path):
    async with start() as client:
        await client.serves()
        await client.call("POST", "/generate", json={"prompt": "x"}, headers={"Accept": "application/json"})
    async with start() as client:
        _, _, page = await client.call("GET", "/history")
        assert len(page["images"]) == 1
        assert json.dumps(page["images"][0]["prompt"]) == '"x"'
    shutil.rmtree(tmp_path / "output")


async def test_a_url_that_is_answered_exists_whatever_files_of_the_future_lie_there(start, tmp_path):
    (tmp_path / "output").mkdir()
    for seed in range(5):
        (tmp_path / "output" / f"20990101_000000_seed{seed}.png").write_bytes(b"hello")
    async with start(history_max_images=5) as client:
        await client.serves()
        for seed in (3, 900):
            _, _, answer = await client.call(
                "POST", "/generate", json={"prompt": "a cat", "seed": seed}, headers={"Accept": "application/json"}
            )
            [image] = answer["images"]
            status, _, body = await read(client, image["url"])
            assert (status, body) == (200, base64.b64decode(image["b64_json"]))
            _, _, page = await client.call("GET", "/history?limit=1")
            assert (page["images"][0]["name"], page["total"]) == (image["name"], 5)
        _, _, job = await client.call("POST", "/jobs", json={"prompt": "x", "steps": 1, "n": 3})
        while (done := (await client.call("GET", f"/jobs/{job['id']}"))[2])["state"] != "done":
            await asyncio.sleep(0.02)
        assert [(await read(client, image["url"]))[0] for image in done["images"]] == [200] * 3
        await client.call(
            "POST", "/generate", json={"prompt": "x", "steps": 1, "n": 4}, headers={"Accept": "application/json"}
        )
        await client.call("DELETE", f"/history/{done['images'][2]['name']}")
        _, _, later = await client.call("GET", f"/jobs/{job['id']}")
        assert [(image["name"], image["url"]) for image in later["images"]] == [(None, None)] * 3, (
            "none exists any more"
        )


async def test_a_picture_has_a_thumbnail_which_is_deleted_with_it(start, tmp_path):
    async with start() as client:
        await client.serves()
        body = {"prompt": "a cat", "width": 512, "height": 256, "steps": 1}
        _, _, answer = await client.call("POST", "/generate", json=body, headers={"Accept": "application/json"})
        name = answer["images"][0]["name"]
        status, headers, file = await read(client, f"/history/{name}/thumbnail")
        assert (status, headers["Content-Type"]) == (200, "image/webp")
        assert headers["Cache-Control"] == "private, max-age=31536000, immutable"
        with Image.open(io.BytesIO(file)) as image:
            assert image.size == (320, 160)
        [kept] = (tmp_path / "state" / "history" / "thumbnails").iterdir()
        assert kept.read_bytes() == file
        assert [path.name for path in (tmp_path / "output").iterdir()] == [name], "none in the directory of pictures"
        assert (await client.call("DELETE", f"/history/{name}"))[0] == 200
        assert not kept.exists()
        assert (await read(client, f"/history/{name}/thumbnail"))[0] == 404


async def test_thumbnails_of_pictures_that_went_otherwise_are_deleted_too(start, tmp_path):
    thumbnails = tmp_path / "state" / "history" / "thumbnails"
    async with start(history_max_images=2) as client:
        await client.serves()
        names = []
        for seed in (1, 2, 3):
            body = {"prompt": "a cat", "seed": seed}
            _, _, answer = await client.call("POST", "/generate", json=body, headers={"Accept": "application/json"})
            names.append(answer["images"][0]["name"])
            assert (await read(client, f"/history/{names[-1]}/thumbnail"))[0] == 200
        # Beyond the limit; deleted by a thread that nobody waits for.
        deadline = time.monotonic() + 60
        while (found := {path.stem for path in thumbnails.iterdir()}) != set(names[1:]):
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.02)
        (tmp_path / "output" / names[1]).unlink()
        assert (await read(client, f"/history/{names[1]}/thumbnail"))[0] == 404
    async with start(history_max_images=2) as client:
        await client.serves()
        assert (await read(client, f"/history/{names[2]}/thumbnail"))[0] == 200
        assert {path.stem for path in thumbnails.iterdir()} == {names[2]}, "removed by another program"
        assert (await client.call("DELETE", "/history"))[2] == {"deleted": 1}
        assert list(thumbnails.iterdir()) == []


@pytest.mark.parametrize("name", ["20990101_000000_seed5.png", "20990101_000000_seed6.png", "x.png", "..%2Fx.png"])
async def test_what_is_no_picture_has_no_thumbnail(start, tmp_path, name):
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "20990101_000000_seed5.png").write_bytes(b"hello")
    async with start() as client:
        status, _, body = await client.call("GET", f"/history/{name}/thumbnail")
        assert (status, body["error"]["code"]) == (404, "not_found")
        assert ("cannot be decoded" in body["error"]["message"]) == (name == "20990101_000000_seed5.png")


async def test_a_service_that_can_keep_no_thumbnails_makes_them(filled, tmp_path):
    client, names = filled
    shutil.rmtree(tmp_path / "state" / "history")
    (tmp_path / "state" / "history").write_text("a file where the directory should be")
    for _ in range(2):
        assert (await read(client, f"/history/{names[0]}/thumbnail"))[0] == 200


async def test_the_list_is_narrowed_by_words_version_and_seed(filled):
    client, names = filled

    async def found(**query):
        _, _, page = await client.call("GET", "/history", params=query)
        assert page["total"] == len(page["images"])
        assert page["indexed"] == 1
        return [image["name"] for image in page["images"]]

    assert await found(q="CAT") == names
    assert await found(q="cat 2") == [names[1]]
    assert await found(q="dog") == []
    assert await found(version="v1", seed="3") == [names[0]]
    assert await found(version="v2") == []
    body = {"prompt": "戴墨镜的猫", "seed": 4}
    _, _, answer = await client.call("POST", "/generate", json=body, headers={"Accept": "application/json"})
    assert await found(q="墨镜") == [answer["images"][0]["name"]]
    _, _, page = await client.call("GET", "/history?q=cat&limit=2")
    assert (page["total"], page["next"]) == (3, names[1])
    _, _, page = await client.call("GET", f"/history?q=cat&limit=2&before={page['next']}")
    assert ([image["name"] for image in page["images"]], page["next"]) == (names[2:], None)
    _, _, page = await client.call("GET", "/history?q=%20&version=&seed=")
    assert (page["total"], "indexed" in page) == (4, False)


@pytest.mark.parametrize(
    "query", ["seed=x", "seed=-1", "seed=1.5", f"seed={2**63}", "q=" + "x" * 501, "version=" + "x" * 501]
)
async def test_an_invalid_search_is_a_400(client, query):
    status, _, body = await client.call("GET", f"/history?{query}")
    assert (status, body["error"]["code"], body["error"]["param"]) == (400, "invalid_value", query.partition("=")[0])


async def test_deleting_all_takes_no_search(filled):
    client, _ = filled
    status, _, body = await client.call("DELETE", "/history?q=cat")
    assert (status, body["error"]["param"]) == (400, "q")
    assert (await client.call("GET", "/history"))[2]["total"] == 3


async def test_a_search_answers_while_the_state_directory_cannot_be_used(filled, tmp_path):
    client, names = filled
    shutil.rmtree(tmp_path / "state" / "history")
    (tmp_path / "state" / "history").write_text("a file where the directory should be")
    for _ in range(2):
        _, _, page = await client.call("GET", "/history?q=cat")
        assert [image["name"] for image in page["images"]] == names
