"""WuKongIM's bodies, as http-api §1 has them, and the message object of §0."""

from __future__ import annotations

import base64
import binascii
import uuid
from typing import Any

from rest_framework import serializers

from messaging.conf import conf
from messaging.models import Message
from messaging.protocol.jsonrpc import TOKEN_LENGTH
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
    subscribers = UidsField()

    def validate_subscribers(self, uids: list[str]) -> list[str]:
        """At least one uid that is not blank."""
        if not uids:
            raise serializers.ValidationError("must name at least one uid.")
        return uids


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


class HeaderBody(Body):
    """The header of a message."""

    no_persist = SwitchField()
    red_dot = SwitchField()
    sync_once = SwitchField()


class SendBody(Body):
    """POST /message/send: adds `key`."""

    header = HeaderBody(required=False)
    from_uid = UidField(required=False, blank=True, default=SYSTEM_UID)
    channel_id = TextField(required=False, blank=True, default="")
    channel_type = WholeField(high=255, default=0)
    subscribers = UidsField(required=False, default=list)
    payload = PayloadField()
    client_msg_no = TextField(required=False, blank=True, default="", longest=100)
    expire = WholeField(high=2**32 - 1, default=0)

    def validate_subscribers(self, uids: list[str]) -> list[str]:
        """Not served."""
        if uids:
            raise serializers.ValidationError(
                "Sending to a list of uids is not served. Send to a channel."
            )
        return uids

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Fill in the sender and the client's number, and add the key."""
        if not attrs["channel_id"]:
            raise serializers.ValidationError({"channel_id": "is required."})
        attrs["from_uid"] = attrs["from_uid"] or SYSTEM_UID
        attrs["client_msg_no"] = attrs["client_msg_no"] or uuid.uuid4().hex + "0"
        attrs.setdefault("header", {})
        try:
            key = key_seen_by(attrs["from_uid"], attrs["channel_type"], attrs["channel_id"])
        except (InvalidChannel, InvalidUid, ValueError) as error:
            raise serializers.ValidationError(str(error)) from error
        attrs["key"] = key
        return attrs


class SyncBody(Body):
    """POST /channel/messagesync: adds `key`, None for the person channel of two others."""

    login_uid = UidField()
    channel_id = TextField()
    channel_type = WholeField(high=255)
    start_message_seq = WholeField(default=0)
    end_message_seq = WholeField(default=0)
    limit = WholeField(default=0)
    pull_mode = WholeField(high=1, default=0)

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


def message_object(message: Message, key: ChannelKey, uid: str) -> dict[str, Any]:
    """A stored message as `uid` is shown it (§0): in a person channel, under the peer's uid."""
    shown: dict[str, Any] = {
        "header": {
            "no_persist": 0,
            "red_dot": int(message.red_dot),
            "sync_once": int(message.sync_once),
        },
        "setting": message.setting,
        "message_id": message.message_id,
        "message_idstr": str(message.message_id),
        "client_msg_no": message.client_msg_no,
        "message_seq": message.seq,
        "from_uid": "" if message.sender == SYSTEM_UID else message.sender,
        "channel_id": key.seen_by(uid),
        "channel_type": key.channel_type,
        "topic": message.topic,
        "expire": message.expire,
        "timestamp": message.created_ms // 1000,
        "payload": base64.b64encode(bytes(message.payload)).decode(),
    }
    if not message.topic:
        del shown["topic"]
    return shown
