"""What the new process of a handover takes the old one to need."""

import asyncio

import pytest

from zwatch.api.routes import CALLS
from zwatch.bridge import Bridge
from zwatch.config import Config
from zwatch.engine.factory import EngineFactory
from zwatch.handover.channel import PROTOCOL, Channel, Door
from zwatch.handover.giving import CHANGING
from zwatch.handover.taking import Taking
from zwatch.shadow.device import Device

BUDGET = 1000
SECONDS = 60


@pytest.fixture
async def bridge():
    made = Bridge()
    yield made
    await asyncio.to_thread(made.close)


@pytest.fixture
def config(models, tmp_path):
    state = tmp_path / "state"
    state.mkdir()
    return Config(
        models=models, aliases=("current",), strict_links=False, device="cpu", memory_budget=BUDGET, state_dir=state,
        host="127.0.0.1", port=0, token=None, insecure_no_token=False, allowed_hosts=(), queue=1, timeout=SECONDS,
        max_work=1.0, history=False, output_dir=tmp_path, history_max_images=None, history_max_bytes=None, log="text",
    )  # fmt: skip


@pytest.mark.parametrize(("told", "expected"), [(0, 1), (70, 70)], ids=["has made no image", "has made images"])
async def test_the_memory_of_the_old_process_is_counted_until_it_ends(config, bridge, told, expected):
    """What it needs for images is at least a byte: no place is decided by memory that is free before long."""
    device = Device("cpu", budget=BUDGET)
    door = Door(config.state_dir)
    taking = asyncio.create_task(Taking(config, bridge, lambda control: EngineFactory(device)).take_over())
    async with asyncio.timeout(SECONDS):
        old: Channel = await door.accept()
        assert (await old.receive(SECONDS)).body["protocol"] == PROTOCOL
        old.send({"protocol": PROTOCOL, "zwatch": "other", "served": [], "weights": 300, "peak": told})
        assert (await old.receive(SECONDS)).body["ask"] == "exchange"
        assert (device.peak_elsewhere, device.budget) == (expected, BUDGET - 300)
        door.close()
        old.close()  # it ends without a handover
        taken = await taking
    assert taken.factory.device is device
    assert (device.peak_elsewhere, device.budget) == (0, BUDGET)


def test_every_call_that_changes_what_serves_is_held_while_another_process_takes_over():
    changing = {(call.method, call.path) for call in CALLS if call.tag == "deploying" and call.method != "GET"}
    assert changing - {("POST", "/api/verify")} == CHANGING - {("DELETE", "/login")}
