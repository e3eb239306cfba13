"""Golden images are checked beside requests, which come first, and what is found is told."""

import asyncio
import threading

import pytest

from tests import goldens
from zwatch.client import share_lines
from zwatch.engine import comparing, factory
from zwatch.engine.pipeline import Engine
from zwatch.errors import GenerationCancelled
from zwatch.generation import golden_checks
from zwatch.generation.golden_checks import GoldenChecks


@pytest.fixture
def _one_before_the_promotion(monkeypatch):
    monkeypatch.setattr(factory, "SECONDS", 0.0)


pytestmark = pytest.mark.usefixtures("_one_before_the_promotion")


@pytest.fixture
def told(monkeypatch):
    """What checks tell their listeners."""
    found = []
    real = GoldenChecks.__init__

    def begin(self, *given):
        real(self, *given)
        self.on_checked.append(lambda key, fault: found.append((key.version, fault)))

    monkeypatch.setattr(GoldenChecks, "__init__", begin)
    return found


async def until(client, what):
    async with asyncio.timeout(60):
        while not what():
            changed = client.services.supervisor.changes.wait()
            try:
                await asyncio.wait_for(changed, 0.05)
            except TimeoutError:
                pass


def golden_of(client):
    resident = client.services.engines.serving("current")
    return resident.engine.golden if resident else None


async def test_the_rest_is_checked_after_the_promotion_and_each_check_is_told(start, models, told):
    goldens.add(models, "v1")
    goldens.invert(models / "v1", "golden/2.png")
    goldens.seal(models / "v1")
    async with start() as client:
        await until(client, lambda: golden_of(client) is not None)
        await until(client, lambda: golden_of(client).checked == 3)
        [(name, fault), after] = told
        assert (name, after) == ("v1", ("v1", None))
        assert fault.startswith('golden/2.png ("a red house by the sea", seed 42): PSNR is ')
        _, _, status = await client.call("GET", "/status")
        assert status["engines"][0]["golden"] == {"checked": 3, "of": 3, "missed": 1}
        assert status["engines"][0]["leases"] == 0
        async with client.http.get(f"{client.url}/metrics") as response:
            lines = (await response.text()).splitlines()
        found = {
            line.split('result="')[1].split('"')[0]: line.split()[-1]
            for line in lines
            if line.startswith("zwatch_golden_images{")
        }
        assert found == {"passed": "2.0", "missed": "1.0", "pending": "0.0"}


async def test_a_request_goes_first_and_the_check_begins_again_after_it(start, models, told, monkeypatch):
    goldens.add(models, "v1", "--steps", "50")
    began, go_on = threading.Event(), threading.Event()
    real = comparing.check_next

    def check_next(engine, *, cancelled=lambda: False, **given):
        if engine.golden.checked == 0:  # the warm-up's
            return real(engine, **given)
        began.set()
        if not go_on.is_set():
            while not cancelled():
                go_on.wait(0.005)
        return real(engine, cancelled=cancelled, **given)

    async with start() as client:
        monkeypatch.setattr(comparing, "check_next", check_next)
        await until(client, lambda: golden_of(client) is not None)
        await until(client, lambda: golden_of(client).checked >= 1 and began.is_set())
        await client.png(seed=1)  # the check waits for nothing else but a request
        assert golden_of(client).checked == 1
        assert told == []
        go_on.set()
        await until(client, lambda: golden_of(client).checked == 3)
        assert told == [("v1", None), ("v1", None)]


async def test_a_flip_ends_the_check_of_what_served(start, models, told, monkeypatch):
    goldens.add(models, "v1")
    began, ended, real = threading.Event(), threading.Event(), comparing.check_next

    def check_next(engine, *, cancelled=lambda: False, **given):
        if engine.golden.checked == 0:  # the warm-up's
            return real(engine, **given)
        began.set()
        while not cancelled():
            ended.wait(0.005)
        ended.set()
        raise GenerationCancelled

    async with start() as client:
        monkeypatch.setattr(comparing, "check_next", check_next)
        await until(client, lambda: golden_of(client) is not None)
        await until(client, began.is_set)
        status, _, answer = await client.call("POST", "/api/deploy", json={"version": "v2"})
        assert status == 200, answer
        await until(client, ended.is_set)
        [v1] = [one for one in client.services.engines.residents if one.key.version == "v1"] or [None]
        assert v1 is None or v1.leases == 0
        assert told == []


async def test_an_error_of_the_device_is_a_fault_and_the_next_image_is_checked(start, models, told, monkeypatch):
    goldens.add(models, "v1")
    real = Engine.generate

    def generate(self, parameters, **given):
        if parameters.prompt == "a red house by the sea":
            raise RuntimeError("an assertion on the device")
        return real(self, parameters, **given)

    monkeypatch.setattr(Engine, "generate", generate)
    async with start() as client:
        await until(client, lambda: golden_of(client) is not None)
        await until(client, lambda: golden_of(client).checked == 3)
        assert [fault for _, fault in told] == ["golden/2.png: RuntimeError: an assertion on the device", None]
        await client.png(seed=1)


