"""An engine whose warm-up image was made at an earlier start: its first image is judged, and a bad one withdraws it."""

import pytest
from PIL import Image

from tests.rollout.conftest import HeldFactory, noted_good
from zwatch.engine.parameters import Generation
from zwatch.errors import Rejection

GOOD = Generation([Image.effect_noise((64, 64), 50).convert("RGB")], False, True, {})
BAD = Generation([], False, False, {})


class KeepingFactory(HeldFactory):
    """Makes what `bad` names unable to make a usable warm-up image, and counts those that are made."""

    def __init__(self, cache):
        super().__init__(cache=cache)
        self.bad = set()
        self.warmed = []

    def warm(self, engine, control):
        self.warmed.append(engine.version)
        if engine.version in self.bad:
            raise Rejection("bad_image", "the warm-up image is one colour")
        super().warm(engine, control)


async def where_v1_is_good(services, make):
    """Start a service, and wait until v1, which it serves, has proved itself."""
    service = await services(make_factory=make).start()
    await service.until_serves("v1")
    service.engines.serving("current").images = 3
    service.supervisor.ring()
    await noted_good(service, "v1")
    return service


@pytest.fixture
async def restarted(services, tmp_path):
    """A second run on a machine where v1 and then v2 were warmed and have served; v2 serves."""

    def make():
        return KeepingFactory(tmp_path / "prepared")

    first = await where_v1_is_good(services, make)
    first.link("v2")
    await first.until_serves("v2")
    await first.stop()
    second = await services(make_factory=make).start()
    await second.until_serves("v2")
    return second


def engine_of(service):
    return service.engines.serving("current").engine


async def test_what_was_warmed_here_is_not_warmed_again_at_the_next_start(restarted):
    assert restarted.factory.warmed == []
    assert engine_of(restarted).is_unjudged
    assert await restarted.supervisor.first_images.judge(engine_of(restarted), GOOD)
    assert not engine_of(restarted).is_unjudged


async def test_while_something_serves_every_version_is_warmed(restarted):
    restarted.link("v1")
    await restarted.until_serves("v1")
    assert restarted.factory.warmed == ["v1"]


async def test_a_bad_first_image_withdraws_the_version_if_its_warm_up_image_is_bad_too(restarted):
    bad = engine_of(restarted)
    restarted.factory.bad.add("v2")
    assert not await restarted.supervisor.first_images.judge(bad, BAD)
    assert not restarted.factory.is_proven(bad)
    restarted.supervisor.ring()
    await restarted.until_serves("v1")
    assert restarted.supervisor.refusal("current").code == "bad_image"
    assert ("v2", "REJECTED", "bad_image") in restarted.attempts()


async def test_a_bad_first_image_changes_nothing_if_the_warm_up_image_is_good(restarted):
    suspect = engine_of(restarted)
    assert await restarted.supervisor.first_images.judge(suspect, BAD)
    assert restarted.factory.warmed == ["v2"]
    assert (restarted.serves(), suspect.is_unjudged) == ("v2", False)


async def test_a_fault_that_may_pass_is_no_reason_to_withdraw_what_serves(restarted, monkeypatch):
    suspect = engine_of(restarted)

    def fail(engine, control):
        raise Rejection("device_error", "busy")

    monkeypatch.setattr(restarted.factory, "warm", fail)
    assert await restarted.supervisor.first_images.judge(suspect, BAD)
    assert (restarted.serves(), suspect.is_unjudged) == ("v2", True)
    assert restarted.attempts()[0] == ("v2", "ABANDONED", None)


async def test_what_is_not_judged_yet_has_not_proved_itself(restarted):
    serving = restarted.engines.serving("current")
    serving.images, alias = 3, restarted.supervisor.records["current"]
    assert alias.proved(serving.serving_from + 1000) is None
    assert await restarted.supervisor.first_images.judge(serving.engine, GOOD)
    assert alias.proved(serving.serving_from + 1000) == serving.key


async def test_also_what_had_proved_itself_is_warmed_again_after_a_crash(services, tmp_path):
    def make():
        return KeepingFactory(tmp_path / "prepared")

    first = await where_v1_is_good(services, make)
    await first.crash()
    second = await services(make_factory=make).start()
    await second.until_serves("v1")
    assert second.factory.warmed == ["v1"]


async def test_a_version_that_crashed_the_previous_run_is_warmed_again(services, tmp_path):
    def make():
        return KeepingFactory(tmp_path / "prepared")

    first = await services(make_factory=make).start()
    await first.until_serves("v1")
    await first.crash()
    second = await services(make_factory=make).start()
    await second.until_serves("v1")
    assert second.factory.warmed == ["v1"]


async def test_what_a_request_may_wait_for(services):
    service = await services(aliases=("current", "canary")).start(run=False)
    coming = service.supervisor.is_coming
    assert coming("current")
    assert coming("anything"), "nothing was looked at yet"
    service.run()
    await service.until(lambda: service.supervisor.runner.running is not None)
    assert coming("current")
    assert coming("v1")
    assert not coming("v2")
    assert not coming("canary"), "there is no such link"
    await service.until_serves("v1")
    assert not coming("v1")
    await service.supervisor.pause()
    assert coming("current"), "whoever takes over may load it"
    await service.supervisor.resume()
    assert not coming("v1")
    service.supervisor._stopping = True
    assert not coming("current")
