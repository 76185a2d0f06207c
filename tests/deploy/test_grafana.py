"""deploy/grafana: rules that Prometheus takes, a runbook and two cases for each, and no metric that isn't told."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from kms.web import metric_table
from tests.support import metric_reference
from tests.support.hsm import wait_until
from tests.support.service import Service

FOLDER = Path(__file__).parents[2] / "deploy" / "grafana"
RULES = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]
CASES = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
PROMETHEUS_OWN = {"up": {"job", "instance"}}
ALWAYS = {"instance", "job", "le"}  # labels of Prometheus, and of its histograms

# A metric's name, and the label matchers behind it.
_USE = re.compile(r"\b(keypeer_[a-z_]+|up)\b(?:\{([^}]*(?:\{[^}]*\}[^}]*)*)\})?")
_MATCHER = re.compile(r'([a-z_]+)\s*(?:=~|!=|=)\s*"')
_BY = re.compile(r"\bby \(([a-z_, ]+)\)")


def described() -> dict[str, set[str]]:
    """Series by name, with their labels."""
    found = dict(PROMETHEUS_OWN)
    for each in metric_table.ALL:
        suffixes = ("_bucket", "_count", "_sum") if each.kind == "histogram" else ("",)
        found |= {each.name + suffix: set(each.labels) for suffix in suffixes}
    return found


def promtool(*arguments: str) -> str:
    done = subprocess.run(["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_prometheus_takes_the_rules_and_they_fire_when_they_should() -> None:
    assert f"{len(RULES)} rules found" in promtool("check", "rules", "alerts.yml")
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_each_alert_has_a_runbook_and_two_cases(rule: dict[str, Any]) -> None:
    name = rule["alert"]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"]["runbook"] == f"runbooks.md#{name.lower()}"
    _, _, section = (FOLDER / "runbooks.md").read_text().partition(f"## {name}\n")
    section = section.partition("\n## ")[0]
    assert re.findall(r"\*\*(.+?):\*\*", section) == ["Users feel", "Look at", "Mend", "Wake somebody"]
    asked = [test for case in CASES for test in case["alert_rule_test"] if test["alertname"] == name]
    assert [bool(test["exp_alerts"]) for test in asked] == [True, False]


def expressions() -> list[tuple[str, str]]:
    alerts = [(rule["alert"], rule["expr"]) for rule in RULES]
    return alerts + [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]


@pytest.mark.parametrize(("where", "expression"), expressions())
def test_what_is_asked_for_is_told(where: str, expression: str) -> None:
    known = described()
    uses = _USE.findall(expression)
    assert uses, where
    labels = set(ALWAYS)
    for name, matchers in uses:
        assert name in known
        assert set(_MATCHER.findall(matchers)) <= known[name] | ALWAYS
        labels |= known[name]
    for grouped in _BY.findall(expression):
        assert set(grouped.replace(" ", "").split(",")) <= labels


def test_the_dashboard_shows_every_metric_and_no_panel_twice() -> None:
    shown = {name for _, expression in expressions() for name, _ in _USE.findall(expression)}
    missing = [
        each.name
        for each in metric_table.ALL
        if not shown & {each.name, f"{each.name}_bucket", f"{each.name}_count", f"{each.name}_sum"}
    ]
    assert missing == []
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in PANELS]
    assert len(set(places)) == len(places)


def test_the_reference_is_what_the_table_says() -> None:
    assert metric_reference.FILE.read_text() == metric_reference.text()


def test_the_table_and_the_service_agree(node: Service) -> None:
    auditor = node.caller("auditor")
    assert auditor.get("/v1/hosts").status == 200
    wait_until(
        lambda: b"keypeer_audit_checkpoint_entries " in auditor.get("/metrics").body
    )  # the first one takes a moment
    reply = auditor.get("/metrics")
    assert reply.status == 200, (reply, [line for line in node.log.read_text().splitlines() if "bug" in line][-1:])
    text = reply.body.decode()
    told = {family.name: family for family in text_string_to_metric_families(text)}
    table = {each.name.removesuffix("_total"): each for each in metric_table.ALL}
    assert set(told) <= set(table)
    for name, family in told.items():
        assert family.documentation == table[name].help
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(table[name].labels)
    assert told["keypeer_ready"].samples[0].value == 1
    never = {name for name, each in table.items() if each.name not in SOMETIMES} - set(told)
    assert never == set()


# Not there before the first of its kind, or on this store.
SOMETIMES = {
    "keypeer_refusals_total",
    "keypeer_acts_total",
    "keypeer_event_streams_open",
    "keypeer_store_capacity_bytes",
    "keypeer_witness_failures",
    "keypeer_witness_cosigned_timestamp_seconds",
    "keypeer_job_failures",
    "keypeer_rotation_running",
    "keypeer_rotation_paused",
    "keypeer_rotation_records",
    "keypeer_rotation_records_done",
    "keypeer_rotation_records_failed",
    "keypeer_store_commit_seconds",
}
