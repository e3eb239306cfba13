"""An import that does not end leaves nothing that looks like a version, and the next one goes on from there."""

import errno
import json
import multiprocessing
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch

from tests.importing import published
from tests.importing.published import tree, weights
from tests.namespaces import Namespaces, Unavailable
from zwatch import cli
from zwatch.deploy.verifying import check_directory
from zwatch.importing import writing

DEADLINE = 120.0
ROWS = 300_000


@pytest.fixture(scope="module")
def large(tmp_path_factory, pipeline):
    """A source of some 60 MB in fp32, so that an import of it takes a moment."""
    source = Path(shutil.copytree(pipeline, tmp_path_factory.mktemp("large") / "source"))
    config = source / "text_encoder/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": ROWS}))
    tensors = weights(source, "text_encoder")
    tensors["embed_tokens.weight"] = torch.randn(ROWS, 32).to(torch.bfloat16)
    published.write_weights(source, "text_encoder", tensors, shards=3)
    published.rewritten(source, torch.float32, ["transformer", "text_encoder"], shards=6)
    return source


@pytest.fixture(scope="module")
def processes():
    """Starts processes that have imported everything already, by a server of its own: other tests have one with other modules."""
    forkserver._forkserver._stop()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "zwatch.importing.command", "zwatch.engine.components"])
    yield context
    forkserver._forkserver._stop()


def importing_in_a_process(arguments, output):
    """Run `zwatch import` as a process does. (The target of one.)"""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(output, "w", buffering=1) as sys.stdout:
        sys.stderr = sys.stdout
        print("it has begun")
        sys.exit(cli.main(["import", *map(str, arguments)]))


class Process:
    """One `zwatch import`."""

    def __init__(self, processes, tmp_path, *arguments):
        self._output = tmp_path / f"output{random.random()}"
        self._output.touch()
        self._process = processes.Process(target=importing_in_a_process, args=(arguments, self._output))
        self._process.start()

    def until(self, condition):
        """Wait until the import has begun, and for a condition or for the end; return whether the process still runs."""
        end = time.monotonic() + DEADLINE
        while self._process.exitcode is None and not (self._output.stat().st_size and condition()):
            assert time.monotonic() < end
            time.sleep(0.0005)
        return self._process.exitcode is None

    def end(self, number=None):
        """Wait for the end, after a signal if one is given; return the exit status and what was printed."""
        if number is not None and self._process.is_alive():
            os.kill(self._process.pid, number)
        self._process.join(DEADLINE)
        assert self._process.exitcode is not None
        return self._process.exitcode, self._output.read_text()


def hidden(root):
    return root / ".v2.importing"


def bytes_there(root):
    """Return how many bytes an import has written so far."""
    found = 0
    for folder, _, names in os.walk(hidden(root) / "v2"):  # what is renamed meanwhile is passed over
        for name in names:
            try:
                found += os.stat(os.path.join(folder, name)).st_size
            except OSError:
                continue
    return found


def no_version(root):
    """Say whether nothing that looks like a version is there."""
    return [path.name for path in root.iterdir() if not path.name.startswith(".")] == []


def test_killed_at_any_point_and_run_again_it_ends_with_the_same_version(large, root, tmp_path, processes):
    whole = tmp_path / "whole"
    whole.mkdir()
    assert Process(processes, tmp_path, large, "v2", "--models", whole).end()[0] == 0
    expected = {path: data for path, data in tree(whole / "v2").items() if path not in ("zwatch.json", "BLAKE3SUMS")}
    size = sum(map(len, expected.values()))
    chosen = random.Random(17)
    for number in range(12):
        threshold = -1 if number == 0 else chosen.randrange(size)
        process = Process(processes, tmp_path, large, "v2", "--models", root)
        process.until(lambda enough=threshold: hidden(root).exists() and bytes_there(root) > enough)
        status, _ = process.end(signal.SIGKILL)
        if status == 0:  # it was faster
            assert check_directory(root / "v2", "v2") == []
            shutil.rmtree(root / "v2")
            continue
        if (root / "v2").exists():  # killed after the rename
            assert check_directory(root / "v2", "v2") == []
            shutil.rmtree(root / "v2")
        assert no_version(root)
        if number % 3 == 0:
            status, said = Process(processes, tmp_path, large, "v2", "--models", root, "--json").end()
            assert status == 0, said
            assert check_directory(root / "v2", "v2") == []
            found = tree(root / "v2")
            assert {path: found[path] for path in expected} == expected
            assert os.listdir(root) == ["v2"]
            shutil.rmtree(root / "v2")


