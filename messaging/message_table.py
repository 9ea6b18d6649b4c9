"""The seam between the message log and its tables: plain SQL, since the ORM costs ten times that.

SQLite has one writer at a time, PostgreSQL locks the channels' rows; the functions below are the
only places that know the difference.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from django.db import connection
from django.db.models import Max, QuerySet

from messaging.conf import conf
from messaging.messages import StoredMessage
from messaging.models import Message, SystemAccount
from messaging.permissions import Standing
from messaging.wanted import locks_rows, wanted_rows
from subscriptions.bindings import ChannelKey, ChannelType
from subscriptions.marks import Mark, highest_after, mark_of
from subscriptions.models import AccessRule, Channel, Membership
from subscriptions.selectors import pages

COLUMNS = {
    "channel_id": "bigint", "seq": "bigint", "version": "bigint", "message_id": "bigint",
    "client_msg_no": "text", "sender": "text", "origin": "text", "payload": "bytea",
    "red_dot": "boolean", "sync_once": "boolean", "setting": "smallint", "topic": "text",
    "expire": "bigint", "created_ms": "bigint",
}  # fmt: skip
"""The columns that the log writes, with their types on PostgreSQL."""

CHANNEL_COLUMNS = (
    "id", "channel_type", "channel_id", "last_seq", "membership_version", "ban", "disband",
)  # fmt: skip


Place = tuple[ChannelKey, str]
"""A sender in a channel."""


@dataclass(slots=True)
class ChannelRow:
    """A channel's row as the batch holds it under the lock."""

    pk: int
    head: int
    version: int
    ban: bool
    disband: bool
    appended: list[StoredMessage] = field(default_factory=list)


def lock_channels(
    keys: Collection[ChannelKey], wait: float | None = None
) -> tuple[dict[ChannelKey, ChannelRow], set[ChannelKey]]:
    """The rows of these channels, taken in the order of their ids, and the keys of those that
    exist but are held by somebody else.

    Held ones are skipped, or waited for at most `wait` seconds: then an OperationalError of
    sqlstate 55P03 is raised. On SQLite the transaction holds everything already.
    """
    if not locks_rows():
        return _rows(_named(keys)), set()
    names = [key.channel_id for key in keys]
    kinds = [key.channel_type for key in keys]
    columns = ", ".join(f"c.{name}" for name in CHANNEL_COLUMNS)
    with connection.cursor() as cursor:
        if wait is not None:
            cursor.execute(f"SET LOCAL lock_timeout = {max(1, int(wait * 1000))}")
        cursor.execute(
            f"SELECT {columns} FROM {Channel._meta.db_table} c"
            f" JOIN unnest(%s::text[], %s::int[]) AS w(name, kind)"
            f" ON c.channel_id = w.name AND c.channel_type = w.kind"
            f" ORDER BY c.id FOR NO KEY UPDATE OF c {'SKIP LOCKED' if wait is None else ''}",
            [names, kinds],
        )
        rows = _rows(cursor.fetchall())
    if wait is not None or len(rows) == len(keys):
        return rows, set()
    missing = _named([key for key in keys if key not in rows])
    return rows, set(_rows(missing))


def _named(keys: Collection[ChannelKey]) -> list[Any]:
    """The rows of these channels, not locked."""
    names = list({key.channel_id for key in keys})
    marks = ", ".join(["%s"] * len(names))
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {', '.join(CHANNEL_COLUMNS)} FROM {Channel._meta.db_table}"
            f" WHERE channel_id IN ({marks}) ORDER BY id", names,
        )  # fmt: skip
        return [row for row in cursor.fetchall() if ChannelKey(row[1], row[2]) in keys]


def _rows(values: Iterable[Sequence[Any]]) -> dict[ChannelKey, ChannelRow]:
    return {
        ChannelKey(kind, name): ChannelRow(pk, head, version, bool(ban), bool(disband))
        for pk, kind, name, head, version, ban, disband in values
    }


