"""Conversations: a uid's channels as a list of chats, from memberships and the message log.

A conversation *is* a membership: its unread count is derived, never stored. Whatever the number of
channels it takes three statements. Commands (`sync_once`) count nowhere: they are taken out by the
partial index that has nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from django.db import connection
from django.db.models import F, OuterRef, QuerySet, Subquery
from django.db.models.functions import Greatest

from messaging.models import Message
from messaging.wanted import locks_rows, wanted_rows
from subscriptions.bindings import SYSTEM_UID, ChannelKey, ChannelType, person_channel_id
from subscriptions.models import Channel, Membership
from subscriptions.selectors import is_channel
from subscriptions.transactions import transact

NEWEST = 1_000
"""Conversations of one uid that are looked at: those with the newest messages."""

WITHOUT = frozenset({ChannelType.DATA, ChannelType.TEMP, ChannelType.LIVE})
"""Types of channels that are no conversation."""

MEMBERSHIPS, CHANNELS, MESSAGES = (model._meta.db_table for model in (Membership, Channel, Message))


Recent = tuple[int, int, int, str, str, bytes, int, int, str, int, int]
"""A message as RECENT has it. A plain tuple: there may be tens of thousands."""
MESSAGE_ID: Final = 2
SETTING: Final = 7

RECENT = {
    "channel_id": "x.channel_id", "seq": "x.seq", "message_id": "x.message_id",
    "client_msg_no": "x.client_msg_no", "sender": "x.sender", "payload": "x.payload",
    "red_dot": "CASE WHEN x.red_dot THEN 1 ELSE 0 END", "setting": "x.setting",
    "topic": "x.topic", "expire": "x.expire", "created_ms": "x.created_ms",
}  # fmt: skip
"""Its columns. A number for the switch: SQLite's module takes as long to make a boolean of one
column as to fetch all others."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A membership, the head of its log, and its last chat message (`last_seq` 0: none)."""

    channel: int
    key: ChannelKey
    head: int
    joined_seq: int
    read_seq: int
    hidden_seq: int
    last_seq: int = 0
    client_msg_no: str = ""
    created_ms: int = 0

    @property
    def seen(self) -> int:
        """What is read, hidden, or from before the join: unread messages are above it."""
        return max(self.joined_seq, self.read_seq, self.hidden_seq)


@dataclass(frozen=True, slots=True)
class Unread:
    """So many chat messages are unread, which are those above `read_to`."""

    count: int
    read_to: int


BOUND = {"channel_id": "bigint", "bound": "bigint"}
"""A table of them."""


@dataclass(frozen=True, slots=True)
class Bound:
    """Of a channel, the messages from this seq on."""

    channel: int
    seq: int


# --- reading ------------------------------------------------------------------------------------


def newest(uid: str, without: Collection[int] = ()) -> list[Conversation]:
    """The conversations that have a message, the newest first, at most NEWEST; not those of the
    types in `without`, and not what the system said to this uid. One statement."""
    types = sorted({*WITHOUT, *without})
    system = person_channel_id(uid, SYSTEM_UID)
    return _conversations(
        f"{_newest('m', 'x.seq, x.client_msg_no, x.created_ms', '1', 1)} WHERE m.uid = %s"
        f" AND c.channel_type NOT IN ({_marks(types)})"
        f" AND NOT (c.channel_type = {ChannelType.PERSON:d} AND c.channel_id = %s)"
        " ORDER BY x.created_ms DESC, m.id DESC LIMIT %s",
        [uid, *types, system, NEWEST],
    )


def of_channels(uid: str, keys: Collection[ChannelKey]) -> dict[ChannelKey, Conversation]:
    """The conversations of these channels, also those without messages. One statement."""
    names = sorted({key.channel_id for key in keys})
    if not names:
        return {}
    last = _newest("m", "x.seq, x.client_msg_no, x.created_ms", "1", 1, optional=True)
    where = f" WHERE m.uid = %s AND c.channel_id IN ({_marks(names)})"
    found = _conversations(last + where, [uid, *names])
    return {each.key: each for each in found if each.key in keys}


def _conversations(rest: str, values: Sequence[Any]) -> list[Conversation]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT m.channel_id, c.channel_type, c.channel_id, c.last_seq, m.joined_seq,"  # noqa: S608 - marks and our own names
            " m.read_seq, m.hidden_seq, x.seq, x.client_msg_no, x.created_ms"
            f" FROM {MEMBERSHIPS} m JOIN {CHANNELS} c ON c.id = m.channel_id {rest}",
            values,
        )
        return [
            Conversation(
                pk, ChannelKey(kind, name), head, joined, read, hidden, last or 0, number or "",
                created_ms or 0,
            )
            for pk, kind, name, head, joined, read, hidden, last, number, created_ms
            in cursor.fetchall()
        ]  # fmt: skip


def unread(uid: str, conversations: Iterable[Conversation]) -> dict[int, Unread]:
    """{channel pk: unread} of each. The uid's own last message is read, and all before it. Two
    statements about those that have something above what is seen; the log has no holes."""
    open_ones = [each for each in conversations if each.last_seq > each.seen]
    own = own_last(uid, [each.channel for each in open_ones])
    read_to = {each.channel: max(each.seen, own.get(each.channel, 0)) for each in open_ones}
    commands = _commands([(each.channel, read_to[each.channel], each.head) for each in open_ones])
    counts = {each.channel: Unread(0, min(each.seen, each.last_seq)) for each in conversations}
    for each in open_ones:
        seen = read_to[each.channel]
        count = each.head - seen - commands.get(each.channel, 0)
        counts[each.channel] = Unread(max(0, count), min(seen, each.last_seq))
    return counts


