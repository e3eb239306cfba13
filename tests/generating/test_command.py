"""`zwatch generate` as a process, against a real service."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from tests.harness import pixels
from tests.services import running


def drawn(service, prompt, **fields):
    """Return the file that the service itself answers."""
    status, body = service.service.post("/generate", {"prompt": prompt, **fields})
    assert status == 200, body
    return [base64.b64decode(image["b64_json"]) for image in body["images"]]


def refused(found, status, *words):
    """Check that a command failed with one line that has these words."""
    said = found.stderr.decode()
    assert (found.returncode, found.stdout, said.count("\n")) == (status, b"", 1), said
    assert all(word in said for word in words), said


def test_the_picture_is_what_the_service_draws(service, generate, tmp_path):
    found = generate("a cat", "-o", "cat.png", "--seed", 7, "--steps", 3, "--width", 96, "--height", 48)
    assert (found.returncode, found.stderr) == (0, b"")
    assert found.stdout.decode().startswith("cat.png: v1, seed 7, ")
    [expected] = drawn(service, "a cat", seed=7, steps=3, width=96, height=48)
    assert pixels((tmp_path / "cat.png").read_bytes()) == pixels(expected)


@pytest.mark.parametrize(("name", "begin"), [("cat.jpg", b"\xff\xd8\xff"), ("cat.JPEG", b"\xff\xd8\xff"), ("cat.webp", b"RIFF"), ("cat", b"\x89PNG")])  # fmt: skip
def test_the_suffix_is_the_format(generate, tmp_path, name, begin):
    assert generate("a cat", "-o", name, "--steps", 1).returncode == 0
    assert (tmp_path / name).read_bytes().startswith(begin)


def test_several_pictures_are_numbered_and_have_the_seeds_of_the_service(service, generate, tmp_path):
    found = generate("a cat", "-o", "cat.png", "-n", 3, "--seed", 5, "--steps", 1)
    assert [line.partition(",")[0] for line in found.stdout.decode().splitlines()] == [f"cat_{number}.png: v1" for number in (1, 2, 3)]  # fmt: skip
    assert [pixels((tmp_path / f"cat_{number}.png").read_bytes()) for number in (1, 2, 3)] == [
        pixels(file) for file in drawn(service, "a cat", seed=5, steps=1, n=3)
    ]


def test_without_a_name_or_in_a_directory_it_has_its_name_in_the_history(service, generate, tmp_path):
    (tmp_path / "pictures").mkdir()
    for place, arguments in ((tmp_path, []), (tmp_path / "pictures", ["-o", "pictures"])):
        assert generate("a cat", "--steps", 1, *arguments).returncode == 0
        assert service.names[0] in os.listdir(place)


def test_a_file_that_is_there_is_not_replaced_unless_that_is_asked_for(service, generate, tmp_path):
    (tmp_path / "cat.png").write_bytes(b"mine")
    (tmp_path / "dog_2.png").write_bytes(b"mine")
    before = service.names
    refused(generate("a cat", "-o", "cat.png"), 2, "cat.png is there already", "--force")
    refused(generate("a dog", "-o", "dog.png", "-n", 2), 2, "dog_2.png is there already")
    assert service.names == before, "nothing was drawn"
    assert (tmp_path / "cat.png").read_bytes() == b"mine"
    assert generate("a cat", "-o", "cat.png", "--force", "--steps", 1).returncode == 0
    assert (tmp_path / "cat.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(os.listdir(tmp_path)) == ["cat.png", "dog_2.png"], "no temporary file is left"


def test_standard_output_gets_the_picture_and_nothing_else(service, generate):
    found = generate("a cat", "-o", "-", "--seed", 7, "--steps", 1)
    assert pixels(found.stdout) == pixels(drawn(service, "a cat", seed=7, steps=1)[0])
    assert found.stderr.startswith(b"-: v1, seed 7, ")
    refused(generate("a cat", "-o", "-", "-n", 2), 2, "one picture, not 2 pictures")
    refused(generate("a cat", "-o", "-", "--json"), 2, "one picture, not JSON")


def test_a_device_is_written_to(generate):
    assert generate("a cat", "-o", "/dev/null", "--steps", 1).returncode == 0


def test_json_is_what_the_service_answers(service, generate, tmp_path):
    answer = json.loads(generate("a cat", "--seed", 7, "--steps", 1, "--json").stdout)
    status, expected = service.service.post("/generate", {"prompt": "a cat", "seed": 7, "steps": 1})
    assert status == 200
    assert {name: type(value) for name, value in answer.items()} == {
        name: type(value) for name, value in expected.items()
    }
    assert pixels(base64.b64decode(answer["images"][0]["b64_json"])) == pixels(base64.b64decode(expected["images"][0]["b64_json"]))  # fmt: skip
    assert os.listdir(tmp_path) == [], "it is in the answer"
    [image] = json.loads(generate("a cat", "-o", "cat.png", "--json", "--steps", 1).stdout)["images"]
    assert (image["file"], "b64_json" in image) == ("cat.png", False)
    assert (tmp_path / "cat.png").exists()


def test_the_same_by_several_models(service, generate, tmp_path):
    assert service.service.post("/api/deploy", {"version": "v2"})[0] == 200
    assert service.service.post("/api/rollback", {})[0] == 200
    found = generate("a cat", "--model", "v1", "--model", "v2", "-o", "cat.png", "--seed", 1, "--steps", 1)
    said = found.stdout.decode().splitlines()
    assert [line.partition(",")[0] for line in said] == ["cat_1.png: v1", "cat_2.png: v2"]
    assert all(", seed 1, 64 x 64, " in line for line in said)
    assert pixels((tmp_path / "cat_1.png").read_bytes()) != pixels((tmp_path / "cat_2.png").read_bytes())


def test_a_prompt_from_standard_input(service, generate):
    assert generate("-", "-o", "-", "--steps", 1, stdin=b"eine Katze\n").returncode == 0
    assert service.get("/history?limit=1")["images"][0]["prompt"] == "eine Katze"
    refused(generate("-", "--image", "-"), 2, "PROMPT and image are both '-'")


@pytest.fixture
def source(service, tmp_path):
    """The file of a picture, and its name in the history."""
    [file] = drawn(service, "a cat", seed=1, width=64, height=96)
    (tmp_path / "cat.png").write_bytes(file)
    return file, service.names[0]


def in_base64(file):
    return base64.b64encode(file).decode()


def mask_file(width, height):
    """Return a mask whose left half is white."""
    out = io.BytesIO()
    mask = Image.new("L", (width, height))
    mask.paste(255, (0, 0, width // 2, height))
    mask.save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("way", ["a file", "the history", "standard input"])
def test_a_picture_is_changed_as_the_service_changes_it(service, generate, source, way):
    file, name = source
    given = {"a file": "cat.png", "the history": f"history:{name}", "standard input": "-"}[way]
    fields = {"seed": 2, "strength": 0.5, "steps": 6}
    options = ["--seed", 2, "--strength", 0.5, "--steps", 6]
    found = generate("a dog, 一只狗", "--image", given, "-o", "-", *options, stdin=file if given == "-" else None)
    assert (found.returncode, b", 64 x 96, " in found.stderr) == (0, True), found.stderr
    [expected] = drawn(service, "a dog, 一只狗", image=in_base64(file), **fields)
    assert pixels(found.stdout) == pixels(expected) != pixels(file)


def test_what_is_black_in_a_mask_stays(service, generate, source, tmp_path):
    (tmp_path / "mask.png").write_bytes(mask_file(64, 96))
    options = ["--image", "cat.png", "--mask", "mask.png", "--mask-blur", 2, "--seed", 2, "-o", "dog.png"]
    assert generate("a dog", *options).returncode == 0
    fields = {"image": in_base64(source[0]), "mask": in_base64(mask_file(64, 96)), "mask_blur": 2, "seed": 2}
    assert pixels((tmp_path / "dog.png").read_bytes()) == pixels(drawn(service, "a dog", **fields)[0])


def test_a_picture_is_changed_by_several_models_and_seeds(service, generate, source, tmp_path):
    found = generate("a dog", "--image", "cat.png", "--model", "v1", "--model", "current", "-n", 2, "--steps", 2, "-o", "dog.png")  # fmt: skip
    assert (found.returncode, len(found.stdout.splitlines())) == (0, 4), found.stderr
    assert (tmp_path / "dog_4.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--image", "text.png"], "image"),
        (["--image", "history:nowhere.png"], "nowhere.png"),
        (["--mask", "cat.png"], "mask"),
        (["--image", "cat.png", "--mask", "text.png"], "mask"),
    ],
)
def test_what_is_wrong_with_a_picture_is_the_services_sentence(generate, source, tmp_path, arguments, words):
    (tmp_path / "text.png").write_bytes(b"no picture")
    refused(generate("a dog", *arguments), 1, words)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--model", "v9"], 1, ["'v9' is neither an alias nor a resident version"]),
        (["--width", "1024", "--height", "1024", "--steps", "100", "-n", "16"], 1, ["megapixel-steps"]),
        (["--width", "2048"], 1, ["width may be 1024 at most with version v1"]),
        (["-o", "cat.gif"], 2, [".png", "'.gif'"]),
        (["-o", "nowhere/cat.png"], 2, ["no directory nowhere"]),
        (["-o", "nowhere/"], 2, ["no such directory"]),
        (["-o", "cat.png", "--format", "jpeg"], 2, ["--format is jpeg", "png"]),
        (["--image", "nowhere.png"], 2, ["--image", "not there"]),
        (["--seed", "-1"], 2, ["--seed"]),
    ],
)
def test_what_cannot_be_done_is_one_line(generate, tmp_path, arguments, status, words):
    refused(generate("a cat", *arguments), status, *words)
    assert os.listdir(tmp_path) == []


def test_an_error_of_the_service_is_its_json_with_that_option(generate):
    found = generate("a cat", "--model", "v9", "--json")
    assert (found.returncode, json.loads(found.stdout)["error"]["code"]) == (1, "model_not_found")


def test_no_service_is_status_2(generate):
    refused(generate("a cat", url="http://127.0.0.1:9"), 2, "no service at http://127.0.0.1:9", "zwatch serve")


def test_the_token_is_sent(models, generate, tmp_path):
    token = tmp_path / "token"
    token.write_text("secret\n")
    with running(models, tmp_path / "state", "--token-file", str(token), token="secret") as service:
        refused(generate("a cat", "-o", "cat.png", url=service.url), 1, "token")
        found = generate("a cat", "-o", "cat.png", "--steps", 1, "--token-file", token, url=service.url)
        assert (found.returncode, (tmp_path / "cat.png").exists()) == (0, True), found.stderr


def test_ctrl_c_cancels_the_request(service, tmp_path):
    before, long = service.names, ["-n", "16", "--steps", "100", "--width", "256", "--height", "256"]
    command = [sys.executable, "-m", "zwatch", "generate", "a cat", "-o", "cat.png", *long, "--url", service.url]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    service.until(lambda: service.status["queue"]["running"])
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, b"", b"zwatch: interrupted; the request is cancelled\n")
    service.until(lambda: not service.status["queue"]["running"], deadline=20)
    assert os.listdir(tmp_path) == []
    assert len(service.names) - len(before) < 16, "it was not drawn to its end"


class Answers(BaseHTTPRequestHandler):
    """Answers every POST with the status, the type and the bytes that the server has."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        status, kind, body = self.server.answer
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize(
    ("status", "kind", "body", "exit_status", "words"),
    [
        (200, "text/html", b"<html>", 2, "is not zwatch"),
        (200, "application/json", b"{}", 2, "is not zwatch"),
        (502, "text/html", b"<html>Bad Gateway", 2, "is not zwatch"),
        (200, "text/event-stream", b'event: queued\ndata: {"position": 0}\n\n', 2, "went away"),
        (200, "text/event-stream", b': still here\n\nevent: done\ndata: {"ima', 2, "went away"),
        (200, "text/event-stream", b"event: done\ndata: {}\n\n", 2, "the answer to /generate is not zwatch's"),
        (200, "text/event-stream", b'event: done\ndata: {"images": [{"b64_json": "x"}]}\n\n', 2, "is not zwatch's"),
        (200, "text/event-stream", b'event: error\ndata: {"error": {"message": "the service stops"}}\n\n', 1, "the service stops"),
        (429, "application/json", b'{"error": {"message": "64 requests wait"}}', 1, "64 requests wait"),
    ],
)  # fmt: skip
def test_whatever_answers_is_one_line(generate, tmp_path, status, kind, body, exit_status, words):
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.answer = status, kind, body
        threading.Thread(target=server.serve_forever, daemon=True).start()
        refused(generate("a cat", url=f"http://127.0.0.1:{server.server_port}"), exit_status, words)
        server.shutdown()
    assert os.listdir(tmp_path) == []
