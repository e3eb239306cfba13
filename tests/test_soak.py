"""The soak itself: its rule for what is flat, what it takes for a wrong picture, and a run of a few seconds against a real server."""

import asyncio
import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from soak_calls import Book, Client, Drawn, Failure, Judge, Link, Timeline  # noqa: E402
from soak_report import by_minute, finish, pack, student, trend, trends, unpack  # noqa: E402

HOUR = [minute / 60 for minute in range(60)]
DRAW = random.Random(3)
NOISE = [DRAW.gauss(0, 2) for _ in HOUR]


def test_a_constant_and_a_straight_line_have_exactly_their_slope():
    flat, steep = trend(HOUR, [7.0] * 60), trend(HOUR, [7.0 + 20 * hour for hour in HOUR])
    assert (flat.slope, flat.low, flat.high) == (0.0, 0.0, 0.0)
    assert steep.slope == pytest.approx(20)
    assert steep.high == pytest.approx(20)


def test_noise_has_no_certain_trend_and_a_slope_beneath_it_is_found():
    flat, steep = trend(HOUR, NOISE), trend(HOUR, [one + 20 * hour for one, hour in zip(NOISE, HOUR, strict=True)])
    assert flat.low < 0 < flat.high < 5
    assert 15 < steep.low < 20 < steep.high < 25


def test_the_interval_holds_the_true_slope_19_times_in_20():
    draw, held = random.Random(1), 0
    for _ in range(400):
        found = trend(HOUR[:20], [3 * hour + draw.gauss(0, 1) for hour in HOUR[:20]])
        held += found.low <= 3 <= found.high
    assert 0.91 < held / 400 < 0.99


def test_a_slow_wave_is_neither_a_trend_nor_a_proof_that_there_is_none():
    wave = [10 * math.sin(hour * 4) for hour in HOUR]
    as_if_independent = trend(HOUR, DRAW.sample(wave, len(wave)))
    found = trend(HOUR, wave)
    assert found.independent < 10
    assert found.high - found.low > 3 * (as_if_independent.high - as_if_independent.low)


@pytest.mark.parametrize("count", [1, 3])
def test_few_samples_prove_nothing(count):
    assert trend(HOUR[:count], NOISE[:count]).high == math.inf


