"""Is everybody heard? The nodes' own counts and the book of findings, put together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.db.models import Count, DurationField, ExpressionWrapper, F, Min, Q
from django.db.models.functions import Now

from subscriptions import live
from subscriptions.clock import ago
from subscriptions.conf import conf
from subscriptions.findings import open_findings
from subscriptions.live import NodeView
from subscriptions.metrics import healer
from subscriptions.models import Finding

HOUR = 3_600
DAY = 24 * HOUR
SPANS = ("last_hour", "last_day")


@dataclass(frozen=True, slots=True)
class Open:
    """The open findings of one kind: how many, and since when the oldest."""

    count: int
    oldest_seconds: float


def summary() -> dict[str, Any]:
    """Per leased node and for all: bindings, checks, open findings, heals, and one word.

    `unhealthy`: a finding is open, or a node holds fewer bindings than it expects. `unchecked`:
    nothing is known to be wrong, but no node runs, or one has not finished a check lately or has
    missed several beats: it may be frozen, and all its numbers are of before.
    """
    nodes = [_node(view) for view in live.node_views()]
    findings = open_by_kind()
    by_step = _heals_by_step()
    return {
        "state": _state(nodes, bool(findings)),
        "nodes": nodes,
        "open_findings": {kind: each.count for kind, each in findings.items()},
        "oldest_open_seconds": {kind: each.oldest_seconds for kind, each in findings.items()},
        "heals": {span: sum(heals[span] for heals in by_step.values()) for span in SPANS},
        "heals_by_step": by_step,
    }


def _node(view: NodeView) -> dict[str, Any]:
    return {
        "node": view.node,
        "host": view.host,
        "pid": view.pid,
        "started_at": view.started_at,
        "sessions": view.sessions,
        "groups": view.groups,
        "bindings_expected": view.expected,
        "bindings_held": view.bindings,
        "last_check_age_seconds": view.check_age,
        "probe_ms": view.probe_ms,
        "probes_missed": view.probe_missed,
        "lease_seconds_left": view.lease_left,
        "silent": view.is_silent,
    }


def _state(nodes: list[dict[str, Any]], findings: bool) -> str:
    if findings or any(node["bindings_held"] < node["bindings_expected"] for node in nodes):
        return "unhealthy"
    ages = [node["last_check_age_seconds"] for node in nodes]
    bound = conf().check_fresh_seconds
    if not ages or any(age is None or age > bound for age in ages):
        return "unchecked"
    if any(node["silent"] for node in nodes):
        return "unchecked"
    return "healthy"


def open_by_kind() -> dict[str, Open]:
    """The kinds that have open findings. One statement."""
    age = ExpressionWrapper(Now() - F("oldest"), output_field=DurationField())
    rows = open_findings().values("kind").order_by("kind")
    rows = rows.annotate(n=Count("pk"), oldest=Min("first_seen")).annotate(age=age)
    return {
        row["kind"]: Open(row["n"], max(0.0, round(row["age"].total_seconds(), 3))) for row in rows
    }


def _heals_by_step() -> dict[str, dict[str, int]]:
    """Within the last hour and day: only those rows are read, by their index."""
    last_hour = Count("pk", filter=Q(healed_at__gte=ago(HOUR)))
    rows: Any = Finding.objects.filter(healed_at__gte=ago(DAY)).values("healed_by").order_by()
    steps: dict[str, dict[str, int]] = {}
    for row in rows.annotate(last_hour=last_hour, last_day=Count("pk")):
        heals = steps.setdefault(healer(row["healed_by"]), dict.fromkeys(SPANS, 0))
        for span in SPANS:
            heals[span] += row[span]
    return dict(sorted(steps.items()))