def test_ctrl_c_ends_with_130_and_leaves_no_version(large, root, tmp_path, processes):
    process = Process(processes, tmp_path, large, "v2", "--models", root)
    process.until((hidden(root) / ".done.json").exists)
    status, said = process.end(signal.SIGINT)
    if status == 0:  # the signal came after the rename
        assert check_directory(root / "v2", "v2") == []
        return
    assert (status, no_version(root)) == (130, True)
    assert "interrupted; no version was made; run the same command again to go on from there" in said


def stopping(monkeypatch, calls, error):
    """Let reading end with an error after so many calls."""
    read, left = writing.FileWriter.read, [error]

    def reading(*arguments):
        nonlocal calls
        calls -= 1
        if calls < 0 and left:
            raise left.pop()
        return read(*arguments)

    monkeypatch.setattr(writing.FileWriter, "read", reading)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "run the same command again to go on from there"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "run the same command again to go on from there"),
        (OSError(errno.EIO, "Input/output error"), 1, "Input/output error"),
    ],
    ids=["Ctrl-C", "ENOSPC", "EIO"],
)
@pytest.mark.parametrize("calls", [0, 1, 4, 9])
def test_what_was_complete_is_not_written_again(error, status, said, calls, pipeline, importing, tmp_path, monkeypatch):
    source = published.published(pipeline, tmp_path / "source")
    stopping(monkeypatch, calls, error)
    importing(source, "v2", status=status)
    assert no_version(importing.root)
    assert calls < 2 or said in importing.error
    assert hidden(importing.root).exists() == (calls > 0)
    version = importing(source, "v2", "--json")
    assert (json.loads(importing.out)["kept"] > 0) == (calls > 0)
    assert check_directory(version, "v2") == []
    assert os.listdir(importing.root) == ["v2"]


def interrupted(large, root, tmp_path, processes):
    """Leave an import that has written some files."""
    process = Process(processes, tmp_path, large, "v2", "--models", root)
    process.until((hidden(root) / ".done.json").exists)
    process.end(signal.SIGKILL)
    if not hidden(root).exists():
        pytest.skip("the import was faster than the signal")
    return json.loads((hidden(root) / ".done.json").read_text())


