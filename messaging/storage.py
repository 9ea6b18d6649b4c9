"""What the message tables say about themselves: dead sessions and holes in the log."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.db.models import Count, Max, Min, OuterRef, Q, QuerySet, Subquery
from django.db.models.functions import Coalesce

from messaging import registry
from messaging.models import Message
from subscriptions.audit import Disagreement, Kind
from subscriptions.bindings import ChannelKey
from subscriptions.live import Found
from subscriptions.models import Channel, Membership
from subscriptions.selectors import is_channel


def check(scopes: list[dict[str, str]], kinds: Collection[str], repair: bool) -> Found:
    """(disagreement, repaired) of sessions and logs in `scopes`; with `repair` they are mended."""
    dead = registry.dead_sessions(scopes) if Kind.DEAD_SESSION in kinds else []
    if dead and repair:
        registry.close_dead_sessions(dead)
    holes = check_log(scopes, repair) if Kind.LOG_HOLE in kinds else []
    return [(each, repair) for each in dead] + holes


@dataclass(frozen=True, slots=True)
class LogView:
    """A channel's head against what its log has."""

    channel: int
    head: int
    stored: int
    lowest: int
    highest: int

    @property
    def is_whole(self) -> bool:
        """Whether the head is the last seq, and none is missing above the lowest that is kept."""
        held = self.highest - self.lowest + 1 if self.stored else 0
        return self.head == self.highest and self.stored == held


def check_log(scopes: list[dict[str, str]], repair: bool) -> Found:
    """Channels whose seqs are not contiguous up to the head.

    A head below the log is raised to it. A hole, or a head above the log, cannot be mended: what
    is not there is reported, and readers step over it.
    """
    found = [view for view in _views(_by_channel(scopes)) if not view.is_whole]
    return [(_hole(view), repair and _raise_head(view.channel)) for view in found]


def _views(condition: Q) -> Iterator[LogView]:
    """One statement, so one snapshot. Counts over the index of (channel, seq) alone."""
    messages = Message.objects.filter(channel=OuterRef("pk")).order_by().values("channel")
    rows = Channel.objects.filter(condition).values_list(
        "pk",
        "last_seq",
        _of(messages, Count("pk")),
        _of(messages, Min("seq")),
        _of(messages, Max("seq")),
    )
    return (LogView(*values) for values in rows.iterator())


def _of(messages: QuerySet[Message, Any], aggregate: Count | Min | Max) -> Coalesce:
    return Coalesce(Subquery(messages.annotate(value=aggregate).values("value")), 0)


def _by_channel(scopes: list[dict[str, str]]) -> Q:
    """The channels that scopes are about: those named, and those that a named uid belongs to."""
    condition = Q()
    for scope in scopes:
        if scope.get("channel"):
            condition |= is_channel(ChannelKey.parse(scope["channel"]))
        elif scope.get("uid"):
            condition |= Q(pk__in=Membership.objects.filter(uid=scope["uid"]).values("channel"))
    return condition


def _hole(view: LogView) -> Disagreement:
    detail = f"head {view.head}, log {view.lowest}–{view.highest} with {view.stored} messages"
    return Disagreement(
        Kind.LOG_HOLE, "message log", view.channel, from_seq=min(view.head, view.highest),
        to_seq=max(view.head, view.highest), detail=detail,
    )  # fmt: skip


@transaction.atomic
def _raise_head(channel: int) -> bool:
    """Raise a head to the log's last seq; False when something is missing for good."""
    rows = Channel.objects.filter(pk=channel)
    rows.select_for_update(no_key=True).get()
    [view] = _views(Q(pk=channel))
    rows.filter(last_seq__lt=view.highest).update(last_seq=view.highest)
    [view] = _views(Q(pk=channel))
    return view.is_whole
