"""What the subscription tables say about themselves: every membership against the change log.

`membership_invalid`: a membership whose versions contradict the ledger, one that the ledger does
not know, or one that the ledger has and the table has not. It can only come from writes that pass
triggers by (SQLite's REPLACE, a restored table); the ledger is what is believed, except that a
row without any line in it gets one, by leaving and joining again.
"""

from __future__ import annotations

from collections.abc import Iterator

from django.db import transaction
from django.db.models import F, OuterRef, Q, Subquery

from subscriptions.audit import Disagreement, Kind
from subscriptions.models import Membership, MembershipChange
from subscriptions.selectors import in_scopes

Found = list[tuple[Disagreement, bool]]


def check(scopes: list[dict[str, str]], repair: bool) -> Found:
    """(disagreement, repaired) of every membership in `scopes`; with `repair` they are mended."""
    found: Found = []
    for membership in _contradicting(scopes):
        each = Disagreement(
            Kind.MEMBERSHIP_INVALID, "membership table", membership.channel_id, membership.uid
        )
        found.append((each, repair and _rebuild(membership)))
    for change in _lost(scopes):
        each = Disagreement(
            Kind.MEMBERSHIP_INVALID, "change log", change.channel_id, change.uid,
            detail="the change log has this member, the table has not",
        )  # fmt: skip
        found.append((each, repair and _restore_leave(change)))
    return found


def _last_change() -> Q:
    rows = MembershipChange.objects.filter(
        channel=OuterRef("channel_id"), uid=OuterRef("uid")
    ).order_by("-version")
    return rows


def _contradicting(scopes: list[dict[str, str]]) -> Iterator[Membership]:
    rows = Membership.objects.filter(in_scopes(scopes)).annotate(
        last_version=Subquery(_last_change().values("version")[:1]),
        last_seq=Subquery(_last_change().values("seq")[:1]),
        last_joined=Subquery(_last_change().values("joined")[:1]),
    )
    wrong = (
        Q(last_version__isnull=True)
        | Q(last_joined=False)
        | ~Q(last_version=F("joined_version"))
        | ~Q(last_seq=F("joined_seq"))
    )
    return rows.filter(wrong).iterator()


def _lost(scopes: list[dict[str, str]]) -> Iterator[MembershipChange]:
    """Last changes that say "joined" of a uid that has no membership."""
    rows = MembershipChange.objects.filter(in_scopes(scopes), joined=True).annotate(
        last_version=Subquery(_last_change().values("version")[:1]),
        row=Subquery(
            Membership.objects.filter(channel=OuterRef("channel_id"), uid=OuterRef("uid")).values(
                "pk"
            )[:1]
        ),
    )
    return rows.filter(version=F("last_version"), row__isnull=True).iterator()


@transaction.atomic
def _rebuild(membership: Membership) -> bool:
    """Give the row what the ledger says; a row the ledger does not know as joined joins anew."""
    last = (
        MembershipChange.objects.filter(channel=membership.channel_id, uid=membership.uid)
        .order_by("-version")
        .first()
    )
    if last is not None and last.joined:
        Membership.objects.filter(pk=membership.pk).update(
            joined_version=last.version, joined_seq=last.seq
        )
        return True
    read, hidden = membership.read_seq, membership.hidden_seq
    Membership.objects.filter(pk=membership.pk).delete()
    Membership.objects.create(
        channel_id=membership.channel_id, uid=membership.uid, read_seq=read, hidden_seq=hidden
    )
    return True


@transaction.atomic
def _restore_leave(change: MembershipChange) -> bool:
    """Close a stay that the ledger still has open: join and leave, so that it is written down.

    The table is what people edit; the row is gone, so the uid is no member.
    """
    row = Membership.objects.create(channel_id=change.channel_id, uid=change.uid)
    row.delete()
    return True