@pytest.mark.parametrize("what", ["bytes", "source", "notes"])
def test_what_an_interrupted_import_left_is_not_trusted_blindly(what, large, root, tmp_path, processes, capsys):
    done = interrupted(large, root, tmp_path, processes)
    path = next(iter(done))
    source = Path(shutil.copytree(large, tmp_path / "copy"))
    if what == "bytes":
        file = hidden(root) / "v2" / path
        before = file.stat()
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        source = large
    elif what == "notes":
        (hidden(root) / ".done.json").write_text('{"a": [')
        source = large
    (hidden(root) / "v2" / "stray.txt").write_text("left by something else")
    assert cli.main(["import", str(source), "v2", "--models", str(root), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    if what in ("source", "notes"):
        assert found["kept"] == 0
    assert check_directory(root / "v2", "v2") == []
    assert "stray.txt" not in tree(root / "v2")
    for component in ("transformer", "text_encoder"):
        expected = weights(large, component)
        for name, tensor in weights(root / "v2", component).items():
            assert torch.equal(tensor, expected[name].to(torch.bfloat16))


def test_two_imports_of_one_name_do_not_mix(large, root, tmp_path, processes):
    pair = [Process(processes, tmp_path, large, "v2", "--models", root) for _ in range(2)]
    ends = sorted(one.end() for one in pair)
    assert ends[0][0] == 0, ends
    if ends[1][0] != 0:
        assert ends[1][0] == 1
        assert "another import makes v2" in ends[1][1] or "exists already" in ends[1][1]
    assert os.listdir(root) == ["v2"]
    assert check_directory(root / "v2", "v2") == []


def test_a_full_disk_is_noticed_before_and_what_fits_is_kept(large, tmp_path, processes):
    root = tmp_path / "small"
    root.mkdir()
    command = [sys.executable, "-m", "zwatch", "import", large, "v2", "--models", root]
    try:
        inside = Namespaces(setup=f"mount -t tmpfs -o size=12m none {root}")
    except Unavailable as error:
        pytest.skip(str(error))
    try:
        done = inside.run(*command)
        assert (done.returncode, inside.run("ls", "-A", root).stdout) == (1, "")
        assert "bytes are to be written" in done.stderr
        assert "make room" in done.stderr
        # Room when it is looked at, and not any more when it is needed: a file that grows.
        inside.run("mount", "-o", "remount,size=40m", root, check=True)
        filling = "while [ ! -s .v2.importing/.done.json ]; do :; done; dd if=/dev/zero of=filling bs=1M"
        filler = subprocess.Popen([*inside.entering, "sh", "-c", f"cd {root}; {filling}"], stderr=subprocess.DEVNULL)
        done = inside.run(*command)
        filler.kill()
        filler.wait()
        inside.run("rm", "-f", f"{root}/filling", check=True)
        if done.returncode != 0:
            assert done.returncode == 1
            assert "No space left on device" in done.stderr
            assert "run the same command again to go on" in done.stderr
            assert inside.run("ls", root).stdout == ""
            done = inside.run(*command)
            assert done.returncode == 0, done.stderr
            assert "kept of an interrupted import" in done.stdout
        assert inside.run(sys.executable, "-m", "zwatch", "verify", root / "v2").returncode == 0
    finally:
        inside.close()


def changing(monkeypatch, change):
    """Let a change happen once an import has read some bytes of its sources."""
    read, to_do = writing.FileWriter.read, [change]

    def reading(*arguments):
        found = read(*arguments)
        while to_do:
            to_do.pop()()
        return found

    monkeypatch.setattr(writing.FileWriter, "read", reading)


def appended(path):
    with open(path, "ab") as file:
        file.write(b"more")


def rewritten(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def replaced(path):
    shutil.copy2(path, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def cut(path):
    os.truncate(path, 100)


@pytest.mark.parametrize("change", [appended, rewritten, replaced, cut, os.unlink])
@pytest.mark.parametrize("file", ["model_index.json", "transformer/diffusion_pytorch_model.safetensors"])
def test_a_source_that_changes_while_it_is_read_is_an_error(file, change, pipeline, importing, tmp_path, monkeypatch):
    source = Path(shutil.copytree(pipeline, tmp_path / "source"))
    changing(monkeypatch, lambda: change(source / file))
    error = importing.refused(source, "v2")
    assert file in error
    assert "while it was imported" in error


def test_a_base_that_is_sealed_anew_meanwhile_is_an_error(pipeline, importing, monkeypatch):
    v1 = importing(pipeline, "v1")
    changing(monkeypatch, lambda: appended(v1 / "BLAKE3SUMS"))
    assert "the base was sealed again" in importing.refused(pipeline / "vae", "v2", "--base", "v1")


def test_an_import_goes_on_from_another_working_directory(pipeline, importing, tmp_path, monkeypatch):
    source = published.published(pipeline, tmp_path / "source")
    with monkeypatch.context() as context:
        stopping(context, 9, KeyboardInterrupt())
        context.chdir(tmp_path)
        importing("source", "v2", status=130)
    monkeypatch.chdir(source)
    importing(".", "v2", "--json")
    assert json.loads(importing.out)["kept"] > 0
    assert json.loads((importing.root / "v2/zwatch.json").read_text())["source"]["name"] == "source"


def test_what_an_interrupted_import_left_is_named_as_that(pipeline, importing, monkeypatch, capsys):
    with monkeypatch.context() as context:
        stopping(context, 9, KeyboardInterrupt())
        importing(pipeline, "v2", status=130)
    assert cli.main(["list", "--models", str(importing.root)]) == 0
    assert ".v2.importing: no version: a `zwatch import` works in it, or was interrupted" in capsys.readouterr().out


def test_a_terminal_sees_a_bar_with_rate_and_time_left(large, root):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 150))
    command = [sys.executable, "-m", "zwatch", "import", large, "v2", "--models", root]
    process = subprocess.Popen(list(map(str, command)), stderr=theirs, stdout=subprocess.DEVNULL)
    os.close(theirs)
    shown = b""
    try:
        while data := os.read(ours, 2**16):
            shown += data
    except OSError:  # EIO: the process has ended
        pass
    os.close(ours)
    assert process.wait() == 0
    assert shown.startswith(b"\rimporting [00:00]")
    assert re.search(rb"importing: +[0-9]+%\|.*\| [0-9.]+[kMG]?/[0-9.]+M \[.*<.*B/s", shown), shown.decode().replace(
        "\r", "\n"
    )
