"""Which messages of a channel's log are read, and by whom (http-api §1.11, §1.30 to §1.34).

Commands are messages of the same log (decision 0038), and are left out of everything here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from django.db.models import QuerySet

from messaging.models import Message
from subscriptions.bindings import ChannelKey
from subscriptions.models import Channel, Membership
from subscriptions.selectors import is_channel

OLDER = 0
NEWER = 1


@dataclass(frozen=True, slots=True)
class Span:
    """Seqs with after < seq <= up_to (None: the end), of which the newest or the first count."""

    after: int
    up_to: int | None
    newest: bool


def span(start: int, end: int, mode: int) -> Span:
    """The span of a request. `start` belongs to it, `end` does not; in both modes 0 is no bound,
    and 0, 0 is the newest messages. A span that nothing lies in is no error."""
    if not start and not end:
        return Span(0, None, newest=True)
    if mode == NEWER:
        return Span(start - 1, end - 1 if end else None, newest=False)
    return Span(end, start, newest=True)


def read(channel: int | None, wanted: Span, limit: int) -> tuple[list[Message], bool]:
    """At most `limit` messages, ascending, and whether the span has more. One query.

    Nothing for no channel.
    """
    if channel is None:
        return [], False
    rows = _chat(channel).filter(seq__gt=wanted.after)
    if wanted.up_to is not None:
        rows = rows.filter(seq__lte=wanted.up_to)
    messages = list(rows.order_by("-seq" if wanted.newest else "seq")[: limit + 1])
    more = len(messages) > limit
    messages = messages[:limit]
    return (messages[::-1] if wanted.newest else messages), more


def _chat(channel: int) -> QuerySet[Message]:
    return Message.objects.filter(channel=channel, sync_once=False)


def find_readable(key: ChannelKey | None, uid: str) -> int | None:
    """The channel's pk if `uid` is a member of it now; without a uid, if there is such a channel.

    None for no key.
    """
    if key is None:
        return None
    if not uid:
        return Channel.objects.filter(is_channel(key)).values_list("pk", flat=True).first()
    rows = Membership.objects.filter(is_channel(key, "channel__"), uid=uid)
    return rows.values_list("channel_id", flat=True).first()


def find_last(channel: int | None) -> Message | None:
    """The newest message."""
    return None if channel is None else _chat(channel).order_by("-seq").first()


def named(
    channel: int | None, seqs: Sequence[int], ids: Sequence[int], numbers: Sequence[str]
) -> list[Message]:
    """The messages with these seqs, then those with these ids, then those with these numbers of
    their clients: one for each name that there is. Of the same number from several senders the
    first message counts. A statement for each kind of name, by its index."""
    if channel is None:
        return []
    found: list[Message | None] = []
    if seqs:
        by_seq = {each.seq: each for each in _chat(channel).filter(seq__in=seqs)}
        found += map(by_seq.get, seqs)
    if ids:
        by_id = {each.message_id: each for each in _chat(channel).filter(message_id__in=ids)}
        found += map(by_id.get, ids)
    if numbers:
        rows = _chat(channel).filter(client_msg_no__in=numbers).exclude(client_msg_no="")
        by_number = {each.client_msg_no: each for each in rows.order_by("-seq")}
        found += map(by_number.get, numbers)
    return [message for message in found if message is not None]