def find_stored(
    numbered: Collection[tuple[int, str, str]], channels: dict[int, ChannelKey]
) -> tuple[list[StoredMessage], int]:
    """Messages with one of these (channel pk, sender, client message number), and the milliseconds
    of the database's clock: one for all processes (F44, F55). Each is one step by the index; three
    lists of values would be asked for in all their combinations."""
    clock = CLOCKS[connection.vendor]
    if not numbered:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {clock}")
            return [], int(cursor.fetchone()[0])
    columns = ", ".join(f"m.{name}" for name in COLUMNS)
    named = {"channel": "bigint", "sender": "text", "number": "text"}
    wanted, values = wanted_rows(named, numbered)
    with connection.cursor() as cursor:
        cursor.execute(
            f"{wanted} SELECT clock.ms, {columns} FROM (SELECT {clock} AS ms) AS clock"
            f" LEFT JOIN (wanted JOIN {Message._meta.db_table} m"
            " ON m.sender = wanted.sender AND m.channel_id = wanted.channel"
            " AND m.client_msg_no = wanted.number"
            " AND NOT (m.client_msg_no = '')) ON true",  # as the index has it, word for word
            values,
        )
        rows = cursor.fetchall()
    stored = [_from_row(row, channels[row[0]]) for _, *row in rows if row[0] is not None]
    return stored, int(rows[0][0])


def standings(asked: Mapping[Place, ChannelRow | None]) -> dict[Place, Standing]:
    """What the database says of each of these senders in their channels, whose rows are given where
    there are any: one statement for all. `owner` is whose lists count, in a person channel those of
    the other. Each fact is one step by an index, and no EXISTS, of which PostgreSQL might make one
    walk through a whole table."""
    if not asked:
        return {}
    wanted, values = wanted_rows(
        {"number": "int", "channel": "bigint", "owner": "text", "kind": "int", "sender": "text"},
        (
            (number, row.pk if row else 0, key.seen_by(sender), key.channel_type, sender)
            for number, ((key, sender), row) in enumerate(asked.items())
        ),
    )
    members, rules = Membership._meta.db_table, AccessRule._meta.db_table
    rule = f"SELECT 1 FROM {rules} r WHERE r.channel_id = owner AND r.channel_type = kind"
    person = f"{ChannelType.PERSON:d}"
    own_row = f"SELECT 1 FROM {Channel._meta.db_table} p WHERE p.channel_type = {person}"
    account = f"SELECT 1 FROM {SystemAccount._meta.db_table} s WHERE s.uid"
    facts = {
        "sender_banned": f"{own_row} AND p.channel_id = sender AND p.send_ban",
        "member": f"SELECT 1 FROM {members} m WHERE m.channel_id = channel AND m.uid = sender",
        "denied": f"{rule} AND r.uid = sender AND NOT r.allow",
        "has_allow_list": f"{rule} AND r.allow AND kind <> {person}",
        "allowed": f"{rule} AND r.uid = sender AND r.allow",
        "system": f"{account} = sender",
        "peer_system": f"{account} = owner AND kind = {person}",
        "strangers": f"{own_row} AND p.channel_id = owner AND kind = {person} AND p.allow_stranger",
    }
    columns = ", ".join(f"({fact} LIMIT 1) IS NOT NULL" for fact in facts.values())
    with connection.cursor() as cursor:
        cursor.execute(f"{wanted} SELECT number, {columns} FROM wanted", values)
        found = {number: map(bool, each) for number, *each in cursor.fetchall()}
    listed = conf().person_allow_lists
    said = {}
    for number, (place, row) in enumerate(asked.items()):
        each = dict(zip(facts, found[number], strict=True))
        each["has_allow_list"] |= listed and place[0].is_person
        said[place] = replace(standing_of(row), **each)
    return said


def standing_of(row: ChannelRow | None) -> Standing:
    """What a channel's row says, which is all that is asked where the back end sends."""
    if row is None:
        return Standing()
    return Standing(exists=True, ban=row.ban, disband=row.disband)


def find_appended(
    channels: dict[int, ChannelKey], message_ids: Collection[int]
) -> dict[int, StoredMessage]:
    """{message id: message} of those that are in the log: for a commit whose answer was lost."""
    rows = Message.objects.filter(message_id__in=message_ids, channel__in=channels)
    return {message.message_id: message for message in _messages(rows, channels)}


def _messages(rows: QuerySet[Message, Any], channels: dict[int, ChannelKey]) -> list[StoredMessage]:
    return [_from_row(values, channels[values[0]]) for values in rows.values_list(*COLUMNS)]


