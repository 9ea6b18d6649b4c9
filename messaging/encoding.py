"""From stored messages to packets of the wire, and from packets to drafts."""

from __future__ import annotations

from messaging.frames import text_frame
from messaging.messages import Draft, StoredMessage
from messaging.protocol import jsonrpc
from messaging.protocol.packets import Header, Recv, Send, ServerPacket, Setting
from subscriptions.bindings import SYSTEM_UID, stored_key


def frame_of(packet: ServerPacket) -> bytes:
    """The WebSocket frame of a packet."""
    return text_frame(jsonrpc.encode(packet))


def encode(message: StoredMessage, uid: str) -> bytes:
    """The `recv` frame of a message as `uid` is shown it (protocol §1.4, §4.4)."""
    return frame_of(
        Recv(
            message_id=message.message_id,
            message_seq=message.seq,
            timestamp=message.timestamp,
            channel_id=message.key.seen_by(uid),
            channel_type=message.key.channel_type,
            from_uid="" if message.sender == SYSTEM_UID else message.sender,
            payload=message.payload,
            client_msg_no=message.client_msg_no,
            header=Header(
                no_persist=not message.seq,
                red_dot=message.red_dot,
                sync_once=message.sync_once,
            ),
            setting=Setting.from_byte(message.setting),
            topic=message.topic,
            expire=message.expire,
        )
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
