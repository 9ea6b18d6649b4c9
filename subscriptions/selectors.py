"""Reads, each named for the question it answers.

Each is one statement, so one snapshot; a long list of uids or channels takes one for each page of
it, since databases limit a statement's parameters (32,766 on SQLite).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, TypeVar

from django.db import connection
from django.db.models import Q

from subscriptions.bindings import Change, Changes, ChannelKey, Join, Memberships
from subscriptions.conf import conf
from subscriptions.marks import Mark, mark_of, rows_after
from subscriptions.models import Channel, Membership, MembershipChange

with suppress(ImportError):  # who is on SQLite need not have it
    from psycopg.pq import Format

NO_LIMIT = 1 << 31
DIGEST_FACTORS = (2_654_435_761, 40_503)
DIGEST_MODULUS = 4_294_967_296
"""A digest is a sum of (pk × first + joined_version × second) modulo 2³²: small enough for 64-bit
SQL on every database, and any single missing, extra or changed membership changes it."""


COLUMNS_AS: dict[str, tuple[str, str, Callable[[Any], Sequence[int]]]] = {
    # PostgreSQL might read all channels there are for the ids of a table that it made itself
    "postgresql": (
        "array_agg", "= ANY(ARRAY(SELECT unnest(channels) FROM held))", lambda found: found or ()
    ),
    "sqlite": (
        "json_group_array", "IN (SELECT value FROM held, json_each(channels))", json.loads
    ),
}  # fmt: skip
"""How a column is asked for as one value, those ids among which another is, and how the value is
read."""

Item = TypeVar("Item")


def pages(items: Iterable[Item]) -> Iterator[list[Item]]:
    """The items in lists of a size that a statement takes."""
    rest = iter(items)
    while page := list(islice(rest, conf().page_size)):
        yield page


def memberships_of(uids: Iterable[str]) -> dict[str, Memberships]:
    """Every membership of these uids, with head and version of its channel, by uid; a uid without
    any is not in it."""
    return {uid: held for page in pages(uids) for uid, held in _memberships_of(page)}


def _memberships_of(uids: list[str]) -> Iterator[tuple[str, Memberships]]:
    """Numbers in arrays: of a connect with a thousand memberships, rows were half, made by the ORM,
    and a quarter in plain SQL. The state of a channel in which many of them are is read once."""
    of_them, values = _among("uid", uids)
    listed, among, loads = COLUMNS_AS[connection.vendor]
    with connection.cursor() as cursor:
        if connection.settings_dict["OPTIONS"].get("server_side_binding"):
            cursor.cursor.format = Format.BINARY  # as a node's threads may: half the time
        cursor.execute(
            f"WITH held (uid, channels, versions, seqs) AS (SELECT uid,"  # noqa: S608 - our own names
            f" {listed}(channel_id), {listed}(joined_version), {listed}(joined_seq)"
            f" FROM {Membership._meta.db_table} WHERE {of_them} GROUP BY uid)"
            " SELECT uid, channels, versions, seqs FROM held"
            f" UNION ALL SELECT NULL, {listed}(id), {listed}(membership_version),"
            f" {listed}(last_seq) FROM {Channel._meta.db_table} WHERE id {among}",
            values,
        )
        rows = {uid: [*map(loads, columns)] for uid, *columns in cursor.fetchall()}
    channels, versions, heads = rows.pop(None)
    states = dict(zip(channels, zip(versions, heads, strict=True), strict=True))
    for uid, (channels, joined_versions, joined_seqs) in rows.items():
        yield uid, Memberships(channels, joined_versions, joined_seqs, states)


def keys_of(channels: Iterable[int]) -> dict[int, ChannelKey]:
    """The names of these channels: {pk: key}."""
    rows = (row for page in pages(channels) for row in _names("id", page))
    return {pk: ChannelKey(kind, name) for pk, kind, name in rows}


def channels_of(keys: Collection[ChannelKey]) -> dict[ChannelKey, int]:
    """The channels of these names: {key: pk}."""
    names = {key.channel_id for key in keys}
    rows = (row for page in pages(names) for row in _names("channel_id", page))
    return {key: pk for pk, kind, name in rows if (key := ChannelKey(kind, name)) in keys}


def _names(column: str, values: list[Any]) -> list[tuple[int, int, str]]:
    of_them, parameters = _among(column, values)
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT id, channel_type, channel_id FROM {Channel._meta.db_table} WHERE {of_them}",  # noqa: S608 - our own names
            parameters,
        )
        return list(cursor.fetchall())


def joins_of(places: Mapping[int, Collection[str]]) -> dict[tuple[int, str], Join]:
    """By (channel pk, uid), the joins of those of these uids who are members of their channels."""
    uids = {uid for named in places.values() for uid in named}
    rows = Membership.objects.filter(channel__in=places, uid__in=uids).values_list(
        "channel_id", "uid", "joined_at", "channel__last_seq"
    )
    return {(pk, uid): Join(at, head) for pk, uid, at, head in rows}


def changes_since(channel: int, version: int, page: int) -> Changes | None:
    """The next `page` changes of a channel after `version`; None when the channel is gone."""
    rows = _change_rows("m.version > %s", [version], [channel], page + 1)
    return _changes(rows, version, page) if rows else None


def changes_of(places: Mapping[int, Collection[str]]) -> dict[int, Changes]:
    """Every change of these uids in their channels, one statement for all; what is gone is left
    out."""
    uids = list({uid for named in places.values() for uid in named})
    if not uids:
        return {}
    rows = _change_rows(*_among("m.uid", uids), list(places), NO_LIMIT)
    by_channel: dict[int, list[tuple[Any, ...]]] = {}
    for row in rows:
        by_channel.setdefault(row[0], []).append(row)
    return {
        channel: _changes(found, 0, NO_LIMIT, frozenset(places[channel]))
        for channel, found in by_channel.items()
    }


def _change_rows(
    condition: str, params: Sequence[Any], channels: Sequence[int], limit: int
) -> list[tuple[Any, ...]]:
    """The channels' rows, each with those of its changes that the condition takes, or with none."""
    log, table = MembershipChange._meta.db_table, Channel._meta.db_table
    of_them, values = _among("c.id", channels)
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT c.id, c.channel_type, c.channel_id, c.membership_version, c.last_seq,"  # noqa: S608 - our own names
            f" m.uid, m.version, m.seq, m.joined FROM {table} c"
            f" LEFT JOIN {log} m ON m.channel_id = c.id AND {condition}"
            f" WHERE {of_them} ORDER BY c.id, m.version LIMIT %s",
            [*params, *values, limit],
        )
        return list(cursor.fetchall())


