"""Writes to channels and memberships, one transaction each, announced once they are committed.

Nothing here touches versions, seqs or the change log: the triggers do. A service reads the
changes that were counted and refuses to commit when one of its own is not among them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from django.db import connection, transaction
from django.db.models import QuerySet

from subscriptions import signals
from subscriptions.bindings import ChannelKey, ChannelType, person_channel_id
from subscriptions.errors import ChannelMissing, InvalidChannel, InvalidUid, TriggersMissing
from subscriptions.models import Channel, Membership, MembershipChange
from subscriptions.names import is_channel_id, is_uid
from subscriptions.selectors import is_channel, pages
from subscriptions.transactions import transact

logger = logging.getLogger(__name__)

CHANNEL_ID = "1 to 201 characters without @ # & and control characters"
PERSON_ID = "the peer's uid, or both uids with an @ between"
AGENT_ID = "the uid and the agent's uid with an @ between"
ID_RULES = {ChannelType.PERSON: PERSON_ID, ChannelType.AGENT: AGENT_ID}
"""What a channel id is where it is not just any name."""
FLAGS = ("large", "ban", "disband", "send_ban", "allow_stranger")


def clean_uids(uids: Iterable[str]) -> list[str]:
    """The uids without blanks and repeats, in order. Raises InvalidUid naming the first bad one."""
    kept = list(dict.fromkeys(uid for uid in uids if uid.strip()))
    for uid in kept:
        if not is_uid(uid):
            raise InvalidUid(f"{InvalidUid.__doc__} This one is not: {uid[:120]!r}")
    return kept


def check_key(key: ChannelKey) -> ChannelKey:
    """The key itself. Raises InvalidChannel for an id or type that can never be a channel."""
    if key.channel_type not in frozenset(ChannelType):
        raise InvalidChannel(f"Channel type {key.channel_type} does not exist; 2 is a group.")
    if not is_channel_id(key.channel_id, key.channel_type):
        rule = ID_RULES.get(ChannelType(key.channel_type), CHANNEL_ID)
        raise InvalidChannel(f"A channel id is {rule}. This one is not: {key.channel_id[:210]!r}")
    return key


def canonical(key: ChannelKey) -> ChannelKey:
    """The checked key as it is stored: a person channel's two uids may come in any order."""
    if not check_key(key).is_person or not key.pair:
        return key
    return ChannelKey(key.channel_type, person_channel_id(*key.pair))


def check_members(key: ChannelKey, uids: Iterable[str]) -> None:
    """Raises InvalidUid when a channel of two would get a member who is not one of them."""
    others = [uid for uid in uids if uid not in key.pair] if key.is_of_two else []
    if others and key.pair:
        raise InvalidUid(f"{key} is between two people: nobody else can join it.")
    if others:
        raise InvalidUid(f"{key} is a person's own row: it carries flags and has no members.")


def save_channel(
    key: ChannelKey, flags: dict[str, bool] | None = None, *, actor: str = ""
) -> Channel:
    """The channel of `key`, created when missing; given `flags` overwrite all five of them.

    A changed flag raises the channel's version (by trigger): sends are judged anew. Flags that
    are so already are not written.
    """
    key = canonical(key)
    return transact(lambda: _save_channel(key, flags, actor))


def _save_channel(key: ChannelKey, flags: dict[str, bool] | None, actor: str) -> Channel:
    wanted = {name: bool(flags and flags.get(name)) for name in FLAGS}
    channel, changed = Channel.objects.get_or_create(
        channel_type=key.channel_type, channel_id=key.channel_id, defaults=wanted
    )
    if not changed and flags is not None:
        changed = any(getattr(channel, name) != on for name, on in wanted.items())
        if changed:
            Channel.objects.filter(pk=channel.pk).update(**wanted)
            channel.refresh_from_db()
    if changed and flags is not None:
        _log_flags_on_commit(key, [name for name in FLAGS if wanted[name]], actor)
    return channel


def _log_flags_on_commit(key: ChannelKey, flags: list[str], actor: str) -> None:
    saved = {"channel": str(key), "flags": flags, "actor": actor}
    transaction.on_commit(lambda: logger.info("channel.saved", extra=saved))


def join(
    key: ChannelKey, uids: Iterable[str], *, actor: str, reason: str = "", reset: bool = False
) -> list[str]:
    """Make these uids members, creating the channel when missing; returns who was not one before.

    With `reset` the list is the whole membership afterwards: others leave, those who stay keep
    their place. Asking for a member who is one already writes nothing, and still makes every node
    ensure his bindings (F02). Raises InvalidChannel, and InvalidUid also for a third person in a
    person channel.
    """
    key, wanted = canonical(key), clean_uids(uids)
    check_members(key, wanted)

    def change() -> list[str]:
        _save_channel(key, None, actor)
        channel = _locked(key).get()
        if reset:
            kept = set(wanted)
            others = [uid for uid in _uids(channel) if uid not in kept]
            remove(channel, others, actor, reason or "reset")
        return add(channel, wanted, actor, reason)

    return transact(change)


def leave(key: ChannelKey, uids: Iterable[str], *, actor: str, reason: str = "") -> list[str]:
    """End the membership of these uids; returns those who were members. Twice is once."""
    key, wanted = canonical(key), clean_uids(uids)

    def change() -> list[str]:
        channel = _locked(key).first()
        return remove(channel, wanted, actor, reason) if channel else []

    return transact(change)


