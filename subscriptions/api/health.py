"""Is everybody heard? The nodes' own counts and the book of findings, put together."""

from __future__ import annotations

from typing import Any

from django.db.models import Count, Q

from subscriptions import live
from subscriptions.clock import ago
from subscriptions.conf import conf
from subscriptions.findings import open_findings
from subscriptions.live import NodeView
from subscriptions.models import Finding

HOUR = 3_600
DAY = 24 * HOUR


def summary() -> dict[str, Any]:
    """Per leased node and for all: bindings, checks, open findings, heals, and one word.

    `unhealthy`: a finding is open, or a node holds fewer bindings than it expects. `unchecked`:
    nothing is known to be wrong, but no node runs or one has not finished a check lately.
    """
    nodes = [_node(view) for view in live.node_views()]
    open_by_kind = _open_findings()
    return {
        "state": _state(nodes, bool(open_by_kind)),
        "nodes": nodes,
        "open_findings": open_by_kind,
        "heals": _heals(),
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
    }


def _state(nodes: list[dict[str, Any]], findings: bool) -> str:
    if findings or any(node["bindings_held"] < node["bindings_expected"] for node in nodes):
        return "unhealthy"
    ages = [node["last_check_age_seconds"] for node in nodes]
    bound = conf().check_fresh_seconds
    if not ages or any(age is None or age > bound for age in ages):
        return "unchecked"
    return "healthy"


def _open_findings() -> dict[str, int]:
    rows = open_findings().values("kind").order_by("kind")
    return {row["kind"]: row["n"] for row in rows.annotate(n=Count("pk"))}


def _heals() -> dict[str, int]:
    """Within the last hour and day: only those rows are read, by their index."""
    healed: dict[str, int] = Finding.objects.filter(healed_at__gte=ago(DAY)).aggregate(
        last_hour=Count("pk", filter=Q(healed_at__gte=ago(HOUR))), last_day=Count("pk")
    )
    return healed
