"""What messages tell the webhooks, in the transaction that appends them.

Bodies are WuKongIM's (docs/reference/webhooks.md). Where nobody wants to be told, nothing here asks
the database anything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from django.db.models import Exists, OuterRef

from messaging import registry
from messaging.encoding import message_object
from messaging.messages import StoredMessage
from subscriptions.bindings import SYSTEM_UID
from subscriptions.models import Membership
from subscriptions.selectors import pages
from webhooks import outbox
from webhooks.events import Event


def announce_messages(messages: Sequence[StoredMessage]) -> None:
    """Tell of messages that were appended, in order; of those that are not stored, only who is
    offline."""
    if outbox.wants(Event.MESSAGE_STORED):
        stored = [_object(message) for message in messages if message.seq]
        outbox.record_all(Event.MESSAGE_STORED, stored)
    if messages and outbox.wants(Event.MEMBERS_OFFLINE):
        outbox.record_all(Event.MEMBERS_OFFLINE, _offline(messages))


def _object(message: StoredMessage) -> dict[str, Any]:
    """The message as its sender named the channel: of a person, the receiver."""
    shown = message_object(message, message.key, message.sender)
    shown["header"]["no_persist"] = int(message.seq == 0)
    return shown


def _offline(messages: Sequence[StoredMessage]) -> Iterator[dict[str, Any]]:
    """For each message, the members without a live master session; many of them in several parts,
    as a cluster of WuKongIM does. One statement for all."""
    offline = defaultdict(list)
    for channel, uid in _members_offline({message.channel for message in messages}):
        offline[channel].append(uid)
    for message in messages:
        uids = [uid for uid in offline[message.channel] if uid != message.sender]
        shown = _object(message) if uids else {}
        for page in pages(uids):
            yield {**shown, "to_uids": page}


def _members_offline(channels: Collection[int]) -> Iterable[tuple[int, str]]:
    master = registry.live_sessions().filter(uid=OuterRef("uid"), device_level=registry.MASTER)
    rows = Membership.objects.filter(~Exists(master), channel__in=channels)
    named = rows.exclude(uid=SYSTEM_UID).order_by("channel_id", "uid")
    return named.values_list("channel_id", "uid")
