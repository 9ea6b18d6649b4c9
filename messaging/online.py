"""What the opening and closing of sessions tells the webhooks, in the same transaction.

The string is WuKongIM's: uid, device flag, 1 or 0, the connection's number, and how many sessions
the uid has now, of this flag and in all. Who wants to know whether somebody is reachable looks at
the last.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from django.db import connection
from django.db.models import Count, QuerySet

from subscriptions.selectors import pages
from webhooks import outbox
from webhooks.events import Event

Place = tuple[str, str, int]
"""A session's id, its uid and its device flag."""

TURNS, TURNS_LOCK = 256, 0x77756B6F
"""Locks among which uids are spread, and the number that they share."""


def is_wanted() -> bool:
    """Whether anybody is told."""
    return outbox.wants(Event.ONLINE_STATUS)


def announce(places: Collection[Place], online: bool, live: Callable[[], QuerySet[Any]]) -> None:
    """Tell that these sessions have just been opened, or closed. `live`: the sessions that are, to
    which the transaction's own changes belong. One statement a page of them."""
    if not places or not is_wanted():
        return
    uids = sorted({uid for _, uid, _ in places})
    _take_turns(uids)
    numbers = _count(uids, live())
    totals: Counter[str] = Counter()
    for (uid, _flag), number in numbers.items():
        totals[uid] += number
    outbox.record_all(
        Event.ONLINE_STATUS,
        (
            f"{uid}-{flag}-{online:d}-{connection_number(session)}"
            f"-{numbers[uid, flag]}-{totals[uid]}"
            for session, uid, flag in places
        ),
    )


ID_DIGITS = 13
"""Hexadecimal digits of a session's id that make the number of its connection: 52 bits, which
JavaScript holds exactly. Two of a million sessions have the same by a chance of 1 in 9,000, and
they would have to be of one uid to be mistaken for each other."""


def connection_number(session: str) -> int:
    """The number that stands for a session where WuKongIM has one for a connection."""
    return int(session[:ID_DIGITS], 16)


def _take_turns(uids: Iterable[str]) -> None:
    """Until this transaction ends nobody else counts sessions of these uids. Of two that close the
    last two at once each would see the other's, and nobody would say 0. Taken last, in order."""
    if connection.vendor == "postgresql":
        turns = sorted({zlib.crc32(uid.encode()) % TURNS for uid in uids})
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_advisory_xact_lock(%s, turn) FROM unnest(%s::int[]) AS turn",
                [TURNS_LOCK, turns],
            )


def _count(uids: Sequence[str], live: QuerySet[Any]) -> Counter[tuple[str, int]]:
    rows = live.order_by().values("uid", "device_flag").annotate(number=Count("pk"))
    return Counter(
        {
            (row["uid"], row["device_flag"]): row["number"]
            for page in pages(uids)
            for row in rows.filter(uid__in=page)
        }
    )
