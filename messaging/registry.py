"""Rows of nodes and sessions: the lease, who is connected where, and who has to go.

All times are the database's, so that two machines' clocks never argue (F55).
"""

from __future__ import annotations

import os
import socket
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.db import connection, transaction
from django.db.models import DurationField, ExpressionWrapper, F, Q, QuerySet, Value
from django.db.models.functions import Now

from messaging import online
from messaging.conf import conf
from messaging.models import Device, Node, Session
from messaging.wanted import locks_rows, wanted_rows
from subscriptions.audit import Disagreement, Kind
from subscriptions.clock import ago, ahead
from subscriptions.compiled import ask
from subscriptions.findings import heal, open_findings
from subscriptions.live import NodeView
from subscriptions.models import Finding
from subscriptions.selectors import pages

MASTER = 1
SWEPT = "lease of its node is over"
SAME_DEVICE = "replaced by a new connection of this device"
OTHER_DEVICE = "login in other device"
DEVICES_LOCK = 0x77756B6F6E67  # "wukong": the number of an advisory lock may be anybody's
HELD_SECONDS = 2
"""What a transaction that holds devices waits for a lock, this one and those after it. Whoever had
it longer is frozen: those who wait in line behind would be as well. A connect is told to come back,
a tick tries again."""
HURRIED_SECONDS = 0.2
"""The same where many would wait for what one of them needs: then each is asked about alone."""
PATIENTLY, HURRIEDLY = (
    f"SELECT set_config('lock_timeout', '{seconds * 1000:.0f}ms', true)"
    for seconds in (HELD_SECONDS, HURRIED_SECONDS)
)
"""A `SET LOCAL` that takes no round trip of its own: what is selected is worked out in order."""


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
    hold_devices()
    back = {"lease_until": _lease_end(), "stopped_at": None}
    who = {"host": socket.gethostname()[:200], "pid": os.getpid()}
    Node.objects.update_or_create(pk=node, defaults=back, create_defaults={**back, **who})
    ensure_sessions(sessions)


SAID = ("uid", "device_id", "device_flag", "device_level", "node_id", "address")
"""Fields of a session's row that its node knows by heart."""


def ensure_session(session: Session) -> None:
    """Write the row of a live session, whether it is missing or was closed."""
    ensure_sessions([session])


@transaction.atomic
def ensure_sessions(sessions: Iterable[Session]) -> None:
    """Write the rows of live sessions, whether they are missing or were closed.

    What a row says of its opening and of a kick stays. Kicks are written on open rows only, so
    those of the time when these were closed are made up for: whoever was displaced meanwhile is
    told to go after all.
    """
    hold_devices()
    absent: list[online.Place] = []
    for page in pages(sessions):
        _kick_displaced(page)
        absent += _absent(page)
        Session.objects.bulk_create(
            map(_row, page), update_conflicts=True, unique_fields=["id"],
            update_fields=[*SAID, "closed_at", "closed_because"],
        )  # fmt: skip
    online.announce(absent, True, live_sessions)


def _absent(sessions: list[Session]) -> list[online.Place]:
    """Those whose rows are missing or closed, where anybody wants to know."""
    if not online.is_wanted():
        return []
    rows = Session.objects.filter(pk__in=[each.pk for each in sessions], closed_at__isnull=True)
    there = set(rows.values_list("pk", flat=True))
    return [(each.pk, each.uid, each.device_flag) for each in sessions if each.pk not in there]


def _kick_displaced(sessions: list[Session]) -> None:
    """Tell those to go whose row a sweep closed before it could be told so."""
    swept = Session.objects.filter(
        pk__in=[each.pk for each in sessions], closed_because=SWEPT, kick=""
    )
    rows = list(swept)
    if not rows:
        return
    since = min(row.closed_at for row in rows if row.closed_at) - timedelta(
        seconds=conf().lease_seconds
    )
    uids = {row.uid for row in rows}
    newcomers = list(Session.objects.filter(opened_at__gte=since, uid__in=uids))
    tokens = Device.objects.filter(updated_at__gte=since, uid__in=uids, level=MASTER)
    renewed = {(each.uid, each.flag): each.updated_at for each in tokens}
    told = defaultdict(list)
    for row in rows:
        at = renewed.get((row.uid, row.device_flag))
        reasons = [reason for each in newcomers if (reason := _displaces(each, row))]
        if at is not None and at > row.opened_at:
            reasons.append(OTHER_DEVICE)
        if reasons:
            told[reasons[0]].append(row.pk)
    for reason, pks in told.items():
        _kick(pks, reason)