async def test_a_check_that_does_not_get_on_is_a_fault_and_given_up(start, models, told, monkeypatch):
    goldens.add(models, "v1")
    monkeypatch.setattr(golden_checks, "_LOOK_SECONDS", 0.02)
    real, hung = comparing.check_next, threading.Event()

    def check_next(engine, **given):
        if engine.golden.checked == 1:
            while True:  # Python code, which can be interrupted
                hung.set()
        return real(engine, **given)

    async with start(stall_timeout=8.0) as client:
        monkeypatch.setattr(comparing, "check_next", check_next)
        await until(client, lambda: golden_of(client) is not None)
        await until(client, lambda: golden_of(client).checked == 3)
        assert hung.is_set()
        assert [fault for _, fault in told] == ["golden/2.png: the image made no progress for 4 s", None]
        await client.png(seed=1)


async def test_a_check_that_never_comes_back_is_known_to_the_watchdog(start, models, told, monkeypatch):
    goldens.add(models, "v1")
    monkeypatch.setattr(golden_checks, "_LOOK_SECONDS", 0.02)
    go, stuck, real = threading.Event(), [], comparing.check_next

    def check_next(engine, **given):
        return go.wait() if engine.golden.checked == 1 else real(engine, **given)

    async with start(stall_timeout=8.0) as client:
        queue = client.services.queue
        queue.generator.on_stuck = lambda engine, reason: stuck.append((engine.version, reason))
        monkeypatch.setattr(comparing, "check_next", check_next)
        await until(client, lambda: stuck)
        assert stuck == [("v1", "golden/2.png: the image made no progress for 4 s and does not come back")]
        assert queue.worker_stuck_since() is not None
        go.set()


async def test_a_version_on_trial_that_misses_three_is_withdrawn(start, models, told):
    goldens.add(models, "v2", prompts=("a", "b", "c", "d"))
    for number in (2, 3, 4):
        goldens.invert(models / "v2", f"golden/{number}.png")
    goldens.seal(models / "v2")
    async with start() as client:
        await until(client, lambda: golden_of(client) is not None)
        await client.call("POST", "/api/deploy", json={"version": "v2"})
        await until(client, lambda: [name for name, fault in told if fault is not None] == ["v2"] * 3)
        await client.serves("v1")
        _, _, status = await client.call("GET", "/status")
        attempts = (await client.call("GET", "/attempts"))[2]["attempts"]
        assert "withdrawn" in {one["code"] for one in attempts}
        assert status["status"] == "degraded"
        assert any("golden/4.png" in reason for reason in status["reasons"])


async def share_of(client, version):
    """Hold a version ready as a share, and wait until all of its golden images were checked."""
    status, _, answer = await client.call("POST", "/api/share", json={"version": version, "percent": 50})
    assert status == 200, answer


def golden_of_share(client):
    resident = client.services.engines.serving("current@")
    return resident.engine.golden if resident else None


async def test_a_version_on_trial_that_misses_half_of_all_its_golden_images_is_withdrawn(start, models, told):
    goldens.add(models, "v2", prompts=("a", "b", "c"))
    for number in (2, 3):
        goldens.invert(models / "v2", f"golden/{number}.png")
    goldens.seal(models / "v2")
    async with start() as client:
        await share_of(client, "v2")
        await until(client, lambda: golden_of_share(client) is None)
        _, _, status = await client.call("GET", "/status")
        message = status["shares"]["current@50"]["fault"]["message"]
        assert message.startswith(
            "v2 was withdrawn from current@50: it missed 2 of 3 golden images; the last one: golden/3.png"
        )
        assert [fault is None for _, fault in told] == [False, False]


async def test_a_version_that_missed_one_is_said_everywhere_and_promoted_only_by_force(start, models):
    goldens.add(models, "v2", prompts=("a", "b", "c"))
    goldens.invert(models / "v2", "golden/2.png")
    goldens.seal(models / "v2")
    async with start() as client:
        await share_of(client, "v2")
        await until(client, lambda: golden_of_share(client).checked == 3)
        _, _, status = await client.call("GET", "/status")
        why = "v2, which missed 1 of 3 golden images: it does not draw what it drew when they were made"
        assert (status["status"], status["reasons"]) == ("degraded", [f"current@50 serves {why}"])
        assert share_lines(status, "current") == [
            "current@50 -> v2: draws 50 % of the requests for current; v2 missed 1 of 3 golden images"
        ]
        code, _, answer = await client.call("POST", "/api/promote", json={})
        assert (code, answer["error"]["code"]) == (409, "rejected")
        assert answer["error"]["message"] == (
            "current@50: v2 is not promoted: it missed 1 of 3 golden images; `zwatch deploy v2` deploys it all the same"
        )
        assert (await client.call("POST", "/api/deploy", json={"version": "v2"}))[0] == 200
        await client.serves("v2")
        _, _, status = await client.call("GET", "/status")
        assert status["status"] == "degraded"
        assert f"current serves {why}" in status["reasons"]
