"""The book of findings: opened when a disagreement is seen, healed when it is mended."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable

from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from subscriptions import signals
from subscriptions.audit import Disagreement
from subscriptions.bindings import ChannelKey
from subscriptions.models import Channel, Finding

logger = logging.getLogger(__name__)


def key_of(disagreement: Disagreement, node: int | None) -> str:
    """The key under which a finding is unique while it is open."""
    text = repr((*disagreement.identity, node))
    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()


@transaction.atomic
def record(
    disagreements: Iterable[Disagreement], node: int | None, healed_by: str = ""
) -> list[Finding]:
    """Open a finding for each disagreement, or count one more sighting of an open one.

    With `healed_by` they are healed in the same transaction: the evidence of a heal is one row.
    """
    recorded = [_record(each, node, healed_by) for each in disagreements]
    transaction.on_commit(lambda: _announce(recorded))
    return [finding for finding, _ in recorded]


def _record(each: Disagreement, node: int | None, healed_by: str) -> tuple[Finding, bool]:
    values = {
        "reason": each.reason,
        "channel_id": each.channel,
        "uid": each.uid,
        "session_id": each.session,
        "node_id": node,
        "kind": each.kind.value,
        "memberships": each.memberships,
        "from_seq": each.from_seq,
        "to_seq": each.to_seq,
        "detail": each.detail[:500],
    }
    key = key_of(each, node)
    finding, created = Finding.objects.get_or_create(
        key=key, healed_at__isnull=True, defaults=values
    )
    if not created:
        Finding.objects.filter(pk=finding.pk).update(seen=F("seen") + 1, last_seen=Now())
    if healed_by:
        Finding.objects.filter(pk=finding.pk).update(healed_at=Now(), healed_by=healed_by)
    finding.refresh_from_db()
    return finding, created


@transaction.atomic
def heal(findings: Iterable[Finding], healed_by: str) -> int:
    """Close open findings; returns how many. One that is healed already stays as it is."""
    pks = [finding.pk for finding in findings]
    rows = list(Finding.objects.filter(pk__in=pks, healed_at__isnull=True))
    Finding.objects.filter(pk__in=[row.pk for row in rows]).update(
        healed_at=Now(), healed_by=healed_by
    )
    for row in rows:
        row.refresh_from_db()
    transaction.on_commit(lambda: _announce([(row, False) for row in rows]))
    return len(rows)


def heal_absent(
    kinds: Iterable[str], node: int | None, seen: Iterable[Disagreement], healed_by: str
) -> int:
    """Close this node's open findings of `kinds` that a complete check no longer sees."""
    keys = {key_of(each, node) for each in seen}
    gone = Finding.objects.filter(
        kind__in=list(kinds), node_id=node, healed_at__isnull=True
    ).exclude(key__in=keys)
    return heal(gone, healed_by)


def _announce(recorded: Iterable[tuple[Finding, bool]]) -> None:
    keys = dict(
        (pk, ChannelKey(kind, name))
        for pk, kind, name in Channel.objects.filter(
            pk__in={f.channel_id for f, _ in recorded if f.channel_id}
        ).values_list("pk", "channel_type", "channel_id")
    )
    for finding, created in recorded:
        if created:
            _log("finding.opened", logging.WARNING, finding, keys)
            signals.finding_opened.send_robust(sender=Finding, finding=finding)
        if finding.healed_at:
            _log("finding.healed", logging.INFO, finding, keys)
            signals.finding_healed.send_robust(sender=Finding, finding=finding)


def _log(event: str, level: int, finding: Finding, keys: dict[int, ChannelKey]) -> None:
    logger.log(
        level,
        event,
        extra={
            "finding": finding.pk,
            "kind": finding.kind,
            "reason": finding.reason,
            "channel": str(keys.get(finding.channel_id or 0, "")),
            "uid": finding.uid,
            "session": finding.session_id,
            "node": finding.node_id,
            "healed_by": finding.healed_by,
        },
    )
