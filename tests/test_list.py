"""`zwatch list` and `GET /versions`: provenance, rejected versions and why, and what is no version."""

import json
import os
import shutil
import subprocess
import sys

from tests.deploy.factory import seal_as_it_is, stamp_as_it_is, write_version
from tests.harness import Server
from zwatch import client, offline
from zwatch.deploy import provenance
from zwatch.deploy.provenance import Base, Conversion, MergedLora, Provenance, Source
from zwatch.deploy.sealing import write_seal

MADE = Provenance(
    default_size=64,
    source=Source("hub", "f332072aa78be7ae", "Tongyi-MAI/Z-Image-Turbo", "f332072aa78be7aecdf3ee76d5c2", {"x": "1" * 64}),
    base=Base("v1", "2" * 64),
    loras=(MergedLora("ink.safetensors", "3" * 64, 0.8),),
    conversions=(Conversion("transformer", "F32", "BF16"),),
    tools={"zwatch": "0.1.0"},
    licence="apache-2.0",
    note="für 画",
)  # fmt: skip


def zwatch(*arguments):
    """Run a command; return the finished process."""
    command = [sys.executable, "-m", "zwatch", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_lines_say_what_a_version_was_made_from():
    assert client.provenance_facts(provenance.as_json(MADE)) == [
        "from Tongyi-MAI/Z-Image-Turbo f332072aa78b (hub, 1 file)",
        "the rest from v1 222222222222",
        "LoRA ink.safetensors 333333333333 x 0.8",
        "transformer F32 -> BF16",
        "licence apache-2.0",
        "by zwatch 0.1.0",
        "für 画",
    ]
    assert client.provenance_facts({}) == []
    assert client.provenance_facts({"source": {"kind": "single_file", "name": "x"}, "quantization": "fp8"}) == [
        "from x (single file)",
        "quantized to fp8",
    ]


def test_a_models_root_is_listed_without_a_service(tmp_path):
    for name in ("v1", "v2"):
        write_version(tmp_path, name)
    (tmp_path / "v1/zwatch.json").write_bytes(provenance.format(MADE))
    write_seal(tmp_path / "v1", "v1")
    (tmp_path / "v3").mkdir()
    (tmp_path / "a\x1b[2J b").mkdir()
    (tmp_path / "notes.txt").touch()
    (tmp_path / os.fsdecode(b"\xff\x1b")).symlink_to("v3")
    (tmp_path / "current").symlink_to("stable")
    (tmp_path / "stable").symlink_to("v2")
    found = offline.versions(tmp_path)
    lines = client.shown("/versions", found)
    assert [line.split()[0] for line in lines[:1]] == ["v1"]
    assert lines[1].startswith("  from Tongyi-MAI/Z-Image-Turbo f332072aa78b (hub")
    assert sorted(lines[2].split("  ")[-1].split(" ")) == ["<-", "<-", "current", "stable"]
    assert lines[3].endswith(r"""there is no BLAKE3SUMS; run `zwatch seal`  <- "\\xff\u001b""" + '"')
    assert lines[4].startswith(r'"a\u001b[2J b": no version: a version')
    assert len(lines) == 5
    ended = zwatch("list", "--models", tmp_path, "--json")
    assert json.loads(ended.stdout) == found
    assert zwatch("list", "--models", tmp_path / "gone").returncode == 2


async def test_the_list_says_which_versions_were_rejected_and_why_until_they_serve(models, tmp_path):
    bad = models / "v3"
    shutil.copytree(models / "v2", bad)
    (models / "not a version").mkdir()
    (models / "v1/zwatch.json").write_bytes(provenance.format(MADE))
    write_seal(models / "v1", "v1")
    async with Server(models, tmp_path / "state") as server:

        async def shown(name):
            return next(one for one in (await server.get("/versions"))["versions"] if one["name"] == name)

        await server.serves("v1")
        assert (await server.status())["serving"]["default_size"] == 64
        assert (await shown("v1"))["provenance"] == provenance.as_json(MADE)
        assert ((await shown("v3"))["rejected"], (await shown("v3"))["provenance"]) == (None, None)
        assert (await server.post("/api/deploy", {"version": "v3"}))[0] == 409
        assert (await server.post("/api/deploy", {"version": "v2"}))[0] == 200
        rejected = (await shown("v3"))["rejected"]
        assert rejected["code"] == "version_mismatch"
        assert "the header has version 'v2', the directory is 'v3'" in rejected["reason"]
        text = zwatch("list", "--url", server.url).stdout
        assert f"  rejected {rejected['when']}: version_mismatch: transformer/" in text
        assert "  from Tongyi-MAI/Z-Image-Turbo f332072aa78b" in text
        assert "not a version: no version: a version's name has 1-64" in text
        (bad / "zwatch.json").write_text('{"sauce": {}}')
        stamp_as_it_is(bad)
        seal_as_it_is(bad)
        now = await shown("v3")
        assert now["rejected"] is None, "it is another digest"
        assert 'zwatch.json: found "sauce"' in now["problem"]
        assert (await server.post("/api/deploy", {"version": "v3"}))[0] == 409
        assert (await shown("v3"))["rejected"]["code"] == "config_invalid"
        (bad / "zwatch.json").unlink()
        write_seal(bad, "v3")
        assert (await server.post("/api/deploy", {"version": "v3"}))[0] == 200
        now = await shown("v3")
        assert (now["rejected"], now["problem"], now["serving"]) == (None, None, True)