def own_last(uid: str, channels: Iterable[int]) -> dict[int, int]:
    """{channel pk: seq of the uid's own last message}, where there is one. One statement, one step
    by an index a channel."""
    return _numbers(
        ("channel_id",),
        [(channel,) for channel in channels],
        "SELECT MAX(x.seq) {chat} AND x.sender = %s AND NOT x.sync_once",
        uid,
    )


def _commands(rows: Sequence[tuple[int, int, int]]) -> dict[int, int]:
    """{channel pk: commands} of (channel pk, above this seq, up to this one)."""
    return _numbers(
        ("channel_id", "above", "up_to"),
        rows,
        "SELECT COUNT(*) {chat} AND x.sync_once AND x.seq > w.above AND x.seq <= w.up_to",
    )


def _numbers(
    columns: Sequence[str], rows: Sequence[Sequence[int]], question: str, *values: Any
) -> dict[int, int]:
    """{channel pk: the number that a question has about it}, where there is one."""
    if not rows:
        return {}
    table, params = wanted_rows(dict.fromkeys(columns, "bigint"), rows)
    asked = question.format(chat=f"FROM {MESSAGES} x WHERE x.channel_id = w.channel_id")
    with connection.cursor() as cursor:
        cursor.execute(f"{table} SELECT w.channel_id, ({asked}) FROM wanted w", [*params, *values])  # noqa: S608 - marks and our own names
        return {channel: number for channel, number in cursor.fetchall() if number is not None}


def recents(bounds: Iterable[Bound], count: int, oldest: bool = False) -> dict[int, list[Recent]]:
    """{channel pk: its `count` newest chat messages from the bound on, the newest first}; with
    `oldest` the first ones from there, in their order. One statement."""
    found: dict[int, list[Recent]] = {bound.channel: [] for bound in bounds}
    if not found or not count:
        return found
    table, values = wanted_rows(BOUND, [(bound.channel, bound.seq) for bound in bounds])
    columns = ", ".join(RECENT.values())
    joined = _newest("w", "x.*", "w.bound", count, oldest=oldest)
    with connection.cursor() as cursor:
        cursor.execute(f"{table} SELECT {columns} FROM wanted w {joined}", values)  # noqa: S608 - marks and our own names
        for row in cursor.fetchall():
            found[row[0]].append(row)
    for messages in found.values():
        messages.sort(reverse=not oldest)
    return found


def _newest(
    outer: str, columns: str, bound: str, count: int, *, oldest: bool = False,
    optional: bool = False,
) -> str:  # fmt: skip
    """A join of each row of `outer` with the `count` newest chat messages `x` of its channel from
    `bound` on, or with its oldest; with `optional`, also of rows that have none. By the index of
    (channel, seq), as many steps as there are messages. SQLite has no LATERAL: there the last of
    them is looked up first."""
    chat = f"FROM {MESSAGES} x WHERE x.channel_id = {outer}.channel_id AND NOT x.sync_once"
    order = f"AND x.seq >= {bound} ORDER BY x.seq {'' if oldest else 'DESC'} LIMIT"
    if locks_rows():
        side = "LEFT JOIN" if optional else "JOIN"
        return f"{side} LATERAL (SELECT {columns} {chat} {order} {count}) x ON true"
    edge = f"(SELECT x.seq {chat} {order} 1 OFFSET {count - 1})"
    limit = (
        f"x.seq >= {bound} AND x.seq <= COALESCE({edge}, {1 << 62})"
        if oldest
        else f"x.seq >= MAX({bound}, COALESCE({edge}, 0))"
    )
    side = "LEFT JOIN" if optional else "CROSS JOIN"
    return (
        f"{side} {MESSAGES} x ON NOT x.sync_once AND x.channel_id = {outer}.channel_id AND {limit}"
    )


def _marks(values: Collection[Any]) -> str:
    return ", ".join(["%s"] * len(values))


# --- what a reader keeps --------------------------------------------------------------------------


def keys_of(uid: str) -> list[ChannelKey]:
    """The channels that are conversations of this uid, in the order of joining."""
    rows = Membership.objects.filter(uid=uid).exclude(channel__channel_type__in=WITHOUT)
    named = rows.order_by("pk").values_list("channel__channel_type", "channel__channel_id")
    return [ChannelKey(kind, name) for kind, name in named]


def leave_unread(uid: str, key: ChannelKey, count: int) -> None:
    """All but the newest `count` chat messages are read. A number that is higher than what is
    unread changes nothing: a position never goes back."""
    chat = Message.objects.filter(
        channel=OuterRef("channel"), seq__gt=OuterRef("read_seq"), sync_once=False
    )
    below = chat.order_by("-seq").values("seq")[count : count + 1]
    _raise(uid, key, "read_seq", Subquery(below))


def hide(uid: str, key: ChannelKey) -> None:
    """The conversation is hidden until its next chat message."""
    _raise(uid, key, "hidden_seq", Subquery(_heads()))


def _heads() -> QuerySet[Channel, Any]:
    return Channel.objects.filter(pk=OuterRef("channel")).values("last_seq")


def _raise(uid: str, key: ChannelKey, name: str, target: Subquery) -> None:
    """Move a position of the membership forward, if there is one and the target is ahead: one
    statement. Of two at once the higher is left."""
    rows = Membership.objects.filter(is_channel(key, "channel__"), uid=uid)
    ahead = rows.alias(target=target).filter(target__gt=F(name))
    transact(lambda: ahead.update(**{name: Greatest(F(name), target)}))
