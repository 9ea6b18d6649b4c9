"""Conversations: the list of a uid's chats, and what a reader keeps of it (http-api §1.37 ff)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import msgspec
from rest_framework import serializers
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from messaging import conversations, events
from messaging.api.reading import read_key
from messaging.conversations import (
    MESSAGE_ID,
    SETTING,
    Bound,
    Conversation,
    Recent,
    Unread,
)
from messaging.encoding import message_object
from messaging.models import Message
from subscriptions.api.base import ApiView
from subscriptions.api.serializers import (
    LARGEST,
    Body,
    SwitchField,
    TextField,
    UidField,
    WholeField,
)
from subscriptions.bindings import SYSTEM_UID, ChannelKey

DEFAULT_COUNT, LARGEST_COUNT = 15, 100
"""Messages of each conversation: 1,000 × 100 × 0.4 KB = 40 MB of JSON for texts of usual length."""

DEFAULT_PAGE, LARGEST_PAGE = 100, 500
"""Conversations of one page (WuKongIM's)."""

SEQS_LENGTH = 1 << 20
"""Characters of last_msg_seqs: 1,000 conversations × 220 = 0.2 MB, and five times that."""

ASKED = 1_000
"""Channels that one request may name: as many as a list of conversations has."""


# --- bodies ---------------------------------------------------------------------------------------


class CountField(WholeField):
    """How many messages of each conversation; more than the largest is the largest."""

    def to_internal_value(self, data: Any) -> int:
        """The number."""
        return min(super().to_internal_value(data), LARGEST_COUNT)


class SeqsField(TextField):
    """The last seqs that a client has, `id:type:seq|id:type:seq`: {(type, id): seq}.

    What is not of that form is passed over, since a peer may have chosen a uid with `|`: then its
    messages come again, and those of all others do not fail.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(longest=SEQS_LENGTH, blank=True, **kwargs)

    def to_internal_value(self, data: Any) -> dict[tuple[int, str], int]:
        """The seqs."""
        seqs: dict[tuple[int, str], int] = {}
        for part in super().to_internal_value(data).split("|"):
            name, kind, seq = ("", "", *part.rsplit(":", 2))[-3:]  # an id may have colons
            if _is_number(kind) and _is_number(seq):
                seqs[int(kind), name] = int(seq)
        return seqs


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= LARGEST


class SyncBody(Body):
    """POST /conversation/sync."""

    uid = UidField()
    version = WholeField(default=0)
    last_msg_seqs = SeqsField(default=dict)
    msg_count = CountField(default=0)
    only_unread = SwitchField()
    exclude_channel_types = serializers.ListField(
        child=WholeField(high=255), required=False, default=list, max_length=256
    )
    page = WholeField(default=0)
    page_size = WholeField(default=0)

    def validate_page_size(self, size: int) -> int:
        """0 is the default, more than the largest is the largest."""
        return min(size or DEFAULT_PAGE, LARGEST_PAGE)


class PlaceBody(Body):
    """A uid and a channel as that uid calls it: adds `key`, None for a pair of two others."""

    uid = UidField()
    channel_id = TextField()
    channel_type = WholeField(high=255)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Add the key."""
        attrs["key"] = read_key(attrs["uid"], attrs["channel_type"], attrs["channel_id"])
        return attrs


class UnreadBody(PlaceBody):
    """POST /conversations/setUnread. `message_seq` is ignored, as in WuKongIM."""

    unread = WholeField(default=0)


class UidBody(Body):
    """POST /conversation/channels."""

    uid = UidField()


class ChannelField(Body):
    """One of the channels that are asked for."""

    channel_id = TextField()
    channel_type = WholeField(high=255)


class PositionField(ChannelField):
    """The same, and from which seq on."""

    last_msg_seq = WholeField(default=0)


class ChannelsBody(Body):
    """POST /conversation/syncByChannels: adds `key` to each of the channels."""

    uid = UidField()
    channels = serializers.ListField(child=ChannelField(), max_length=ASKED)
    msg_count = CountField(default=0)

    def validate_msg_count(self, count: int) -> int:
        """0 is the default."""
        return count or DEFAULT_COUNT

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Add the keys."""
        for each in attrs["channels"]:
            each["key"] = read_key(attrs["uid"], each["channel_type"], each["channel_id"])
        return attrs


class MessagesBody(ChannelsBody):
    """POST /conversation/syncMessages."""

    channels = serializers.ListField(child=PositionField(), max_length=ASKED)
    order_by_last = SwitchField()


# --- lists ----------------------------------------------------------------------------------------


class QuickJSON(JSONRenderer):
    """JSON of plain values. 15,000 messages take a tenth of the time that the stock one needs."""

    def render(self, data: Any, *args: Any, **kwargs: Any) -> bytes:
        """The bytes."""
        return msgspec.json.encode(data)


class Shown(msgspec.Struct, gc=False):
    """A message object (§0). It is `encoding.message_object` for many: that makes each of them
    in ten times the time."""

    header: msgspec.Raw
    setting: int
    message_id: int
    message_idstr: str
    client_msg_no: str
    message_seq: int
    from_uid: str
    channel_id: str
    channel_type: int
    expire: int
    timestamp: int
    payload: bytes
    topic: str | msgspec.UnsetType


HEADERS = [
    msgspec.Raw(b'{"no_persist":0,"red_dot":%d,"sync_once":0}' % red_dot) for red_dot in (0, 1)
]


def _message_objects(
    recents: Mapping[int, Sequence[Recent]], keys: Mapping[int, ChannelKey], uid: str
) -> dict[int, list[Any]]:
    """{channel pk: its messages as `uid` is shown them}. Commands are not among them."""
    shown: dict[int, list[Any]] = {}
    streams = _streams(recents)
    for channel, rows in recents.items():
        shown[channel] = _plain(rows, keys[channel], uid)
        for at, row in enumerate(rows if streams else ()):
            if found := streams.get(row[MESSAGE_ID]):
                message, meta = found
                shown[channel][at] = message_object(message, keys[channel], uid, meta)
    return shown


def _plain(rows: Iterable[Recent], key: ChannelKey, uid: str) -> list[Shown]:
    kind, name = key.channel_type, key.seen_by(uid)
    return [
        Shown(
            HEADERS[red_dot], setting, message_id, str(message_id), number, seq,
            "" if sender == SYSTEM_UID else sender, name, kind, expire, created_ms // 1_000,
            payload, topic or msgspec.UNSET,
        )
        for _, seq, message_id, number, sender, payload, red_dot, setting, topic, expire, created_ms
        in rows
    ]  # fmt: skip


def _streams(
    recents: Mapping[int, Iterable[Recent]],
) -> dict[int, tuple[Message, dict[str, Any]]]:
    """{message id: message and what it has besides} of those that are written bit by bit. Two
    queries, or none where there are no such messages."""
    every = chain.from_iterable(recents.values())
    ids = [row[MESSAGE_ID] for row in every if row[SETTING] & events.STREAM]
    messages = list(Message.objects.filter(message_id__in=ids)) if ids else []
    meta = events.event_meta(messages)
    return {each.message_id: (each, meta[each.pk]) for each in messages}


class ConversationSync(ApiView):
    """POST /conversation/sync: the newest conversations of a uid, with their newest messages."""

    renderer_classes = [QuickJSON]

    def post(self, request: Request) -> Response:
        """A bare array, the newest first, of those that have a message for this client."""
        body = self.body(SyncBody)
        uid, count = body["uid"], body["msg_count"]
        if not count:
            return Response([])
        found = conversations.newest(uid, body["exclude_channel_types"])
        wanted = [(each, _bound(each, body)) for each in found]
        wanted = [(each, seq) for each, seq in wanted if each.last_seq >= seq]
        if body["page"]:
            size = body["page_size"]
            wanted = wanted[(body["page"] - 1) * size :][:size]
        return Response(_list(uid, wanted, count))


def _bound(conversation: Conversation, body: dict[str, Any]) -> int:
    """The seq from which on a client lacks a conversation's messages."""
    key, known = conversation.key, None
    if body["last_msg_seqs"]:
        known = body["last_msg_seqs"].get((key.channel_type, key.seen_by(body["uid"])))
    if known is None:
        unread_only = body["version"] or body["only_unread"]
        known = max(conversation.read_seq, conversation.joined_seq) if unread_only else 0
    return max(known, conversation.hidden_seq) + 1


def _list(uid: str, wanted: Sequence[tuple[Conversation, int]], count: int) -> list[dict[str, Any]]:
    unread = conversations.unread(uid, [each for each, _ in wanted])
    bounds = [Bound(each.channel, seq) for each, seq in wanted]
    keys = {each.channel: each.key for each, _ in wanted}
    recents = _message_objects(conversations.recents(bounds, count), keys, uid)
    return [_shown(each, unread[each.channel], recents[each.channel], uid) for each, _ in wanted]


def _shown(
    conversation: Conversation, unread: Unread, recents: Sequence[Any], uid: str
) -> dict[str, Any]:
    key = conversation.key
    return {
        "channel_id": key.seen_by(uid),
        "channel_type": key.channel_type,
        "unread": unread.count,
        "timestamp": conversation.created_ms // 1_000,
        "last_msg_seq": conversation.last_seq,
        "last_client_msg_no": conversation.client_msg_no,
        "offset_msg_seq": 0,
        "readed_to_msg_seq": unread.read_to,
        "version": conversation.created_ms * 1_000_000,
        "recents": recents,
    }


class ConversationsByChannel(ApiView):
    """POST /conversation/syncByChannels: these conversations, in the order they are named."""

    renderer_classes = [QuickJSON]

    def post(self, request: Request) -> Response:
        """The shape of a sync, also for what is no conversation of this uid: then it is empty."""
        body = self.body(ChannelsBody)
        uid = body["uid"]
        found = conversations.of_channels(uid, _keys(body))
        known = {
            key: (each, each.hidden_seq + 1)
            for key, each in found.items()
            if key.channel_type not in conversations.WITHOUT
        }
        shown = dict(zip(known, _list(uid, list(known.values()), body["msg_count"]), strict=True))
        return Response([shown.get(each["key"]) or _nothing(each) for each in body["channels"]])


def _keys(body: dict[str, Any]) -> list[ChannelKey]:
    return [each["key"] for each in body["channels"] if each["key"] is not None]


def _nothing(channel: dict[str, Any]) -> dict[str, Any]:
    """What is shown of a channel that is no conversation, under the name it was asked by."""
    key = ChannelKey(channel["channel_type"], channel["channel_id"])
    shown = _shown(Conversation(0, key, 0, 0, 0, 0), Unread(0, 0), [], "")
    return {**shown, "channel_id": channel["channel_id"]}


class ConversationMessages(ApiView):
    """POST /conversation/syncMessages: messages of these channels, from a seq of each on."""

    renderer_classes = [QuickJSON]

    def post(self, request: Request) -> Response:
        """In the order the channels are named; of others than members, none."""
        body = self.body(MessagesBody)
        uid, asked = body["uid"], body["channels"]
        found = conversations.of_channels(uid, _keys(body))
        seqs = {each["key"]: each["last_msg_seq"] for each in asked}
        bounds = [Bound(each.channel, seqs[key]) for key, each in found.items()]
        oldest = not body["order_by_last"]
        recents = conversations.recents(bounds, body["msg_count"], oldest=oldest)
        keys = {each.channel: key for key, each in found.items()}
        messages = _message_objects(recents, keys, uid)
        own = conversations.own_last(uid, keys)
        known: dict[ChannelKey | None, tuple[list[Any], int]] = {
            key: (messages[channel], own.get(channel, 0)) for channel, key in keys.items()
        }
        return Response([_part(each, *known.get(each["key"], ([], 0))) for each in asked])


def _part(channel: dict[str, Any], messages: list[Any], own: int) -> dict[str, Any]:
    return {
        "channel_id": channel["channel_id"],
        "channel_type": channel["channel_type"],
        "messages": messages,
        "user_last_msg_seq": own,
    }


class ConversationChannels(ApiView):
    """POST /conversation/channels: the channels of a uid's conversations, by their stored ids."""

    def post(self, request: Request) -> Response:
        """A bare array, in the order of joining."""
        keys = conversations.keys_of(self.body(UidBody)["uid"])
        return Response(
            [{"channel_id": key.channel_id, "channel_type": key.channel_type} for key in keys]
        )


# --- positions ------------------------------------------------------------------------------------


class UnreadSet(ApiView):
    """POST /conversations/setUnread: all but the newest messages are read."""

    def post(self, request: Request) -> Response:
        """Only ever fewer. Without such a conversation, nothing."""
        body = self.body(UnreadBody)
        if body["key"] is not None:
            conversations.leave_unread(body["uid"], body["key"], body["unread"])
        return Response({"status": 200})


class UnreadClear(ApiView):
    """POST /conversations/clearUnread: everything is read."""

    def post(self, request: Request) -> Response:
        """Without such a conversation, nothing."""
        body = self.body(PlaceBody)
        if body["key"] is not None:
            conversations.leave_unread(body["uid"], body["key"], 0)
        return Response({"status": 200})


class ConversationDelete(ApiView):
    """POST /conversations/delete: hidden until the next message. The membership stays."""

    def post(self, request: Request) -> Response:
        """Without such a conversation, nothing."""
        body = self.body(PlaceBody)
        if body["key"] is not None:
            conversations.hide(body["uid"], body["key"])
        return Response({"status": 200})
