"""`zwatch seal`, `zwatch verify` and `zwatch list --lora` of LoRA directories."""

import asyncio
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.deploy.factory import write_version
from tests.deploy.loras import WEIGHTS, write_lora
from tests.harness import Server
from tests.signing.made import allow, write_key, write_policy
from zwatch.cli import main
from zwatch.deploy.loras import LoraRoot
from zwatch.deploy.seal import SEAL_NAME
from zwatch.deploy.versions import opened, summarise

TRANSFORMER = Path(__file__).parent.parent / "models/v1/transformer"


@pytest.fixture
def ink(tmp_path):
    return write_lora(tmp_path / "loras", "ink", TRANSFORMER)


def test_a_renamed_lora_is_stamped_and_sealed_anew(ink, capsys):
    pen = ink.rename(ink.with_name("pen"))
    [found] = LoraRoot(pen.parent).look()
    assert found.code == "version_mismatch"
    assert "if the weights are right, run `zwatch seal`" in found.problem
    assert main(["seal", str(pen)]) == 0
    assert "sealed the LoRA pen, 2 files, digest" in capsys.readouterr().out
    [found] = LoraRoot(pen.parent).look()
    assert (found.name, found.problem) == ("pen", None)
    assert main(["verify", str(pen)]) == 0


def test_what_lies_beside_is_left_out(ink, capsys):
    (ink / "preview.png").write_bytes(b"picture")
    assert main(["seal", str(ink)]) == 0
    assert "left out, because a LoRA does not need it: preview.png" in capsys.readouterr().out
    assert sorted(line.split()[1] for line in (ink / SEAL_NAME).read_text().splitlines()) == [WEIGHTS, "zwatch.json"]


def test_verify_names_the_file_that_differs(ink, capsys):
    data = bytearray((ink / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (ink / WEIGHTS).write_bytes(data)
    assert main(["verify", str(ink)]) == 1
    assert f"{WEIGHTS}: blake3 is" in capsys.readouterr().out


def test_b3sum_reads_the_seal_as_that_of_any_version(ink):
    from zwatch.deploy.hashing import hash_file

    for line in (ink / SEAL_NAME).read_text().splitlines():
        digest, path = line.split("  ")
        fd = os.open(ink / path, os.O_RDONLY)
        assert hash_file(fd) == digest
        os.close(fd)


@pytest.mark.parametrize(("spoil", "what"), [
    (lambda ink: (ink / "zwatch.json").write_text("{"), "zwatch.json: not JSON"),
    (lambda ink: (ink / WEIGHTS).write_bytes((TRANSFORMER / "diffusion_pytorch_model.safetensors").read_bytes()), "is no factor of a LoRA"),
    (lambda ink: (ink / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n"), "a pointer of Git LFS"),
    (lambda ink: ((ink / WEIGHTS).rename(ink / "other"), (ink / WEIGHTS).symlink_to("other")), "a symlink cannot be sealed"),
    (lambda ink: ((ink / WEIGHTS).unlink(), os.mkfifo(ink / WEIGHTS)), "found a FIFO"),
])  # fmt: skip
def test_what_is_no_lora_is_not_sealed(spoil, what, ink, capsys):
    before = (ink / SEAL_NAME).read_bytes()
    spoil(ink)
    assert main(["seal", str(ink)]) == 1
    assert what in capsys.readouterr().err
    assert (ink / SEAL_NAME).read_bytes() == before


def test_a_signature_is_judged_by_the_loras_name(ink, tmp_path, capsys):
    key = write_key(tmp_path)
    assert main(["seal", str(ink), "--sign", str(key)]) == 0
    for versions, status in (("lora/*", 0), ("lora/ink", 0), ("*", 1), ("ink", 1)):
        policy = write_policy(tmp_path, allow("release.pub", versions))
        assert main(["verify", str(ink), "--signature", str(policy)]) == status, versions
    assert "signer_not_allowed: lora/ink: " in capsys.readouterr().out


def test_the_list_without_a_service_is_that_of_the_directory(ink, tmp_path, capsys):
    models = tmp_path / "models"
    models.mkdir()
    (ink.parent / "pen").mkdir()
    assert main(["list", "--lora", "--models", str(models)]) == 0
    lines = capsys.readouterr().out.splitlines()
    [found, _] = LoraRoot(ink.parent).look()
    assert lines[0].split() == ["ink", f"{found.bytes:,}", "bytes", found.digest[:12], "rank", "4"]
    assert lines[1].split()[-1] == "seal_missing"
    assert lines[2] == "  problem: there is no BLAKE3SUMS; run `zwatch seal`"
    assert main(["list", "--lora", "--models", str(models), "--json"]) == 0
    assert [one["code"] for one in json.loads(capsys.readouterr().out)["loras"]] == [None, "seal_missing"]


def test_a_lora_in_the_models_root_is_no_version(ink, tmp_path):
    write_version(tmp_path / "models", "v1")
    ink.rename(tmp_path / "models/ink")
    with opened(tmp_path / "models") as root_fd:
        assert "this is a LoRA, no version; move it into the LoRA root" in summarise(root_fd, "ink").problem
        assert summarise(root_fd, "v1").problem is None


def test_prune_deletes_no_lora(ink, tmp_path, capsys):
    write_lora(ink.parent, "night", TRANSFORMER)
    for name in ("v1", "v2"):
        write_version(ink.parent, name)
    state = ["--no-service", "--state-dir", str(tmp_path / "state"), "--yes"]
    assert main(["prune", "--models", str(ink.parent), "--keep", "1", *state]) == 0
    assert "leave   ink: it is a LoRA, no version" in capsys.readouterr().out
    assert {"ink", "night"} <= {path.name for path in ink.parent.iterdir()}
    assert len(list(ink.parent.iterdir())) == 3


def test_git_keeps_every_byte_of_the_repositorys_loras():
    root = Path(__file__).parent.parent
    found = subprocess.run(
        ["git", "check-attr", "text", "loras/ink/BLAKE3SUMS", "loras/night/zwatch.json"],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.splitlines() == ["loras/ink/BLAKE3SUMS: text: unset", "loras/night/zwatch.json: text: unset"]


async def test_two_commands_lead_from_a_trainers_file_to_the_list_of_a_service_that_runs(tmp_path, capsys):
    """The service is another process, started before there is a LoRA root; nothing tells it of the import but the file system."""
    models = tmp_path / "models"
    models.mkdir()
    (models / "v1").symlink_to(Path(__file__).parent.parent / "models/v1")
    kohya = {f"lora_unet_layers_0_attention_to_q.lora_{kind}.weight": torch.ones(shape) for kind, shape in (("down", (4, 144)), ("up", (144, 4)))}  # fmt: skip
    save_file(kohya, tmp_path / "download.safetensors")
    async with Server(models, tmp_path / "state") as server:
        command = ["import", str(tmp_path / "download.safetensors"), "ink", "--lora", "--models", str(models)]
        assert await asyncio.to_thread(main, command) == 0
        digest = capsys.readouterr().out.rpartition("digest ")[2].strip()

        async def is_seen():
            async with server.http.get(server.url + "/status") as response:  # which looks at nothing by itself
                return [one["digest"] for one in (await response.json())["loras"]] == [digest]

        await server.until(is_seen, "the LoRA is in the status")
        assert await asyncio.to_thread(main, ["list", "--lora", "--url", server.url]) == 0
        assert capsys.readouterr().out.split()[-3:] == [digest[:12], "rank", "4"]
