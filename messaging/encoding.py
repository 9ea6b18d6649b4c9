"""From stored messages to packets of the wire, and from packets to drafts."""

from __future__ import annotations

from messaging.frames import text_frame
from messaging.messages import Draft, Said, StreamEvent
from messaging.protocol import jsonrpc
from messaging.protocol.packets import Event, Header, Recv, Send, ServerPacket, Setting
from subscriptions.bindings import SYSTEM_UID, stored_key


def frame_of(packet: ServerPacket) -> bytes:
    """The WebSocket frame of a packet."""
    return text_frame(jsonrpc.encode(packet))


def encode(said: Said, uid: str) -> bytes:
    """The frame of what was said as `uid` is shown it."""
    return frame_of(packet_of(said, uid))


def packet_of(said: Said, uid: str) -> Recv | Event:
    """`recv` (protocol §1.4, §4.4) or `event` (§2.11)."""
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
