"""Writes to channels and memberships, one transaction each, announced once they are committed.

Nothing here touches versions, seqs or the change log: the triggers do. A service reads the
version before and after and refuses to commit when a change was not counted.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from django.db import transaction

from subscriptions import signals
from subscriptions.bindings import ChannelKey, ChannelType
from subscriptions.conf import conf
from subscriptions.errors import ChannelMissing, InvalidChannel, InvalidUid, TriggersMissing
from subscriptions.models import Channel, Membership, MembershipChange
from subscriptions.selectors import find_channel

logger = logging.getLogger(__name__)

FLAGS = ("large", "ban", "disband", "send_ban", "allow_stranger")
UID_LENGTH = 100
FORBIDDEN = frozenset("@#&")


def has_control(text: str) -> bool:
    """Whether a name has control characters, lone surrogates or NUL, which no store takes alike."""
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def clean_uids(uids: Iterable[str]) -> list[str]:
    """The uids without blanks and repeats, in order. Raises InvalidUid naming the first bad one."""
    kept = list(dict.fromkeys(uid for uid in uids if uid.strip()))
    for uid in kept:
        if len(uid) > UID_LENGTH or FORBIDDEN & set(uid) or has_control(uid):
            raise InvalidUid(f"{InvalidUid.__doc__} This one is not: {uid[:120]!r}")
    return kept


def check_key(key: ChannelKey) -> ChannelKey:
    """The key itself. Raises InvalidChannel for an id or type that can never be a channel."""
    forbidden = frozenset("#&") if key.is_person else FORBIDDEN
    if key.channel_type not in frozenset(ChannelType):
        raise InvalidChannel(f"Channel type {key.channel_type} does not exist; 2 is a group.")
    if not key.channel_id or len(key.channel_id) > 2 * UID_LENGTH + 1:
        raise InvalidChannel("A channel id has 1 to 201 characters.")
    if forbidden & set(key.channel_id) or has_control(key.channel_id):
        raise InvalidChannel(f"A channel id is without @ # & and control characters: {key}")
    return key


@transaction.atomic
def save_channel(key: ChannelKey, flags: dict[str, bool] | None = None) -> Channel:
    """The channel of `key`, created when missing; given `flags` overwrite all five of them.

    A changed flag raises the channel's version (by trigger): sends are judged anew.
    """
    check_key(key)
    channel, created = Channel.objects.get_or_create(
        channel_type=key.channel_type, channel_id=key.channel_id, defaults=flags or {}
    )
    if flags is not None and not created:
        Channel.objects.filter(pk=channel.pk).update(
            **{name: flags.get(name, False) for name in FLAGS}
        )
        channel.refresh_from_db()
    if flags is not None:
        transaction.on_commit(
            lambda: _send(signals.permissions_changed, channel=key, channel_pk=channel.pk)
        )
    return channel


def join(
    key: ChannelKey, uids: Iterable[str], *, actor: str, reason: str = "", reset: bool = False
) -> list[str]:
    """Make these uids members, creating the channel when missing; returns who was not one before.

    With `reset` the list is the whole membership afterwards: others leave, those who stay keep
    their place. Asking for a member who is one already writes nothing, and still makes every node
    ensure his bindings (F02).
    """
    wanted = clean_uids(uids)
    with transaction.atomic():
        channel = _lock(save_channel(key))
        if reset:
            gone = _members(channel).exclude(uid__in=wanted) if wanted else _members(channel)
            _remove(channel, list(gone.values_list("uid", flat=True)), actor, reason or "reset")
        present = set(_members(channel).filter(uid__in=wanted).values_list("uid", flat=True))
        fresh = [uid for uid in wanted if uid not in present]
        for page in _pages(fresh):
            before = _version(channel)
            Membership.objects.bulk_create([Membership(channel=channel, uid=uid) for uid in page])
            _name_changes(channel, before, len(page), actor, reason)
        _announce_on_commit(channel, wanted, fresh, True, actor, reason)
    return fresh


def leave(key: ChannelKey, uids: Iterable[str], *, actor: str, reason: str = "") -> list[str]:
    """End the membership of these uids; returns those who were members. Twice is once."""
    wanted = clean_uids(uids)
    with transaction.atomic():
        channel = find_channel(key)
        if channel is None:
            return []
        return _remove(_lock(channel), wanted, actor, reason)


def leave_all(key: ChannelKey, *, actor: str, reason: str = "") -> int:
    """End every membership of a channel; returns how many. Raises ChannelMissing."""
    with transaction.atomic():
        channel = find_channel(key)
        if channel is None:
            raise ChannelMissing(f"There is no channel {key}.")
        uids = list(_members(_lock(channel)).values_list("uid", flat=True))
        return len(_remove(channel, uids, actor, reason))


def _members(channel: Channel) -> Any:
    return Membership.objects.filter(channel=channel)


def _lock(channel: Channel) -> Channel:
    """Take the channel's row, the lock that orders messages and changes (a no-op on SQLite)."""
    return Channel.objects.select_for_update().get(pk=channel.pk)


