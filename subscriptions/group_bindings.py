"""Is a member heard? The state of memberships' group bindings, as the database can tell.

Bindings themselves are not stored: nodes hold them. What is stored is who is connected where, when
each node last completed a check, and what it found. One set of conditions in SQL says all four
states, for a page that is shown and for a filter alike, so that both never disagree.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import (
    Case,
    CharField,
    Count,
    Exists,
    F,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    TextChoices,
    Value,
    When,
)
from django.db.models.functions import Coalesce
from django.utils.translation import gettext_lazy as _

from subscriptions import live
from subscriptions.audit import Kind
from subscriptions.clock import ago
from subscriptions.conf import conf
from subscriptions.models import Finding, Membership


class State(TextChoices):
    """What is known of a membership's group binding, the worst of its sessions deciding."""

    BOUND = "bound", _("bound")
    MISSING = "missing", _("missing")
    OFFLINE = "offline", _("offline")
    UNCHECKED = "unchecked", _("unchecked")


@dataclass(frozen=True, slots=True)
class GroupBindingState:
    """The state, the live sessions, the oldest of the last whole checks that they have had (None:
    one of them has had none since it was opened), and when a binding was last seen to be missing.
    """

    state: State
    sessions: int = 0
    checked_at: datetime | None = None
    missed_at: datetime | None = None


def states(memberships: Iterable[Membership]) -> dict[int, GroupBindingState]:
    """The state of each of these memberships by pk, in one query."""
    rows = Membership.objects.filter(pk__in=[membership.pk for membership in memberships])
    sessions = live.live_sessions()
    if sessions is None:
        return {pk: GroupBindingState(State.UNCHECKED) for pk in rows.values_list("pk", flat=True)}
    here = sessions.filter(uid=OuterRef("uid")).order_by()
    count = here.values("uid").annotate(count=Count("pk")).values("count")
    checked = Case(When(checked_at__gte=F("opened_at"), then=F("checked_at")))
    oldest = here.annotate(looked_at=checked).order_by(F("looked_at").asc(nulls_first=True))
    latest = _lost(sessions).order_by("-last_seen").values("last_seen")[:1]
    branches = [When(condition, then=Value(state)) for state, condition in _conditions(sessions)]
    rows = rows.annotate(
        state=Case(*branches, output_field=CharField()),
        sessions=Coalesce(Subquery(count), 0),
        checked_at=Subquery(oldest.values("looked_at")[:1]),
        missed_at=Subquery(latest),
    )
    return {
        pk: GroupBindingState(State(state), *more)
        for pk, state, *more in rows.values_list(
            "pk", "state", "sessions", "checked_at", "missed_at"
        )
    }


def filter_by_state(queryset: QuerySet[Membership], state: str) -> QuerySet[Membership]:
    """The memberships of `queryset` that are in `state` now."""
    sessions = live.live_sessions()
    if sessions is None:
        return queryset if state == State.UNCHECKED else queryset.none()
    return queryset.filter(dict(_conditions(sessions))[State(state)])


def _conditions(sessions: QuerySet[Any]) -> list[tuple[State, Q]]:
    """Each state with the condition under which a membership is in it. They exclude each other."""
    here = sessions.filter(uid=OuterRef("uid"))
    online, missing = Q(Exists(here)), _missing(sessions)
    unchecked = Q(Exists(here.filter(_unchecked())))
    return [
        (State.OFFLINE, ~online),
        (State.MISSING, online & missing),
        (State.UNCHECKED, online & unchecked & ~missing),
        (State.BOUND, online & ~unchecked & ~missing),
    ]


def _open() -> QuerySet[Finding]:
    return Finding.objects.filter(kind=Kind.MISSING_GROUP_BINDING, healed_at__isnull=True)


def _missing(sessions: QuerySet[Any]) -> Q:
    """A live session of the member is what an open finding speaks of."""
    # The channels come first, so that a filter reads those few and not every membership.
    somewhere = Q(channel__in=_open().values("channel")) | Q(Exists(_open().filter(channel=None)))
    return somewhere & Q(Exists(_lost(sessions)))


def _lost(sessions: QuerySet[Any]) -> QuerySet[Finding]:
    """The open findings that speak of a live session of the outer query's member.

    A finding without a session is about all sessions of its uid on its node, one without a uid
    about all sessions there (the layer lost the node's whole group), one without a channel about
    all channels (so many were lost that they are counted only). One that names a session which
    is gone says nothing about those that came after it.
    """
    there = sessions.filter(uid=OuterRef(OuterRef("uid")), node_id=OuterRef("node_id"))
    named = there.filter(pk=OuterRef("session_id"))
    return _open().filter(
        Q(uid="") | Q(uid=OuterRef("uid")),
        Q(channel=OuterRef("channel")) | Q(channel=None),
        Q(session_id="") & Q(Exists(there)) | Q(Exists(named)),
    )


def _unchecked() -> Q:
    """Nobody looked at this session's bindings: no recent check ended after it was opened, or
    after its user joined."""
    return (
        Q(checked_at__isnull=True)
        | Q(checked_at__lt=ago(conf().check_fresh_seconds))
        | Q(checked_at__lt=F("opened_at"))
        | Q(checked_at__lt=OuterRef("joined_at"))
    )
