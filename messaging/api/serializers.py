"""WuKongIM's bodies, as http-api §1 has them, and the message object of §0."""

from __future__ import annotations

import base64
import binascii
import json
import re
import uuid
from collections.abc import Sequence
from typing import Any

from rest_framework import serializers

from messaging import events
from messaging.conf import conf
from messaging.models import MessageEvent
from messaging.protocol.bodies import DEPTH, is_deep
from messaging.protocol.fields import TOKEN_LENGTH
from subscriptions.api.serializers import (
    Body,
    SwitchField,
    TextField,
    UidField,
    UidsField,
    WholeField,
)
from subscriptions.bindings import SYSTEM_UID, ChannelKey, ChannelType, stored_key
from subscriptions.errors import InvalidChannel, InvalidUid
from subscriptions.services import FLAGS, check_key, clean_uids

DEFAULT_LIMIT, LARGEST_LIMIT = 100, 1_000
"""Messages of one page: 1,000 × 64 KiB × 4/3 (base64) = 85 MiB at the very worst."""

DEFAULT_EVENTS, LARGEST_EVENTS = 200, 2_000
"""Events of one page of /message/eventsync."""

RECIPIENTS = 10_000
"""Uids of one call: 3 s of a log that stores 4,000 messages a second."""

NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
"""A NUL in a JSON text, which PostgreSQL cannot hold."""


def own_key(channel_type: int, channel_id: str) -> ChannelKey:
    """The channel whose row an endpoint writes; of type 1, a person's own row under their uid.

    Raises InvalidChannel and InvalidUid.
    """
    if channel_type == ChannelType.PERSON:
        _check_uids([channel_id])
    return check_key(ChannelKey(channel_type, channel_id))


def key_seen_by(uid: str, channel_type: int, channel_id: str) -> ChannelKey:
    """The channel that `uid` calls `channel_id`: of type 1, the peer's uid (§0).

    Raises InvalidChannel, InvalidUid, and ValueError for the person channel of two others.
    """
    check_key(ChannelKey(channel_type, channel_id))
    if channel_type == ChannelType.PERSON:
        _check_uids(channel_id.split("@"))
    return stored_key(channel_type, channel_id, uid)


def _check_uids(uids: list[str]) -> None:
    if len(uids) > 2 or not all(uid.strip() for uid in uids):
        raise InvalidChannel("The id of a person channel is the peer's uid.")
    clean_uids(uids)


class PayloadField(TextField):
    """Standard base64 of 1 to `conf().payload_bytes` bytes."""

    default_error_messages = {
        "base64": "must be standard base64.",
        "size": "must have at most {most} bytes once decoded.",
    }

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(longest=1 << 30, **kwargs)

    def to_internal_value(self, data: Any) -> bytes:
        """The decoded bytes."""
        text = super().to_internal_value(data)
        try:
            payload = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            self.fail("base64")
        if len(payload) > conf().payload_bytes:
            self.fail("size", most=conf().payload_bytes)
        return payload


class TokenBody(Body):
    """POST /user/token."""

    uid = UidField()
    token = TextField(longest=TOKEN_LENGTH)
    device_flag = WholeField(high=255, default=0)
    device_level = WholeField(high=1, default=0)

    def validate_uid(self, uid: str) -> str:
        """Nobody logs in as the system."""
        if uid == SYSTEM_UID:
            raise serializers.ValidationError(f"{SYSTEM_UID} is the server's own uid.")
        return uid


class OnlineBody(Body):
    """POST /user/onlinestatus, whose bare array comes as `uids`."""

    uids = UidsField()


