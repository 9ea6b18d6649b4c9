"""Reads, each named for the question it answers.

Each is one statement, so one snapshot; a long list of uids or channels takes one for each page of
it, since databases limit a statement's parameters (32,766 on SQLite).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from django.db import connection
from django.db.models import Q

from subscriptions.bindings import Change, Changes, ChannelKey, Expected, Join
from subscriptions.conf import conf
from subscriptions.marks import Mark, mark_of, rows_after
from subscriptions.models import Channel, Membership, MembershipChange

NO_LIMIT = 1 << 31
DIGEST_FACTORS = (2_654_435_761, 40_503)
DIGEST_MODULUS = 4_294_967_296
"""A digest is a sum of (pk × first + joined_version × second) modulo 2³²: small enough for 64-bit
SQL on every database, and any single missing, extra or changed membership changes it."""


Item = TypeVar("Item")


def pages(items: Iterable[Item]) -> Iterator[list[Item]]:
    """The items in lists of a size that a statement takes."""
    rest = iter(items)
    while page := list(islice(rest, conf().page_size)):
        yield page


def memberships_of(uids: Iterable[str]) -> list[Expected]:
    """Every membership of these uids, with head and version of its channel."""
    return [each for page in pages(uids) for each in _memberships_of(page)]


def _memberships_of(uids: list[str]) -> list[Expected]:
    """By plain SQL: of a connect with a thousand memberships, the ORM was half. Nor does it read
    times, each of which takes longer than all the rest of its row."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT m.channel_id, c.channel_type, c.channel_id, m.uid, m.joined_version,"  # noqa: S608 - marks and our own names
            f" m.joined_seq, c.membership_version, c.last_seq FROM {Membership._meta.db_table} m"
            f" JOIN {Channel._meta.db_table} c ON c.id = m.channel_id"
            f" WHERE m.uid IN ({_marks(uids)})",
            uids,
        )
        return list(map(Expected._make, cursor.fetchall()))


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
    rows = _change_rows(f"m.uid IN ({_marks(uids)})", uids, list(places), NO_LIMIT)
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
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT c.id, c.channel_type, c.channel_id, c.membership_version, c.last_seq,"  # noqa: S608 - our own names
            f" m.uid, m.version, m.seq, m.joined FROM {table} c"
            f" LEFT JOIN {log} m ON m.channel_id = c.id AND {condition}"
            f" WHERE c.id IN ({_marks(channels)}) ORDER BY c.id, m.version LIMIT %s",
            [*params, *channels, limit],
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


def _marks(values: Collection[Any]) -> str:
    """Marks for these values in a list; of none, a list that holds nothing."""
    return ", ".join(["%s"] * len(values)) or "NULL"


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
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT id, last_seq, membership_version FROM {Channel._meta.db_table}"  # noqa: S608 - marks and our own names
            f" WHERE id IN ({_marks(channels)})",
            channels,
        )
        return list(cursor.fetchall())


def digest(memberships: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """(count, sum) of (channel pk, joined version) pairs, as `digests` computes it in SQL."""
    first, second = DIGEST_FACTORS
    pairs = list(memberships)
    return len(pairs), sum(
        (pk * first + version * second) % DIGEST_MODULUS for pk, version in pairs
    )


def digests(uids: Iterable[str]) -> dict[str, tuple[int, int]]:
    """The digest of each uid's memberships; a uid without any is not in it."""
    return {uid: value for page in pages(uids) for uid, value in _digests(page)}


def _digests(uids: list[str]) -> list[tuple[str, tuple[int, int]]]:
    first, second = DIGEST_FACTORS
    marks = ", ".join(["%s"] * len(uids))
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT uid, COUNT(*), SUM((channel_id * {first} + joined_version * {second})"  # noqa: S608 - marks and our own names
            f" %% {DIGEST_MODULUS}) FROM {Membership._meta.db_table}"
            f" WHERE uid IN ({marks}) GROUP BY uid",
            uids,
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
