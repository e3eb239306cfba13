"""Every row of the design's "Bad input": rejected with its reason, serving unchanged, and deployed after it is repaired."""

import json
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.deploy.factory import seal_as_it_is
from tests.harness import Server
from zwatch.deploy.seal import SEAL_NAME
from zwatch.deploy.sealing import write_seal

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"


def edit_seal(change):
    def spoil(version: Path) -> None:
        (version / SEAL_NAME).write_bytes(change((version / SEAL_NAME).read_bytes()))

    return spoil


def edit_file(path: str, change, *, seal: bool = False):
    def spoil(version: Path) -> None:
        (version / path).write_bytes(change((version / path).read_bytes()))
        if seal:
            seal_as_it_is(version)

    return spoil


def edit_header(change, path: str = WEIGHTS):
    """Change the header's JSON (bytes to bytes) and seal the result, so that only the header is wrong."""

    def change_file(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        text = change(data[8 : 8 + length])
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return edit_file(path, change_file, seal=True)


def edit_table(change):
    def change_text(text: bytes) -> bytes:
        table = json.loads(text)
        change(table, next(name for name in table if name != "__metadata__"))
        return json.dumps(table).encode()

    return edit_header(change_text)


def edit_tensors(change):
    def spoil(version: Path) -> None:
        tensors = load_file(version / WEIGHTS)
        change(tensors)
        save_file(tensors, version / WEIGHTS)
        write_seal(version, version.name)

    return spoil


def set_field(field: str, value):
    def change(table, first) -> None:
        table[first][field] = value

    return change


def twice(text: bytes) -> bytes:
    """Repeat the first tensor's key."""
    table = json.loads(text)
    first = next(name for name in table if name != "__metadata__")
    return text.rstrip()[:-1] + f', "{first}": {json.dumps(table[first])}}}'.encode()


def second_version(text: bytes) -> bytes:
    return text.replace(b'"version":"', b'"version":"v666","version":"', 1)


def index_class(component: str, value):
    def change(data: bytes) -> bytes:
        index = json.loads(data)
        index[component] = value
        return json.dumps(index).encode()

    return edit_file("model_index.json", change, seal=True)


def drop(path: str):
    return lambda version: (version / path).unlink()


def symlink_in_place_of(path: str):
    def spoil(version: Path) -> None:
        (version / path).rename(version / "elsewhere")
        (version / path).symlink_to("../elsewhere")

    return spoil


def fifo_in_place_of(path: str):
    def spoil(version: Path) -> None:
        (version / path).unlink()
        os.mkfifo(version / path)

    return spoil


def all_nan(tensors) -> None:
    for name, tensor in tensors.items():
        tensors[name] = torch.full_like(tensor, float("nan"))


def flip_last_byte(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def line_of(line: bytes):
    return lambda data: data + line + b"\n"


HASH = b"0" * 64
ROWS = {
    "no seal": (drop(SEAL_NAME), "seal_missing", ["BLAKE3SUMS", "zwatch seal"]),
    "empty seal": (edit_seal(lambda data: b""), "seal_invalid", ["empty"]),
    "seal not UTF-8": (edit_seal(lambda data: b"\xff" + data), "seal_invalid", ["line 1"]),
    "bad hex": (edit_seal(lambda data: data.replace(data[:2], b"zz", 1)), "seal_invalid", ["line 1", "64 hex"]),
    "dots": (edit_seal(lambda data: HASH + b"  ../v1/model_index.json\n" + data), "seal_invalid", ["line 1", ".."]),
    "absolute": (edit_seal(lambda data: HASH + b"  /etc/passwd\n" + data), "seal_invalid", ["line 1", "absolute"]),
    "duplicate": (edit_seal(lambda data: data + data.splitlines(keepends=True)[0]), "seal_invalid", ["line 12", "second"]),
    "names a symlink": (symlink_in_place_of("vae/config.json"), "file_not_regular", ["line 10", "vae/config.json", "symlink"]),
    "names a FIFO": (fifo_in_place_of("vae/config.json"), "file_not_regular", ["line 10", "vae/config.json", "FIFO"]),
    "file missing": (drop(VAE), "file_missing", [VAE]),
    "weights shorter": (edit_file(WEIGHTS, lambda data: data[:-5]), "size_mismatch", [WEIGHTS]),
    "weights longer": (edit_file(WEIGHTS, lambda data: data + b"xx"), "size_mismatch", [WEIGHTS]),
    "config longer": (edit_file("vae/config.json", lambda data: data + b" "), "hash_mismatch", ["vae/config.json"]),
    "other bytes": (edit_file(WEIGHTS, flip_last_byte), "hash_mismatch", [WEIGHTS, "the seal says"]),
    "other bytes in what is shared": (edit_file(VAE, flip_last_byte), "hash_mismatch", [VAE, "the seal says"]),
    "header over 16 MB": (edit_file(WEIGHTS, lambda data: (2**24 + 1).to_bytes(8, "little") + bytes(2**25), seal=True),
                          "header_invalid", [WEIGHTS, "limit"]),
    "header longer than the file": (edit_file(WEIGHTS, lambda data: (2**23).to_bytes(8, "little") + data[8:], seal=True),
                                    "header_invalid", [WEIGHTS, "only"]),
    "header not JSON": (edit_header(lambda text: b"{" * len(text)), "header_invalid", [WEIGHTS, "not JSON"]),
    "duplicate tensor": (edit_header(twice), "header_invalid", [WEIGHTS, "twice"]),
    "duplicate version": (edit_header(second_version), "header_invalid", [WEIGHTS, "'version' twice"]),
    "overlap": (edit_table(lambda table, first: table.update(extra={**table[first]})), "header_invalid", ["overlaps"]),
    "out of range": (edit_table(set_field("data_offsets", [2**40, 2**40])), "header_invalid", ["tensor"]),
    "size is not shape x dtype": (edit_table(set_field("shape", [3, 3, 3])), "header_invalid", ["needs"]),
    "unknown dtype": (edit_table(set_field("dtype", "F7")), "header_invalid", ["unknown dtype", "F7"]),
    "no version": (edit_table(lambda table, first: table.pop("__metadata__")), "version_mismatch", ["no version"]),
    "another version": (edit_table(lambda table, first: table["__metadata__"].update(version="v77")),
                        "version_mismatch", ["v77"]),
    "a class not on the list": (index_class("vae", ["diffusers", "AutoencoderKLWan"]), "class_not_allowed", ["vae"]),
    "a class from the version itself": (index_class("transformer", ["evil", "Model"]), "class_not_allowed", ["evil"]),
    "weights that do not fit": (edit_tensors(lambda tensors: tensors.pop("x_pad_token")), "weights_mismatch", ["x_pad_token"]),
    "NaN output": (edit_tensors(all_nan), "bad_image", ["NaN"]),
}  # fmt: skip


async def test_each_row_is_rejected_with_its_reason_and_deploys_after_repair(models, tmp_path):
    async with Server(models, tmp_path / "state") as server:
        await server.serves("v1")
        golden = await server.generate(seed=5)
        for name, (spoil, code, words) in ROWS.items():
            version = models / f"bad-{'-'.join(name.replace('.', '').split())}"
            shutil.copytree(models / "v2", version)
            write_seal(version, version.name)
            good = version.with_name(f".kept-{version.name}")
            shutil.copytree(version, good)
            spoil(version)
            os.symlink(version.name, models / "next")
            os.replace(models / "next", models / "current")
            attempt = await server.rejected(code)
            assert attempt["version"] == version.name, name
            assert all(word in attempt["reason"] for word in words), (name, attempt["reason"])
            status = await server.status()
            assert (status["status"], status["serving"]["version"]) == ("degraded", "v1"), name
            assert await server.generate(seed=5) == golden, name
            # Mended by copying the good files over it, seal and all; nothing else is done.
            shutil.rmtree(version)
            shutil.copytree(good, version)
            shutil.rmtree(good)
            await server.serves(version.name)
            os.symlink("v1", models / "next")
            os.replace(models / "next", models / "current")
            await server.serves("v1")


FAULTS = {
    "missing": (lambda current: None, ["no such link"]),
    "dangling": (lambda current: current.symlink_to("v9"), ["v9"]),
    "loop": (lambda current: current.symlink_to("current"), ["loop"]),
    "not_a_directory": (lambda current: current.symlink_to("v1/model_index.json"), ["file"]),
    "outside": (lambda current: current.symlink_to("/"), ["not a version"]),
    "outside, deeper": (lambda current: current.symlink_to("v1/vae"), ["v1/vae"]),
    "not_a_link": (lambda current: current.mkdir(), ["expected a symlink"]),
}


async def fault_of(server, code: str):
    found = (await server.status())["aliases"]["current"]["fault"]
    return found if found and found["code"] == code else None


async def test_a_fault_of_the_link_is_in_the_status_and_serving_continues(models, tmp_path):
    current = models / "current"
    async with Server(models, tmp_path / "state") as server:
        await server.serves("v1")
        for name, (make, words) in FAULTS.items():
            current.unlink()
            make(current)

            found = await server.until(partial(fault_of, server, name.partition(",")[0]), f"the fault {name} is seen")
            assert all(word in found["message"] for word in words), name
            status = await server.status()
            assert status["status"] == "degraded", name
            assert status["aliases"]["current"]["attempt"]["state"] == "PROMOTED", "a fault of the link is no attempt"
            assert (await server.generate())[0] == "v1", name
            if current.is_dir() and not current.is_symlink():
                current.rmdir()
            current.unlink(missing_ok=True)
            current.symlink_to("v1")
            await server.serves("v1")


def flip(models: Path, version: str) -> None:
    (models / "next").symlink_to(version)
    os.replace(models / "next", models / "current")


async def test_a_version_that_does_not_fit_is_rejected_with_both_byte_counts(models, tmp_path):
    """It does not fit in place of the serving version either: it is larger."""
    from random_pipeline import PRESETS, write_pipeline

    large = replace(PRESETS["tiny"], transformer=PRESETS["tiny"].transformer | {"n_layers": 12})
    write_pipeline(models / "v3", large, seed=3)
    write_seal(models / "v3", "v3")
    size = sum(path.stat().st_size for path in (models / "v1").rglob("*.safetensors"))
    async with Server(models, tmp_path / "state", "--memory-budget", str(int(size * 1.3))) as server:
        await server.serves("v1")
        flip(models, "v3")
        attempt = await server.rejected("insufficient_memory")
        assert "needs" in attempt["reason"]
        assert "are free" in attempt["reason"]
        assert (await server.generate())[0] == "v1"
        flip(models, "v2")
        await server.serves("v2")
        attempt = (await server.status())["aliases"]["current"]["attempt"]
        assert (attempt["way"], attempt["held"] > 0) == ("host", True)
