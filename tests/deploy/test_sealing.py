"""Sealing: what a seal covers, what is refused, what changes on disk, and what an interruption leaves."""

import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from tests.deploy import goldens
from tests.deploy.factory import (
    AS_ROOT,
    SMALL,
    TEXT_ENCODER,
    VAE,
    WEIGHTS,
    as_other_user,
    framed,
    tensor,
    weights,
    write_files,
    write_version,
)
from zwatch.deploy import hashing, header, sealing, stamping
from zwatch.deploy.seal import SEAL_NAME, SIGNATURE_NAME, parse_seal
from zwatch.deploy.sealing import write_seal
from zwatch.deploy.signals import Ending
from zwatch.deploy.verifying import check_directory, sealed_bytes
from zwatch.errors import Rejection

COMPLETE = sorted([*SMALL, TEXT_ENCODER, VAE, WEIGHTS])


@pytest.fixture
def version(tmp_path):
    return write_version(tmp_path, "v2")


@pytest.fixture
def unsealed(tmp_path):
    return write_files(tmp_path / "v2")


def everything(directory):
    """Return the bytes of every file of a directory by path."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def refused(directory, name="v2"):
    """Seal what cannot be sealed, and return the reason; nothing is changed."""
    before = everything(directory)
    with pytest.raises(Rejection) as caught:
        write_seal(directory, name)
    assert everything(directory) == before
    return caught.value.reason


def header_version(path):
    with open(path, "rb") as file:
        return header.read_header(file.fileno(), path.name).version


# What a seal covers.


def test_a_seal_covers_what_the_pipeline_needs_and_nothing_else(unsealed):
    for path in (".git/HEAD", ".git/objects/a", ".gitattributes", "README.md", "assets/a.png", SIGNATURE_NAME, "vae/x/y",
                 ".cache/huggingface/x", f".{SEAL_NAME}.left", "transformer/.diffusion_pytorch_model.safetensors.stamping"):  # fmt: skip
        (unsealed / path).parent.mkdir(parents=True, exist_ok=True)
        (unsealed / path).write_text("x")
    assert sorted(write_seal(unsealed, "v2").files) == COMPLETE
    assert list(parse_seal((unsealed / SEAL_NAME).read_bytes()).files) == COMPLETE


def test_what_is_left_out_is_told(unsealed):
    (unsealed / ".git").mkdir()
    (unsealed / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (unsealed / "README.md").write_text("hello")
    (unsealed / "v3").symlink_to("../v3")
    os.mkfifo(unsealed / "vae" / "pipe")
    plan = sealing.prepare(unsealed, "v2")
    assert plan.selection.summary == ".git (1 file), README.md, v3, vae/pipe"


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_git_works_in_a_sealed_version_and_the_version_still_verifies(unsealed):
    def git(*arguments):
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=unsealed, check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    write_seal(unsealed, "v2")
    (unsealed / "model_index.json").touch()
    git("status")
    git("commit", "-a", "-m", "second")
    git("gc")
    assert check_directory(unsealed, "v2") == []


def test_a_folder_that_no_pipeline_needs_may_be_unreadable(unsealed, monkeypatch):
    (unsealed / "lost+found").mkdir()
    real = os.scandir

    def scandir(path):
        if os.fspath(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert sorted(write_seal(unsealed, "v2").files) == COMPLETE


def test_names_that_a_seal_cannot_have_are_left_out_where_nothing_needs_them(unsealed):
    (unsealed / "vae" / "a\nb").write_text("x")
    os.close(os.open(os.fsencode(unsealed) + b"/caf\xe9.txt", os.O_CREAT | os.O_WRONLY))
    assert sorted(write_seal(unsealed, "v2").files) == COMPLETE
    sealing.prepare(unsealed, "v2").selection.summary.encode()


@pytest.mark.parametrize("name", ["a\nb", "a\\b", "a\x7fb", "a\ufffdb"])
def test_a_needed_name_that_a_seal_cannot_have_is_refused(unsealed, name):
    (unsealed / "tokenizer/additional_chat_templates").mkdir()
    (unsealed / "tokenizer/additional_chat_templates" / name).write_text("x")
    assert "; rename it" in refused(unsealed)


def test_shards_are_sealed_with_their_index_and_a_leftover_one_is_not(unsealed):
    for number in (1, 2, 3):
        name = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        (unsealed / "transformer" / name).write_bytes(framed({f"t{number}": tensor(0, 4)}, b"1234"))
    named = [f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    (unsealed / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"t1": named[0], "t2": named[1]}}))
    (unsealed / WEIGHTS).unlink()
    plan = sealing.prepare(unsealed, "v2")
    assert plan.selection.summary == "transformer/diffusion_pytorch_model-00003-of-00002.safetensors"
    write_seal(unsealed, "v2")
    assert check_directory(unsealed, "v2") == []
    assert [header_version(unsealed / "transformer" / name) for name in named] == ["v2", "v2"]
    assert header_version(unsealed / "transformer" / "diffusion_pytorch_model-00003-of-00002.safetensors") is None


@pytest.mark.skipif(shutil.which("b3sum") is None, reason="b3sum is not installed")
def test_b3sum_agrees_with_a_written_seal(version):
    templates = version / "tokenizer/additional_chat_templates"
    templates.mkdir()
    (templates / "ein Grüß ☃.jinja").write_bytes(os.urandom(3 * 2**20 + 1))
    (templates / "empty").touch()
    goldens.add(version)
    write_seal(version, "v2")
    run = subprocess.run(["b3sum", "--check", SEAL_NAME], cwd=version, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    names = list(parse_seal((version / SEAL_NAME).read_bytes()).files)
    assert run.stdout.splitlines() == [f"{name}: OK" for name in names]
    printed = subprocess.run(["b3sum", "--", *names], cwd=version, capture_output=True, check=True)
    assert printed.stdout == (version / SEAL_NAME).read_bytes()


# What is refused.


@pytest.mark.parametrize("path", ["model_index.json", WEIGHTS, "tokenizer/tokenizer.json"])
def test_a_symlinked_file_is_refused_with_the_command_that_helps(unsealed, path):
    blob = unsealed.parent / "blobs" / "3fa1"
    blob.parent.mkdir()
    (unsealed / path).rename(blob)
    (unsealed / path).symlink_to(blob)
    reason = refused(unsealed)
    assert reason.startswith(f"{path} -> {blob}: a symlink cannot be sealed")
    assert f"`zwatch import {unsealed} NAME` makes a version" in reason


def test_a_symlinked_folder_is_refused_with_the_command_that_helps(unsealed):
    (unsealed / "vae").rename(unsealed.parent / "vae")
    (unsealed / "vae").symlink_to("../vae")
    assert refused(unsealed).startswith("vae -> ../vae: a symlink cannot be sealed")


def test_a_symlink_that_nothing_needs_is_left_out(unsealed):
    (unsealed / "v3").symlink_to("../v3")
    (unsealed / "transformer" / "v3").symlink_to("nowhere")
    assert sorted(write_seal(unsealed, "v2").files) == COMPLETE


def test_a_needed_file_that_is_a_fifo_is_refused(unsealed):
    (unsealed / "vae" / "config.json").unlink()
    os.mkfifo(unsealed / "vae" / "config.json")
    assert refused(unsealed) == "vae/config.json: expected a regular file, found a FIFO"


def test_an_empty_directory_is_refused(tmp_path):
    assert refused(tmp_path) == "the directory is empty; make a version with `zwatch import SOURCE NAME`"


def test_a_directory_that_is_no_pipeline_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    assert "so this is no diffusers pipeline" in refused(tmp_path)


def test_a_models_root_is_refused_with_its_versions(tmp_path):
    write_files(tmp_path / "v1")
    write_files(tmp_path / "v2")
    assert refused(tmp_path) == f"{tmp_path}: this is no version, it holds some: v1, v2; name one of them"


@pytest.mark.parametrize("path", [WEIGHTS, "tokenizer/tokenizer.json", "model_index.json"])
def test_a_pointer_of_git_lfs_is_refused(unsealed, path):
    (unsealed / path).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 12300000000\n")
    assert refused(unsealed) == (
        f"{path}: this is a pointer of Git LFS, the file itself was not downloaded; run `git lfs pull`"
    )


LORA = framed({"transformer.layers.0.attention.to_q.lora_A.weight": tensor(0, 4)}, b"1234")


@pytest.mark.parametrize("path", ["transformer/ink.safetensors", "loras/ink.safetensors", "ink.safetensors", WEIGHTS])
def test_a_lora_of_any_name_is_refused(unsealed, path):
    (unsealed / path).parent.mkdir(exist_ok=True)
    (unsealed / path).write_bytes(LORA)
    reason = refused(unsealed)
    assert reason.startswith(f"{path}: this is a LoRA")
    assert "`zwatch import FILE NAME --base VERSION`, FILE being its path" in reason


@pytest.mark.parametrize(("dtype", "size"), [("F8_E4M3", 1), ("F8_E5M2", 1), ("F64", 8)])
def test_weights_that_cannot_be_computed_are_refused(unsealed, dtype, size):
    (unsealed / WEIGHTS).write_bytes(framed({"a": tensor(0, 4 * size, dtype, [4])}, bytes(4 * size)))
    reason = refused(unsealed)
    assert reason.startswith(f"{WEIGHTS}: tensor 'a' is {dtype}, which is not computed; all weights of a component")
    assert "`zwatch import SOURCE NAME` converts them" in reason


def test_weights_of_two_dtypes_are_refused(unsealed):
    (unsealed / VAE).write_bytes(framed({"a": tensor(0, 8, "BF16", [4]), "b": tensor(8, 16, "F32", [2])}, bytes(16)))
    assert refused(unsealed).startswith(f"{VAE}: tensor 'b' is F32, other weights are BF16")


def test_a_broken_header_is_refused_and_the_old_seal_stays(version):
    (version / WEIGHTS).write_bytes(framed("no JSON"))
    assert f"{WEIGHTS}: the header is not JSON" in refused(version)


@pytest.mark.skipif(not AS_ROOT, reason="needs root")
def test_a_directory_that_may_not_be_written_is_refused(unsealed):
    before = everything(unsealed)
    answer = as_other_user(6001, 6000, unsealed, lambda: write_seal(Path(), "v2"))
    assert answer == f".: {SEAL_NAME} cannot be written there, you have no permission to write in it"
    assert everything(unsealed) == before


@pytest.mark.skipif(not AS_ROOT, reason="needs root")
@pytest.mark.parametrize("path", [WEIGHTS, "vae/config.json", "text_encoder", "transformer"])
def test_what_may_not_be_read_is_named_with_whom_to_seal_as(unsealed, path):
    for each in [unsealed, *unsealed.rglob("*")]:
        os.chown(each, 6001, 6000)
    os.chown(unsealed / path, 6002, 6000)
    (unsealed / path).chmod(0)
    before = everything(unsealed)
    answer = as_other_user(6001, 6000, unsealed, lambda: write_seal(Path(), "v2"))
    assert answer.startswith(path)
    assert (
        "Permission denied: the user 6001 may not access it; give this user access, or seal as the user 6002" in answer
    )
    assert everything(unsealed) == before


def test_two_sealings_of_one_directory_at_once_are_refused(unsealed):
    other = os.open(unsealed, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    assert refused(unsealed) == f"{unsealed}: another process is sealing it; wait until it has ended"
    os.close(other)
    write_seal(unsealed, "v2")


# What is written.


def test_a_written_seal_verifies_and_only_the_transformer_gets_a_header_version(version):
    assert check_directory(version, "v2") == []
    assert {path: header_version(version / path) for path in (WEIGHTS, VAE, TEXT_ENCODER)} == {
        WEIGHTS: "v2", VAE: None, TEXT_ENCODER: None,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["v2", "v3"])
def test_progress_counts_what_is_hashed_and_what_is_written_anew(tmp_path, name):
    version = write_version(tmp_path, "v2").rename(tmp_path / name)  # v2 has its version already, v3 has room for it
    counted = Counter()
    plan = sealing.prepare(version, name)
    sealing.carry_out(plan, Ending(), lambda path, count: counted.update({path: count}))
    assert counted == {path: (version / path).stat().st_size for path in COMPLETE}
    assert counted.total() == plan.size == sealed_bytes(version)


def test_progress_counts_the_first_version_of_a_file_twice_because_it_is_copied(unsealed):
    counted = Counter()
    plan = sealing.prepare(unsealed, "v2")
    sealing.carry_out(plan, Ending(), lambda path, count: counted.update({path: count}))
    sizes = {path: (unsealed / path).stat().st_size for path in COMPLETE}
    assert counted == {**sizes, WEIGHTS: 2 * sizes[WEIGHTS]}
    assert counted.total() == plan.size


def test_sealing_twice_gives_the_same_bytes_and_writes_no_weights(version):
    before, status = (version / SEAL_NAME).read_bytes(), (version / WEIGHTS).stat()
    write_seal(version, "v2")
    assert (version / SEAL_NAME).read_bytes() == before
    assert hashing.fingerprint((version / WEIGHTS).stat()) == hashing.fingerprint(status)


def test_a_version_under_another_name_is_sealed_in_place(version):
    inode, size = (version / WEIGHTS).stat().st_ino, (version / WEIGHTS).stat().st_size
    renamed = version.rename(version.with_name("a-much-longer-name"))
    write_seal(renamed, renamed.name)
    assert ((renamed / WEIGHTS).stat().st_ino, (renamed / WEIGHTS).stat().st_size) == (inode, size)
    assert check_directory(renamed, renamed.name) == []


def test_the_seal_is_readable_by_all_users_and_nothing_else_is_left(version):
    assert stat.S_IMODE((version / SEAL_NAME).stat().st_mode) == 0o644
    assert sorted(everything(version)) == sorted([*COMPLETE, SEAL_NAME])


def test_sealing_removes_what_a_crash_in_the_middle_of_an_earlier_one_left(version):
    transformer = version / WEIGHTS
    left = [version / f".{SEAL_NAME}.a1b2c3d4", transformer.with_name(f".{transformer.name}.stamping")]
    for path in left:
        path.write_text("half")
    write_seal(version, "v2")
    assert not any(path.exists() for path in left)
    assert check_directory(version, "v2") == []


# What fails, and what is left then.


FAILURES = {"the new file": (os, "copy_file_range"), "its sync": (os, "fsync"), "the seal": (tempfile, "mkstemp")}


@pytest.mark.parametrize("where", FAILURES)
def test_a_full_disk_is_told_and_nothing_half_made_is_left(tmp_path, monkeypatch, where):
    version = write_files(tmp_path / "v2", os.urandom(10_000))
    before = everything(version)

    def full(*arguments, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*FAILURES[where], full)
    with pytest.raises(
        OSError, match=r"No space left on device: to make room .* bytes, and .* are free; nothing was sealed"
    ):
        write_seal(version, "v2")
    monkeypatch.undo()
    assert everything(version) == before
    write_seal(version, "v2")
    assert check_directory(version, "v2") == []


def test_a_full_disk_leaves_a_sealed_version_as_it_was(version, monkeypatch):
    renamed = version.rename(version.with_name("v3"))
    before, real = everything(renamed), os.pwrite

    def full(fd, data, begin):
        monkeypatch.setattr(os, "pwrite", real)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left on device; nothing was sealed"):
        write_seal(renamed, "v3")
    assert everything(renamed) == before


def writes(path, data):
    return lambda: path.write_bytes(data)


CHANGES = {
    "longer": lambda path: writes(path, path.read_bytes() + b"x"),
    "shorter": lambda path: writes(path, path.read_bytes()[:-1]),
    "other bytes": lambda path: writes(path, bytes(path.stat().st_size)),
    "gone": lambda path: path.unlink,
    "replaced": lambda path: lambda: shutil.copy(path, f"{path}.new") and os.replace(f"{path}.new", path),
    "replaced, same times": lambda path: lambda: shutil.copy2(path, f"{path}.new") and os.replace(f"{path}.new", path),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("path", ["model_index.json", TEXT_ENCODER, WEIGHTS, "vae/config.json"])
@pytest.mark.parametrize("place", ["model_index.json", VAE], ids=["at the first file", "at the last file"])
def test_a_file_that_changes_while_it_is_sealed_is_an_error_and_nothing_is_sealed(unsealed, path, change, place):
    plan = sealing.prepare(unsealed, "v2")
    happen = CHANGES[change](unsealed / path)
    changed = []

    def advance(what, count):
        if what == place and not changed:
            changed.append(happen())

    with pytest.raises(Rejection) as caught:
        sealing.carry_out(plan, Ending(), advance)
    assert caught.value.reason.startswith(f"{path}: it changed while it was sealed; nothing is sealed.")
    assert not (unsealed / SEAL_NAME).exists()
    assert not list(unsealed.rglob(".*"))


@pytest.mark.parametrize("name", ["v2", "v3"])
def test_ctrl_c_in_the_middle_leaves_everything_as_it_was(version, name):
    directory = version.rename(version.with_name(name))
    shutil.copy(directory / WEIGHTS, directory / "copy")  # so that what is in place needs no second look
    before, there = everything(directory), threading.enumerate()

    def interrupt(path, count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sealing.carry_out(sealing.prepare(directory, name), Ending(), interrupt)
    assert everything(directory) == before
    assert [
        thread for thread in threading.enumerate() if thread.name.startswith("zwatch-") and thread not in there
    ] == []


def test_ctrl_c_while_the_last_files_are_put_in_place_comes_after_it(unsealed, monkeypatch):
    real = os.replace

    def replace(source, destination):
        os.kill(os.getpid(), signal.SIGINT)
        real(source, destination)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        write_seal(unsealed, "v2")
    assert check_directory(unsealed, "v2") == []


def dies_at(number):
    """Let the `number`-th call that changes a file end this process."""
    count = 0

    def wrap(name):
        real = getattr(os, name)

        def call(*arguments, **more):
            nonlocal count
            count += 1
            if count == number:
                os._exit(0)
            return real(*arguments, **more)

        setattr(os, name, call)

    for name in ("pwrite", "fsync", "replace", "unlink", "copy_file_range", "fchmod"):
        wrap(name)


@pytest.mark.parametrize("first", ["sealed", "unsealed"])
def test_a_process_that_dies_at_any_call_leaves_a_valid_seal_or_none_that_verifies(tmp_path, first):
    for number in range(1, 60):
        version = write_files(tmp_path / str(number) / "v1", b"tensors of the transformer")
        if first == "sealed":
            write_seal(version, "v1")
        version = version.rename(version.with_name("v2"))
        child = os.fork()
        if child == 0:
            with suppress(BaseException):
                dies_at(number)
                write_seal(version, "v2")
                os._exit(9)
            os._exit(8)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, 9)
        found = check_directory(version, "v2")
        assert found or header_version(version / WEIGHTS) == "v2"
        write_seal(version, "v2")
        assert check_directory(version, "v2") == []
        data = (version / WEIGHTS).read_bytes()
        assert data.endswith(b"tensors of the transformer")
        assert sorted(everything(version)) == sorted([*COMPLETE, SEAL_NAME])
        if status == 9:
            assert found == []
            break
    else:
        pytest.fail("it never came to its end")
    assert number > 6


# Verifying.


def test_findings_are_in_the_order_of_the_seal_whatever_the_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(hashing, "PIECE", 64)
    version = write_version(tmp_path, "v2", os.urandom(5000))
    for path in COMPLETE:
        (version / path).write_bytes((version / path).read_bytes() + b" ")
    (version / "vae" / "config.json").unlink()
    found = check_directory(version, "v2")
    assert [finding.partition(":")[0] for finding in found] == COMPLETE


def test_a_file_that_changes_while_it_is_verified_is_a_finding(version):
    def advance(path, count):
        if path == "model_index.json":
            os.truncate(version / path, 3)

    [found] = check_directory(version, "v2", advance)
    assert found == "model_index.json: it changed while it was read; verify again when nothing writes to it"


def test_files_beside_a_version_s_are_never_opened(version, monkeypatch):
    (version / "notes").write_text("x")
    (version / "vae" / "other.safetensors").write_bytes(weights())
    opened, real = [], os.open

    def note(path, *arguments, **more):
        opened.append(str(path))
        return real(path, *arguments, **more)

    monkeypatch.setattr(os, "open", note)
    assert check_directory(version, "v2") == []
    assert not {"notes", "other.safetensors"} & set(opened)


def test_a_restamped_file_is_the_copy_that_a_stamp_beside_would_be(tmp_path):
    """In place or beside, the header that a version gets is one."""
    one, two = write_version(tmp_path / "one", "v2"), write_version(tmp_path / "two", "v2")
    os.link(two / WEIGHTS, tmp_path / "other")
    for directory in (one, two):
        write_seal(directory, "v3")
    assert (one / WEIGHTS).read_bytes() == (two / WEIGHTS).read_bytes()
    assert stamping.prepare(one, WEIGHTS, _header(one / WEIGHTS), "v3") is None


def _header(path):
    with open(path, "rb") as file:
        return header.read_header(file.fileno(), path.name)
