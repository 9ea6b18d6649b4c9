"""Reads, each named for the question it answers. Each is one statement, so one snapshot."""

from __future__ import annotations

from collections.abc import Iterable

from django.db import connection
from django.db.models import Q

from subscriptions.bindings import Change, Changes, ChannelKey, Expected
from subscriptions.models import Channel, Membership, MembershipChange

DIGEST_FACTORS = (2_654_435_761, 40_503)
DIGEST_MODULUS = 4_294_967_296
"""A digest is a sum of (pk × first + joined_version × second) modulo 2³²: small enough for 64-bit
SQL on every database, and any single missing, extra or changed membership changes it."""


def memberships_of(uids: Iterable[str], channel: int | None = None) -> list[Expected]:
    """Every membership of these uids (in `channel`), with head and version of its channel."""
    rows = Membership.objects.filter(uid__in=list(uids))
    if channel is not None:
        rows = rows.filter(channel=channel)
    return [
        Expected(pk, ChannelKey(kind, name), *rest)
        for pk, kind, name, *rest in rows.values_list(
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
    log, table = MembershipChange._meta.db_table, Channel._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT c.channel_type, c.channel_id, c.membership_version, c.last_seq,"
            f" m.uid, m.version, m.seq, m.joined FROM {table} c"
            f" LEFT JOIN {log} m ON m.channel_id = c.id AND m.version > %s"
            f" WHERE c.id = %s ORDER BY m.version LIMIT %s",
            [version, channel, page + 1],
        )
        rows = cursor.fetchall()
    if not rows:
        return None
    kind, name, newest, head = rows[0][:4]
    changes = tuple(Change(row[4], row[5], row[6], bool(row[7])) for row in rows if row[4])
    more = len(changes) > page
    changes = changes[:page]
    known = changes[-1].version if more else newest
    return Changes(ChannelKey(kind, name), known, head, changes, more)


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
    rows = Channel.objects.filter(pk__in=list(channels))
    return {pk: (head, version) for pk, head, version in rows.values_list(
        "pk", "last_seq", "membership_version"
    )}  # fmt: skip


def digest(memberships: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """(count, sum) of (channel pk, joined version) pairs, as `digests` computes it in SQL."""
    first, second = DIGEST_FACTORS
    pairs = list(memberships)
    return len(pairs), sum(
        (pk * first + version * second) % DIGEST_MODULUS for pk, version in pairs
    )


def digests(uids: Iterable[str]) -> dict[str, tuple[int, int]]:
    """The digest of each uid's memberships; a uid without any is not in it."""
    wanted = list(uids)
    if not wanted:
        return {}
    first, second = DIGEST_FACTORS
    marks = ", ".join(["%s"] * len(wanted))
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT uid, COUNT(*), SUM((channel_id * {first} + joined_version * {second})"
            f" %% {DIGEST_MODULUS}) FROM {Membership._meta.db_table}"
            f" WHERE uid IN ({marks}) GROUP BY uid",
            wanted,
        )
        return {uid: (int(count), int(total)) for uid, count, total in cursor.fetchall()}


def find_channel(key: ChannelKey) -> Channel | None:
    """The channel of this key, or None."""
    return Channel.objects.filter(channel_type=key.channel_type, channel_id=key.channel_id).first()


def in_scopes(scopes: list[dict[str, str]], channel: str = "channel", uid: str = "uid") -> Q:
    """A filter for an audit's scopes: a list of {"channel": "TYPE:ID", "uid": …}; empty is all."""
    condition = Q()
    for scope in scopes:
        part = Q()
        if scope.get("channel"):
            key = ChannelKey.parse(scope["channel"])
            part &= Q(**{f"{channel}__channel_type": key.channel_type})
            part &= Q(**{f"{channel}__channel_id": key.channel_id})
        if scope.get("uid"):
            part &= Q(**{uid: scope["uid"]})
        condition |= part
    return condition
