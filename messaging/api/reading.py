"""Reading single messages (http-api §1.30 to §1.34).

Who names a reader, `login_uid`, gets what that member may read. Where WuKongIM takes none, the back
end reads for itself, as its token allows.
"""

from __future__ import annotations

from typing import Any

from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from messaging.api import history
from messaging.api.serializers import key_seen_by
from messaging.encoding import message_object
from messaging.models import Message
from subscriptions.api.base import ApiView
from subscriptions.api.serializers import Body, SeqField, TextField, UidField, WholeField
from subscriptions.bindings import ChannelKey
from subscriptions.errors import InvalidChannel, InvalidUid
from subscriptions.services import canonical

NAMES = 1_000
"""Messages that one request may name, of each kind: as many as a page has."""


class ReaderBody(Body):
    """A channel and who reads it: adds `key`, None for the person channel of two others."""

    login_uid = UidField(required=False, blank=True, default="")
    channel_id = TextField()
    channel_type: serializers.Field = WholeField(high=255)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Add the key. Without a reader a person channel is named by its pair."""
        attrs["key"] = read_key(attrs["login_uid"], attrs["channel_type"], attrs["channel_id"])
        return attrs


def read_key(uid: str, channel_type: int, channel_id: str) -> ChannelKey | None:
    """The channel that `uid` calls so; None for the person channel of two others. Without a uid,
    the channel that the pair names. Raises ValidationError."""
    try:
        if uid:
            return key_seen_by(uid, channel_type, channel_id)
        key = canonical(ChannelKey(channel_type, channel_id))
    except (InvalidChannel, InvalidUid) as error:
        raise serializers.ValidationError(str(error)) from error
    except ValueError:
        return None
    if key.is_person and not key.pair:
        text = "is required to read a person channel by the peer's uid."
        raise serializers.ValidationError({"login_uid": text})
    return key


class ReaderQuery(ReaderBody):
    """The same as a query string."""

    channel_type = SeqField(longest=3)


class MemberQuery(ReaderQuery):
    """GET /channel/last_message."""

    login_uid = UidField()


class NumberQuery(ReaderQuery):
    """GET /message/byclientmsgno."""

    client_msg_no = TextField(longest=100)


def _list_of(field: serializers.Field) -> serializers.ListField:
    return serializers.ListField(child=field, required=False, default=list, max_length=NAMES)


class MessagesBody(ReaderBody):
    """POST /messages."""

    message_seqs = _list_of(WholeField())
    message_ids = _list_of(WholeField())
    client_msg_nos = _list_of(TextField(longest=100, blank=True))


class MessageBody(ReaderBody):
    """POST /message: one message by its id, or by its client's number."""

    message_id = WholeField(default=0)
    client_msg_no = TextField(required=False, blank=True, default="", longest=100)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Refuses a body that names no message."""
        if not attrs["message_id"] and not attrs["client_msg_no"]:
            text = "or client_msg_no is required."
            raise serializers.ValidationError({"message_id": text})
        return super().validate(attrs)


class MaxMessageSeq(ApiView):
    """GET /channel/max_message_seq: the seq of a channel's newest message."""

    def get(self, request: Request) -> Response:
        """0 where there is none. Without login_uid it is told as well: a number has no content."""
        last = history.find_last(_channel(self.query(ReaderQuery)))
        return Response({"message_seq": last.seq if last else 0})


class LastMessage(ApiView):
    """GET /channel/last_message: a channel's newest message."""

    def get(self, request: Request) -> Response:
        """The message object, or `{"status": 404}`."""
        body = self.query(MemberQuery)
        return _one(body, history.find_last(_channel(body)))


class Messages(ApiView):
    """POST /messages: messages by their seqs, ids and clients' numbers."""

    def post(self, request: Request) -> Response:
        """In the order they were named; those that are not there are left out."""
        body = self.body(MessagesBody)
        names = body["message_seqs"], body["message_ids"], body["client_msg_nos"]
        found = history.named(_channel(body), *names)
        shown = [_shown(message, body) for message in found]
        return Response(
            {"start_message_seq": 0, "end_message_seq": 0, "more": 0, "messages": shown}
        )


class MessageFind(ApiView):
    """POST /message: one message by its id, or else by its client's number."""

    def post(self, request: Request) -> Response:
        """The message object, or `{"status": 404}`."""
        body = self.body(MessageBody)
        ids = [body["message_id"]] if body["message_id"] else []
        numbers = [] if ids else [body["client_msg_no"]]
        return _one(body, *history.named(_channel(body), [], ids, numbers))


class MessageByNumber(ApiView):
    """GET /message/byclientmsgno: one message by its client's number."""

    def get(self, request: Request) -> Response:
        """The message object, or `{"status": 404}`."""
        body = self.query(NumberQuery)
        return _one(body, *history.named(_channel(body), [], [], [body["client_msg_no"]]))


def _channel(body: dict[str, Any]) -> int | None:
    return history.find_readable(body["key"], body["login_uid"])


def _one(body: dict[str, Any], message: Message | None = None) -> Response:
    return Response({"status": 404} if message is None else _shown(message, body))


def _shown(message: Message, body: dict[str, Any]) -> dict[str, Any]:
    """As the reader is shown it; without one, as the sender is: the id is the receiver's."""
    return message_object(message, body["key"], body["login_uid"] or message.sender)