@pytest.mark.parametrize(("freedom", "expected"), [(3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (1000, 1.962)])
def test_students_quantile_is_that_of_the_tables(freedom, expected):
    assert student(freedom) == pytest.approx(expected, rel=0.01)


def samples(values, *, rest=1.0):
    return [{"rest": rest, "at": 3600 * hour, "descriptors": value} for hour, value in zip(HOUR, values, strict=True)]


def test_only_samples_at_rest_after_the_warm_up_count():
    grown_before = [20 + min(10, minute) for minute in range(60)]
    at_rest, busy = samples(grown_before), samples(range(60), rest=0.0)
    [found] = trends([*at_rest, *busy], warm_up=10)
    assert (found["samples"], found["flat"]) == (50, True)
    [found] = trends([*at_rest, *busy], warm_up=0)
    assert not found["flat"]


def test_the_warm_up_lasts_until_the_store_of_jobs_is_full_of_those_of_the_soak():
    filling = [
        {**one, "jobs": 50.0 * minute} for minute, one in enumerate(samples([min(20, minute) for minute in range(60)]))
    ]
    assert not trends(filling, warm_up=10)[0]["flat"]
    [found] = trends(filling, 10, kept_jobs=1000)
    assert (found["samples"], found["flat"]) == (40, True)


@pytest.mark.parametrize(
    ("step", "is_flat"), [(0, True), (40, False), (20, False)], ids=["no leak", "one at 40 min", "one every 20 min"]
)
def test_a_descriptor_that_is_not_given_back_is_not_flat(step, is_flat):
    values = [18 + (minute // step if step == 20 else minute >= step > 0) for minute in range(60)]
    [found] = trends(samples(values), warm_up=10)
    assert found["flat"] is is_flat


def test_a_packed_result_has_the_same_trends_and_is_read_again():
    at_rest, busy = samples(NOISE), samples(NOISE, rest=0.0)
    data = {
        "samples": [*at_rest, *busy],
        "drawn": [{"at": 59.0, "v1": 2}, {"at": 61.0, "v1": 1, "daily-6": 3}],
        "by_version": {"v1": 3},
    }
    expected = trends(data["samples"], 10)
    assert by_minute(data) == {"v1": [2, 1], "new versions": [0, 3]}
    pack(data)
    read = json.loads(json.dumps(data))
    unpack(read)
    assert trends(read["samples"], 10) == expected
    assert len(read["samples"]) == 80


def test_one_failed_call_or_wrong_picture_misses_the_goal():
    good = {
        "samples": [],
        "settings": {"warm_up": 1},
        "compared": 5,
        "failed": 0,
        "wrong_pictures": [],
        "exit_status": 0,
    }
    for change, missed in (
        ({}, []), ({"failed": 1}, ["failed calls"]), ({"wrong_pictures": ["a"]}, ["pictures by a wrong version"]),
        ({"compared": 0}, ["pictures compared"]), ({"exit_status": -9}, ["exit status after SIGTERM"]),
    ):  # fmt: skip
        data = {**good, **change}
        finish(data)
        assert [one["goal"] for one in data["goals"] if not one["met"]] == missed


def judged(begun, ended, version):
    """Judge a picture in a service that served v1 until 10, was linked to v2 at 10 and served it from 12, and to v3 at 20."""
    timeline = Timeline("v1")
    timeline.links += [Link(10.0, "v2", 12.0), Link(20.0, "v3", 21.0)]
    timeline.waiting.append(Drawn("picture", begun, ended, version))
    timeline.judge()
    return not timeline.wrong


@pytest.mark.parametrize(
    ("begun", "ended", "possible"),
    [
        (1, 2, {"v1"}), (9, 11, {"v1", "v2"}), (11, 11.5, {"v1", "v2"}), (12.5, 13, {"v2"}), (19, 20.5, {"v2", "v3"}),
        (9, 22, {"v1", "v2", "v3"}), (22, 23, {"v3"}),
    ],
)  # fmt: skip
def test_a_picture_is_wrong_if_its_version_cannot_have_served(begun, ended, possible):
    assert {version for version in ("v1", "v2", "v3") if judged(begun, ended, version)} == possible


def test_other_pixels_another_digest_and_another_version_in_the_file_are_wrong():
    import io

    from PIL import Image, PngImagePlugin

    def png(colour, version):
        text, file = PngImagePlugin.PngInfo(), io.BytesIO()
        text.add_text("zwatch_version", version)
        Image.new("RGB", (8, 8), colour).save(file, "PNG", pnginfo=text)
        return file.getvalue()

    def wrong(version, digest, colour, told):
        book = Book({"v1": "d1", "v2": "d2"}, Timeline("v1"))
        book.pictures["v1", "a cat", 1] = Image.new("RGB", (8, 8), "red").tobytes()
        judge = Judge(book)
        judge.drew("picture", 0.0, version, digest)
        asyncio.run(judge.look("picture", png(colour, told), version, "a cat", 1))
        return len(book.wrong_pictures)

    assert wrong("v1", "d1", "red", "v1") == 0
    assert wrong("v1", "d2", "red", "v1") == 1
    assert wrong("v1", "d1", "blue", "v1") == 1
    assert wrong("v1", "d1", "red", "v2") == 1


def test_a_failure_is_told_at_once_with_what_was_asked_expected_and_answered():
    from aiohttp import web

    async def run():
        told = []
        book = Book({}, Timeline("v1"))
        book.tell = told.append
        book.doing = "at deploy 3 (mv -T v2)"

        async def refuses(request):
            return web.json_response({"error": {"message": "no"}}, status=429, headers={"X-Request-Id": "abc"})

        app = web.Application()
        app.router.add_get("/status", refuses)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        async with Client(f"http://{host}:{port}", "token", book, random.Random(1)) as client:
            with pytest.raises(Failure):
                await client.json("status", "GET", "/status")
            await runner.cleanup()
            with pytest.raises(Failure):
                await client.json("status", "GET", "/status")
        return told

    refused, gone = asyncio.run(run())
    for part in ("at deploy 3 (mv -T v2), status, after 0.", "GET /status: expected (200,), came 429", '"no"', "[abc]"):
        assert part in refused
    assert "GET /status: expected (200,), came ClientConnectorError" in gone


@pytest.fixture
def three(tiny_versions, tmp_path):
    """Three sealed versions that draw different pictures."""
    from random_pipeline import PRESETS, write_pipeline

    from zwatch.deploy.sealing import write_seal

    root = tmp_path / "three"
    shutil.copytree(tiny_versions, root)
    write_pipeline(root / "v3", PRESETS["tiny"], 3)
    write_seal(root / "v3", "v3")
    return root


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def test_a_soak_of_some_seconds_deploys_in_many_forms_and_fails_no_call(three, tmp_path, device):
    out = tmp_path / "soak.json"
    done = subprocess.run(
        [
            sys.executable, str(BENCHMARKS / "soak.py"), "--models", str(three), "--device", device, "--minutes", "0.02", "--deploys", "6",
            "--flip-seconds", "0.2", "--rest-seconds", "100", "--warm-up", "0", "--kept-jobs", "5", "--pause", "0.05",
            "--work", str(tmp_path / "work"), "--out", str(out),
        ],
        capture_output=True, text=True, timeout=900, env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)},
    )  # fmt: skip
    assert out.exists(), done.stderr
    data = json.loads(out.read_text())
    unpack(data)
    goals = {one["goal"]: one for one in data["goals"]}
    assert data["complete"], done.stdout
    assert (data["failures"], data["wrong_pictures"], data["exit_status"]) == ([], [], 0)
    assert data["settings"]["distinct_pictures"] == 3
    assert data["compared"] > 0
    assert {"POST /api/deploy", "POST /api/rollback", "a new version"} <= data["deploys"].keys()
    assert done.returncode == int(not all(one["met"] for one in goals.values()))
    assert any(sample["rest"] for sample in data["samples"])
    held = {
        "rss",
        "uss",
        "tree_pss",
        "descriptors",
        "threads",
        "children",
        "inotify_watches",
        "blocks",
        "tasks",
        "state_files",
    }
    assert held <= data["samples"][-1].keys()
    assert data["samples"][-1]["inotify_watches"] > 0
    assert any("held" in sample for sample in data["samples"])
    assert str(tmp_path) not in out.read_text()
