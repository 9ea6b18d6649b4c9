"""Rows of nodes and sessions: the lease, who is connected where, and who has to go.

All times are the database's, so that two machines' clocks never argue (F55).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import DateTimeField, ExpressionWrapper, F, Value
from django.db.models.functions import Now

from messaging.conf import conf
from messaging.models import Node, Session
from subscriptions.audit import Disagreement, Kind
from subscriptions.bindings import ChannelKey
from subscriptions.models import Channel


@dataclass(frozen=True, slots=True)
class Beat:
    """What a node says of itself each time it renews its lease."""

    sessions: int
    bindings: int
    expected: int
    groups: int
    probe_ms: float | None
    probe_missed: int


def _lease_end() -> Any:
    until = Now() + Value(timedelta(seconds=conf().lease_seconds))
    return ExpressionWrapper(until, output_field=DateTimeField())


def register_node() -> int:
    """A new node row with a fresh lease; returns its id."""
    node = Node.objects.create(
        host=socket.gethostname()[:200], pid=os.getpid(), lease_until=_lease_end()
    )
    return node.pk


def beat(node: int, state: Beat) -> bool:
    """Renew the lease. False when this node was swept meanwhile and must register again."""
    fields = {name: getattr(state, name) for name in Beat.__slots__}
    renewed = Node.objects.filter(pk=node, stopped_at__isnull=True).update(
        lease_until=_lease_end(), **fields
    )
    return bool(renewed)


@transaction.atomic
def register_again(node: int, sessions: Iterable[Session]) -> None:
    """Undo a sweep of this node: its row and its sessions' rows, in one write (F21)."""
    Node.objects.filter(pk=node).update(lease_until=_lease_end(), stopped_at=None)
    for session in sessions:
        ensure_session(session)


def ensure_session(session: Session) -> None:
    """Write the row of a live session, whether it is missing or was closed."""
    Session.objects.update_or_create(
        pk=session.pk,
        defaults={
            "uid": session.uid,
            "device_id": session.device_id,
            "device_flag": session.device_flag,
            "device_level": session.device_level,
            "node_id": session.node_id,
            "address": session.address,
            "closed_at": None,
            "closed_because": "",
        },
    )


def stop_node(node: int) -> None:
    """Give the lease back and close what is left of the node's session rows."""
    Node.objects.filter(pk=node, stopped_at__isnull=True).update(
        stopped_at=Now(), sessions=0, bindings=0, expected=0, groups=0
    )
    _live_rows(node).update(closed_at=Now(), closed_because="node stopped")


@transaction.atomic
def sweep_dead_nodes(but: int) -> list[Disagreement]:
    """Close the session rows of nodes whose lease is over; returns them as findings."""
    dead = list(
        Node.objects.filter(stopped_at__isnull=True, lease_until__lt=Now())
        .exclude(pk=but)
        .values_list("pk", flat=True)
    )
    found = dead_sessions([])
    Session.objects.filter(node__in=dead, closed_at__isnull=True).update(
        closed_at=Now(), closed_because="lease of its node is over"
    )
    Node.objects.filter(pk__in=dead).update(stopped_at=Now())
    return found


def dead_sessions(scopes: list[dict[str, str]]) -> list[Disagreement]:
    """Open session rows of nodes that hold no valid lease."""
    uids = {scope["uid"] for scope in scopes if scope.get("uid")}
    rows = Session.objects.filter(closed_at__isnull=True).exclude(
        node__in=Node.objects.filter(stopped_at__isnull=True, lease_until__gte=Now())
    )
    if uids:
        rows = rows.filter(uid__in=uids)
    return [
        Disagreement(Kind.DEAD_SESSION, "lease", None, uid, pk)
        for pk, uid in rows.values_list("pk", "uid")
    ]


def close_dead_sessions(found: Iterable[Disagreement]) -> None:
    """Close these rows. Twice is once."""
    Session.objects.filter(pk__in=[each.session for each in found], closed_at__isnull=True).update(
        closed_at=Now(), closed_because="dead"
    )


@transaction.atomic
def open_session(session: Session) -> datetime:
    """Write a session's row and tell those it displaces to go; returns the database's time.

    Who goes is protocol §4.1: a master displaces every other session of its uid and device flag,
    a slave only those with its own device id.
    """
    session.save(force_insert=True)
    rivals = Session.objects.filter(
        uid=session.uid, device_flag=session.device_flag, closed_at__isnull=True, kick=""
    ).exclude(pk=session.pk)
    same = rivals.filter(device_id=session.device_id) if session.device_id else rivals.none()
    same.update(kick="replaced by a new connection of this device")
    if session.device_level:
        rivals.update(kick="login in other device")
    return Session.objects.values_list("opened_at", flat=True).get(pk=session.pk)


def close_session(session_id: str, because: str) -> None:
    """Close one session's row. A row that is closed already keeps its reason."""
    Session.objects.filter(pk=session_id, closed_at__isnull=True).update(
        closed_at=Now(), closed_because=because[:100]
    )


def kick_sessions(uid: str, flag: int, because: str) -> int:
    """Write down that every session of this uid and flag has to go; returns how many."""
    return Session.objects.filter(uid=uid, device_flag=flag, closed_at__isnull=True).update(
        kick=because[:100]
    )


def kicked(node: int) -> dict[str, str]:
    """{session id: why} of this node's sessions that have to go."""
    return dict(_live_rows(node).exclude(kick="").values_list("pk", "kick"))


def session_rows(node: int) -> dict[str, str]:
    """{session id: uid} of this node's open rows."""
    return dict(_live_rows(node).values_list("pk", "uid"))


def mark_checked(node: int) -> None:
    """A complete check of this node has just ended."""
    Node.objects.filter(pk=node).update(checked_at=Now())


def _live_rows(node: int) -> Any:
    return Session.objects.filter(node=node, closed_at__isnull=True)


def live_sessions() -> Any:
    """Rows of sessions that are open on a node with a valid lease, with their node's check."""
    return Session.objects.filter(
        closed_at__isnull=True, node__stopped_at__isnull=True, node__lease_until__gte=Now()
    ).annotate(checked_at=F("node__checked_at"))


def live_nodes() -> list[int]:
    """Ids of the nodes that hold a valid lease."""
    rows = Node.objects.filter(stopped_at__isnull=True, lease_until__gte=Now())
    return list(rows.values_list("pk", flat=True))


def channel_keys(channels: Collection[int]) -> dict[int, ChannelKey]:
    """Names of these channels."""
    rows = Channel.objects.filter(pk__in=channels)
    return {
        pk: ChannelKey(kind, name)
        for pk, kind, name in rows.values_list("pk", "channel_type", "channel_id")
    }
