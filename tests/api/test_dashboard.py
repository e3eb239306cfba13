"""The dashboard and the documentation of metrics, compared with the metrics."""

import asyncio
import json
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

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


def of_any_service():
    """Yield the queries that need no fleet; tests/page/test_replicas.py has one."""
    return (expression for expression in expressions() if "zwatch_replica_" not in expression)


async def test_the_dashboard_uses_only_existing_metrics_and_labels(client):
    known = await samples(client)
    for expression in of_any_service():
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


class Prometheus:
    """A Prometheus that scrapes a service twice a second. Use as `async with`."""

    def __init__(self, service, directory):
        with socket.create_server(("127.0.0.1", 0)) as one:
            self._port = one.getsockname()[1]
        self._http, self._url = service.http, f"http://127.0.0.1:{self._port}"
        target = service.url.removeprefix("http://")
        self._config = directory / "prometheus.yml"
        self._config.write_text(
            f"global: {{scrape_interval: 500ms, evaluation_interval: 500ms}}\nrule_files: [{DOCS / 'alerts.yml'}]\n"
            f"scrape_configs: [{{job_name: zwatch, static_configs: [{{targets: ['{target}']}}]}}]\n"
        )
        self._log = directory / "prometheus.log"

    async def __aenter__(self):
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["prometheus", f"--config.file={self._config}", f"--storage.tsdb.path={self._config.with_name('data')}",
                 f"--web.listen-address=127.0.0.1:{self._port}"], stdout=log, stderr=log,
            )  # fmt: skip
        return self

    async def __aexit__(self, *error):
        self._process.terminate()
        self._process.wait(30)

    async def query(self, expression):
        """Return the result of a query; None while it cannot be asked."""
        try:
            async with self._http.post(self._url + "/api/v1/query", data={"query": expression}) as response:
                if response.status == 503:  # it is still starting
                    return None
                body = await response.json()
        except OSError:
            assert self._process.poll() is None, self._log.read_text()
            return None
        assert body["status"] == "success", (expression, body)
        return body["data"]["result"]


def replaced(expression):
    """Return a query of the dashboard as Grafana sends it."""
    every = expression.replace("$__rate_interval", "30s").replace("$job", ".*").replace("$instance", ".*")
    return re.sub(r"label_values\((.*), (\w+)\)", r"group by (\2) (\1)", every)


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed (apt install prometheus)")
async def test_prometheus_has_an_answer_to_each_query_of_the_dashboard(client, tmp_path):
    async with Prometheus(client, tmp_path) as prometheus, asyncio.timeout(90):
        while not await prometheus.query("zwatch_status"):
            await asyncio.sleep(0.1)
        await client.call("POST", "/api/deploy", json={"version": "v2"})
        unanswered = {replaced(expression) for expression in of_any_service()}
        while unanswered:
            await client.png()
            unanswered = {one for one in unanswered if not await prometheus.query(one)}
        assert await prometheus.query("ALERTS") == []