def _displaces(newcomer: Session, row: Session) -> str:
    """Why a session that came later sends this one away (protocol §4.1); empty if it does not."""
    theirs, mine = [(each.uid, each.device_flag) for each in (newcomer, row)]
    if theirs != mine or newcomer.pk == row.pk or newcomer.opened_at <= row.opened_at:
        return ""
    if row.device_id and newcomer.device_id == row.device_id:
        return SAME_DEVICE
    return OTHER_DEVICE if newcomer.device_level else ""


def hold_device(uid: str, flag: int) -> None:
    """Until this transaction ends nobody else opens or ends sessions of this kind of device.

    Two connects at once would not see each other's rows, nor a new token the row of a connect with
    the old one. A lock by name, since without tokens there is no device row to lock. SQLite has
    one writer at a time anyway. Raises OperationalError after HELD_SECONDS.
    """
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(
                f"{PATIENTLY}, pg_advisory_xact_lock_shared(%s),"
                " pg_advisory_xact_lock(hashtextextended(%s, %s))",
                [DEVICES_LOCK, f"{flag}:{uid}", DEVICES_LOCK],
            )


def try_devices(places: Sequence[tuple[str, int]]) -> set[tuple[str, int]]:
    """Hold those of these devices (uid, flag) that nobody else holds; returns them. For other locks
    this transaction waits HURRIED_SECONDS."""
    if connection.vendor != "postgresql":
        return set(places)
    with connection.cursor() as cursor:
        cursor.execute(f"{HURRIEDLY}, pg_advisory_xact_lock_shared(%s)", [DEVICES_LOCK])
        cursor.execute(
            "SELECT pg_try_advisory_xact_lock(hashtextextended(name, %s))"
            " FROM unnest(%s::text[]) WITH ORDINALITY AS device (name, place) ORDER BY place",
            [DEVICES_LOCK, [f"{flag}:{uid}" for uid, flag in places]],
        )
        return {place for place, (got,) in zip(places, cursor.fetchall(), strict=True) if got}


def hold_devices() -> None:
    """The same for all of them, for whoever would need too many locks."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(f"{PATIENTLY}, pg_advisory_xact_lock(%s)", [DEVICES_LOCK])


@transaction.atomic
def stop_node(node: int) -> None:
    """Give the lease back and close what is left of the node's session rows and findings."""
    _end(Node.objects.filter(pk=node, stopped_at__isnull=True))
    closed = _close(_live_rows(node), "node stopped")
    heal(open_findings().filter(node_id=node), "node stopped")
    online.announce(closed, False, live_sessions)


def sweep_dead_nodes(but: int) -> dict[int, int]:
    """End nodes whose lease is over; close their session rows and their own findings. Returns
    {node: sessions closed}. One read and no write where there is nothing of the kind.

    Of several who sweep at once one has each node, and each row: what somebody holds is theirs to
    end, or no longer dead.
    """
    if not ask(_dead, but):
        return {}
    with transaction.atomic():
        over = [pk for (pk,) in _lock(_over(but), "pk", skip_locked=True)]
        _end(Node.objects.filter(pk__in=over))
        # Who ends a node has its rows: those of a node that another is ending are not seen yet.
        dead = dict(_lock(_open_rows(_swept()), "pk", "node_id", skip_locked=True))
        closed = []
        for page in pages(dead):
            closed += _close(Session.objects.filter(pk__in=page), SWEPT)
        heal(_left_open(but), "node ended")
        online.announce(closed, False, live_sessions)
    return dict(Counter(dead.values()))


def _dead(but: int) -> QuerySet[Any, Any]:
    """A row of nothing but a number, if there is anything to sweep."""
    left = _open_rows(_swept())
    rows = [each.values(a=Value(1)) for each in (_over(but), _left_open(but), left)]
    return rows[0].union(*rows[1:], all=True)[:1]


def _over(but: int) -> QuerySet[Node]:
    """Nodes whose lease is over and that nobody has ended."""
    return Node.objects.filter(stopped_at__isnull=True, lease_until__lt=Now()).exclude(pk=but)


def _left_open(but: int) -> QuerySet[Finding]:
    """Open findings of nodes that have ended."""
    return open_findings().filter(node_id__in=_ended().exclude(pk=but).values("pk"))


