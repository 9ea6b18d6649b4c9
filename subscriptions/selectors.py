"""Reads, each named for the question it answers.

Each is one statement, so one snapshot; a long list of uids or channels takes one for each page of
it, since databases limit a statement's parameters (32,766 on SQLite).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

from django.db import connection
from django.db.models import Q

from subscriptions.bindings import Change, Changes, ChannelKey, Expected
from subscriptions.conf import conf
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


def memberships_of(uids: Iterable[str], channel: int | None = None) -> list[Expected]:
    """Every membership of these uids (in `channel`), with head and version of its channel."""
    return [each for page in pages(uids) for each in _memberships_of(page, channel)]


def _memberships_of(uids: list[str], channel: int | None) -> list[Expected]:
    rows = Membership.objects.filter(uid__in=uids)
    if channel is not None:
        rows = rows.filter(channel=channel)
    return [
        Expected(pk, ChannelKey(kind, name), uid, joined_version, joined_seq, at, version, head)
        for pk, kind, name, uid, joined_version, joined_seq, at, version, head in rows.values_list(
            "channel_id",
            "channel__channel_type",
            "channel__channel_id",
            "uid",
            "joined_version",
            "joined_seq",
            "joined_at",
            "channel__membership_version",
            "channel__last_seq",
        )
    ]


def changes_since(channel: int, version: int, page: int) -> Changes | None:
    """The next `page` changes of a channel after `version`; None when the channel is gone."""
    return _changes(channel, version, "m.version > %s", [version], page)


def changes_of(channel: int, uids: Iterable[str]) -> Changes | None:
    """Every change of these uids in a channel; None when the channel is gone."""
    wanted = list(uids)
    marks = ", ".join(["%s"] * len(wanted))
    return _changes(channel, 0, f"m.uid IN ({marks})", wanted, NO_LIMIT)


def _changes(
    channel: int, since: int, condition: str, params: Sequence[Any], page: int
) -> Changes | None:
    log, table = MembershipChange._meta.db_table, Channel._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT c.channel_type, c.channel_id, c.membership_version, c.last_seq,"  # noqa: S608 - our own names
            f" m.uid, m.version, m.seq, m.joined FROM {table} c"
            f" LEFT JOIN {log} m ON m.channel_id = c.id AND {condition}"
            f" WHERE c.id = %s ORDER BY m.version LIMIT %s",
            [*params, channel, page + 1],
        )
        rows = cursor.fetchall()
    if not rows:
        return None
    kind, name, newest, head = rows[0][:4]
    changes = tuple(Change(row[4], row[5], row[6], bool(row[7])) for row in rows if row[5])
    more = len(changes) > page
    changes = changes[:page]
    known = changes[-1].version if more else newest
    return Changes(ChannelKey(kind, name), since, known, newest, head, changes)


def last_change_id() -> int:
    """The newest line of the change log, from which a sweep begins."""
    newest = MembershipChange.objects.order_by("-id").values_list("id", flat=True).first()
    return newest or 0


def changes_after(mark: int, page: int) -> list[tuple[int, int, str, int]]:
    """(id, channel pk, uid, version) of the changes after `mark`, oldest first."""
    rows = MembershipChange.objects.filter(id__gt=mark).order_by("id")
    return list(rows.values_list("id", "channel_id", "uid", "version")[:page])


def heads(channels: Iterable[int]) -> dict[int, tuple[int, int]]:
    """Head and version of these channels: {pk: (last_seq, membership_version)}."""
    return {
        pk: (head, version)
        for page in pages(channels)
        for pk, head, version in Channel.objects.filter(pk__in=page).values_list(
            "pk", "last_seq", "membership_version"
        )
    }


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
