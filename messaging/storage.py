"""What the message tables say about themselves: dead sessions and holes in the log."""

from __future__ import annotations

from django.db import transaction
from django.db.models import Count, F, Max, Min, Q

from messaging import registry
from messaging.models import Message
from subscriptions.audit import Disagreement, Kind
from subscriptions.models import Channel

Found = list[tuple[Disagreement, bool]]


def check(scopes: list[dict[str, str]], repair: bool) -> Found:
    """(disagreement, repaired) of sessions and logs in `scopes`; with `repair` they are mended."""
    dead = registry.dead_sessions(scopes)
    if repair:
        registry.close_dead_sessions(dead)
    return [(each, repair) for each in dead] + check_log(scopes, repair)


def check_log(scopes: list[dict[str, str]], repair: bool) -> Found:
    """Channels whose seqs are not contiguous up to the head.

    A head below the log is raised to it. A hole, or a head above the log, cannot be mended: what
    is not there is reported, and readers step over it.
    """
    rows = Channel.objects.filter(_by_channel(scopes)).annotate(
        stored=Count("messages"), lowest=Min("messages__seq"), highest=Max("messages__seq")
    )
    wrong = ~Q(highest=F("last_seq")) & Q(stored__gt=0)
    wrong |= Q(stored__gt=0) & ~Q(stored=F("highest") - F("lowest") + 1)
    wrong |= Q(stored=0, last_seq__gt=0)
    return [(_hole(row), repair and _raise_head(row)) for row in rows.filter(wrong)]


def _by_channel(scopes: list[dict[str, str]]) -> Q:
    """The channels that an audit's scopes name; all of them when none does."""
    condition = Q()
    for key in (scope["channel"] for scope in scopes if scope.get("channel")):
        kind, _, name = key.partition(":")
        condition |= Q(channel_type=int(kind), channel_id=name)
    return condition


def _hole(row: Channel) -> Disagreement:
    highest = row.highest or 0
    detail = f"head {row.last_seq}, log {row.lowest or 0}–{highest}"
    return Disagreement(
        Kind.LOG_HOLE, "message log", row.pk, from_seq=min(row.last_seq, highest),
        to_seq=max(row.last_seq, highest), detail=f"{detail} with {row.stored} messages",
    )  # fmt: skip


@transaction.atomic
def _raise_head(row: Channel) -> bool:
    """Raise a head to the log's last seq; False when something is missing for good."""
    last = Message.objects.filter(channel=row.pk).aggregate(last=Max("seq"))["last"] or 0
    Channel.objects.filter(pk=row.pk, last_seq__lt=last).update(last_seq=last)
    held = Message.objects.filter(channel=row.pk).aggregate(n=Count("pk"), low=Min("seq"))
    return bool(row.last_seq <= last and held["n"] == last - (held["low"] or 1) + 1)
