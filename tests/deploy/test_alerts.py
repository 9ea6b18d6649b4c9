"""The alert rules: whole, about metrics that exist, and each with the page that says what to do."""

from __future__ import annotations

import re
from typing import Any

import pytest

from messaging import metrics
from messaging.api.metrics import OpenFindings, WaitingWebhooks
from subscriptions.metrics import REGISTRY
from tests.support.server import ROOT

RUNBOOK = {
    f"docs/guides/runbook.md#{anchor}"
    for anchor in (
        "a-user-receives-nothing",
        "a-node-is-deaf",
        "redis-is-gone",
        "the-database-is-slow",
        "a-removed-member-still-receives",
        "webhooks-do-not-arrive",
        "after-an-upgrade",
    )
}
RULE = {
    "      - alert: ": "alert",
    "        expr: ": "expr",
    "        for: ": "for",
    "        labels:": None,
    "          severity: ": "severity",
    "        annotations:": None,
    "          summary: ": "summary",
    "          runbook: ": "runbook",
}
"""The lines of a rule as they begin, in their order. The file has no others, so that it can be read
without a library that knows all of YAML."""


def read_rules() -> list[dict[str, str]]:
    """The rules of the file. Fails on a line that is none of theirs."""
    lines = (ROOT / "deploy/alerts.yml").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    assert lines[:3] == ["groups:", "  - name: wukongim", "    rules:"]
    starts = list(RULE)
    assert (len(lines) - 3) % len(starts) == 0
    rules: list[dict[str, str]] = []
    for number, line in enumerate(lines[3:]):
        start = starts[number % len(starts)]
        assert line.startswith(start), line
        if start == starts[0]:
            rules.append({})
        if (name := RULE[start]) is not None:
            rules[-1][name] = plain(line.removeprefix(start))
        else:
            assert line == start
    return rules


def plain(text: str) -> str:
    """A YAML scalar on one line: quoted if it has to be, and never half."""
    if text.startswith('"'):
        assert re.fullmatch(r'"[^"\\]*"', text), text
        return text[1:-1]
    assert not re.search(r": | #|^[\[{>|*&!%@`'-]", text), text
    return text


RULES = read_rules()
every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])


def exported() -> set[str]:
    """The names of all series that /metrics can show."""
    assert metrics.REGISTRY is REGISTRY
    names = {sample.name for family in REGISTRY.collect() for sample in family.samples}
    stored = [*OpenFindings().describe(), *WaitingWebhooks().describe()]
    return names | {family.name for family in stored}


def label_values() -> dict[str, dict[str, set[str]]]:
    """{series: {label: values}} of what a process has counted, or may."""
    values: dict[str, dict[str, set[str]]] = {}
    for family in REGISTRY.collect():
        for sample in family.samples:
            for label, value in sample.labels.items():
                values.setdefault(sample.name, {}).setdefault(label, set()).add(value)
    kinds = values["wukongim_findings_opened_total"]["kind"]
    return {**values, "wukongim_findings_open": {"kind": kinds}}


def test_runbook_has_the_sections_that_alerts_name():
    headings = re.findall(
        r"^## (.+)$", (ROOT / "docs/guides/runbook.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    assert {place.partition("#")[2] for place in RUNBOOK} <= anchors


def test_alerts_have_names_of_their_own():
    names = [rule["alert"] for rule in RULES]
    assert len(names) == len(set(names)) >= 10
    assert all(name.startswith("Wukongim") for name in names)


@every_rule
def test_alert_says_how_bad_it_is_what_it_is_and_what_to_do(rule: dict[str, Any]):
    assert rule["severity"] in ("critical", "warning")
    assert re.fullmatch(r"\d+[sm]", rule["for"])
    assert 30 < len(rule["summary"]) < 200
    assert rule["summary"].endswith(".")
    assert rule["runbook"] in RUNBOOK


@every_rule
def test_alert_asks_for_metrics_and_labels_that_exist(rule: dict[str, Any]):
    expression = rule["expr"]
    assert set(re.findall(r"wukongim_\w+", expression)) <= exported()
    values = label_values()
    for series, matcher, wanted in re.findall(r'(wukongim_\w+)\{(\w+)=~?"([^"]+)"\}', expression):
        assert set(wanted.split("|")) <= values[series][matcher]
    for labels in re.findall(r"\bby \(([\w, ]+)\)", expression):
        of_ours = {label for each in values.values() for label in each} | {"instance"}
        assert set(labels.split(", ")) <= of_ours
    assert expression.count("(") == expression.count(")")


@every_rule
def test_alert_names_in_its_summary_only_what_its_expression_keeps(rule: dict[str, Any]):
    named = set(re.findall(r"\$labels\.(\w+)", rule["summary"]))
    kept = re.search(r"\bby \((?!.*\bby \()([\w, ]+)\)", rule["expr"])
    grouped = set(kept[1].split(", ")) if kept else {"instance"}
    assert named <= grouped


@pytest.mark.parametrize(
    ("what", "series"),
    [
        ("findings stay open", "wukongim_findings_open"),
        ("no complete check", "wukongim_last_check_timestamp_seconds"),
        ("the probe is missing", "wukongim_probes_missing"),
        ("heals come again and again", "wukongim_findings_healed_total"),
        ("a deaf node", 'wukongim_findings_open{kind="deaf_node"}'),
        ("bindings are missing", "wukongim_bindings_held < wukongim_bindings_expected"),
        ("doorbells are dropped", "wukongim_doorbells_dropped_total"),
        ("batches are slow", "wukongim_log_batch_seconds_bucket"),
        ("steps fail", "wukongim_tick_failures_total"),
        ("a node is not ready", "wukongim_node_ready == 0"),
        ("no node at all", "absent(wukongim_nodes)"),
        ("no check at all", "absent(wukongim_last_check_timestamp_seconds)"),
        ("nobody ticks", "wukongim_last_tick_timestamp_seconds"),
        ("webhooks wait", "wukongim_webhooks_oldest_seconds"),
        ("webhooks are given up", "wukongim_webhooks_dead_letters"),
    ],
)
def test_there_is_an_alert_when(what, series):
    assert [rule["alert"] for rule in RULES if series in rule["expr"]], what
