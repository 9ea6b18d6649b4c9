"""The book of findings: opened when a disagreement is seen, healed when it is mended or gone.

Whoever mends one records it as healed. One that went away by another path (the member was added
again, a session closed) is closed by the next complete look that no longer sees it; those about a
session or a node that ended are closed with it. Where nothing is open, nothing is written.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import F, QuerySet
from django.db.models.functions import Coalesce, Now

from subscriptions import metrics, signals
from subscriptions.audit import Disagreement, condense
from subscriptions.bindings import ChannelKey
from subscriptions.clock import ago
from subscriptions.models import Channel, Finding
from subscriptions.selectors import in_scopes, pages

logger = logging.getLogger(__name__)

TRIES = 5
"""To open findings of which somebody else opens one at the same time."""


def key_of(disagreement: Disagreement, node: int | None) -> str:
    """The key under which a finding is unique while it is open."""
    text = repr((*disagreement.identity, node))
    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()


def record(
    disagreements: Iterable[Disagreement],
    node: int | None,
    healed_by: str = "",
    seen: float | None = None,
) -> list[Finding]:
    """Open a finding for each disagreement, or count one more sighting of an open one.

    With `healed_by` they are healed in the same transaction: the evidence of a heal is one row.
    `seen`: when that was, by this process's monotonic clock, if it was not just now: what is mended
    is written afterwards.
    """
    found = condense(disagreements)
    if not found:
        return []
    with transaction.atomic():
        there = _channels_among(each.channel for each in found)
        recorded = _record([_placed(each, there) for each in found], node, healed_by, seen)
        signals.findings_written.send(Finding, recorded=recorded)
        transaction.on_commit(lambda: _announce(recorded))
    return [finding for finding, _ in recorded]


def _channels_among(channels: Iterable[int | None]) -> set[int]:
    rows = Channel.objects.filter(pk__in={channel for channel in channels if channel is not None})
    return set(rows.values_list("pk", flat=True))


def _placed(each: Disagreement, there: set[int]) -> Disagreement:
    """What was found of a channel that somebody deleted is written, and points to none."""
    if each.channel is None or each.channel in there:
        return each
    return replace(each, channel=None, detail=f"channel row {each.channel} is gone")


def _record(
    found: Iterable[Disagreement], node: int | None, healed_by: str, seen: float | None
) -> list[tuple[Finding, bool]]:
    """New ones in a few statements for all: a node that loses much finds hundreds, and writes
    nothing else meanwhile."""
    by_key = {key_of(each, node): each for each in found}
    there = _open(by_key, node, seen)
    created = by_key.keys() - there
    for key, pk in there.items():
        row = Finding.objects.filter(pk=pk)
        row.update(seen=F("seen") + 1, last_seen=Now(), **_newer(by_key[key]))
    mine = open_findings().filter(key__in=by_key)
    pks = list(mine.values_list("pk", flat=True))
    rows = Finding.objects.filter(pk__in=pks).order_by("pk")
    if healed_by:
        rows.update(healed_at=Now(), healed_by=healed_by)
    return [(finding, finding.key in created) for finding in rows]


def _open(
    by_key: Mapping[str, Disagreement], node: int | None, seen: float | None
) -> dict[str, int]:
    """Open a finding, first seen then, for each key that has none; returns those that had
    one: {key: pk}."""
    for tries_left in reversed(range(TRIES)):
        seconds = 0.0 if seen is None else time.monotonic() - seen
        there = dict(open_findings().filter(key__in=by_key).values_list("key", "pk"))
        new = [
            _finding(key, each, node, seconds) for key, each in by_key.items() if key not in there
        ]
        try:
            with transaction.atomic():
                Finding.objects.bulk_create(new)
        except IntegrityError:  # somebody has opened one of them meanwhile: now it is there
            if not tries_left:
                raise
        else:
            break
    return there


def _finding(key: str, each: Disagreement, node: int | None, seconds: float) -> Finding:
    return Finding(
        first_seen=ago(seconds),
        key=key, kind=each.kind.value, reason=each.reason, channel_id=each.channel, uid=each.uid,
        session_id=each.session, node_id=node, memberships=each.memberships,
        from_seq=each.from_seq, to_seq=each.to_seq, detail=each.detail[:500],
    )  # fmt: skip


def _newer(each: Disagreement) -> dict[str, Any]:
    """What another sighting knows better: how much it is by now, and how far it reaches."""
    newer: dict[str, Any] = {"memberships": each.memberships}
    if each.detail:
        newer["detail"] = each.detail[:500]
    if each.to_seq is not None:
        newer |= {"from_seq": Coalesce(F("from_seq"), each.from_seq), "to_seq": each.to_seq}
    return newer


def open_findings() -> QuerySet[Finding]:
    """The findings that nobody has healed."""
    return Finding.objects.filter(healed_at__isnull=True)


def heal(findings: Iterable[Finding], healed_by: str) -> int:
    """Close those of `findings` that are open; returns how many. Twice is once."""
    pks = [finding.pk for finding in findings]
    if not pks:
        return 0
    with transaction.atomic():
        healed = [finding for page in pages(pks) for finding in _heal(page, healed_by)]
        signals.findings_written.send(Finding, recorded=[(each, False) for each in healed])
        transaction.on_commit(lambda: _announce((finding, False) for finding in healed))
    return len(healed)


def _heal(pks: list[int], healed_by: str) -> list[Finding]:
    still_open = open_findings().filter(pk__in=pks).order_by("pk").select_for_update(no_key=True)
    mine = list(still_open.values_list("pk", flat=True))
    rows = Finding.objects.filter(pk__in=mine)
    rows.update(healed_at=Now(), healed_by=healed_by)
    return list(rows)


def heal_absent(
    kinds: Collection[str],
    node: int | None,
    seen: Iterable[Disagreement],
    healed_by: str,
    *,
    scopes: Iterable[dict[str, str]] = (),
    before: Any = None,
) -> int:
    """Close this node's open findings of `kinds` (none: all) that a complete look did not see.

    `seen` is what the look saw and did not mend, in `scopes`. What was seen after the look began
    (`before`: a database time, or `clock.ago`) stays open: it may be newer than the look.
    """
    rows = open_findings().filter(in_scopes(list(scopes)), node_id=node)
    if kinds:
        rows = rows.filter(kind__in=list(kinds))
    if before is not None:
        rows = rows.filter(last_seen__lte=before)
    places = defaultdict(list)
    for each in seen:
        places[each.kind.value, each.channel].append((each.uid, each.session))
    gone = [row for row in rows if not _is_among(row, places[row.kind, row.channel_id])]
    return heal(gone, healed_by)


def _is_among(finding: Finding, places: Iterable[tuple[str, str]]) -> bool:
    """Whether one of these uids and sessions may be the finding's: on either side, none means
    all of them."""
    return any(
        (finding.uid == uid or not (finding.uid and uid))
        and (finding.session_id == session or not (finding.session_id and session))
        for uid, session in places
    )


def keys_of(findings: Iterable[Finding]) -> dict[int, ChannelKey]:
    """{row of a channel: its name} of those that findings are about."""
    channels = {finding.channel_id for finding in findings if finding.channel_id}
    rows = Channel.objects.filter(pk__in=channels)
    return {
        pk: ChannelKey(kind, name)
        for pk, kind, name in rows.values_list("pk", "channel_type", "channel_id")
    }


def _announce(recorded: Iterable[tuple[Finding, bool]]) -> None:
    recorded = list(recorded)
    keys = keys_of(finding for finding, _ in recorded)
    for finding, created in recorded:
        metrics.count_finding(finding.kind, created, finding.healed_by)
        if created:
            _log("finding.opened", logging.WARNING, finding, keys)
            signals.send(signals.finding_opened, Finding, finding=finding)
        if finding.healed_at:
            _log("finding.healed", logging.INFO, finding, keys)
            signals.send(signals.finding_healed, Finding, finding=finding)


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
