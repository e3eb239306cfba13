"""The alert rules, tried by promtool with the series that a real service served in each failure (`record` makes them)."""

import json
import re
import shutil
import subprocess

import pytest
import yaml

from tests.alerts.record import FAILURES, HERE, RULES

promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (apt install prometheus)"
)
RULES_BY_NAME = {
    rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
}


def recorded(name):
    return json.loads((HERE / f"recorded/{name}.json").read_text())


def labelled(series):
    """Return a series with the labels that Prometheus adds."""
    name, _, labels = series.partition("{")
    own = 'job="zwatch",instance="zwatch:7860"'
    return f"{name}{{{labels.rstrip('}')},{own}}}" if labels else f"{name}{{{own}}}"


def played(values):
    """Return values in promtool's notation. Prometheus notes a scrape that failed as the end of a series."""
    return " ".join("stale" if value is None else f"{value:.17g}" for value in values)


def firing(alerts, seconds):
    """Return a promtool test: exactly these alerts fire at a time."""
    samples = [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(alerts)]
    expression = 'max by (alertname) (ALERTS{alertstate="firing"} == 1)'
    return {"expr": expression, "eval_time": f"{seconds}s", "exp_samples": samples}


def test_of(name):
    """Return the promtool test of a recording: nothing fires while all is well, and its alerts at the end."""
    found = recorded(name)
    every, series = found["every"], found["series"]
    last = len(next(iter(series.values()))) - 1
    checks = [firing(found["alerts"], last * every)]
    if found["healthy"]:
        checks.append(firing((), (found["healthy"] - 1) * every))
    return {
        "name": name,
        "interval": f"{every}s",
        "input_series": [{"series": labelled(one), "values": played(values)} for one, values in series.items()],
        "promql_expr_test": checks,
    }


test_of.__test__ = False


@promtool
def test_the_rules_are_valid():
    subprocess.run(["promtool", "check", "rules", RULES], check=True, capture_output=True)


@promtool
def test_in_each_failure_its_alerts_fire_and_no_others(tmp_path):
    tests = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "5s",
        "tests": [test_of(name) for name in FAILURES],
    }
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(tests))
    ended = subprocess.run(["promtool", "test", "rules", tmp_path / "tests.yml"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_each_rule_is_tried_in_a_failure():
    tried = {alert for name in FAILURES for alert in recorded(name)["alerts"]}
    # The metrics of the first are Prometheus' own; the second is for what a look cannot tell as a link's fault, which no disk caused.
    untried = {"ZwatchFilesRunOut", "ZwatchLinksNotSeen"}
    assert tried | untried == set(RULES_BY_NAME)
    assert {name: recorded(name)["alerts"] for name in FAILURES} == {
        name: alerts for name, (_, alerts, _) in FAILURES.items()
    }


@pytest.mark.parametrize("alert", RULES_BY_NAME)
def test_each_alert_says_how_bad_it_is_and_what_to_do(alert):
    rule = RULES_BY_NAME[alert]
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["description"].endswith((".", "`."))


def selectors(expression):
    """Yield (metric, {label: alternatives}) of each selector with equalities."""
    for name, inside in re.findall(r"(zwatch_\w+)(?:\{(.*?)\})?", expression):
        pairs = re.findall(r'(\w+)(!~|=~|!=|=)"(.*?)"', inside)
        yield name, {label: value.split("|") for label, _, value in pairs}


async def test_each_metric_and_label_value_of_the_rules_exists_in_what_a_service_serves(client):
    async with client.http.get(client.url + "/metrics") as response:
        text = await response.text()
    for alert, rule in RULES_BY_NAME.items():
        if alert == "ZwatchReplicaMissing":
            continue  # without a fleet there are no replicas; tests/page/test_replicas.py has one
        for name, labels in selectors(rule["expr"]):
            lines = re.findall(rf"^{name}(?:{{(.*)}})? ", text, re.MULTILINE)
            assert lines, (alert, name)
            for label, values in labels.items():
                served = {value for line in lines for value in re.findall(rf'{label}="(.*?)"', line)}
                assert set(values) <= served, (alert, name, label)
