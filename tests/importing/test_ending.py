"""A signal before the rename ends an import in order, whichever it is; after the rename it changes nothing, and a deploy goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.deploy.test_signals import dropped, send_in_a_callback
from tests.importing import published
from tests.importing.layouts import make
from tests.importing.published import tree
from zwatch import cli
from zwatch.deploy.verifying import check_directory
from zwatch.errors import Ended
from zwatch.importing import place, writing

ENDING = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])


def after(monkeypatch, owner, name, act, calls=1):
    """Let something happen once, after a method was called so many times."""
    method, left = getattr(owner, name), [calls]

    def called(*arguments):
        found = method(*arguments)
        left[0] -= 1
        if left[0] == 0:
            act()
        return found

    monkeypatch.setattr(owner, name, called)


def signalled(number):
    return lambda: os.kill(os.getpid(), number)


@ENDING
@pytest.mark.parametrize("command", ["import", "quantize"])
def test_a_signal_ends_it_in_order_and_says_what_is_left(number, command, pipeline, importing, monkeypatch, capsys):
    importing(pipeline, "v1")
    arguments = ["import", pipeline, "v2"] if command == "import" else ["quantize", "v1", "v2"]
    arguments = [*map(str, arguments), "--models", str(importing.root)]
    with monkeypatch.context() as context:
        after(context, writing.FileWriter, "read", signalled(number), calls=2)
        assert cli.main(arguments) == 128 + number
    assert "interrupted; no version was made; " in capsys.readouterr().err
    assert os.listdir(importing.root) in (["v1"], ["v1", ".v2.importing"], [".v2.importing", "v1"])
    assert cli.main(arguments) == 0
    assert check_directory(importing.root / "v2", "v2") == []


@ENDING
def test_a_signal_that_the_interpreter_drops_ends_it_too(number, pipeline, importing, monkeypatch):
    lost = dropped(monkeypatch)
    with monkeypatch.context() as context:
        after(context, writing.FileWriter, "buffer", lambda: send_in_a_callback(number), calls=2)
        importing(pipeline, "v2", status=128 + number)
    assert lost == [Ended]
    assert not (importing.root / "v2").exists()
    assert check_directory(importing(pipeline, "v2"), "v2") == []


@ENDING
def test_a_signal_after_the_rename_changes_nothing(number, pipeline, importing, monkeypatch):
    after(monkeypatch, place.Place, "publish", signalled(number))
    assert check_directory(importing(pipeline, "v2"), "v2") == []
    assert "imported v2" in importing.out


@ENDING
def test_a_signal_at_the_interpreters_end_changes_nothing(number, pipeline, root):
    code = (
        "import atexit, os, sys, zwatch.__main__ as command\n"
        f"atexit.register(os.kill, os.getpid(), {int(number)})\n"
        "sys.exit(command.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "import", pipeline, "v2", "--models", root], capture_output=True, text=True
    )
    assert (done.returncode, check_directory(root / "v2", "v2")) == (0, []), done.stderr
    assert "imported v2" in done.stdout


@contextmanager
def service(posted):
    """Something that answers like a service; `posted` returns status and body of a deploy."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self, status, body):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def do_GET(self):
            self.answer(200, {})

        def do_POST(self):
            if (found := posted()) is not None:
                self.answer(*found)

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@ENDING
def test_interrupted_while_it_waits_for_a_deploy_it_says_that_both_are_so(number, pipeline, importing):
    ended = threading.Event()

    def posted():
        signalled(number)()
        ended.wait(60)
        return 200, {"message": "v2 is serving"}

    with service(posted) as url:
        importing(pipeline, "v2", "--deploy", "--url", url, status=128 + number)
        ended.set()
    assert check_directory(importing.root / "v2", "v2") == []
    assert "imported v2" in importing.out
    assert "interrupted; v2 is imported; a deploy of it that has begun goes on" in importing.error
    assert f"zwatch status --url {url}" in importing.error


def test_interrupted_between_the_rename_and_the_deploy_it_deploys_nothing(pipeline, importing, monkeypatch):
    after(monkeypatch, place.Place, "publish", signalled(signal.SIGINT))
    asked = []
    with service(lambda: (asked.append(1), (200, {}))[1]) as url:
        importing(pipeline, "v2", "--deploy", "--url", url, status=130)
    assert (asked, check_directory(importing.root / "v2", "v2")) == ([], [])
    assert f"interrupted; v2 is imported; deploy it, or repoint the link yourself: ln -sfn v2 {importing.root}/current" in importing.error  # fmt: skip