def leave_all(key: ChannelKey, *, actor: str, reason: str = "") -> int:
    """End every membership of a channel; returns how many. Raises ChannelMissing."""
    key = canonical(key)

    def change() -> int:
        channel = _locked(key).first()
        if channel is None:
            raise ChannelMissing(f"There is no channel {key}.")
        return len(remove(channel, _uids(channel), actor, reason))

    return transact(change)


def _locked(key: ChannelKey) -> QuerySet[Channel]:
    """The channel's row, taken: the lock that orders messages and changes (SQLite has but one)."""
    return Channel.objects.select_for_update(no_key=True).filter(is_channel(key))


def _members(channel: Channel, uids: Iterable[str]) -> QuerySet[Membership]:
    return Membership.objects.filter(channel=channel, uid__in=uids)


def _uids(channel: Channel) -> list[str]:
    return list(Membership.objects.filter(channel=channel).values_list("uid", flat=True))


def add(channel: Channel, uids: list[str], actor: str, reason: str) -> list[str]:
    """Join those of clean `uids` who are no members, and announce all of them; returns who was
    not. The caller holds the channel's row."""
    fresh: dict[str, int] = {}
    for page in pages(uids):
        fresh |= _add_page(channel, page, actor, reason)
    announce_on_commit(channel, uids, fresh, True, actor, reason)
    return list(fresh)


def _add_page(channel: Channel, page: list[str], actor: str, reason: str) -> dict[str, int]:
    """{uid: version of the join}."""
    before = _version(channel)
    present = set(_members(channel, page).values_list("uid", flat=True))
    fresh = [uid for uid in page if uid not in present]
    _insert(channel, fresh)
    return _name_changes(channel, before, fresh, True, actor, reason)


def _insert(channel: Channel, uids: list[str]) -> None:
    """The rows of these members. On PostgreSQL by plain SQL, which writes no text for each row:
    with the ORM the channel was held half as long again."""
    if connection.vendor != "postgresql":
        Membership.objects.bulk_create([Membership(channel=channel, uid=uid) for uid in uids])
    elif uids:
        with connection.cursor() as cursor:
            cursor.execute(
                f"INSERT INTO {Membership._meta.db_table} (channel_id, uid)"
                " SELECT %s, unnest(%s::text[])",
                [channel.pk, uids],
            )


def remove(channel: Channel, uids: list[str], actor: str, reason: str) -> list[str]:
    """End the membership of those of `uids` who are members, and announce it; returns them. The
    caller holds the channel's row."""
    gone: dict[str, int] = {}
    for page in pages(uids):
        before = _version(channel)
        rows = _members(channel, page)
        present = set(rows.values_list("uid", flat=True))
        rows._raw_delete(rows.db)  # without reading each row for a signal of its own
        leaving = [uid for uid in page if uid in present]
        gone |= _name_changes(channel, before, leaving, False, actor, reason)
    announce_on_commit(channel, uids, gone, False, actor, reason)
    return list(gone)


def _version(channel: Channel) -> int:
    return Channel.objects.values_list("membership_version", flat=True).get(pk=channel.pk)


def _name_changes(
    channel: Channel, before: int, uids: list[str], joined: bool, actor: str, reason: str
) -> dict[str, int]:
    """Write actor and reason to the lines that the triggers just made; {uid: version}.

    The row is locked, so every line above `before` is of this call. Raises TriggersMissing when a
    uid has none (F10): the transaction must not commit.
    """
    if not uids:
        return {}
    lines = MembershipChange.objects.filter(channel=channel, version__gt=before)
    counted = dict(lines.filter(joined=joined).values_list("uid", "version"))
    if counted.keys() != set(uids):
        text = f"{len(uids)} memberships written, {len(counted)} counted."
        raise TriggersMissing(f"{TriggersMissing.__doc__} ({text})")
    lines.filter(actor__isnull=True).update(actor=actor[:150], reason=reason[:200])
    return {uid: counted[uid] for uid in uids}


def announce_saved(instance: Membership, created: bool, **kwargs: Any) -> None:
    """`post_save` of a membership: one that was created by the ORM, not by a service."""
    if created:
        _announce_one(instance, True)


def announce_deleted(instance: Membership, **kwargs: Any) -> None:
    """`post_delete` of a membership deleted through the ORM."""
    _announce_one(instance, False)


def _announce_one(instance: Membership, joined: bool) -> None:
    lines = MembershipChange.objects.filter(
        channel=instance.channel_id, uid=instance.uid, joined=joined
    )
    version = lines.order_by("-version").values_list("version", flat=True).first()
    if version is None:
        raise TriggersMissing
    changed = {instance.uid: version}
    announce_on_commit(instance.channel, [instance.uid], changed, joined, "", "")


def announce_on_commit(
    channel: Channel, uids: Sequence[str], changed: dict[str, int], joined: bool, actor: str,
    reason: str,
) -> None:  # fmt: skip
    """After commit: a line in the log for each change, one signal for all the uids asked for."""
    if not uids:
        return
    key, pk = channel.key, channel.pk
    event = "membership.joined" if joined else "membership.left"

    def announce() -> None:
        for uid, version in changed.items():
            fields = {"uid": uid, "channel": str(key), "version": version}
            logger.info(event, extra={**fields, "actor": actor, "reason": reason})
        signals.send(
            signals.membership_changed, Membership, channel=key, channel_pk=pk, uids=tuple(uids),
            joined=joined, actor=actor, reason=reason,
        )  # fmt: skip

    transaction.on_commit(announce)
