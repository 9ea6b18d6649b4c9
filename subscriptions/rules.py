"""Deny and allow lists: who of all may not send to a channel, or who alone may.

A list is kept apart from its channel, which may be missing, and a person's list is under that
person's uid. The triggers raise the version of every channel that a rule applies to, so sends are
judged anew. Writing what is written already writes nothing, and raises nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from django.db import connection, transaction
from django.db.models import QuerySet

from subscriptions.bindings import ChannelKey
from subscriptions.models import AccessRule
from subscriptions.selectors import pages
from subscriptions.services import check_key, clean_uids
from subscriptions.transactions import transact

logger = logging.getLogger(__name__)

RULES_LOCK = 0x72756C6573  # "rules": the first of a lock's two numbers may be anybody's


class List(Enum):
    """The two lists of a channel."""

    DENY = "deny"
    ALLOW = "allow"


@dataclass(frozen=True, slots=True)
class Written:
    """How many rules a call has added and removed."""

    added: int = 0
    removed: int = 0


def add(key: ChannelKey, kind: List, uids: Iterable[str], *, actor: str) -> Written:
    """Put these uids on a list. Raises InvalidChannel and InvalidUid, as all of these do."""
    wanted = clean_uids(uids)
    return _write(key, kind, lambda: Written(added=_add(key, kind, wanted)), actor)


def remove(key: ChannelKey, kind: List, uids: Iterable[str], *, actor: str) -> Written:
    """Take these uids off a list."""
    wanted = clean_uids(uids)
    return _write(key, kind, lambda: Written(removed=_remove(key, kind, wanted)), actor)


def replace(key: ChannelKey, kind: List, uids: Iterable[str], *, actor: str) -> Written:
    """Make a list have just these uids, by writing the difference."""
    wanted = clean_uids(uids)

    def change() -> Written:
        present = set(rules_of(key, kind).values_list("uid", flat=True))
        removed = _remove(key, kind, present.difference(wanted))
        return Written(_add(key, kind, set(wanted) - present), removed)

    return _write(key, kind, change, actor)


def clear(key: ChannelKey, kind: List, *, actor: str) -> Written:
    """Empty a list."""
    return replace(key, kind, [], actor=actor)


def rules_of(key: ChannelKey, kind: List) -> QuerySet[AccessRule]:
    """One list of a channel."""
    return AccessRule.objects.filter(
        channel_id=key.channel_id, channel_type=key.channel_type, allow=kind is List.ALLOW
    )


def _write(key: ChannelKey, kind: List, change: Callable[[], Written], actor: str) -> Written:
    """One change of a list at a time, whole or not at all, with a line in the log."""
    check_key(key)

    def write() -> Written:
        _hold(key, kind)
        written = change()
        if written != Written():
            place = {"channel": str(key), "list": kind.value, "actor": actor}
            fields = {**place, "added": written.added, "removed": written.removed}
            transaction.on_commit(lambda: logger.info("rules.changed", extra=fields))
        return written

    return transact(write)


def _hold(key: ChannelKey, kind: List) -> None:
    """Until this transaction ends nobody else changes this list: two that replace it at once would
    leave it with what both of them wanted. A lock by name, since a list may have no row. SQLite has
    one writer at a time anyway."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_advisory_xact_lock(hashtextextended(%s, %s))",
                [f"{kind.value}:{key}", RULES_LOCK],
            )


def _add(key: ChannelKey, kind: List, uids: Iterable[str]) -> int:
    """In the order of the uids, as everybody's: what others insert beside a service is waited for,
    and stays."""
    added = 0
    for page in pages(sorted(uids)):
        present = set(rules_of(key, kind).filter(uid__in=page).values_list("uid", flat=True))
        fresh = [_rule(key, kind, uid) for uid in page if uid not in present]
        AccessRule.objects.bulk_create(fresh, ignore_conflicts=True)
        added += len(fresh)
    return added


def _rule(key: ChannelKey, kind: List, uid: str) -> AccessRule:
    return AccessRule(
        channel_id=key.channel_id,
        channel_type=key.channel_type,
        uid=uid,
        allow=kind is List.ALLOW,
    )


def _remove(key: ChannelKey, kind: List, uids: Iterable[str]) -> int:
    return sum(rules_of(key, kind).filter(uid__in=page).delete()[0] for page in pages(sorted(uids)))
