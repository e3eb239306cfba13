"""The dashboard and the documentation of metrics, compared with the metrics."""

import json
import re
from pathlib import Path

DOCS = Path(__file__).parent.parent.parent / "docs"
_METRIC = re.compile(r"\bzwatch_[a-z_]+")


async def samples(client):
    """Return {sample name: label names} of a scrape after a request."""
    await client.call("POST", "/generate", json={"prompt": "x"}, headers={"Accept": "application/json"})
    async with client.http.get(client.url + "/metrics") as response:
        text = await response.text()
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(zwatch_\w+)(?:\{(.*?)\})? ", text, re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


def expressions():
    """Yield the dashboard's queries."""
    dashboard = json.loads((DOCS / "grafana.json").read_text())
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))
    yield from (one["expr"] for one in dashboard["annotations"]["list"])
    yield from (one["definition"] for one in dashboard["templating"]["list"] if "definition" in one)


async def test_the_dashboard_uses_only_existing_metrics_and_labels(client):
    known = await samples(client)
    for expression in expressions():
        metrics = _METRIC.findall(expression)
        assert metrics
        assert set(metrics) <= known.keys(), expression
        grouped = {name for group in re.findall(r"by \((.*?)\)", expression) for name in group.split(", ")}
        for metric in metrics:
            assert grouped <= known[metric], expression


async def test_the_documented_table_has_every_metric_and_no_other(client):
    found = {re.sub("_(bucket|sum|count)$", "", name) for name in await samples(client)}
    own = {name for name in found if not name.startswith("zwatch_process_")}
    table = re.findall(r"^\| `(zwatch_[a-z_]+)", (DOCS / "operations.md").read_text(), re.MULTILINE)
    assert len(set(table)) == len(table)
    assert set(table) == own


async def test_the_documented_alerts_use_only_existing_metrics(client):
    known = await samples(client)
    for block in re.findall(r"```yaml\n(.*?)```", (DOCS / "operations.md").read_text(), re.DOTALL):
        assert set(_METRIC.findall(block)) <= known.keys()
