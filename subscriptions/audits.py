"""Asking the nodes to look: an audit is a row that they answer, each for itself.

Nodes alone see their hub, so a command, the admin or REST can only ask. What storage can say
(the log, the ledger, sessions of dead nodes) is said by whoever asks, in the answer of node 0.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone

from subscriptions import live, signals, storage
from subscriptions.audit import Disagreement, Kind
from subscriptions.bindings import ChannelKey
from subscriptions.conf import conf
from subscriptions.findings import record
from subscriptions.models import Audit, AuditAnswer

STORAGE = 0
"""The node number under which storage answers."""


@dataclass(frozen=True, slots=True)
class AuditOutcome:
    """The answers to one audit, added up. Counts are of disagreements, `missing_memberships` of
    memberships that have a live session without a group binding."""

    status: str = "running"
    found: int = 0
    repaired: int = 0
    left: int = 0
    missing_memberships: int = 0
    by_kind: dict[str, dict[str, int]] = field(default_factory=dict)
    silent_nodes: list[int] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    nodes: int = 0
    done: int = 0
    total: int = 0
    checked_bindings: int = 0


def clean_scopes(scopes: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """Scopes with known keys and readable channels only. Raises ValueError saying what is wrong."""
    cleaned = []
    for scope in scopes:
        unknown = sorted(set(scope) - {"channel", "uid"})
        if unknown:
            raise ValueError(f"A scope has only channel and uid, not {', '.join(unknown)}.")
        if scope.get("channel"):
            ChannelKey.parse(scope["channel"])
        kept = {name: value for name, value in scope.items() if value}
        if kept:
            cleaned.append(kept)
    return cleaned


def clean_kinds(kinds: Iterable[str]) -> list[str]:
    """The kinds as they are. Raises ValueError naming one that does not exist and those that do."""
    wanted = list(kinds)
    for kind in wanted:
        if kind not in list(Kind):
            raise ValueError(f"There is no kind {kind!r}; there are: {', '.join(Kind)}.")
    return wanted


def request_audit(
    scopes: Iterable[dict[str, str]] = (),
    kinds: Iterable[str] = (),
    repair: bool = False,
    actor: str = "",
) -> Audit:
    """Ask every leased node to check (and repair) `scopes`, and answer for storage at once.

    Scopes are {"channel": "TYPE:ID", "uid": …}, either or both; none means everything.
    """
    audit = Audit.objects.create(
        scopes=clean_scopes(scopes),
        kinds=clean_kinds(kinds),
        repair=repair,
        actor=actor[:150],
        nodes=live.live_nodes(),
    )
    signals.audit_requested.send_robust(sender=Audit, audit=audit)
    _answer_for_storage(audit)
    return audit


def _answer_for_storage(audit: Audit) -> None:
    found = [
        *storage.check(audit.scopes, audit.repair),
        *live.check_storage(audit.scopes, audit.repair),
    ]
    wanted = [each for each in found if not audit.kinds or each[0].kind in audit.kinds]
    write_answer(audit, STORAGE, wanted, checked=0)


def write_answer(
    audit: Audit, node: int, found: Sequence[tuple[Disagreement, bool]], checked: int
) -> None:
    """Store what `node` found as (disagreement, repaired) pairs: findings, then the counts.

    A check that finds nothing writes its answer and nothing else.
    """
    owner = node or None
    healer = f"audit {audit.pk}"
    counts = Counter[str]()
    by_kind: dict[str, dict[str, int]] = {}
    with transaction.atomic():
        record((each for each, repaired in found if not repaired), owner)
        record((each for each, repaired in found if repaired), owner, healer)
        for each, repaired in found:
            tally = by_kind.setdefault(each.kind.value, {"found": 0, "repaired": 0})
            tally["found"] += 1
            tally["repaired"] += repaired
            counts["found"] += 1
            counts["repaired"] += repaired
            if each.kind == Kind.MISSING_GROUP_BINDING:
                counts["missing_memberships"] += each.memberships
        AuditAnswer.objects.update_or_create(
            audit=audit,
            node_id=node,
            defaults={
                "counts": {**counts, "checked_bindings": checked, "by_kind": by_kind},
                "finished_at": timezone.now(),
                "done": checked,
                "total": checked,
            },
        )
    _finish_if_answered(audit)


def _finish_if_answered(audit: Audit) -> None:
    answered = set(
        AuditAnswer.objects.filter(audit=audit, finished_at__isnull=False).values_list(
            "node_id", flat=True
        )
    )
    if answered >= {STORAGE, *audit.nodes}:
        Audit.objects.filter(pk=audit.pk, finished_at__isnull=True).update(finished_at=Now())


def outcome(audit: Audit) -> AuditOutcome:
    """The answers so far. `could_not_finish` once a leased node stayed silent too long, or said
    that it failed."""
    audit.refresh_from_db()
    answers = list(AuditAnswer.objects.filter(audit=audit))
    finished = {answer.node_id for answer in answers if answer.finished_at}
    silent = [node for node in audit.nodes if node not in finished]
    errors = [answer.error for answer in answers if answer.error]
    overdue = timezone.now() - audit.requested_at > timedelta(seconds=conf().audit_patience)
    if not silent and STORAGE in finished:
        status = "could_not_finish" if errors else "done"
    else:
        status = "could_not_finish" if overdue else "running"
    result = AuditOutcome(status=status, silent_nodes=silent, errors=errors, nodes=len(audit.nodes))
    for answer in answers:
        result = _add(result, answer)
    return replace(result, left=result.found - result.repaired)


def _add(result: AuditOutcome, answer: AuditAnswer) -> AuditOutcome:
    counts = answer.counts
    by_kind = {kind: dict(tally) for kind, tally in result.by_kind.items()}
    for kind, tally in counts.get("by_kind", {}).items():
        total = by_kind.setdefault(kind, {"found": 0, "repaired": 0})
        for name, number in tally.items():
            total[name] += number
    return replace(
        result,
        by_kind=by_kind,
        found=result.found + counts.get("found", 0),
        repaired=result.repaired + counts.get("repaired", 0),
        missing_memberships=result.missing_memberships + counts.get("missing_memberships", 0),
        checked_bindings=result.checked_bindings + counts.get("checked_bindings", 0),
        done=result.done + answer.done,
        total=result.total + answer.total,
    )


def wait(
    audit: Audit,
    seconds: float | None = None,
    on_progress: Callable[[AuditOutcome], None] | None = None,
    pause: float = 0.1,
) -> AuditOutcome:
    """Wait until the audit is done or could not finish, at most `seconds`. Blocks its thread."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        result = outcome(audit)
        if on_progress:
            on_progress(result)
        if result.status != "running" or (deadline and time.monotonic() > deadline):
            return result
        time.sleep(pause)