def _lock(rows: QuerySet[Any], *columns: str, skip_locked: bool = False) -> list[Any]:
    """Columns of the rows, locked in the order of their keys: so that two who want several of the
    same never wait for each other."""
    locked = rows.order_by("pk").select_for_update(no_key=True, skip_locked=skip_locked)
    return list(locked.values_list(*columns))


def _swept() -> QuerySet[Node]:
    return Node.objects.filter(stopped_at__isnull=False)


def _ended() -> QuerySet[Node]:
    """Nodes that were ended, or that are to be."""
    return Node.objects.filter(Q(stopped_at__isnull=False) | Q(lease_until__lt=Now()))


def _end(nodes: QuerySet[Node]) -> None:
    nodes.update(stopped_at=Now(), sessions=0, bindings=0, expected=0, groups=0)


def dead_sessions(scopes: list[dict[str, str]]) -> list[Disagreement]:
    """Open session rows of nodes that hold no valid lease, of the uids in `scopes` (none: all).

    A session is of no channel, so scopes that name only channels are about none.
    """
    rows = _open_rows(_ended())
    if scopes:
        rows = rows.filter(uid__in={scope["uid"] for scope in scopes if scope.get("uid")})
    return [
        Disagreement(Kind.DEAD_SESSION, "lease", None, uid, pk)
        for pk, uid in rows.values_list("pk", "uid")
    ]


def _open_rows(nodes: QuerySet[Node]) -> QuerySet[Session]:
    """By node, so that the index of open rows is asked for those few nodes only."""
    return Session.objects.filter(closed_at__isnull=True, node__in=nodes)


def close_dead_sessions(found: Iterable[Disagreement], because: str = "dead") -> None:
    """Close these rows. Twice is once."""
    for page in pages([each.session for each in found]):
        with transaction.atomic():
            _close_and_say(Session.objects.filter(pk__in=page, closed_at__isnull=True), because)


def _close_and_say(rows: QuerySet[Session], because: str) -> None:
    online.announce(_close(rows, because), False, live_sessions)


def _close(rows: QuerySet[Session], because: str) -> list[online.Place]:
    """Close rows, and the findings about those sessions: they are about nobody now. Returns what
    was closed."""
    closed = _lock(rows, "pk", "uid", "device_flag")
    rows.update(closed_at=Now(), closed_because=because[:100])
    for page in pages([pk for pk, *_ in closed]):
        heal(open_findings().filter(session_id__in=page), "session closed")
    return closed


def open_sessions(
    sessions: Sequence[Session], ring: Callable[[str], object] | None = None
) -> list[datetime]:
    """Write the rows of sessions, each of another device, and tell those they displace to go;
    returns the database's times. In a transaction of the caller's, which holds the devices.

    Who goes is protocol §4.1: a master displaces every other session of its uid and device flag,
    a slave only those with its own device id. Where anybody has to, `ring` is called with the uid
    after the commit, so that their nodes need not wait for their tick.
    """
    if not sessions:
        return []
    rows = [_row(each) for each in sessions]
    Session.objects.bulk_create(rows)  # the times that are the database's come back with it
    displaced = _displace_for(sessions)
    if ring is not None:
        for uid in displaced:
            transaction.on_commit(partial(ring, uid))
    opened = [(each.pk, each.uid, each.device_flag) for each in sessions]
    online.announce(opened, True, live_sessions)
    return [row.opened_at for row in rows]


def _row(session: Session) -> Session:
    """A new row of what a node knows by heart. What the database says of one that is written stays
    with it, though it be rolled back: another try is another row."""
    return Session(**{name: getattr(session, name) for name in ("id", *SAID)})


def _displace_for(sessions: Sequence[Session]) -> set[str]:
    """Tell the others to go who have to; returns their uids."""
    told = defaultdict(list)
    newcomers = {(each.uid, each.device_flag): each for each in sessions}
    uids = set()
    for pk, device, uid, flag in _rivals(newcomers, {each.pk for each in sessions}):
        newcomer = newcomers[uid, flag]
        if device and device == newcomer.device_id:
            told[SAME_DEVICE].append(pk)
        elif newcomer.device_level:
            told[OTHER_DEVICE].append(pk)
        else:
            continue
        uids.add(uid)
    for reason, pks in told.items():
        _kick(pks, reason)
    return uids


