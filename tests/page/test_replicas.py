"""What is seen of a fleet's replicas: on the page, by `zwatch status`, in the metrics, and by events. One fleet for all tests, of two
replicas on the CPU."""

import asyncio
import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import pytest_asyncio
import yaml
from playwright.async_api import expect
from prometheus_client.parser import text_string_to_metric_families

from tests.api.test_alerts import RULES, selectors
from tests.api.test_dashboard import expressions
from tests.page.conftest import WAIT, Service
from tests.page.test_versions import opened
from zwatch.cli import main
from zwatch.fleet.views import ReplicaState

pytest.importorskip("ray", reason="needs ray")
expect.set_options(timeout=WAIT)
DOCUMENT = (Path(__file__).parent.parent.parent / "docs" / "fleet.md").read_text()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tiny_versions, tmp_path_factory):
    directory = tmp_path_factory.mktemp("fleet")
    shutil.copytree(tiny_versions, directory / "models")
    (directory / "models" / "current").symlink_to("v1")
    options = ("--devices", "cpu,cpu")
    async with Service(directory / "models", directory / "state", *options, device="auto") as service:
        await service.serves("v1")
        yield service


async def replicas(server):
    """Return the replicas by name, once both are ready."""

    async def ready():
        found = {one["name"]: one for one in (await server.status())["replicas"]}
        # What a look told that began before the device was open may come after it, once
        is_ready = [one["state"] for one in found.values()] == ["READY"] * 2 and all(
            one["device"] for one in found.values()
        )
        return found if is_ready else None

    return await server.until(ready, "both replicas are ready")


async def scraped(server):
    """Return {name of a sample: [(labels, value)]}, and {name of a metric: type}."""
    async with server.http.get(server.url + "/metrics") as response:
        families = [*text_string_to_metric_families(await response.text())]
    samples: dict = {}
    for family in families:
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples, {family.name: family.type for family in families}


def by_replica(samples, name):
    return {labels["replica"]: value for labels, value in samples[name]}


async def test_a_person_sees_the_replicas_beside_the_versions(new_page, server):
    found = await replicas(server)
    for locale, versions, name, words in (
        ("en-US", "Versions", "Replicas", ("State", "Drawn", "ready")), ("zh-CN", "版本", "副本", ("状态", "已生成", "就绪")),
    ):  # fmt: skip
        page = await new_page(server.url + "/", locale=locale)
        await page.get_by_role("button", name=versions).click()
        table = page.get_by_role("table", name=name)
        await expect(table.get_by_role("row")).to_have_count(3)
        for word in words:
            await expect(table).to_contain_text(word)
        for one in found.values():
            shown = table.get_by_role("row").filter(has=page.get_by_role("rowheader", name=one["name"]))
            for text in (one["host"], one["device"], "v1"):
                await expect(shown).to_contain_text(text)


async def test_a_replica_that_is_lost_is_seen_everywhere_and_then_is_back(new_page, server):
    before = await replicas(server)
    counted, _ = await scraped(server)
    page = await new_page(server.url + "/")
    table = (await opened(page)).get_by_role("table", name="Replicas")
    events = asyncio.create_task(_states(server, "r1"))
    await asyncio.sleep(0.3)
    await expect(table).to_contain_text("r1")
    os.kill(before["r1"]["pid"], signal.SIGKILL)
    assert await asyncio.wait_for(events, 100) == ["LOST", "READY"]
    after = await replicas(server)
    assert after["r1"]["pid"] != before["r1"]["pid"]
    assert after["r0"]["pid"] == before["r0"]["pid"]
    samples, _ = await scraped(server)
    lost, lost_before = (by_replica(one, "zwatch_replica_losses_total") for one in (samples, counted))
    assert {name: lost[name] - lost_before[name] for name in lost} == {"r0": 0, "r1": 1}
    await expect(table).to_contain_text("ready")


async def _states(server, name):
    """Return the states of a replica that events tell, without those between, until it is ready again after it was not."""
    seen: list[str] = []
    async with server.http.get(server.url + "/events") as response:
        kind = ""
        async for line in response.content:
            if line.startswith(b"event: "):
                kind = line[7:].decode().strip()
            elif line.startswith(b"data: ") and kind == "replicas":
                [one] = [one for one in json.loads(line[6:])["replicas"] if one["name"] == name]
                assert "since" not in one, "it would be another event all the time"
                if one["state"] in ("LOST", "READY") and [one["state"]] != seen[-1:]:
                    seen.append(one["state"])
                if seen and seen[-2:] == ["LOST", "READY"]:
                    return seen
    return seen


async def test_zwatch_status_shows_the_replicas_as_a_table(server, capsys):
    await replicas(server)
    await server.generate()
    assert await asyncio.to_thread(main, ["status", "--url", server.url]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    place = lines.index(["replica", "host", "device", "state", "version", "attempt", "requests"])
    rows = lines[place + 1 : place + 3]
    found = await replicas(server)
    for row, one in zip(rows, found.values(), strict=True):
        assert " ".join(row) == f"{one['name']} {one['host']} {one['device']} READY v1 - {one['requests']}"
    assert sum(one["requests"] for one in found.values()) >= 1


async def test_the_metrics_by_replica_are_documented_follow_the_conventions_and_agree_with_the_status(server):
    await replicas(server)
    await server.generate()
    samples, types = await scraped(server)
    own = {name: kind for name, kind in types.items() if name.startswith("zwatch_replica_")}
    for name, kind in own.items():
        assert kind in ("gauge", "counter")
        assert (f"{name}_total" in samples) == (kind == "counter")
        assert not re.search("_(count|sum|bucket|milliseconds|ms|percent)$", name)
    written = set(re.findall(r"^\| `(zwatch_replica_\w+)`", DOCUMENT, re.MULTILINE))
    assert written == {f"{name}_total" if kind == "counter" else name for name, kind in own.items()}
    found = await replicas(server)
    assert by_replica(samples, "zwatch_replica_up") == {"r0": 1, "r1": 1}
    drawn = by_replica(samples, "zwatch_replica_requests_total")
    assert drawn == {name: one["requests"] for name, one in found.items()}
    states = samples["zwatch_replica_state"]
    assert {labels["state"] for labels, _ in states} == {state.value.lower() for state in ReplicaState}
    assert sorted(labels["replica"] for labels, value in states if value and labels["state"] == "ready") == ["r0", "r1"]
    assert [labels for labels, _ in samples["zwatch_replica_info"]] == [
        {"replica": one["name"], "host": one["host"], "device": one["device"], "versions": "v1"}
        for one in found.values()
    ]


async def test_the_dashboard_and_the_rules_use_only_metrics_and_labels_of_replicas_that_exist(server):
    await replicas(server)
    samples, _ = await scraped(server)
    known = {name: {label for labels, _ in found for label in labels} for name, found in samples.items()}
    rules = [rule["expr"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    used = [expression for expression in [*expressions(), *rules] if "zwatch_replica" in expression]
    assert len(used) >= 6
    for expression in used:
        grouped = {name for group in re.findall(r"by \((.*?)\)", expression) for name in group.split(", ")}
        for name, labels in selectors(expression):
            assert name in known, expression
            assert {*grouped, *labels} - {"job", "instance"} <= known[name], expression
