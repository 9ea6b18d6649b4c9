"""What the subscription tables say about themselves: every membership against the change log.

`membership_invalid`: a membership that is not what the change log says, one that the log does not
know, or one that the log has and the table has not. It can only come from writes that pass the
triggers by (a restored table, a replaced row); the log is what is believed, except that a row
without any line in it gets one, by leaving and joining again, and a stay without a row is ended.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator

from django.db import DatabaseError
from django.db.models import Exists, OuterRef, QuerySet

from subscriptions import services
from subscriptions.audit import Disagreement, Kind, distinct
from subscriptions.live import Found
from subscriptions.models import Channel, Membership, MembershipChange
from subscriptions.selectors import in_scopes
from subscriptions.transactions import transact

logger = logging.getLogger(__name__)

ACTOR = "repair"
"""Who changed a membership, in the change log, when it was mended here."""


def check(
    scopes: list[dict[str, str]], kinds: Collection[str], repair: bool, reason: str = ""
) -> Found:
    """(disagreement, repaired) of every membership in `scopes`; with `repair` they are mended,
    and what a second look still sees is not. Reads the change log once, by its indexes. Lines
    that mending adds to it carry `reason`."""
    if Kind.MEMBERSHIP_INVALID not in kinds:
        return []
    found = distinct(_look(scopes))
    if not (repair and found):
        return [(each, False) for each in found]
    for each in found:
        _mend(each, reason)
    left = {each.identity for each in _look(scopes)}
    return [(each, each.identity not in left) for each in found]


def _look(scopes: list[dict[str, str]]) -> Iterator[Disagreement]:
    """Without a server-side cursor, which would make PostgreSQL look at each row by itself."""
    for rows in _contradicting(scopes):
        for channel, uid in rows.values_list("channel_id", "uid"):
            yield _invalid("membership table", channel, uid, "not as the change log has it")
    for channel, uid in _lost(scopes).values_list("channel_id", "uid"):
        yield _invalid("change log", channel, uid, "in the change log, not in the table")


def _invalid(place: str, channel: int, uid: str, detail: str) -> Disagreement:
    return Disagreement(Kind.MEMBERSHIP_INVALID, place, channel, uid, detail=detail)


def _contradicting(scopes: list[dict[str, str]]) -> list[QuerySet[Membership]]:
    """Memberships whose join is not in the log, and those where it is not the last line of their
    uid there: two statements, since either of two conditions cannot be joined."""
    lines = MembershipChange.objects.filter(channel=OuterRef("channel_id"), uid=OuterRef("uid"))
    join = lines.filter(version=OuterRef("joined_version"), seq=OuterRef("joined_seq"), joined=True)
    later = lines.filter(version__gt=OuterRef("joined_version"))
    rows = Membership.objects.filter(in_scopes(scopes))
    return [rows.filter(~Exists(join)), rows.filter(Exists(later))]


def _lost(scopes: list[dict[str, str]]) -> QuerySet[MembershipChange]:
    """Last lines of their uid that say "joined", without a membership."""
    place = {"channel": OuterRef("channel_id"), "uid": OuterRef("uid")}
    later = MembershipChange.objects.filter(**place, version__gt=OuterRef("version"))
    return MembershipChange.objects.filter(
        in_scopes(scopes), ~Exists(Membership.objects.filter(**place)), ~Exists(later), joined=True
    )


def _mend(each: Disagreement, reason: str) -> None:
    """Recompute one membership from the log. What cannot be mended is logged and stays found."""
    try:
        transact(lambda: _recompute(each.channel or 0, each.uid, reason))
    except DatabaseError:
        fields = {"kind": each.kind, "channel_pk": each.channel, "uid": each.uid}
        logger.exception("repair.failed", extra=fields)


def _recompute(pk: int, uid: str, reason: str) -> None:
    """Make table and log agree, under the channel's lock. Twice changes nothing."""
    channel = Channel.objects.select_for_update(no_key=True).filter(pk=pk).first()
    if channel is None:
        return
    rows = Membership.objects.filter(channel=channel, uid=uid)
    row = rows.first()
    lines = MembershipChange.objects.filter(channel=channel, uid=uid)
    last = lines.order_by("-version").first()
    if row is None:
        _end_stay(channel, uid, last, reason)
    elif last is None or not last.joined:
        services.remove(channel, [uid], ACTOR, reason)
        services.add(channel, [uid], ACTOR, reason)
        rows.update(read_seq=row.read_seq, hidden_seq=row.hidden_seq)
    elif (row.joined_version, row.joined_seq) != (last.version, last.seq):
        rows.update(joined_version=last.version, joined_seq=last.seq)


def _end_stay(channel: Channel, uid: str, last: MembershipChange | None, reason: str) -> None:
    """Write down a leave that the triggers did not see: by joining, which ends the open stay, and
    leaving. The table is what people edit: without a row the uid is no member."""
    if last is not None and last.joined:
        services.add(channel, [uid], ACTOR, reason)
        services.remove(channel, [uid], ACTOR, reason)