def _rivals(devices: Iterable[tuple[str, int]], but: Collection[str]) -> list[Any]:
    """(pk, device id, uid, flag) of live sessions of these devices, but for some, locked as `_lock`
    does. By plain SQL, since it is asked for each who connects."""
    wanted, values = wanted_rows({"uid": "text", "flag": "int"}, devices)
    lock = " FOR NO KEY UPDATE OF s" if locks_rows() else ""
    with connection.cursor() as cursor:
        cursor.execute(
            f"{wanted} SELECT s.id, s.device_id, s.uid, s.device_flag FROM wanted w"  # noqa: S608 - our own names
            f" JOIN {Session._meta.db_table} s ON s.uid = w.uid AND s.device_flag = w.flag"
            f" WHERE s.closed_at IS NULL AND s.kick = '' ORDER BY s.id{lock}",
            values,
        )
        return [row for row in cursor.fetchall() if row[0] not in but]


def _kick(sessions: Collection[str], because: str) -> int:
    if not sessions:
        return 0
    return Session.objects.filter(pk__in=sessions).update(kick=because[:100])


@transaction.atomic
def close_session(session_id: str, because: str) -> None:
    """Close one session's row. A row that is closed already keeps its reason."""
    _close_and_say(Session.objects.filter(pk=session_id, closed_at__isnull=True), because)


def close_sessions(because: Mapping[str, str]) -> None:
    """Close the rows of many sessions, by {session id: why}: three statements a page of them."""
    named = defaultdict(list)
    for session, why in because.items():
        named[why].append(session)
    for why, sessions in named.items():
        for page in pages(sessions):
            with transaction.atomic():
                _close_and_say(Session.objects.filter(pk__in=page, closed_at__isnull=True), why)


@transaction.atomic
def kick_sessions(uid: str, flags: Collection[int], because: str) -> int:
    """Write down that every session of this uid and these flags has to go; returns how many."""
    live = Session.objects.filter(uid=uid, device_flag__in=flags, closed_at__isnull=True)
    return _kick({pk for (pk,) in _lock(live, "pk")}, because)


@transaction.atomic
def kick_session(uid: str, start: str, because: str) -> int:
    """The same of the uid's session whose id starts so; returns 1, or 0 if there is none."""
    live = Session.objects.filter(uid=uid, pk__startswith=start, closed_at__isnull=True)
    return _kick({pk for (pk,) in _lock(live, "pk")}, because)


def kicked(node: int) -> dict[str, str]:
    """{session id: why} of this node's sessions that have to go."""
    return dict(ask(_kicked, node))


def _kicked(node: int) -> QuerySet[Session, Any]:
    return _live_rows(node).exclude(kick="").values_list("pk", "kick")


def session_rows(node: int) -> dict[str, str]:
    """{session id: uid} of this node's open rows."""
    return dict(ask(_session_rows, node))


def _session_rows(node: int) -> QuerySet[Session, Any]:
    return _live_rows(node).values_list("pk", "uid")


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


def device_flags(uids: Iterable[str]) -> list[tuple[str, int]]:
    """(uid, device flag) of each live session of these uids."""
    rows = live_sessions()
    return [
        place
        for page in pages(uids)
        for place in rows.filter(uid__in=page).order_by("uid").values_list("uid", "device_flag")
    ]


def live_nodes() -> list[int]:
    """Ids of the nodes that hold a valid lease."""
    rows = Node.objects.filter(stopped_at__isnull=True, lease_until__gte=Now())
    return list(rows.values_list("pk", flat=True))


def others_hear(node: int) -> bool:
    """Whether another node holds a lease and hears its own probes."""
    others = Node.objects.exclude(pk=node).filter(pk__in=live_nodes())
    return others.filter(probe_missed=0, probe_ms__isnull=False).exists()


SILENT_BEATS = 3
"""Beats that a node may miss before nobody believes its numbers: one may be late, two unlucky."""


def node_views() -> list[NodeView]:
    """The same nodes, as each last described itself, by id."""
    age = ExpressionWrapper(Now() - F("checked_at"), output_field=DurationField())
    awake = conf().lease_seconds - SILENT_BEATS * conf().tick_seconds
    left = ExpressionWrapper(F("lease_until") - Now(), output_field=DurationField())
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
            lease_left=round(row.lease_left.total_seconds(), 3),
            is_silent=row.lease_left.total_seconds() < awake,
        )
        for row in rows.annotate(age=age, lease_left=left).order_by("pk")
    ]
