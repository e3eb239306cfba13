"""The LoRA root of a running service: its list, its part of the status and of the events, AUTOMATIC1111's list."""

import asyncio
import json
import os
import shutil
import time

import pytest

from tests.deploy.loras import WEIGHTS, write_lora
from tests.signing.made import allow, write_key, write_policy
from zwatch.cli import main
from zwatch.deploy.loras import LoraRoot


@pytest.fixture
def root(models):
    return models.parent / "loras"


@pytest.fixture
def ink(root, models):
    return write_lora(root, "ink", models / "v1/transformer")


async def listed(client):
    status, _, found = await client.call("GET", "/loras")
    assert status == 200
    return found["loras"]


async def seen(client, *names):
    """Wait until the service knows LoRAs of these names, without asking it to look."""
    async with asyncio.timeout(20):
        while [one.name for one in client.services.loras.seen] != list(names):
            await client.services.supervisor.changes.wait()


async def test_a_root_that_is_not_there_is_an_empty_list(start, root):
    async with start() as client:
        status, _, found = await client.call("GET", "/loras")
        assert (status, found) == (200, {"loras": [], "problem": None})
        assert (await client.call("GET", "/sdapi/v1/loras"))[2] == []
        assert (await client.call("GET", "/status"))[2]["loras"] == []
    assert not root.exists()


async def test_the_list_says_what_each_lora_is(start, ink):
    async with start() as client:
        [found] = await listed(client)
    [lora] = LoraRoot(ink.parent).look()
    sealed_at = found.pop("sealed_at")
    assert sealed_at.endswith("Z")
    assert found == {
        "name": "ink", "digest": lora.digest, "resident": False, "bytes": (ink / WEIGHTS).stat().st_size, "rank": 4,
        "modules": lora.modules, "signer": None, "code": None, "problem": None,
    }  # fmt: skip


async def test_new_changed_and_removed_ones_are_followed(start, root, models):
    async with start() as client:
        await seen(client)
        write_lora(root, "ink", models / "v1/transformer")
        await seen(client, "ink")
        before = client.services.loras.seen[0].digest
        write_lora(root, "ink", models / "v1/transformer", seed=1)
        async with asyncio.timeout(20):
            while client.services.loras.find("ink").digest == before or client.services.loras.find("ink").problem:
                await client.services.supervisor.changes.wait()
        write_lora(root, "night", models / "v1/transformer")
        await seen(client, "ink", "night")
        shutil.rmtree(root)
        await seen(client)


async def test_a_change_is_an_event_and_in_the_status(start, ink, root):
    async with start() as client, client.http.get(client.url + "/events") as response:
        shutil.copytree(ink, root / ".pen")
        os.rename(root / ".pen", root / "pen")
        async with asyncio.timeout(20):
            names = None
            while names != ["ink", "pen"]:
                line = await response.content.readline()
                if line == b"event: loras\n":
                    found = json.loads((await response.content.readline()).removeprefix(b"data: "))
                    names = [one["name"] for one in found["loras"]]
        _, _, status = await client.call("GET", "/status")
        assert [(one["name"], one["code"]) for one in status["loras"]] == [("ink", None), ("pen", "version_mismatch")]
        assert "the directory is 'pen'" in status["loras"][1]["problem"]


async def test_automatic1111s_list_has_those_that_can_be_used(start, ink, root):
    (root / "a_download.safetensors").write_bytes(b"not imported yet")
    async with start() as client:
        _, _, found = await client.call("GET", "/sdapi/v1/loras")
        assert [(one["name"], one["alias"], one["path"]) for one in found] == [("ink", "ink", f"ink/{WEIGHTS}")]
        assert found[0]["metadata"]["rank"] == 4
        [other, _] = await listed(client)
        assert other["code"] == "file_not_regular"
        assert "zwatch import FILE NAME --lora" in other["problem"]


async def test_refresh_looks_before_it_answers(start, root, models):
    async with start() as client:
        write_lora(root, "ink", models / "v1/transformer")
        assert (await client.call("POST", "/sdapi/v1/refresh-loras"))[0] == 200
        assert [one.name for one in client.services.loras.seen] == ["ink"]


async def test_another_root_is_a_setting(start, tmp_path, models):
    write_lora(tmp_path / "styles", "ink", models / "v1/transformer")
    async with start(loras=tmp_path / "styles") as client:
        assert [one["name"] for one in await listed(client)] == ["ink"]


async def test_a_root_that_cannot_be_read_says_so_and_serves_on(start, root, tmp_path):
    root.write_text("no directory")
    async with start() as client:
        _, _, found = await client.call("GET", "/loras")
        assert found["loras"] == []
        assert "Not a directory; expected the LoRA root, see --loras" in found["problem"]
        await client.serves()
        assert (await client.call("GET", "/health"))[2]["status"] == "ok"


async def test_a_policy_counts_for_loras_under_their_own_names(start, ink, root, models, tmp_path):
    key = write_key(tmp_path)
    shutil.copytree(ink, root / ".other")
    policy = write_policy(tmp_path, allow("release.pub", "v*"), allow("release.pub", "lora/*"))
    for version in ("v1", "v2"):
        assert main(["seal", str(models / version), "--sign", str(key)]) == 0
    async with start(require_signature=policy) as client:
        [found] = await listed(client)
        assert found["code"] == "signature_missing"
        assert main(["seal", str(ink), "--sign", str(key)]) == 0
        [found] = await listed(client)
        assert found["problem"] is None
        assert found["signer"].startswith("key release.pub sha256:")
        opened = client.services.loras.root.open_lora("ink")
        assert opened.signer == found["signer"]
        opened.close()
        write_policy(tmp_path, allow("release.pub", "v*"))
        [found] = await listed(client)
        assert found["code"] == "signer_not_allowed"


async def test_what_a_load_refuses_is_in_the_list_until_it_is_sealed_anew(start, ink, models):
    from zwatch.errors import Rejection

    async with start() as client:
        await listed(client)
        root = client.services.loras.root
        root.refuse(root.open_lora("ink"), Rejection("hash_mismatch", "lora.safetensors: blake3 is …"))
        [found] = await listed(client)
        assert found["code"] == "hash_mismatch"
        write_lora(ink.parent, "ink", models / "v1/transformer", seed=1)
        [found] = await listed(client)
        assert found["code"] is None


async def test_a_look_that_waits_for_a_disk_does_not_make_looks_rarer(start, ink, monkeypatch):
    looks, look = [], LoraRoot.look

    def slow(self):
        looks.append(self)
        time.sleep(1.0)
        return look(self)

    monkeypatch.setattr(LoraRoot, "look", slow)
    async with start(), asyncio.timeout(20):  # by its time on the clock, the second look would come after 50 s
        while len(looks) < 3:
            await asyncio.sleep(0.05)


async def test_a_name_that_no_lora_can_have_is_said_to_be_that(start, root, ink):
    shutil.copytree(ink, root / "a b")
    async with start() as client:
        problems = {one["name"]: one["problem"] for one in await listed(client)}
    assert problems["ink"] is None
    assert "a LoRA's name has 1-64 of A-Za-z0-9._-" in problems["a b"]
