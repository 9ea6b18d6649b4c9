"""From stored messages to packets of the wire and objects of the HTTP API, and from packets to
drafts."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from messaging.messages import Draft, Said, StoredMessage, StreamEvent
from messaging.models import Message
from messaging.protocol.packets import Event, Header, Recv, Send, Setting
from subscriptions.bindings import SYSTEM_UID, ChannelKey, stored_key


def packet_of(said: Said, uid: str) -> Recv | Event:
    """What was said as `uid` is shown it: `recv` (protocol §1.4, §4.4) or `event` (§2.11)."""
    if isinstance(said, StreamEvent):
        return Event(said.id, said.type, said.timestamp, said.data_for(uid))
    return Recv(
        message_id=said.message_id,
        message_seq=said.seq,
        timestamp=said.timestamp,
        channel_id=said.key.seen_by(uid),
        channel_type=said.key.channel_type,
        from_uid="" if said.sender == SYSTEM_UID else said.sender,
        payload=said.payload,
        client_msg_no=said.client_msg_no,
        header=Header(
            no_persist=not said.seq,
            red_dot=said.red_dot,
            sync_once=said.sync_once,
        ),
        setting=Setting.from_byte(said.setting),
        topic=said.topic,
        expire=said.expire,
    )


def draft_of(send: Send, uid: str, session: str) -> Draft:
    """What a `send` packet asks the log for. Raises ValueError for a channel of two others."""
    return Draft(
        key=stored_key(send.channel_type, send.channel_id, uid),
        sender=uid,
        payload=send.payload,
        client_msg_no=send.client_msg_no,
        origin=session,
        red_dot=send.header.red_dot,
        sync_once=send.header.sync_once,
        no_persist=send.header.no_persist,
        setting=send.setting.to_byte(),
        topic=send.topic,
        expire=send.expire,
    )


def message_object(
    message: Message | StoredMessage,
    key: ChannelKey,
    uid: str,
    stream: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A stored message as the HTTP API and webhooks show it to `uid` (http-api §0): in a person
    channel, under the peer's uid. `stream`: what it has besides if it is written bit by bit
    (`events.event_meta`)."""
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
    return {**shown, **(stream or {})}
