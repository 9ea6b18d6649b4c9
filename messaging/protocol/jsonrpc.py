"""JSON-RPC over WebSocket (protocol §1): frames to packets, and packets to frames.

Decoding is strict about what a value is and generous about what is left out. Nothing but
`ProtocolFault` leaves `decode`.
"""

from __future__ import annotations

import base64
import binascii
import json
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from messaging.protocol.faults import Fault, ProtocolFault
from messaging.protocol.packets import (
    ClientPacket,
    ConnAck,
    Connect,
    Disconnect,
    DisconnectNotice,
    ErrorReply,
    Event,
    Header,
    Ping,
    Pong,
    Recv,
    RecvAck,
    Send,
    SendAck,
    ServerPacket,
    Setting,
)

UID_LENGTH = 100
CHANNEL_ID_LENGTH = 2 * UID_LENGTH + 1
TEXT_LENGTH = 100
TOPIC_LENGTH = 255
TOKEN_LENGTH = 1_000
PAYLOAD_BYTES = 1 << 16
"""Largest message body; 64 KiB as base64 is a twelfth of the largest frame."""
CHANNEL_TYPES = range(1, 13)
DEVICE_FLAGS = (0, 1, 2, 99)
UINT32, INT64, UINT64 = (1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 1

HEADER_FLAGS = {
    "no_persist": ("noPersist", "no_persist"),
    "red_dot": ("redDot", "red_dot"),
    "sync_once": ("syncOnce", "sync_once"),
    "dup": ("dup", "DUP"),
    "end": ("end",),
}
SETTING_FLAGS = ("receipt", "signal", "stream", "topic")

Frame = dict[str, Any]
_decoder = msgspec.json.Decoder()
_encode_json = msgspec.json.Encoder().encode
_standard = json.JSONDecoder()


# --- decoding ------------------------------------------------------------------------------------


def decode(frame: str | bytes) -> list[ClientPacket]:
    """The packets of one WebSocket message, in order; responses in it are dropped (§1.1).

    Raises ProtocolFault for the first object that cannot be taken; what came before it is in the
    exception's `packets`.
    """
    packets: list[ClientPacket] = []
    try:
        for value in _values(frame):
            packet = _packet(value)
            if packet is not None:
                packets.append(packet)
    except ProtocolFault as fault:
        fault.packets = packets
        raise
    return packets


def _values(frame: str | bytes) -> Iterator[Any]:
    """The JSON values of a frame. Nearly always there is one, which msgspec reads fastest."""
    try:
        yield _decoder.decode(frame)
        return
    except RecursionError:
        raise ProtocolFault(Fault.TOO_DEEP) from None
    except (msgspec.DecodeError, UnicodeError):
        pass
    yield from _concatenated(frame)


def _concatenated(frame: str | bytes) -> Iterator[Any]:
    try:
        rest = (frame if isinstance(frame, str) else frame.decode()).strip()
        while True:
            _, end = _standard.raw_decode(rest)
            yield _decoder.decode(rest[:end])  # stricter than json: no NaN, no lone surrogates
            rest = rest[end:].lstrip()
            if not rest:
                return
    except RecursionError:
        raise ProtocolFault(Fault.TOO_DEEP) from None
    except (ValueError, msgspec.DecodeError):
        raise ProtocolFault(Fault.NOT_JSON) from None


def _packet(value: Any) -> ClientPacket | None:
    if not isinstance(value, dict):
        raise ProtocolFault(Fault.NOT_OBJECT)
    request_id = _request_id(value)
    if value.get("jsonrpc", "2.0") != "2.0":
        raise ProtocolFault(Fault.BAD_VERSION, request_id)
    method = value.get("method")
    if method is None and request_id is not None and ("result" in value or "error" in value):
        return None
    reader = READERS.get(method) if isinstance(method, str) else None
    if reader is None:
        raise ProtocolFault(Fault.UNKNOWN_METHOD, request_id)
    try:
        return reader(request_id, value)
    except ProtocolFault as fault:
        fault.request_id = request_id
        raise


def _request_id(value: Frame) -> str | None:
    if "id" not in value:
        return None
    request_id = value["id"]
    if not isinstance(request_id, str) or not 0 < len(request_id) <= TEXT_LENGTH:
        raise ProtocolFault(Fault.BAD_ID)
    return request_id


def _needed(request_id: str | None) -> str:
    if request_id is None:
        raise ProtocolFault(Fault.NOT_A_NOTIFICATION)
    return request_id


def _params(value: Frame) -> Frame:
    params = value.get("params")
    if not isinstance(params, dict):
        raise ProtocolFault(Fault.BAD_PARAMS)
    return params


def _connect(request_id: str | None, value: Frame) -> Connect:
    params = _params(value)
    flag = _integer(params, 0, UINT32, "deviceFlag", "device_flag")
    if flag not in DEVICE_FLAGS:
        raise ProtocolFault(Fault.BAD_DEVICE)
    return Connect(
        request_id=_needed(request_id),
        uid=_uid(params.get("uid")),
        token=_text(params, TOKEN_LENGTH, "token"),
        device_id=_text(params, TEXT_LENGTH, "deviceId", "device_id"),
        device_flag=flag,
        client_timestamp=_integer(params, 0, INT64, "clientTimestamp", "client_timestamp"),
        version=_integer(params, 0, 255, "version"),
    )


def _send(request_id: str | None, value: Frame) -> Send:
    params = _params(value)
    kind = _integer(params, 0, UINT32, "channelType", "channel_type")
    if kind not in CHANNEL_TYPES:
        raise ProtocolFault(Fault.BAD_CHANNEL_TYPE)
    return Send(
        request_id=_needed(request_id),
        channel_id=_channel_id(_member(params, "channelId", "channel_id"), kind),
        channel_type=kind,
        payload=_payload(params.get("payload")),
        client_msg_no=_text(params, TEXT_LENGTH, "clientMsgNo", "client_msg_no"),
        header=_header(params),
        setting=_setting(params),
        topic=_text(params, TOPIC_LENGTH, "topic"),
        expire=_integer(params, 0, UINT32, "expire"),
    )


def _recvack(request_id: str | None, value: Frame) -> RecvAck:
    if request_id is not None:
        raise ProtocolFault(Fault.NOT_A_REQUEST)
    params = _params(value)
    message_id = _member(params, "messageId", "message_id")
    if isinstance(message_id, str) and message_id.isascii() and message_id.isdecimal():
        message_id = int(message_id[:20])
    if not _is_integer(message_id) or not 0 <= message_id <= INT64:
        raise ProtocolFault(Fault.BAD_PARAMS)
    seq = _integer(params, 0, UINT64, "messageSeq", "message_seq")
    return RecvAck(message_id, seq, _header(params))


def _ping(request_id: str | None, value: Frame) -> Ping:
    params = value.get("params")
    if params is not None and not isinstance(params, dict):
        raise ProtocolFault(Fault.BAD_PARAMS)
    return Ping(_needed(request_id))


def _disconnect(request_id: str | None, value: Frame) -> Disconnect:
    params = value.get("params") or {}
    if not isinstance(params, dict):
        raise ProtocolFault(Fault.BAD_PARAMS)
    return Disconnect(
        _integer(params, 0, 255, "reasonCode"), _text(params, TOPIC_LENGTH, "reason")
    )


def _not_served(request_id: str | None, value: Frame) -> ClientPacket:
    raise ProtocolFault(Fault.NOT_SERVED)


READERS: dict[str, Callable[[str | None, Frame], ClientPacket]] = {
    "connect": _connect,
    "send": _send,
    "recvack": _recvack,
    "ping": _ping,
    "disconnect": _disconnect,
    "subscribe": _not_served,
    "unsubscribe": _not_served,
}


def _member(params: Frame, *names: str) -> Any:
    """The first of a member's names that is there (§1.2: camelCase wins)."""
    return next((params[name] for name in names if name in params), None)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integer(params: Frame, default: int, most: int, *names: str) -> int:
    value = _member(params, *names)
    if value is None:
        return default
    if not _is_integer(value) or not 0 <= value <= most:
        raise ProtocolFault(Fault.BAD_PARAMS)
    return int(value)


def _text(params: Frame, length: int, *names: str) -> str:
    value = _member(params, *names)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ProtocolFault(Fault.BAD_PARAMS)
    if len(value) > length or has_control(value):
        raise ProtocolFault(Fault.BAD_TEXT)
    return value


def has_control(text: str) -> bool:
    """Whether a text has control characters (NUL among them) or lone surrogates."""
    if text.isprintable():
        return False
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def _uid(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > UID_LENGTH:
        raise ProtocolFault(Fault.BAD_UID)
    if any(character in value for character in "@#&") or has_control(value):
        raise ProtocolFault(Fault.BAD_UID)
    return value


def _channel_id(value: Any, kind: int) -> str:
    """A person channel may be named by the peer or by the pair `a@b` (§4.4)."""
    forbidden = "#&" if kind == 1 else "@#&"
    if not isinstance(value, str) or not 0 < len(value) <= CHANNEL_ID_LENGTH:
        raise ProtocolFault(Fault.BAD_CHANNEL_ID)
    if any(character in value for character in forbidden) or has_control(value):
        raise ProtocolFault(Fault.BAD_CHANNEL_ID)
    if kind == 1 and any(not 0 < len(part) <= UID_LENGTH for part in value.split("@", 1)):
        raise ProtocolFault(Fault.BAD_CHANNEL_ID)
    if kind == 1 and value.count("@") > 1:
        raise ProtocolFault(Fault.BAD_CHANNEL_ID)
    return value


def _flags(value: Any, names: dict[str, tuple[str, ...]]) -> dict[str, bool]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ProtocolFault(Fault.BAD_PARAMS)
    flags = {}
    for field, spellings in names.items():
        flag = _member(value, *spellings)
        if flag is not None and not isinstance(flag, bool):
            raise ProtocolFault(Fault.BAD_PARAMS)
        flags[field] = bool(flag)
    return flags


def _header(params: Frame) -> Header:
    return Header(**_flags(params.get("header"), HEADER_FLAGS))


def _setting(params: Frame) -> Setting:
    return Setting(**_flags(params.get("setting"), {name: (name,) for name in SETTING_FLAGS}))


def _payload(value: Any) -> bytes:
    """The body's bytes from any of its forms, tried in the order of §1.3."""
    if value is None:
        payload = b""
    elif not isinstance(value, str):
        payload = _encode_json(value)
    elif _is_json(value):
        payload = value.encode()
    else:
        payload = _from_base64(value)
    if not 0 < len(payload) <= PAYLOAD_BYTES:
        raise ProtocolFault(Fault.BAD_PAYLOAD)
    return payload


def _is_json(text: str | bytes) -> bool:
    try:
        _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    return True


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ProtocolFault(Fault.BAD_PAYLOAD) from None


# --- encoding ------------------------------------------------------------------------------------


def encode(packet: ServerPacket) -> str:
    """The frame of a packet."""
    return _encode_json(WRITERS[type(packet)](packet)).decode()


def _result(request_id: str, result: Any) -> Frame:
    return {"jsonrpc": "2.0", "id": request_id, "result": result}


def _notification(method: str, params: Frame) -> Frame:
    return {"jsonrpc": "2.0", "method": method, "params": params}


def _header_object(header: Header) -> Frame:
    return {
        spellings[0]: True for field, spellings in HEADER_FLAGS.items() if getattr(header, field)
    }


def _connack(packet: ConnAck) -> Frame:
    return _result(
        packet.request_id,
        {
            "serverVersion": packet.server_version,
            "serverKey": "",
            "salt": "",
            "timeDiff": packet.time_diff,
            "reasonCode": 1,
            "nodeId": packet.node_id,
        },
    )


def _sendack(packet: SendAck) -> Frame:
    result: Frame = {
        "messageId": str(packet.message_id),
        "messageSeq": packet.message_seq,
        "reasonCode": 1,
    }
    if header := _header_object(packet.header):
        result["header"] = header
    return _result(packet.request_id, result)


def _recv(packet: Recv) -> Frame:
    params: Frame = {
        "header": _header_object(packet.header),
        "messageId": str(packet.message_id),
        "messageSeq": packet.message_seq,
        "timestamp": packet.timestamp,
        "channelId": packet.channel_id,
        "channelType": packet.channel_type,
        "fromUid": packet.from_uid,
        "payload": _payload_value(packet.payload),
    }
    optional = {
        "clientMsgNo": packet.client_msg_no,
        "topic": packet.topic,
        "expire": packet.expire,
        "setting": {name: True for name in SETTING_FLAGS if getattr(packet.setting, name)},
    }
    params.update({name: value for name, value in optional.items() if value})
    return _notification("recv", params)


def _payload_value(payload: bytes) -> Any:
    """An object if the bytes are one, else base64 (§1.4: the form no SDK misreads)."""
    if payload.lstrip()[:1] == b"{" and _is_json(payload):
        return msgspec.Raw(payload.strip())
    return base64.b64encode(payload).decode()


def _pong(packet: Pong) -> Frame:
    return _result(packet.request_id, None)


def _event(packet: Event) -> Frame:
    return _notification(
        "event",
        {
            "id": packet.id,
            "type": packet.type,
            "timestamp": packet.timestamp,
            "data": packet.data,
        },
    )


def _disconnect_notice(packet: DisconnectNotice) -> Frame:
    return _notification(
        "disconnect", {"reasonCode": int(packet.reason), "reason": packet.text}
    )


def _error(packet: ErrorReply) -> Frame:
    error = {"code": int(packet.reason), "message": packet.text or packet.reason.wire_name}
    if packet.request_id is None:
        return {"jsonrpc": "2.0", "error": error}
    return {"jsonrpc": "2.0", "id": packet.request_id, "error": error}


WRITERS: dict[type[ServerPacket], Callable[[Any], Frame]] = {
    ConnAck: _connack,
    SendAck: _sendack,
    Recv: _recv,
    Pong: _pong,
    Event: _event,
    DisconnectNotice: _disconnect_notice,
    ErrorReply: _error,
}
