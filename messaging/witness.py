"""What the message tables know of one delivery, as the plain values that `explain` judges by."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from django.db.models import Case, Min, Q, QuerySet, Value, When
from django.db.models.functions import Now

from messaging.conf import conf
from messaging.consumers import FLUSH_SECONDS
from messaging.models import Message, RefusedSend, Session
from messaging.protocol.reasons import Reason
from messaging.serving import PING_INTERVAL
from subscriptions.explain.facts import (
    BOUNDARY,
    Doubt,
    MessageFact,
    NodeFact,
    Question,
    RefusalFact,
    SessionFact,
    Witness,
)
from subscriptions.selectors import is_channel

REFUSALS_SHOWN = 5
"""Refusals of a channel that are shown where the message that was asked about is not there."""

CALENDAR_END = 253_402_300_799_000
"""The last second of the year 9999, in milliseconds."""

CLOSE_CODE = "close code "
"""How the reason begins where a socket was closed with a code that has no name here."""

UNNOTICED = 2 * PING_INTERVAL
"""Seconds that a lost connection may go unnoticed."""

FAILING = 3600
"""Seconds for which a session may have lagged or failed before it is closed for that: LAG_MESSAGES
in an hour are three messages a second more than it took."""


def testify(question: Question, channel: int | None) -> Witness:
    """The message, or what stands in its place, and the uid's sessions around it. Six statements
    at most, each by an index."""
    message = _find_message(question, channel)
    if message is None:
        lowest = Message.objects.filter(channel=channel).aggregate(lowest=Min("seq"))["lowest"]
        return Witness(None, lowest, _refusals(question))
    refusals = _refusals(question) if question.client_msg_no else ()
    return Witness(message, message.seq, refusals, _sessions(question.uid, message.stored_at))


def _find_message(question: Question, channel: int | None) -> MessageFact | None:
    rows = Message.objects.filter(channel=channel).defer("payload")
    if question.client_msg_no:
        rows = rows.filter(sender=question.sender, client_msg_no=question.client_msg_no)
    elif question.seq is not None:
        rows = rows.filter(seq=question.seq)
    row = rows.first()
    if row is None:
        return None
    return MessageFact(
        row.pk, row.seq, row.version, row.sender, row.client_msg_no, row.origin,
        stored_at=_moment(row.created_ms),
        expires_at=_moment(row.created_ms + row.expire * 1000) if row.expire else None,
    )  # fmt: skip


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(min(milliseconds, CALENDAR_END) / 1000, UTC)


def _refusals(question: Question) -> tuple[RefusalFact, ...]:
    """Those with the number that was asked about; else the latest of the channel. Oldest first."""
    rows = RefusedSend.objects.filter(is_channel(question.key)).order_by("-pk")
    if question.client_msg_no:
        rows = rows.filter(sender=question.sender, client_msg_no=question.client_msg_no)
    return tuple(
        RefusalFact(
            row.pk, row.sender, row.client_msg_no, _reason(row.reason), row.session_id, row.at,
            row.unwritten,
        )
        for row in reversed(list(rows[:REFUSALS_SHOWN]))
    )  # fmt: skip


def _reason(code: int) -> str:
    return f"reason {code} ({Reason(code).wire_name})"


def _sessions(uid: str, at: datetime) -> tuple[SessionFact, ...]:
    """The uid's sessions that were open then or about then, and the nearest on either side."""
    rows = _with_nodes(Session.objects.filter(uid=uid))
    early, late = at - BOUNDARY, at + BOUNDARY
    then = Q(opened_at__lte=late) & (Q(closed_at__gte=early) | Q(closed_at__isnull=True))
    before = rows.filter(opened_at__lte=late, closed_at__lt=early).order_by("-opened_at")[:1]
    after = rows.filter(opened_at__gt=late).order_by("opened_at")[:1]
    open_then = rows.filter(then).order_by("opened_at")
    return tuple(_session(row) for row in (*before, *open_then, *after))


def _with_nodes(rows: QuerySet[Session]) -> QuerySet[Any]:
    running = Case(
        When(node__stopped_at__isnull=True, node__lease_until__gte=Now(), then=Value(True)),
        default=Value(False),
    )
    return rows.select_related("node").annotate(node_runs=running)


def _session(row: Any) -> SessionFact:
    beat = row.node.lease_until - timedelta(seconds=conf().lease_seconds)
    node = NodeFact(row.node_id, beat, row.node_runs, row.node.stopped_at, row.node.checked_at)
    doubt = _doubt(row.closed_because, row.closed_at) if row.closed_at else None
    return SessionFact(row.pk, node, row.opened_at, row.closed_at, row.closed_because, doubt)


def _doubt(because: str, closed_at: datetime) -> Doubt | None:
    """What an end speaks against; None for one that is as it should be."""
    reason = CLOSE_CODE if because.startswith(CLOSE_CODE) else because
    seconds, why = _unclean_ends().get(reason, (0, ""))
    return Doubt(closed_at - timedelta(seconds=seconds), why) if why else None


def _unclean_ends() -> dict[str, tuple[float, str]]:
    """By why sessions are closed (docs/reference/log-events.md): from how many seconds before they
    may have heard nothing, and why. A row is written a moment later, and where the server closes,
    after a tick and the last words."""
    moment, silent = BOUNDARY.total_seconds(), conf().idle_seconds
    closing = moment + conf().tick_seconds + 2 * FLUSH_SECONDS
    lost = f"a connection that is lost is noticed up to {UNNOTICED} s late"
    return {
        "gone without a word": (UNNOTICED + moment, lost),
        CLOSE_CODE: (UNNOTICED + moment, lost),
        "kicked": (UNNOTICED + closing, lost),
        "idle": (silent + closing, f"its client had said nothing for {silent:g} s"),
        "try_again": (FAILING, "it lagged, or its node was deaf or had no database"),
        "internal_error": (FAILING, "the server failed"),
    }