def test_a_service_with_another_models_root_is_told_from_a_missing_version(pipeline, importing):
    with service(lambda: (404, {"error": {"message": "there is no version 'v2' under the models root"}})) as url:
        importing(pipeline, "v2", "--deploy", "--url", url, status=1)
    assert f"v2 is imported into {importing.root}; does the service at {url} serve another models root" in importing.error  # fmt: skip


def test_a_service_that_refuses_leaves_the_command_for_the_link(pipeline, importing):
    with service(lambda: (401, {"error": {"message": "the token is wrong"}})) as url:
        importing(pipeline, "v2", "--deploy", "--url", url, status=1)
    assert "the token is wrong" in importing.error
    assert f"v2 is imported, but not deployed; repoint the link yourself: ln -sfn v2 {importing.root}/current" in importing.error  # fmt: skip


def test_a_service_that_goes_away_meanwhile_leaves_the_version_and_the_command_for_the_link(pipeline, importing):
    with service(lambda: None) as url:
        importing(pipeline, "v2", "--deploy", "--url", url, status=2)
    assert "imported v2" in importing.out
    assert "v2 is imported, but not deployed: " in importing.error
    assert f"ln -sfn v2 {importing.root}/current" in importing.error


def test_a_version_that_the_service_rejects_is_named_with_its_link(pipeline, importing):
    (importing.root / "current").symlink_to("v2")
    with service(lambda: (409, {"error": {"message": "weights_mismatch"}})) as url:
        importing(pipeline, "v2", "--deploy", "--url", url, status=1)
    assert f"v2 is imported, and {importing.root}/current leads to it, but it does not serve" in importing.error


def put_back(path):
    """Change a file in place, with its time as before."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("transformer/diffusion_pytorch_model-00001-of-00003.safetensors", put_back),
        ("tokenizer/tokenizer.json", put_back),
        ("text_encoder/model.safetensors.index.json", lambda path: path.write_text("{}")),
        ("zwatch.json", lambda path: path.write_text('{"default_size": 128}')),
    ],
)
def test_every_change_of_a_source_meanwhile_is_an_error(file, change, pipeline, importing, tmp_path, monkeypatch):
    source = published.published(pipeline, tmp_path / "source")
    (source / "zwatch.json").write_text('{"default_size": 64}')
    after(monkeypatch, writing.FileWriter, "read", lambda: change(source / file))
    error = importing.refused(source, "v2")
    assert f"{file}: changed while it was imported" in error


def test_a_changed_config_of_a_lora_is_an_error(pipeline, importing, tmp_path, monkeypatch):
    importing(pipeline, "v1")
    save_file(make.lora({"layers.0.attention.to_q": (64, 64)}), tmp_path / "ink.safetensors")
    config = tmp_path / "adapter_config.json"
    config.write_text('{"lora_alpha": 8, "r": 4}')
    after(monkeypatch, writing.FileWriter, "read", lambda: config.write_text('{"lora_alpha": 9, "r": 4}'))
    error = importing.refused(tmp_path / "ink.safetensors", "v2", "--base", "v1")
    assert f"{config}: changed while it was imported" in error


def test_a_change_between_two_runs_with_its_time_put_back_is_seen(pipeline, importing, tmp_path, monkeypatch):
    source = published.published(pipeline, tmp_path / "source")
    with monkeypatch.context() as context:
        after(context, writing.FileWriter, "read", signalled(signal.SIGINT), calls=9)
        importing(source, "v2", status=130)
    done = json.loads((importing.root / ".v2.importing/.done.json").read_text())
    for path in source.rglob("*.safetensors"):
        put_back(path)
    assert any(path.endswith(".safetensors") for path in done)
    importing(source, "v2")
    fresh = importing(source, "v3")
    one, other = tree(importing.root / "v2"), tree(fresh)
    for path in done:
        if not path.startswith("transformer/"):  # they have the version's name
            assert one[path] == other[path], path


def test_a_base_may_be_linked_by_another_import_meanwhile(pipeline, importing, tmp_path, monkeypatch):
    v1 = importing(pipeline, "v1")
    vae = Path(shutil.copytree(pipeline / "vae", tmp_path / "vae"))
    encoder = v1 / "text_encoder/model.safetensors"
    after(monkeypatch, writing.FileWriter, "read", lambda: os.link(encoder, tmp_path / "link"))
    assert check_directory(importing(vae, "v2", "--base", "v1"), "v2") == []


def test_a_name_that_is_taken_is_refused_before_the_source_is_looked_at(pipeline, importing, tmp_path):
    importing(pipeline, "v2")
    importing(tmp_path / "nothing", "v2", status=1)
    assert importing.error == f"zwatch: {importing.root}/v2: exists already; choose another name, or remove it first\n"
    assert cli.main(["quantize", "nothing", "v2", "--models", str(importing.root)]) == 1