def _version(channel: Channel) -> int:
    return Channel.objects.values_list("membership_version", flat=True).get(pk=channel.pk)


def _pages(uids: Sequence[str]) -> Iterable[list[str]]:
    rest = iter(uids)
    while page := list(islice(rest, conf().page_size)):
        yield page


def _remove(channel: Channel, uids: list[str], actor: str, reason: str) -> list[str]:
    gone: list[str] = []
    for page in _pages(uids):
        before = _version(channel)
        present = list(_members(channel).filter(uid__in=page).values_list("uid", flat=True))
        _members(channel).filter(uid__in=present)._raw_delete("default")
        _name_changes(channel, before, len(present), actor, reason)
        gone += present
    _announce_on_commit(channel, uids, gone, False, actor, reason)
    return gone


def _name_changes(channel: Channel, before: int, count: int, actor: str, reason: str) -> None:
    """Write actor and reason to the lines that the triggers just made, and count them (F10)."""
    named = MembershipChange.objects.filter(
        channel=channel, version__gt=before, actor__isnull=True
    ).update(actor=actor[:150], reason=reason[:200])
    if named != count:
        raise TriggersMissing(f"{TriggersMissing.__doc__} ({count} written, {named} counted.)")


def announce_saved(instance: Membership, created: bool, **kwargs: Any) -> None:
    """`post_save` of a membership: one that was created by the ORM, not by a service."""
    if created:
        _announce_on_commit(instance.channel, [instance.uid], [instance.uid], True, "", "")


def announce_deleted(instance: Membership, **kwargs: Any) -> None:
    """`post_delete` of a membership deleted through the ORM."""
    _announce_on_commit(instance.channel, [instance.uid], [instance.uid], False, "", "")


def _announce_on_commit(
    channel: Channel, uids: Sequence[str], changed: Sequence[str], joined: bool, actor: str,
    reason: str,
) -> None:  # fmt: skip
    if not uids:
        return
    key, pk = channel.key, channel.pk
    event = "membership.joined" if joined else "membership.left"

    def announce() -> None:
        for uid in changed:
            logger.info(event, extra={"uid": uid, "channel": str(key), "actor": actor})
        _send(
            signals.membership_changed, channel=key, channel_pk=pk, uids=tuple(uids),
            joined=joined, actor=actor, reason=reason,
        )  # fmt: skip

    transaction.on_commit(announce)


def _send(signal: Any, **fields: Any) -> None:
    """Send a signal after commit; a receiver that fails is logged and hurts nobody else."""
    for receiver, answer in signal.send_robust(sender=Membership, **fields):
        if isinstance(answer, Exception):
            logger.error("signal.failed", exc_info=answer, extra={"receiver": repr(receiver)})