def insert(rows: Iterable[ChannelRow]) -> None:
    """Write what the rows collected, and their heads."""
    written = [row for row in rows if row.appended]
    if not written:
        return
    messages = [_values(message) for row in written for message in row.appended]
    heads = [(row.head, row.pk) for row in written]
    with connection.cursor() as cursor:
        if locks_rows():
            _insert_arrays(cursor, messages, heads)
        else:
            _insert_many(cursor, messages, heads)


def _values(message: StoredMessage) -> list[Any]:
    return [getattr(message, "channel" if name == "channel_id" else name) for name in COLUMNS]


def _insert_arrays(cursor: Any, messages: list[list[Any]], heads: list[tuple[int, int]]) -> None:
    """One statement, whatever it has to write."""
    arrays = ", ".join(f"%s::{kind}[]" for kind in COLUMNS.values())
    cursor.execute(
        f"WITH raised AS (UPDATE {Channel._meta.db_table} c SET last_seq = w.head"
        f" FROM unnest(%s::bigint[], %s::bigint[]) AS w(head, id) WHERE c.id = w.id)"
        f" INSERT INTO {Message._meta.db_table} ({', '.join(COLUMNS)})"
        f" SELECT * FROM unnest({arrays})",
        [list(column) for rows in (heads, messages) for column in zip(*rows, strict=True)],
    )


def _insert_many(cursor: Any, messages: list[list[Any]], heads: list[tuple[int, int]]) -> None:
    marks = ", ".join(["%s"] * len(COLUMNS))
    cursor.executemany(
        f"INSERT INTO {Message._meta.db_table} ({', '.join(COLUMNS)}) VALUES ({marks})", messages
    )
    cursor.executemany(f"UPDATE {Channel._meta.db_table} SET last_seq = %s WHERE id = %s", heads)


CLOCKS = {
    "postgresql": "(extract(epoch FROM clock_timestamp()) * 1000)::bigint",
    "sqlite": "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
}
"""Milliseconds since 1970."""


def _from_row(values: Sequence[Any], key: ChannelKey) -> StoredMessage:
    fields = dict(zip(COLUMNS, values, strict=True))
    fields["channel"] = fields.pop("channel_id")
    fields["payload"] = bytes(fields["payload"])
    fields |= {name: bool(fields[name]) for name in ("red_dot", "sync_once")}  # SQLite: 0 and 1
    return StoredMessage(key=key, **fields)


def read_range(
    channel: int, key: ChannelKey, after: int, up_to: int | None, limit: int
) -> list[StoredMessage]:
    """Stored messages with after < seq <= up_to, ascending, at most `limit`."""
    rows = Message.objects.filter(channel=channel, seq__gt=after)
    if up_to is not None:
        rows = rows.filter(seq__lte=up_to)
    return [_from_row(values, key) for values in rows.order_by("seq").values_list(*COLUMNS)[:limit]]


def highest_seqs(channels: Iterable[int]) -> dict[int, int]:
    """{channel pk: last seq in the log}, whatever the channel's row says."""
    rows = Message.objects.filter(channel__in=list(channels)).values("channel_id").order_by()
    return {row["channel_id"]: row["highest"] for row in rows.annotate(highest=Max("seq"))}


def message_mark() -> Mark:
    """Where the log is now, from which a sweep begins."""
    return mark_of(Message)


def heads_after(mark: Mark) -> tuple[dict[int, int], Mark]:
    """{channel pk: highest seq} of what was appended since `mark`, and the mark to go on from."""
    return highest_after(Message, "channel_id", "seq", mark)


def seqs_kept(after: Mapping[int, int]) -> dict[int, tuple[int | None, int]]:
    """{channel pk: (lowest seq in the log above the one given, highest of all)}, each by one step
    of the index; (None, 0) where there is none."""
    return {
        channel: (lowest, highest or 0)
        for page in pages(after.items())
        for channel, lowest, highest in _seqs_kept(page)
    }


def _seqs_kept(places: list[tuple[int, int]]) -> list[Any]:
    table = Message._meta.db_table
    wanted, values = wanted_rows({"channel": "bigint", "above": "bigint"}, places)
    with connection.cursor() as cursor:
        cursor.execute(
            f"{wanted} SELECT channel,"
            f" (SELECT MIN(seq) FROM {table} WHERE channel_id = channel AND seq > above),"
            f" (SELECT MAX(seq) FROM {table} WHERE channel_id = channel) FROM wanted",
            values,
        )
        return list(cursor.fetchall())
