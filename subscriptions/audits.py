"""Asking the nodes to look: an audit is a row that they answer, each for itself.

Nodes alone see their hub, so a command, the admin or REST can only ask. What storage can say
(the log, the ledger, sessions of dead nodes) is said by whoever asks, in the answer of node 0.
A node that dies in between is named as silent; an asker that dies leaves an audit that nodes still
answer, and that is reported as unfinished.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from django.db import transaction
from django.db.models import QuerySet
from django.db.models.functions import Now

from subscriptions import live, signals, storage
from subscriptions.audit import Disagreement, Kind
from subscriptions.bindings import ChannelKey
from subscriptions.clock import ago
from subscriptions.compiled import ask
from subscriptions.conf import conf
from subscriptions.errors import InvalidChannel
from subscriptions.findings import heal_absent, record
from subscriptions.models import Audit, AuditAnswer
from subscriptions.services import canonical

logger = logging.getLogger(__name__)

STORAGE = 0
"""The node number under which storage answers."""

STALE_SECONDS = 600.0
"""Age at which nobody waits for an audit any more, so that no node answers it: those that will
never be finished do not pile up before each look for new ones."""


@dataclass(frozen=True, slots=True)
class AuditOutcome:
    """The answers to one audit, added up. Counts are of disagreements, `missing_memberships` of
    memberships that have a live session without a group binding. `silent_nodes` are those asked
    that have given neither an answer nor a sign of progress for `audit_patience` seconds."""

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
    """Scopes with known keys and real channel names only; one that names nothing is everything.

    Raises ValueError saying what is wrong.
    """
    cleaned = [_clean_scope(scope) for scope in scopes]
    return cleaned if all(cleaned) else []


def _clean_scope(scope: dict[str, str]) -> dict[str, str]:
    unknown = sorted(set(scope) - {"channel", "uid"})
    if unknown:
        raise ValueError(f"A scope has only channel and uid, not {', '.join(unknown)}.")
    kept = {name: value for name, value in scope.items() if value}
    if "channel" in kept:
        try:
            kept["channel"] = str(canonical(ChannelKey.parse(kept["channel"])))
        except InvalidChannel as error:
            raise ValueError(str(error)) from error
    return kept


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
    transaction.on_commit(lambda: _announce(audit))
    _answer_for_storage(audit)
    return audit


def _announce(audit: Audit) -> None:
    fields = {"audit": str(audit.pk), "actor": audit.actor, "repair": audit.repair}
    logger.info("audit.requested", extra={**fields, "scope": audit.scopes, "kinds": audit.kinds})
    signals.send(signals.audit_requested, Audit, audit=audit)


def _answer_for_storage(audit: Audit) -> None:
    """Look at what is stored. A look that fails is an answer, too: nobody waits for it."""
    kinds = audit.kinds or list(Kind)
    try:
        found = [
            *storage.check(audit.scopes, kinds, audit.repair, _reason(audit)),
            *live.check_storage(audit.scopes, kinds, audit.repair),
        ]
    except Exception as error:
        logger.exception("audit.failed", extra={"audit": str(audit.pk), "node": STORAGE})
        write_failure(audit, STORAGE, f"storage could not be checked: {error}")
    else:
        write_answer(audit, STORAGE, found, checked=0)


def _reason(audit: Audit) -> str:
    """Why a membership changed, in the change log, when this audit mended it."""
    return f"audit {audit.pk}" + (f" of {audit.actor}" if audit.actor else "")


def open_audits(node: int) -> list[Audit]:
    """Unfinished audits that ask this node and have no answer of it yet, the oldest first."""
    if not ask(_any_open):
        return []
    answered = AuditAnswer.objects.filter(node_id=node, finished_at__isnull=False)
    rows = _open().exclude(pk__in=answered.values("audit")).order_by("requested_at")
    return [audit for audit in rows if node in audit.nodes]


def _open() -> QuerySet[Audit]:
    """Audits that somebody may still wait for."""
    return Audit.objects.filter(finished_at__isnull=True, requested_at__gte=ago(STALE_SECONDS))


def _any_open() -> QuerySet[Audit, Any]:
    return _open().values("requested_at")[:1]


def write_progress(audit: Audit, node: int, done: int, total: int) -> None:
    """How far a node has come with its answer, which is also a sign that it is at it."""
    _write(audit, node, done=done, total=total)


def write_failure(audit: Audit, node: int, error: str) -> None:
    """The answer of a node that could not look: the audit could not finish, and says why."""
    _write(audit, node, error=error[:500], finished_at=Now())
    _finish_if_answered(audit)


def _write(audit: Audit, node: int, **fields: Any) -> None:
    AuditAnswer.objects.update_or_create(
        audit=audit, node_id=node, defaults={**fields, "seen_at": Now()}
    )


def write_answer(
    audit: Audit,
    node: int,
    found: Sequence[tuple[Disagreement, bool]],
    checked: int,
    seen: float | None = None,
) -> None:
    """Store what `node` found as (disagreement, repaired) pairs: findings, then the counts. `seen`:
    when that was, as `record` takes it.

    It was a complete look at the audit's scopes and kinds, so older findings of this node that it
    did not see are closed. A check that finds nothing new writes its answer and nothing else.
    """
    owner = node or None
    healer = f"audit {audit.pk}"
    left = [each for each, repaired in found if not repaired]
    by_kind = _by_kind(found)
    counts = {
        "found": len(found),
        "repaired": len(found) - len(left),
        "missing_memberships": missing_memberships(each for each, _ in found),
        "checked_bindings": checked,
        "by_kind": by_kind,
    }
    with transaction.atomic():
        record(left, owner, seen=seen)
        record((each for each, repaired in found if repaired), owner, healer, seen)
        heal_absent(
            audit.kinds, owner, left, f"gone ({healer})",
            scopes=audit.scopes, before=audit.requested_at,
        )  # fmt: skip
        _write(audit, node, counts=counts, finished_at=Now(), done=checked, total=checked)
        transaction.on_commit(lambda: _log_answer(audit, node, len(found), len(left)))
    _finish_if_answered(audit)


def _by_kind(found: Sequence[tuple[Disagreement, bool]]) -> dict[str, dict[str, int]]:
    tallies: dict[str, dict[str, int]] = {}
    for each, repaired in found:
        tally = tallies.setdefault(each.kind.value, {"found": 0, "repaired": 0})
        tally["found"] += 1
        tally["repaired"] += repaired
    return tallies


def missing_memberships(found: Iterable[Disagreement]) -> int:
    """How many memberships lack a group binding: a uid's in one channel once, on however many
    sessions; what is told without a uid by its own count."""
    missing = [each for each in found if each.kind == Kind.MISSING_GROUP_BINDING]
    named: dict[tuple[int | None, str], int] = {}
    for each in missing:
        place = each.channel, each.uid
        named[place] = max(named.get(place, 0), each.memberships)
    unnamed = sum(each.memberships for each in missing if not each.uid)
    return unnamed + sum(count for (_, uid), count in named.items() if uid)


def _log_answer(audit: Audit, node: int, found: int, left: int) -> None:
    answer = AuditAnswer.objects.select_related("audit").get(audit=audit, node_id=node)
    fields = {"audit": str(audit.pk), "node": node, "seconds": answer.seconds}
    tally = {"found": found, "repaired": found - left, "left": left}
    logger.info("audit.answered", extra={**fields, **tally})


def _finish_if_answered(audit: Audit) -> None:
    answered = set(
        AuditAnswer.objects.filter(audit=audit, finished_at__isnull=False).values_list(
            "node_id", flat=True
        )
    )
    if answered >= {STORAGE, *audit.nodes}:
        Audit.objects.filter(pk=audit.pk, finished_at__isnull=True).update(finished_at=Now())


def outcome(audit: Audit) -> AuditOutcome:
    """The answers so far: `running` while somebody asked is at it, else `done`, unless one of
    them stayed silent or said that it failed: then `could_not_finish`."""
    audit.refresh_from_db()
    answers = list(AuditAnswer.objects.filter(audit=audit))
    finished = {answer.node_id for answer in answers if answer.finished_at}
    open_nodes = {STORAGE, *audit.nodes} - finished
    silent = open_nodes - _at_it(audit) if open_nodes else set()
    errors = [answer.error for answer in answers if answer.error]
    if STORAGE in silent:
        errors.append("storage was not checked: whoever asked for it is gone")
    if open_nodes - silent:
        status = "running"
    else:
        status = "could_not_finish" if silent or errors else "done"
    result = AuditOutcome(
        status=status, silent_nodes=sorted(silent - {STORAGE}), errors=errors,
        nodes=len(audit.nodes),
    )  # fmt: skip
    for answer in answers:
        result = _add(result, answer)
    return replace(result, left=result.found - result.repaired)


def _at_it(audit: Audit) -> set[int]:
    """Whom patience still waits for: everybody for a while, then those with a recent sign."""
    recent = ago(conf().audit_patience)
    if Audit.objects.filter(pk=audit.pk, requested_at__gte=recent).exists():
        return {STORAGE, *audit.nodes}
    signs = AuditAnswer.objects.filter(audit=audit, seen_at__gte=recent)
    return set(signs.values_list("node_id", flat=True))


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
    deadline = time.monotonic() + (math.inf if seconds is None else seconds)
    while True:
        result = outcome(audit)
        if on_progress:
            on_progress(result)
        if result.status != "running" or time.monotonic() > deadline:
            return result
        time.sleep(pause)
