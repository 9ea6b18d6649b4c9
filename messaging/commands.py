"""Commands (`sync_once`) that a uid has not taken yet: the messages of `/message/sync`.

They lie in the channels' own logs (decision 0038). How far a member has taken those of a channel is
`command_seq` of the membership, which only grows. `command_offered_seq` is what the last answer
gave: whichever node answers, the next acknowledgement takes that and no more. A master device takes
commands also by acknowledging them as they are delivered (protocol §4.6).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from django.db import connection
from django.db.models import F

from messaging.models import Message
from messaging.wanted import wanted_rows
from subscriptions.bindings import ChannelKey
from subscriptions.models import Channel, Membership
from subscriptions.selectors import pages
from subscriptions.transactions import transact

PENDING = f"""
    WITH pending AS (
        SELECT c.channel_id AS name, c.channel_type AS kind, m.id AS membership, x.id AS message,
               MAX(x.message_id) OVER (PARTITION BY x.channel_id ORDER BY x.seq) AS turn
        FROM {Membership._meta.db_table} m
        JOIN {Channel._meta.db_table} c ON c.id = m.channel_id
        JOIN {Message._meta.db_table} x ON x.channel_id = m.channel_id AND x.sync_once
             AND x.seq > m.command_seq AND x.seq > m.joined_seq
        WHERE m.uid = %s
    )
    SELECT x.*, name, kind, membership FROM pending
    JOIN {Message._meta.db_table} x ON x.id = message ORDER BY turn, x.seq LIMIT %s"""  # noqa: S608 - our own names
"""Oldest first by message id, but never before an earlier one of its channel: processes take their
ids in blocks, and whatever a limit cuts off must come after what is given."""

TAKE = f"""
    , span AS (SELECT uid, channel_id, MAX(seq) AS top FROM wanted GROUP BY uid, channel_id)
    , missed AS (
        SELECT m.id, MIN(x.seq) AS seq FROM span s
        JOIN {Membership._meta.db_table} m ON m.channel_id = s.channel_id AND m.uid = s.uid
        JOIN {Message._meta.db_table} x ON x.channel_id = s.channel_id AND x.sync_once
             AND x.seq > m.command_seq AND x.seq > m.joined_seq AND x.seq < s.top
             AND x.sender <> s.uid
        LEFT JOIN wanted w ON w.uid = s.uid AND w.channel_id = s.channel_id AND w.seq = x.seq
        WHERE w.uid IS NULL GROUP BY m.id
    )
    , reached AS (
        SELECT m.id, MAX(w.seq) AS seq FROM wanted w
        JOIN {Membership._meta.db_table} m ON m.channel_id = w.channel_id AND m.uid = w.uid
        LEFT JOIN missed ON missed.id = m.id
        WHERE w.seq > m.command_seq AND (missed.id IS NULL OR w.seq < missed.seq) GROUP BY m.id
    )
    UPDATE {Membership._meta.db_table} AS m SET command_seq = r.seq
    FROM reached r WHERE m.id = r.id"""  # noqa: S608 - our own names
"""Up to the highest acknowledged command below which none of another sender was left out: a device
that came after a command was sent must not take it by taking the next one. Joins by equality alone,
so that thousands of acknowledgements are no square."""

Taken = tuple[str, int, int]
"""(uid, channel pk, seq) of a command that a device has acknowledged."""

Command = tuple[ChannelKey, Message]


def offer(uid: str, limit: int) -> list[Command]:
    """The oldest commands of all channels that `uid` is a member of now, `limit` in all, above what
    was taken and after the join. They are given again until they are acknowledged.

    Remembers what is given. A second device's answer replaces the first's: what the first was given
    beyond it comes again, none is lost. A leave in between is as good as a leave before.
    """
    found: list[Any] = list(Message.objects.raw(PENDING, [uid, limit]))
    if found:
        transact(lambda: _remember(uid, found))
    return [(ChannelKey(each.kind, each.name), each) for each in found]


def _remember(uid: str, given: Iterable[Any]) -> None:
    """Set the offered positions to exactly what is given: each membership's highest seq."""
    highest = {each.membership: each.seq for each in given}
    offered = Membership.objects.filter(uid=uid, command_offered_seq__gt=F("command_seq"))
    offered.exclude(pk__in=highest).update(command_offered_seq=F("command_seq"))
    table, values = wanted_rows({"id": "bigint", "seq": "bigint"}, highest.items())
    with connection.cursor() as cursor:
        cursor.execute(
            f"{table} UPDATE {Membership._meta.db_table} AS m SET command_offered_seq = w.seq"  # noqa: S608 - marks and our own names
            " FROM wanted w WHERE m.id = w.id",
            values,
        )


def acknowledge(uid: str) -> int:
    """Count as taken what was offered last; returns in how many channels. Twice is once."""
    offered = Membership.objects.filter(uid=uid, command_offered_seq__gt=F("command_seq"))
    return transact(lambda: offered.update(command_seq=F("command_offered_seq")))


def take(taken: Iterable[Taken]) -> None:
    """Count as taken what devices have acknowledged, unless one before it was not: that would be
    lost, and so all from there come again. Twice is once. One statement a page; what a page cuts
    off a channel's commands is taken by the next."""
    for page in pages(sorted(set(taken))):
        transact(partial(_take, page))


def _take(taken: Iterable[Taken]) -> None:
    table, values = wanted_rows({"uid": "text", "channel_id": "bigint", "seq": "bigint"}, taken)
    with connection.cursor() as cursor:
        cursor.execute(f"{table}{TAKE}", values)
