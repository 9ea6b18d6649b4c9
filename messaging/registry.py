"""Rows of nodes and sessions: the lease, who is connected where, and who has to go.

All times are the database's, so that two machines' clocks never argue (F55).
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import DurationField, ExpressionWrapper, F, Q, QuerySet
from django.db.models.functions import Now

from messaging.conf import conf
from messaging.models import Node, Session
from subscriptions.audit import Disagreement, Kind
from subscriptions.clock import ago, ahead
from subscriptions.findings import heal, open_findings
from subscriptions.live import NodeView
from subscriptions.selectors import pages


@dataclass(frozen=True, slots=True)
class Beat:
    """What a node says of itself each time it renews its lease."""

    sessions: int
    bindings: int
    expected: int
    groups: int
    probe_ms: float | None
    probe_missed: int


def _lease_end() -> ExpressionWrapper:
    return ahead(conf().lease_seconds)


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
    """Undo a sweep of this node: its row and its sessions' rows, in one write (F21). The row is
    made anew if somebody deleted it."""
    back = {"lease_until": _lease_end(), "stopped_at": None}
    who = {"host": socket.gethostname()[:200], "pid": os.getpid()}
    Node.objects.update_or_create(pk=node, defaults=back, create_defaults={**back, **who})
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


@transaction.atomic
def stop_node(node: int) -> None:
    """Give the lease back and close what is left of the node's session rows and findings."""
    _end(Node.objects.filter(pk=node, stopped_at__isnull=True))
    _close(_live_rows(node), "node stopped")
    heal(open_findings().filter(node_id=node), "node stopped")


def sweep_dead_nodes(but: int) -> dict[int, int]:
    """End nodes whose lease is over; close their session rows and their own findings. Returns
    {node: sessions closed}. Three reads and no write where there is nothing of the kind."""
    over = Node.objects.filter(stopped_at__isnull=True, lease_until__lt=Now()).exclude(pk=but)
    left = open_findings().filter(node_id__in=_ended().exclude(pk=but).values("pk"))
    if not (over.exists() or left.exists() or _dead_rows().exists()):
        return {}
    with transaction.atomic():
        dead = Counter(_dead_rows().values_list("node_id", flat=True))
        close_dead_sessions(dead_sessions([]), "lease of its node is over")
        _end(over)
        heal(left, "node ended")
    return dict(dead)


def _ended() -> QuerySet[Node]:
    return Node.objects.filter(Q(stopped_at__isnull=False) | Q(lease_until__lt=Now()))


def _end(nodes: QuerySet[Node]) -> None:
    nodes.update(stopped_at=Now(), sessions=0, bindings=0, expected=0, groups=0)


def dead_sessions(scopes: list[dict[str, str]]) -> list[Disagreement]:
    """Open session rows of nodes that hold no valid lease, of the uids in `scopes` (none: all).

    A session is of no channel, so scopes that name only channels are about none.
    """
    rows = _dead_rows()
    if scopes:
        rows = rows.filter(uid__in={scope["uid"] for scope in scopes if scope.get("uid")})
    return [
        Disagreement(Kind.DEAD_SESSION, "lease", None, uid, pk)
        for pk, uid in rows.values_list("pk", "uid")
    ]


def _dead_rows() -> QuerySet[Session]:
    """By node, so that the index of open rows is asked for those few nodes only."""
    return Session.objects.filter(closed_at__isnull=True, node__in=_ended())


def close_dead_sessions(found: Iterable[Disagreement], because: str = "dead") -> None:
    """Close these rows. Twice is once."""
    for page in pages([each.session for each in found]):
        _close(Session.objects.filter(pk__in=page, closed_at__isnull=True), because)


def _close(rows: QuerySet[Session], because: str) -> None:
    """Close rows, and the findings about those sessions: they are about nobody now."""
    sessions = list(rows.values_list("pk", flat=True))
    rows.update(closed_at=Now(), closed_because=because[:100])
    for page in pages(sessions):
        heal(open_findings().filter(session_id__in=page), "session closed")


@transaction.atomic
def open_session(session: Session, ring: Callable[[str], object] | None = None) -> datetime:
    """Write a session's row and tell those it displaces to go; returns the database's time.

    Who goes is protocol §4.1: a master displaces every other session of its uid and device flag,
    a slave only those with its own device id. Where anybody has to, `ring` is called with the uid
    after the commit, so that their nodes need not wait for their tick.
    """
    session.save(force_insert=True)
    rivals = Session.objects.filter(
        uid=session.uid, device_flag=session.device_flag, closed_at__isnull=True, kick=""
    ).exclude(pk=session.pk)
    same = rivals.filter(device_id=session.device_id) if session.device_id else rivals.none()
    told = same.update(kick="replaced by a new connection of this device")
    if session.device_level:
        told += rivals.update(kick="login in other device")
    if told and ring is not None:
        transaction.on_commit(lambda: ring(session.uid))
    return Session.objects.values_list("opened_at", flat=True).get(pk=session.pk)


@transaction.atomic
def close_session(session_id: str, because: str) -> None:
    """Close one session's row. A row that is closed already keeps its reason."""
    _close(Session.objects.filter(pk=session_id, closed_at__isnull=True), because)


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


def mark_checked(node: int, seconds: float) -> None:
    """A complete check of this node has ended that began so many seconds ago: what it did not
    see yet counts as unchecked."""
    Node.objects.filter(pk=node).update(checked_at=ago(seconds))


def _live_rows(node: int) -> QuerySet[Session]:
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


def node_views() -> list[NodeView]:
    """The same nodes, as each last described itself, by id."""
    age = ExpressionWrapper(Now() - F("checked_at"), output_field=DurationField())
    rows = Node.objects.filter(stopped_at__isnull=True, lease_until__gte=Now())
    return [
        NodeView(
            node=row.pk,
            host=row.host,
            pid=row.pid,
            started_at=row.started_at,
            sessions=row.sessions,
            groups=row.groups,
            expected=row.expected,
            bindings=row.bindings,
            check_age=row.age and round(row.age.total_seconds(), 3),
            probe_ms=row.probe_ms,
            probe_missed=row.probe_missed,
        )
        for row in rows.annotate(age=age).order_by("pk")
    ]