class KeyBody(Body):
    """A channel whose row is written or read: adds `key` to what was sent."""

    channel_id = TextField()
    channel_type = WholeField(high=255)
    person_refused = False
    person_allowed = "A person channel has no subscribers of its own: send to the peer's uid."

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Add the key. Refuses type 1 where it makes no sense."""
        if self.person_refused and attrs["channel_type"] == ChannelType.PERSON:
            raise serializers.ValidationError({"channel_type": self.person_allowed})
        try:
            attrs["key"] = own_key(attrs["channel_type"], attrs["channel_id"])
        except (InvalidChannel, InvalidUid) as error:
            raise serializers.ValidationError(str(error)) from error
        return attrs


class InfoBody(KeyBody):
    """POST /channel/info: all five flags, of which those left out become 0."""

    large = SwitchField()
    ban = SwitchField()
    disband = SwitchField()
    send_ban = SwitchField()
    allow_stranger = SwitchField()

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Add the key and `flags`."""
        attrs = super().validate(attrs)
        attrs["flags"] = {name: attrs[name] for name in FLAGS}
        return attrs


class ChannelBody(InfoBody):
    """POST /channel: the flags, and subscribers to add."""

    reset = SwitchField()
    subscribers = UidsField(required=False, default=list)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Refuses subscribers of a person, whose row only carries flags."""
        attrs = super().validate(attrs)
        if attrs["key"].is_person and attrs["subscribers"]:
            raise serializers.ValidationError({"subscribers": self.person_allowed})
        return attrs


class DeleteBody(KeyBody):
    """POST /channel/delete."""

    person_refused = True
    person_allowed = "A person's row cannot be deleted. Set its flags with /channel/info."


class RemoveAllBody(KeyBody):
    """POST /channel/subscriber_remove_all."""

    person_refused = True


class RemoveBody(KeyBody):
    """POST /channel/subscriber_remove."""

    person_refused = True
    subscribers = UidsField(needed=True)


class AddBody(RemoveBody):
    """POST /channel/subscriber_add: the only one where a type that is left out, or 0, means 2."""

    channel_type = WholeField(high=255, default=ChannelType.GROUP.value)
    reset = SwitchField()
    temp_subscriber = SwitchField()

    def validate_channel_type(self, channel_type: int) -> int:
        """0 is a group."""
        return channel_type or ChannelType.GROUP.value

    def validate_temp_subscriber(self, temporary: bool) -> bool:
        """Not served, as in WuKongIM v2."""
        if temporary:
            raise serializers.ValidationError(
                "Temporary subscribers do not exist. Add the uid, and remove it when it is over."
            )
        return temporary


class JSONField(serializers.Field):
    """Any JSON that every database and client can hold, of at most `conf().event_bytes` bytes."""

    default_error_messages = {
        "value": "must have no NUL, no lone surrogate and no number beyond a double's range.",
        "deep": "must not nest deeper than {most} levels.",
        "size": "must have at most {most} bytes as JSON.",
    }

    def to_internal_value(self, data: Any) -> Any:
        """The value itself."""
        try:
            text = json.dumps(data, ensure_ascii=False, allow_nan=False).encode()
        except ValueError:
            self.fail("value")
        except RecursionError:
            self.fail("deep", most=DEPTH)
        if len(text) > conf().event_bytes:
            self.fail("size", most=conf().event_bytes)
        if NUL.search(text):
            self.fail("value")
        if is_deep(text):
            self.fail("deep", most=DEPTH)
        return data

    def to_representation(self, value: Any) -> Any:
        """Never asked for: it only reads."""
        return value


class ChoiceField(TextField):
    """One of a few words; an empty one is the default."""

    default_error_messages = {"choice": "must be one of {words}."}

    def __init__(self, words: Sequence[str], **kwargs: Any) -> None:
        super().__init__(blank=True, **kwargs)
        self.words = words

    def to_internal_value(self, data: Any) -> Any:
        """The word."""
        word = super().to_internal_value(data)
        if not word and not self.required:
            return self.default
        if word not in self.words:
            self.fail("choice", words=", ".join(self.words))
        return word


class HeaderBody(Body):
    """The header of a message."""

    no_persist = SwitchField()
    red_dot = SwitchField()
    sync_once = SwitchField()


class RecipientsField(UidsField):
    """The uids that are each sent a message of their own, at most RECIPIENTS."""

    default_error_messages = {"many": "must name at most {most} uids in one call."}

    def to_internal_value(self, data: Any) -> Any:
        """The cleaned list."""
        uids = super().to_internal_value(data)
        if len(uids) > RECIPIENTS:
            self.fail("many", most=RECIPIENTS)
        return uids


def new_number() -> str:
    """A client_msg_no for a message that came without one."""
    return uuid.uuid4().hex + "0"


class SendBody(Body):
    """POST /message/send: adds `key`, or None where it goes to each of `subscribers`."""

    header = HeaderBody(required=False)
    from_uid = UidField(required=False, blank=True, default=SYSTEM_UID)
    channel_id = TextField(required=False, blank=True, default="")
    channel_type = WholeField(high=255, default=0)
    subscribers = RecipientsField(required=False, default=list)
    payload = PayloadField()
    client_msg_no = TextField(required=False, blank=True, default="", longest=100)
    expire = WholeField(high=2**32 - 1, default=0)
    is_stream = SwitchField()

    def validate_subscribers(self, uids: list[str]) -> list[str]:
        """The server itself is nobody's recipient."""
        if SYSTEM_UID in uids:
            raise serializers.ValidationError(f"{SYSTEM_UID} is the server's own uid.")
        return uids

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Fill in the sender and the client's number, and add the key."""
        attrs["from_uid"] = attrs["from_uid"] or SYSTEM_UID
        attrs["client_msg_no"] = attrs["client_msg_no"] or new_number()
        attrs.setdefault("header", {})
        attrs["key"] = None
        if attrs["subscribers"]:
            return self._to_each(attrs)
        if not attrs["channel_id"]:
            raise serializers.ValidationError({"channel_id": "is required."})
        try:
            key = key_seen_by(attrs["from_uid"], attrs["channel_type"], attrs["channel_id"])
        except (InvalidChannel, InvalidUid, ValueError) as error:
            raise serializers.ValidationError(str(error)) from error
        attrs["key"] = key
        return attrs

    def _to_each(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if attrs["channel_id"]:
            raise serializers.ValidationError(
                {"subscribers": "Name either a channel_id or subscribers."}
            )
        if not attrs["header"].get("sync_once"):
            raise serializers.ValidationError({
                "subscribers": "Only a command goes to a list of uids: set header.sync_once to 1, "
                "or use POST /message/sendbatch."
            })  # fmt: skip
        return attrs


class SendBatchBody(Body):
    """POST /message/sendbatch: a person message from `from_uid` to each of `subscribers`."""

    header = HeaderBody(required=False)
    from_uid = UidField()
    subscribers = RecipientsField(needed=True)
    payload = PayloadField()
    client_msg_no = TextField(required=False, blank=True, default="", longest=100)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Fill in the client's number, and what only `SendBody` has."""
        attrs["client_msg_no"] = attrs["client_msg_no"] or new_number()
        attrs.setdefault("header", {})
        return {**attrs, "expire": 0, "is_stream": False}


class AnchorBody(Body):
    """A message that is written bit by bit: adds `anchor`."""

    channel_id = TextField()
    channel_type = WholeField(high=255, default=0)
    client_msg_no = TextField(longest=100)
    from_uid = UidField(required=False, blank=True, default="")
    message_id = WholeField(default=0)
    event_key = TextField(required=False, blank=True, default="", longest=100)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Add the anchor."""
        try:
            keys = keys_named(attrs["channel_type"], attrs["channel_id"], attrs["from_uid"])
        except (InvalidChannel, InvalidUid, ValueError) as error:
            raise serializers.ValidationError(str(error)) from error
        attrs["anchor"] = events.Anchor(
            keys, attrs["client_msg_no"], attrs["from_uid"], attrs["message_id"]
        )
        return attrs


def keys_named(channel_type: int, channel_id: str, uid: str) -> list[ChannelKey]:
    """The channels that the back end may mean by this name; type 0 is any. Of type 1 it is the
    pair, or the peer of `uid`, who is the server itself where nobody is named.

    Raises InvalidChannel, InvalidUid, and ValueError for the person channel of two others.
    """
    first, at, _ = channel_id.partition("@")
    uid = uid or (first if at else SYSTEM_UID)
    keys: list[ChannelKey] = []
    problem: Exception | None = None
    for kind in [channel_type] if channel_type else ChannelType:
        try:
            keys.append(key_seen_by(uid, kind, channel_id))
        except (InvalidChannel, InvalidUid, ValueError) as error:
            problem = error
    if problem and not keys:
        raise problem
    return keys


class EventBody(AnchorBody):
    """POST /message/event: adds `event`."""

    event_id = TextField(longest=200)
    event_type = ChoiceField(events.TYPES)
    visibility = ChoiceField(events.VISIBILITIES, required=False, default=events.PUBLIC)
    occurred_at = WholeField(default=0)
    payload = JSONField(required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Add the anchor and the event. The key of what ends the message is its own."""
        attrs = super().validate(attrs)
        kind, key, payload = attrs["event_type"], attrs["event_key"], attrs.get("payload")
        if kind in events.ENDS:
            self._check_end(payload)
        elif payload is None:
            raise serializers.ValidationError({"payload": "is required."})
        if kind == events.FINISH_TYPE:
            key = events.FINISH
        elif key == events.FINISH:
            raise serializers.ValidationError({"event_key": f"is of {events.FINISH_TYPE} alone."})
        attrs["event"] = events.Given(
            attrs["event_id"], kind, key or events.MAIN, attrs["visibility"],
            attrs["occurred_at"], payload,
        )  # fmt: skip
        return attrs

    def _check_end(self, payload: Any) -> None:
        """What ends a key may say why."""
        problem = None
        if payload is not None and not isinstance(payload, dict):
            problem = "must be an object."
        elif payload:
            reason, error = payload.get("end_reason"), payload.get("error")
            if reason is not None and (type(reason) is not int or not 0 <= reason <= 255):
                problem = "end_reason must be a whole number from 0 to 255."
            elif error is not None and (not isinstance(error, str) or len(error) > 500):
                problem = "error must be a string of at most 500 characters."
        if problem:
            raise serializers.ValidationError({"payload": problem})


class EventSyncBody(AnchorBody):
    """POST /message/eventsync."""

    from_msg_event_seq = WholeField(default=0)
    limit = WholeField(default=0)
    include_private = SwitchField()

    def validate_limit(self, limit: int) -> int:
        """0 is the default, more than the largest is the largest."""
        return min(limit or DEFAULT_EVENTS, LARGEST_EVENTS)


def event_object(row: MessageEvent) -> dict[str, Any]:
    """The latest event of a key, with all that has come under it as its payload (§1.26)."""
    return {
        "msg_event_seq": row.seq,
        "event_id": row.event_id,
        "event_key": row.key,
        "event_type": row.event_type,
        "visibility": row.visibility,
        "occurred_at": row.occurred_ms,
        "payload": row.snapshot,
    }


class SyncBody(Body):
    """POST /channel/messagesync: adds `key`, None for the person channel of two others."""

    login_uid = UidField()
    channel_id = TextField()
    channel_type = WholeField(high=255)
    start_message_seq = WholeField(default=0)
    end_message_seq = WholeField(default=0)
    limit = WholeField(default=0)
    pull_mode = WholeField(high=1, default=0)
    event_summary_mode = ChoiceField(("full", "basic"), required=False, default="full")

    def validate_limit(self, limit: int) -> int:
        """0 is the default, more than the largest is the largest."""
        return min(limit or DEFAULT_LIMIT, LARGEST_LIMIT)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Add the key."""
        try:
            key = key_seen_by(attrs["login_uid"], attrs["channel_type"], attrs["channel_id"])
        except (InvalidChannel, InvalidUid) as error:
            raise serializers.ValidationError(str(error)) from error
        except ValueError:
            key = None
        attrs["key"] = key
        return attrs
