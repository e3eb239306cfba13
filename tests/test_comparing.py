"""`zwatch compare`: the command with a real service, and the sheets it writes."""

import asyncio
import base64
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tests.harness import Server
from zwatch.sheets import HtmlSheet, PngSheet, make_pair


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def noise(seed, size=(24, 32, 3)):
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


# --- pairs


def test_the_difference_and_its_psnr_are_those_of_the_pixels():
    first = np.full((16, 16, 3), 100, dtype=np.uint8)
    second = first.copy()
    second[:8] += 10
    pair = make_pair("a cat", ("v1", "v3"), (png(first), png(second)))
    assert pair.psnr == pytest.approx(10 * math.log10(255**2 / 50))
    with Image.open(io.BytesIO(pair.difference)) as image:
        shown = np.asarray(image)
    assert pair.factor == 16
    assert (shown[:8] == 160).all()
    assert (shown[8:] == 0).all()
    assert pair.verdict == "difference x 16, PSNR 31.1 dB"


@pytest.mark.parametrize(("by", "factor"), [(15, 16), (16, 8), (31, 8), (63, 4), (127, 2), (128, 1), (255, 1)])
def test_a_difference_is_shown_as_bright_as_it_can_be_without_being_clipped(by, factor):
    pair = make_pair("a cat", ("v1", "v3"), (png(np.zeros((16, 16, 3))), png(np.full((16, 16, 3), by))))
    with Image.open(io.BytesIO(pair.difference)) as image:
        assert (pair.factor, np.asarray(image).max()) == (factor, by * factor)


def test_equal_pictures_and_pictures_of_two_sizes_say_so():
    same = make_pair("a cat", ("v1", "v3"), (png(noise(1)), png(noise(1))))
    assert (same.is_same, same.finite_psnr, same.verdict) == (True, None, "equal")
    other = make_pair("a cat", ("v1", "v3"), (png(noise(1)), png(noise(1, (32, 32, 3)))))
    assert (other.difference, other.psnr, other.verdict) == (None, None, "different sizes")


# --- sheets


class _Found(HTMLParser):
    def __init__(self):
        super().__init__()
        self.images, self.text, self.tags = [], "", set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data):
        self.text += data


def test_an_html_sheet_holds_the_pictures_and_escapes_every_text(tmp_path):
    prompt = '<script>alert("x")</script> & 一只猫'
    pair = make_pair(prompt, ("v1", "<v3>"), (png(noise(1)), png(noise(2))))
    with HtmlSheet(tmp_path / "sheet.html", ("v1", "<v3>"), 42) as sheet:
        sheet.add(pair)
    text = (tmp_path / "sheet.html").read_text()
    assert "<script" not in text
    assert "http://" not in text.replace("http-equiv", "")
    found = _Found()
    found.feed(text)
    assert prompt in found.text
    assert "script" not in found.tags
    assert [one["alt"] for one in found.images] == [f"v1: {prompt}", f"<v3>: {prompt}", f"difference: {prompt}"]
    files = [base64.b64decode(one["src"].removeprefix("data:image/png;base64,")) for one in found.images]
    assert files == [*pair.files, pair.difference]


def test_a_png_sheet_has_a_row_a_pair_with_both_pictures_in_it(tmp_path):
    pairs = [make_pair(f"cat {number} " * 40, ("v1", "v3"), (png(noise(number)), png(noise(9)))) for number in range(3)]
    with PngSheet(tmp_path / "sheet.png", ("v1", "v3"), 42) as sheet:
        for pair in pairs:
            sheet.add(pair)
    with Image.open(tmp_path / "sheet.png") as image:
        pixels = np.asarray(image)
    assert pixels.shape[2] == 3
    for pair in pairs:
        for file in (*pair.files, pair.difference):
            with Image.open(io.BytesIO(file)) as picture:
                assert _contains(pixels, np.asarray(picture))


def _contains(sheet, picture):
    rows, columns = np.nonzero((sheet == picture[0, 0]).all(axis=2))
    height, width = picture.shape[:2]
    return any(
        np.array_equal(sheet[row : row + height, column : column + width], picture)
        for row, column in zip(rows, columns, strict=True)
    )


def test_pictures_of_two_sizes_and_letters_of_any_script_have_a_row_too(tmp_path):
    pair = make_pair("一只戴墨镜的猫", ("v1", "v3"), (png(noise(1)), png(noise(1, (40, 40, 3)))))
    with PngSheet(tmp_path / "sheet.png", ("v1", "v3"), 42) as sheet:
        sheet.add(pair)
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.size[0] > 480


@pytest.mark.parametrize("kind", [PngSheet, HtmlSheet])
def test_a_sheet_that_is_not_finished_leaves_the_old_one(tmp_path, kind):
    path = tmp_path / "sheet"
    path.write_text("old")

    def interrupted():
        with kind(path, ("v1", "v3"), 42) as sheet:
            sheet.add(make_pair("a", ("v1", "v3"), (png(noise(1)), png(noise(2)))))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("sheet", "old")]


# --- the command