def _changes(
    rows: Sequence[tuple[Any, ...]], since: int, page: int, uids: Collection[str] | None = None
) -> Changes:
    """One channel's rows as a page, of these uids' changes alone if there are any named."""
    _, kind, name, newest, head = rows[0][:5]
    changes = tuple(
        Change(uid, version, seq, bool(joined))
        for *_, uid, version, seq, joined in rows
        if uid is not None and (uids is None or uid in uids)
    )
    more = len(changes) > page
    changes = changes[:page]
    known = changes[-1].version if more else newest
    return Changes(ChannelKey(kind, name), since, known, newest, head, changes)


def _among(column: str, values: Sequence[Any]) -> tuple[str, list[Any]]:
    """The condition that a column has one of these values, and its parameters. To PostgreSQL they
    are one, an array: as two thousand they took three times as long, most of it on this side."""
    if connection.vendor == "postgresql":
        return f"{column} = ANY(%s)", [list(values)]
    return f"{column} IN ({', '.join(['%s'] * len(values)) or 'NULL'})", list(values)


def change_mark() -> Mark:
    """Where the change log is now, from which a sweep begins."""
    return mark_of(MembershipChange)


def changes_after(mark: Mark, page: int) -> tuple[list[tuple[Any, ...]], Mark, bool]:
    """(id, channel pk, uid, version) of the changes since `mark`, those of a channel in order;
    the mark to go on from; whether there are more. At most `page` of them."""
    return rows_after(MembershipChange, ("channel_id", "uid", "version"), mark, page)


def heads(channels: Iterable[int]) -> dict[int, tuple[int, int]]:
    """Head and version of these channels: {pk: (last_seq, membership_version)}."""
    return {pk: (head, version) for page in pages(channels) for pk, head, version in _heads(page)}


def _heads(channels: list[int]) -> list[tuple[Any, ...]]:
    of_them, values = _among("id", channels)
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT id, last_seq, membership_version FROM {Channel._meta.db_table}"  # noqa: S608 - our own names
            f" WHERE {of_them}",
            values,
        )
        return list(cursor.fetchall())


def digest(memberships: Collection[tuple[int, int]]) -> tuple[int, int]:
    """(count, sum) of (channel pk, joined version) pairs, as `digests` computes it in SQL."""
    first, second = DIGEST_FACTORS
    mask = DIGEST_MODULUS - 1  # of a power of two, which is quicker than the remainder
    total = sum([(pk * first + version * second) & mask for pk, version in memberships])
    return len(memberships), total


def digests(uids: Iterable[str]) -> dict[str, tuple[int, int]]:
    """The digest of each uid's memberships; a uid without any is not in it."""
    return {uid: value for page in pages(uids) for uid, value in _digests(page)}


def _digests(uids: list[str]) -> list[tuple[str, tuple[int, int]]]:
    first, second = DIGEST_FACTORS
    of_them, values = _among("uid", uids)
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT uid, COUNT(*), SUM((channel_id * {first} + joined_version * {second})"  # noqa: S608 - our own names
            f" %% {DIGEST_MODULUS}) FROM {Membership._meta.db_table}"
            f" WHERE {of_them} GROUP BY uid",
            values,
        )
        return [(uid, (int(count), int(total))) for uid, count, total in cursor.fetchall()]


def is_channel(key: ChannelKey, path: str = "") -> Q:
    """The condition on rows that they are the channel of this key, or belong to it by `path`
    (`channel__`)."""
    return Q(**{f"{path}channel_type": key.channel_type, f"{path}channel_id": key.channel_id})


def find_channel(key: ChannelKey) -> Channel | None:
    """The channel of this key, or None."""
    return Channel.objects.filter(is_channel(key)).first()


def in_scopes(scopes: list[dict[str, str]], channel: str = "channel", uid: str = "uid") -> Q:
    """A filter for an audit's scopes: a list of {"channel": "TYPE:ID", "uid": …}; empty is all."""
    condition = Q()
    for scope in scopes:
        part = Q()
        if scope.get("channel"):
            part &= is_channel(ChannelKey.parse(scope["channel"]), f"{channel}__")
        if scope.get("uid"):
            part &= Q(**{uid: scope["uid"]})
        condition |= part
    return condition


def changes_by(uid: str, channels: Iterable[int]) -> dict[int, list[Change]]:
    """Every change of one uid in each of these channels, in order; none of it ever changes."""
    found: dict[int, list[Change]] = {}
    for page in pages(channels):
        rows = MembershipChange.objects.filter(uid=uid, channel__in=page).order_by("version")
        for channel, version, seq, joined in rows.values_list(
            "channel_id", "version", "seq", "joined"
        ):
            found.setdefault(channel, []).append(Change(uid, version, seq, joined))
    return found
