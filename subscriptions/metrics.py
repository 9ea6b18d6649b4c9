"""What is counted of findings, and the registry in which both apps keep their metrics.

The values of a label come from a closed set, and their children are made here: what has not
happened yet is shown as 0, and nobody looks a child up when it does. Processes count for
themselves; `messaging.api.metrics` shows what all workers of a server have counted.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter

from subscriptions.audit import Kind

REGISTRY = CollectorRegistry()
"""Not the library's own: it may be an embedder's, and describes the process that answers alone."""

HEALERS = ("sweep", "check", "membership", "beat", "probe", "audit", "gone", "ended", "other")
"""Steps that close findings. `gone`: it was no longer there; `ended`: what it was about is no
more."""

_ENDED = ("session closed", "node stopped", "node ended")


def counters(name: str, text: str, label: str, values: Iterable[str]) -> dict[str, Counter]:
    """A counter for each value of a label."""
    family = Counter(name, text, [label], registry=REGISTRY)
    return {value: family.labels(value) for value in values}


OPENED = counters(
    "wukongim_findings_opened",
    "Disagreements that this server's processes saw for the first time.",
    "kind", Kind,
)  # fmt: skip
HEALED = counters(
    "wukongim_findings_healed",
    "Findings that this server's processes closed, by the step that did.",
    "step", HEALERS,
)  # fmt: skip


def healer(healed_by: str) -> str:
    """The step that a finding's `healed_by` names, without what differs from one to the next."""
    if healed_by in _ENDED:
        return "ended"
    first = healed_by.partition(" ")[0]
    return first if first in HEALERS else "other"


def count_finding(kind: str, created: bool, healed_by: str) -> None:
    """Count what was just written of one finding: that it was opened, that it was healed, both."""
    if created:
        OPENED[kind].inc()
    if healed_by:
        HEALED[healer(healed_by)].inc()
