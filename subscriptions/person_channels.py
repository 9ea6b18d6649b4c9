"""Person channels made many at a time, as a message to many uids needs them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

from subscriptions import services
from subscriptions.bindings import ChannelKey, ChannelType
from subscriptions.errors import TriggersMissing
from subscriptions.models import Channel, Membership, MembershipChange
from subscriptions.transactions import transact


def open_missing(keys: Collection[ChannelKey], actor: str, reason: str) -> int:
    """Make those of these person channels that there are not, with both memberships; returns how
    many. One transaction of a few statements, however many they are: `services.join` takes as many
    for one. Two at once make each channel once. Raises TriggersMissing.
    """
    names = sorted({key.channel_id for key in keys if key.is_person})

    def change() -> int:
        persons = Channel.objects.filter(channel_type=ChannelType.PERSON)
        known = set(persons.filter(channel_id__in=names).values_list("channel_id", flat=True))
        missing = [name for name in names if name not in known]
        if not missing:
            return 0
        Channel.objects.bulk_create(
            [Channel(channel_type=ChannelType.PERSON, channel_id=name) for name in missing],
            ignore_conflicts=True,
        )
        # Those of another call that was faster have members, and so a version, by now.
        rows = list(
            persons.select_for_update(no_key=True)
            .filter(channel_id__in=missing, membership_version=0)
            .order_by("channel_id")
        )
        _join_pairs(rows, actor, reason)
        return len(rows)

    return transact(change)


def _join_pairs(rows: list[Channel], actor: str, reason: str) -> None:
    """Make both uids members of each of these locked, new channels, and announce it on commit."""
    joining = [(row, uid) for row in rows for uid in dict.fromkeys(row.key.pair)]
    Membership.objects.bulk_create([Membership(channel=row, uid=uid) for row, uid in joining])
    lines = MembershipChange.objects.filter(channel__in=rows)
    versions: dict[int, dict[str, int]] = defaultdict(dict)
    for line in lines:
        versions[line.channel_id][line.uid] = line.version
    if sum(map(len, versions.values())) != len(joining):
        raise TriggersMissing
    lines.update(actor=actor[:150], reason=reason[:200])
    for row in rows:
        counted = versions[row.pk]
        services.announce_on_commit(row, list(counted), counted, True, actor, reason)