@pytest.fixture(scope="module")
def server(tiny_versions, tmp_path_factory):
    """A service with v1 under `current` and v2 under `canary`; v3 is there and not loaded."""
    root = tmp_path_factory.mktemp("compare")
    shutil.copytree(tiny_versions, root / "models")
    os.symlink("v1", root / "models" / "current")
    os.symlink("v2", root / "models" / "canary")
    shutil.copytree(root / "models" / "v2", root / "models" / "v3")
    found = Server(root / "models", root / "state", "--alias", "canary")
    found.start()

    async def ready():
        await found.connect()

        async def both():
            return {one["version"] for one in (await found.status())["engines"]} == {"v1", "v2"}

        await found.until(both, "v1 and v2 are loaded")
        await found.http.close()

    asyncio.run(ready())
    yield found
    found.stop()


def run(server, *arguments, cwd):
    command = [sys.executable, "-m", "zwatch", "compare", *arguments, "--url", server.url]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def test_the_command_draws_each_prompt_by_both_and_writes_the_sheet(server, tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    for name in ("sheet.png", "sheet.html"):
        ended = run(server, "v1", "v2", "--prompts", "prompts.txt", "-o", name, "--steps", "2", cwd=tmp_path)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.startswith(f"{name}: 2 pairs of v1 and v2, 0 of them equal\nPSNR of the others: ")
    found = _Found()
    found.feed((tmp_path / "sheet.html").read_text())
    assert len(found.images) == 6
    ended = run(server, "current", "v1", "--prompts", "prompts.txt", "--size", "64x32", "--json", cwd=tmp_path)
    told = json.loads(ended.stdout)
    assert (told["sheet"], told["models"], told["seed"]) == ("sheet.png", ["current", "v1"], 42)
    assert [(pair["versions"], pair["same"], pair["psnr"]) for pair in told["pairs"]] == [
        (["v1", "v1"], True, None)
    ] * 2


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["v1", "v3"], 1, r"v3 is there, but not loaded: `zwatch share v3 0` holds it ready"),
        (["v1", "v9"], 1, r"'v9' is neither an alias nor a resident version.*`zwatch list`"),
        (["v1", "v1"], 2, "both are 'v1'"), (["v1", "v2", "-o", "sheet.gif"], 2, r"ends with \.png or \.html"),
        (["v1", "v2", "--size", "100"], 2, "a multiple of 16 from 16 to 2048"),
        (["v1", "v2", "-o", "no/such/folder.png"], 2, r"-o no/such/folder\.png: there is no folder no/such; make it"),
        (["v1", "v2", "-o", "prompts.txt/sheet.html"], 2, r"-o .*: there is no folder"),
        (["v1", "v2", "-o", "folder.png"], 2, r"-o folder\.png: found a folder, expected the name of a file"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_and_nothing_is_left(server, tmp_path, arguments, status, words):
    (tmp_path / "prompts.txt").write_text("a cat\n")
    (tmp_path / "folder.png").mkdir()
    ended = run(server, *arguments, "--prompts", "prompts.txt", cwd=tmp_path)
    assert ended.returncode == status
    assert re.search(words, ended.stderr)
    assert "Traceback" not in ended.stderr
    assert sorted(one.name for one in tmp_path.iterdir()) == ["folder.png", "prompts.txt"]
    assert not list((tmp_path / "folder.png").iterdir())


def test_a_line_may_say_what_is_drawn_for_it(server, tmp_path):
    lines = ["a cat", json.dumps({"prompt": "a dog", "seed": 7, "width": 32, "height": 48, "steps": 3})]
    (tmp_path / "prompts.txt").write_text("\n".join(lines))
    ended = run(
        server, "v1", "v2", "--prompts", "prompts.txt", "-o", "sheet.html", "--size", "64", "--json", cwd=tmp_path
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    first, second = json.loads(ended.stdout)["pairs"]
    assert (first["prompt"], "seed" in first) == ("a cat", False)
    assert (second["prompt"], second["seed"], second["steps"]) == ("a dog", 7, 3)
    found = _Found()
    found.feed((tmp_path / "sheet.html").read_text())
    assert "a dog (seed 7, width 32, height 48, steps 3)" in found.text
    sizes = []
    for image in found.images:
        with Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))) as picture:
            sizes.append(picture.size)
    assert sizes == [(64, 64)] * 3 + [(32, 48)] * 3


def test_a_pipe_of_prompts_is_read_and_a_floor_is_refused(server, tmp_path):
    command = [
        sys.executable,
        "-m",
        "zwatch",
        "compare",
        "v1",
        "v2",
        "--prompts",
        "/dev/stdin",
        "--url",
        server.url,
        "--steps",
        "1",
    ]
    how = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 300, "check": False}
    assert subprocess.run(command, input="a cat\n", **how).stdout.startswith("sheet.png: 1 pairs of v1 and v2")
    ended = subprocess.run(command, input='{"prompt": "a cat", "min_psnr": 30}', **how)
    assert (ended.returncode, "line 1: min_psnr has no meaning here" in ended.stderr) == (2, True)


def test_it_says_what_is_missing(server, tmp_path):
    assert "give --prompts FILE" in run(server, "v1", "v2", cwd=tmp_path).stderr
    (tmp_path / "prompts.txt").write_text("a cat\n" * 101)
    ended = run(server, "v1", "v2", "--prompts", "prompts.txt", cwd=tmp_path)
    assert (ended.returncode, "give -o sheet.html" in ended.stderr) == (2, True)
