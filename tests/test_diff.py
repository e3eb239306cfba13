"""`zwatch diff`: components, tensors, configs, and the bytes that a deploy would move."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.deploy.factory import TEXT_ENCODER, VAE, WEIGHTS, framed, tensor, weights, write_version
from tests.test_progress import Terminal
from zwatch.deploy import difference, tensor_values
from zwatch.deploy.difference import find_difference
from zwatch.deploy.seal import SEAL_NAME
from zwatch.deploy.sealing import write_seal
from zwatch.deploy.sides import opened_side
from zwatch.diff import diff


@pytest.fixture
def versions(tmp_path):
    """A models root with v1 and v2, which are equal but for the version in the transformer's header."""
    root = tmp_path / "models"
    for name in ("v1", "v2"):
        write_version(root, name, b"equal in both...")
    return root


def found_in(root, first="v1", second="v2"):
    """Return the difference as JSON."""
    return json.loads(printed(root, first, second, is_json=True)[1])


def printed(root, first="v1", second="v2", *, is_whole=False, is_json=False):
    """Return the exit status and what is printed."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as out:
        status = diff(first, second, root, is_whole=is_whole, is_json=is_json)
    return status, out.getvalue()


def replace(directory, path, data):
    """Write a file and seal again."""
    (directory / path).parent.mkdir(exist_ok=True)
    (directory / path).write_bytes(data if isinstance(data, bytes) else data.encode())
    write_seal(directory, directory.name)


def test_versions_that_differ_in_the_stamp_only_are_equal(versions):
    status, text = printed(versions)
    assert status == 0
    assert "transformer: equal, all 2 tensors" in text
    assert "vae: equal\n" in text
    size = sum((versions / "v2" / path).stat().st_size for path in (WEIGHTS, VAE, TEXT_ENCODER))
    moved = (versions / "v2" / WEIGHTS).stat().st_size
    assert f"a deploy of v2 while v1 serves moves {moved:,} of {size:,} bytes of weights" in text
    assert found_in(versions)["equal"] is True
    assert found_in(versions, "v1", "v1")["moved"] == 0


def test_files_that_the_seals_call_equal_are_not_read(versions):
    for name in ("v1", "v2"):
        (versions / name / VAE).write_bytes(b"rubbish")
        (versions / name / "transformer/config.json").unlink()
    found = found_in(versions)
    assert found["components"]["vae"] == {"equal": True, "tensors": [], "equal_tensors": 0, "files": []}
    assert (found["problems"], found["equal"]) == ([], True)


def test_tensors_that_differ_are_sorted_by_how_much(versions):
    replace(versions / "v1", WEIGHTS, weights(b"\x10" * 8 + b"\x10" * 8))
    replace(versions / "v2", WEIGHTS, weights(b"\x10" * 7 + b"\x11" + b"\x20" * 8))
    first, second = found_in(versions)["components"]["transformer"]["tensors"]
    assert (first["name"], second["name"]) == ("b", "a")
    assert first["values"] == {
        "elements": 8, "different": 8, "max": 16.0, "mean": 16.0, "relative": 1.0, "not_finite": [0, 0],
    }  # fmt: skip
    assert "  a: U8 [8], 12.500% of the values differ, relative 0.0221, max 1, mean 0.125" in printed(versions)[1]


def test_missing_added_and_reshaped_tensors_and_other_dtypes_are_named(versions):
    half, whole = b"\x80\x3f" * 2, b"\x00\x00\x80\x3f" * 2
    replace(versions / "v1", WEIGHTS, framed(
        {"gone": tensor(0, 2), "shape": tensor(2, 6, shape=[2, 2]), "dtype": tensor(6, 14, "F32", [2])}, b"123456" + whole))  # fmt: skip
    replace(versions / "v2", WEIGHTS, framed(
        {"dtype": tensor(0, 4, "BF16", [2]), "new": tensor(4, 6), "shape": tensor(6, 10)}, half + b"123456"))  # fmt: skip
    text = printed(versions)[1]
    assert "transformer: 4 of 4 tensors differ" in text
    for line in (
        "gone: missing, was U8 [2]",
        "new: added, U8 [2]",
        "shape: U8 [2, 2] -> U8 [4]",
        "dtype: F32 [2] -> BF16 [2], 0.000% of the values differ, relative 0, max 0, mean 0",
    ):
        assert f"  {line}\n" in text


def test_nan_comes_first_and_makes_valid_json(versions):
    nan, one = b"\xc0\x7f", b"\x80\x3f"
    table = {"a": tensor(0, 4, "BF16", [2]), "b": tensor(4, 8, "BF16", [2])}
    replace(versions / "v1", WEIGHTS, framed(table, one * 4))
    replace(versions / "v2", WEIGHTS, framed(table, b"\x00\x00" + one + nan + one))
    found = found_in(versions)["components"]["transformer"]["tensors"]
    assert [one["name"] for one in found] == ["b", "a"]
    assert found[0]["values"]["not_finite"] == [0, 1]
    assert "NaN or infinite: 0 -> 1" in printed(versions)[1]


def test_other_shards_of_the_same_tensors_are_equal(versions):
    (versions / "v2" / WEIGHTS).unlink()
    shards = {
        "transformer/diffusion_pytorch_model-00001-of-00002.safetensors": framed({"a": tensor(0, 8)}, b"equal in"),
        "transformer/diffusion_pytorch_model-00002-of-00002.safetensors": framed({"b": tensor(0, 8)}, b" both..."),
    }
    for path, data in shards.items():
        (versions / "v2" / path).write_bytes(data)
    names = {"a": 1, "b": 2}
    index = {name: f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for name, number in names.items()}
    (versions / "v2" / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": index}))
    write_seal(versions / "v2", "v2")
    assert "transformer: no tensor differs" in printed(versions)[1]


def test_configs_show_the_keys_with_both_values(versions):
    before = {"shift": 3.0, "gone": 1, "deep": {"a": [1, 2], "b": 0}, "nan": float("nan")}
    after = {"deep": {"b": 0, "a": [1, 3]}, "shift": 6.0, "new": "\u001b[2J", "nan": float("nan")}
    replace(versions / "v1", "scheduler/scheduler_config.json", json.dumps(before))
    replace(versions / "v2", "scheduler/scheduler_config.json", json.dumps(after))
    replace(versions / "v1", "tokenizer/vocab.json", '{"a": 1}')
    replace(versions / "v2", "tokenizer/vocab.json", '{ "a": 1 }')
    replace(versions / "v2", "zwatch.json", '{"note": "hello"}')
    text = printed(versions)[1]
    for line in (
        "shift: 3.0 -> 6.0", "gone: 1 -> nothing", "deep.a: [1, 2] -> [1, 3]", r'new: nothing -> "\u001b[2J"',
    ):  # fmt: skip
        assert f"  scheduler/scheduler_config.json: {line}\n" in text
    assert text.count("scheduler_config.json") == 4
    assert "  tokenizer/vocab.json: only its formatting differs, 8 -> 10 bytes" in text
    assert "other files:\n  zwatch.json: added, 17 bytes" in text
    assert found_in(versions)["components"]["scheduler"]["files"][0]["keys"][0] == {
        "key": "shift", "before": "3.0", "after": "6.0",
    }  # fmt: skip


def test_a_key_with_a_dot_is_not_one_of_an_object_in_an_object(versions):
    replace(versions / "v1", "scheduler/scheduler_config.json", '{"a.b": 1}')
    replace(versions / "v2", "scheduler/scheduler_config.json", '{"a": {"b": 1}}')
    text = printed(versions)[1]
    assert '  scheduler/scheduler_config.json: "a.b": 1 -> nothing' in text
    assert "  scheduler/scheduler_config.json: a.b: nothing -> 1" in text


def test_large_files_of_other_sizes_differ(versions):
    for name, size in (("v1", 70_000_000), ("v2", 71_000_000)):
        with open(versions / name / "tokenizer/merges.txt", "wb") as file:
            file.truncate(size)
        write_seal(versions / name, name)
    assert "  tokenizer/merges.txt: its bytes differ, 70,000,000 -> 71,000,000 bytes" in printed(versions)[1]


def test_long_lists_are_cut_unless_all_is_asked_for(versions):
    replace(versions / "v1", "tokenizer/vocab.json", json.dumps({f"w{number}": number for number in range(50)}))
    replace(versions / "v2", "tokenizer/vocab.json", json.dumps({f"w{number}": -number - 1 for number in range(50)}))
    assert "… and 30 more, see --all" in printed(versions)[1]
    assert printed(versions, is_whole=True)[1].count("vocab.json: w") == 50


def test_a_directory_without_a_seal_is_compared_by_its_files(versions, tmp_path):
    blobs, plain = tmp_path / "blobs", tmp_path / "plain"
    shutil.copytree(versions / "v1", plain)
    (plain / SEAL_NAME).unlink()
    (plain / VAE).rename(blobs)
    (plain / VAE).symlink_to(blobs)
    (plain / ".git").mkdir()
    (plain / ".git/HEAD").touch()
    os.mkfifo(plain / "pipe")
    (plain / "lost").symlink_to("nowhere")
    status, text = printed(versions, "v2", str(plain))
    assert status == 0
    assert f"{plain} is compared by its files: there is no {SEAL_NAME}" in text
    assert "vae: equal, all 2 tensors" in text
    assert "what a deploy would move is known between sealed versions only" in text
    found = found_in(versions, "v2", str(plain))
    assert (found["equal"], found["moved"], found["after"]["sealed"]) == (True, None, False)


def test_a_file_that_cannot_be_compared_is_named_and_the_status_is_1(versions):
    replace(versions / "v2", "tokenizer/vocab.json", "{}")
    (versions / "v2/tokenizer/vocab.json").unlink()
    (versions / "v2" / WEIGHTS).write_bytes(b"rubbish")
    status, text = printed(versions)
    assert status == 1
    assert "v2: tokenizer/vocab.json: the seal names it, it is not there" in text
    assert f"v2: {WEIGHTS}: " in text
    found = found_in(versions)
    assert found["equal"] is False
    assert found["components"]["transformer"]["tensors"] == [], "whether they are missing is not known"


def test_an_alias_or_a_directory_is_as_good_as_a_name_and_nothing_else_is(versions, tmp_path):
    (versions / "current").symlink_to("v2")
    assert found_in(versions, "current", f"{versions}/v1")["equal"]

    def run(*arguments):
        command = [sys.executable, "-m", "zwatch", "diff", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    ended = run("v1", "v9")
    assert ended.returncode == 2
    assert "'v9' is neither a version in models nor a directory" in ended.stderr
    assert run("v1", "v2", "--json").returncode == 0
    assert run("v1").returncode == 2


def test_memory_does_not_grow_with_the_tensors(versions, monkeypatch):
    """No array is larger than a block, however large the tensor is."""
    monkeypatch.setattr(tensor_values, "BLOCK", 1000)
    sizes = []
    genuine = tensor_values._floats

    def noted(raw, dtype):
        sizes.append(raw.size)
        return genuine(raw, dtype)

    monkeypatch.setattr(tensor_values, "_floats", noted)
    for name, value in (("v1", 1), ("v2", 2)):
        replace(versions / name, WEIGHTS, weights(bytes([value]) * 20_000))
    told = []
    with opened_side("v1", versions / "v1") as one, opened_side("v2", versions / "v2") as other:
        found = find_difference(
            one, other, lambda total: told.append(total) or (lambda what, count: told.append(-count))
        )
    assert len(found.components["transformer"].tensors) == 2
    assert max(sizes) == 1000
    assert sum(told) == 0, "the bar ends at its end"


def test_a_bar_on_a_terminal_tells_how_far_it_is(versions, monkeypatch):
    replace(versions / "v2", WEIGHTS, weights(b"another......"))
    terminal, genuine = Terminal(), difference.compare

    def compare(one, other, advance):
        found = genuine(one, other, advance)
        assert terminal.shows("comparing: ")
        return found

    monkeypatch.setattr(difference, "compare", compare)
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    assert printed(versions)[0] == 0
    terminal.close()
