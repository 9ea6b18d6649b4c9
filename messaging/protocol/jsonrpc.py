"""JSON-RPC over WebSocket (protocol §1): frames to packets, and packets to frames.

Decoding is strict about what a value is and generous about what is left out. Nothing but
`ProtocolFault` leaves `decode`, and no frame costs more than its length explains.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from messaging.protocol.bodies import PAYLOAD_BYTES, bytes_of, value_of
from messaging.protocol.faults import Fault, ProtocolFault
from messaging.protocol.fields import (
    INT64,
    INT64_DIGITS,
    TEXT_LENGTH,
    TOKEN_LENGTH,
    TOPIC_LENGTH,
    check_channel_id,
    check_channel_type,
    check_device_flag,
    check_request_id,
    check_text,
    check_uid,
)
from messaging.protocol.packets import (
    ClientPacket,
    ConnAck,
    Connect,
    ConnectRefused,
    Disconnect,
    DisconnectNotice,
    ErrorReply,
    Event,
    Header,
    Ping,
    Pong,
    Position,
    Recv,
    RecvAck,
    Resumed,
    Send,
    SendAck,
    SendRefused,
    ServerPacket,
    Setting,
)
from subscriptions.names import PERSON, is_uid

POSITIONS = 1_000
"""Positions in a `connect` unless a deployment says otherwise."""
OBJECTS = 100
"""Objects in one frame. The SDKs send one; a frame full of pings must not hold up the others."""
CONCATENATED = 1 << 18
"""Largest frame with more than one object, in characters: finding where each ends takes the slower
of the two readers, 30 ms for as much as this."""
UINT32, UINT64 = (1 << 32) - 1, (1 << 64) - 1

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
_raw_decode = json.JSONDecoder().raw_decode
_skip_space = re.compile(r"[ \t\r\n]*").match


# --- decoding ------------------------------------------------------------------------------------


def decode(
    frame: str | bytes, payload_bytes: int = PAYLOAD_BYTES, positions: int = POSITIONS
) -> list[ClientPacket]:
    """The packets of one WebSocket message, in order; responses in it are dropped (§1.1).

    Raises ProtocolFault for the first object that cannot be taken, such as a `send` with a payload
    above `payload_bytes` or a `connect` with more than so many `positions`; what came before it is
    in the exception's `packets`.
    """
    packets: list[ClientPacket] = []
    try:
        for value in _values(frame):
            packet = _packet(value)
            if isinstance(packet, Send) and len(packet.payload) > payload_bytes:
                raise ProtocolFault(Fault.BAD_PAYLOAD, packet.request_id)
            if isinstance(packet, Connect) and len(packet.positions or ()) > positions:
                raise ProtocolFault(Fault.BAD_POSITIONS, packet.request_id)
            if packet is not None:
                packets.append(packet)
    except ProtocolFault as fault:
        fault.packets = packets
        raise
    return packets


def _values(frame: str | bytes) -> Iterable[Any]:
    """The JSON values of a frame. Nearly always there is one, which msgspec reads fastest."""
    try:
        text = frame if isinstance(frame, str) else frame.decode()
        return [_decoder.decode(text)]
    except RecursionError:
        raise ProtocolFault(Fault.TOO_DEEP) from None
    except UnicodeError:
        raise ProtocolFault(Fault.NOT_JSON) from None
    except msgspec.DecodeError:
        if len(text) > CONCATENATED:
            raise ProtocolFault(Fault.NOT_JSON) from None
        return _concatenated(text)


def _concatenated(text: str) -> Iterator[Any]:
    """Values one behind the other: the standard library finds where each ends, msgspec reads it
    (and takes no NaN and no lone surrogates)."""
    start = _after_space(text, 0)
    for _ in range(OBJECTS):
        try:
            _, end = _raw_decode(text, start)
            value = _decoder.decode(text[start:end])
        except RecursionError:
            raise ProtocolFault(Fault.TOO_DEEP) from None
        except (msgspec.DecodeError, ValueError):
            raise ProtocolFault(Fault.NOT_JSON) from None
        yield value
        start = _after_space(text, end)
        if start == len(text):
            return
    raise ProtocolFault(Fault.TOO_MANY)


def _after_space(text: str, start: int) -> int:
    space = _skip_space(text, start)
    return space.end() if space else start


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
    if not isinstance(request_id, str):
        raise ProtocolFault(Fault.BAD_ID)
    return check_request_id(request_id)


def _needed(request_id: str | None) -> str:
    if request_id is None:
        raise ProtocolFault(Fault.NOT_A_NOTIFICATION)
    return request_id


def _params(value: Frame) -> Frame:
    params = value.get("params")
    if not isinstance(params, dict):
        raise ProtocolFault(Fault.BAD_PARAMS)
    return params


def _optional_params(value: Frame) -> Frame:
    return _params(value) if value.get("params") is not None else {}


def _connect(request_id: str | None, value: Frame) -> Connect:
    params = _params(value)
    flag = check_device_flag(_integer(params, 0, UINT32, "deviceFlag", "device_flag"))
    return Connect(
        request_id=_needed(request_id),
        uid=_uid(params.get("uid")),
        token=_text(params, TOKEN_LENGTH, "token"),
        device_id=_text(params, TEXT_LENGTH, "deviceId", "device_id"),
        device_flag=flag,
        client_timestamp=_integer(params, 0, INT64, "clientTimestamp", "client_timestamp"),
        version=_integer(params, 0, 255, "version"),
        positions=_positions(params.get("positions")),
    )


def _positions(value: Any) -> tuple[Position, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise ProtocolFault(Fault.BAD_POSITIONS)
    positions = tuple(map(_position, value))
    if len({(each.channel_type, each.channel_id) for each in positions}) < len(positions):
        raise ProtocolFault(Fault.BAD_POSITIONS)
    return positions


def _position(value: Any) -> Position:
    """A person channel is named by the peer alone, so that each channel has one name."""
    if not isinstance(value, dict):
        raise ProtocolFault(Fault.BAD_POSITIONS)
    kind = _channel_type(value)
    channel_id = _channel_id(_member(value, "channelId", "channel_id"), kind)
    if kind == PERSON and not is_uid(channel_id):
        raise ProtocolFault(Fault.BAD_CHANNEL_ID)
    seq = _member(value, "messageSeq", "message_seq")
    if not _is_integer(seq) or not 0 <= seq <= INT64:
        raise ProtocolFault(Fault.BAD_PARAMS)
    return Position(channel_id, kind, seq)


def _send(request_id: str | None, value: Frame) -> Send:
    params = _params(value)
    kind = _channel_type(params)
    return Send(
        request_id=_needed(request_id),
        channel_id=_channel_id(_member(params, "channelId", "channel_id"), kind),
        channel_type=kind,
        payload=bytes_of(params.get("payload")),
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
    seq = _integer(params, 0, UINT64, "messageSeq", "message_seq")
    return RecvAck(_message_id(params), seq, _header(params))


def _message_id(params: Frame) -> int:
    """A decimal string, as it was sent; a number will do where the client could hold it."""
    value = _member(params, "messageId", "message_id")
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value) if len(value) <= INT64_DIGITS else None
    if not _is_integer(value) or not 0 <= value <= INT64:
        raise ProtocolFault(Fault.BAD_PARAMS)
    return int(value)


def _ping(request_id: str | None, value: Frame) -> Ping:
    _optional_params(value)
    return Ping(_needed(request_id))


def _disconnect(request_id: str | None, value: Frame) -> Disconnect:
    params = _optional_params(value)
    return Disconnect(_integer(params, 0, 255, "reasonCode"), _text(params, TOPIC_LENGTH, "reason"))


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
    return check_text(value, length)


def _uid(value: Any) -> str:
    if not isinstance(value, str):
        raise ProtocolFault(Fault.BAD_UID)
    return check_uid(value)


def _channel_type(params: Frame) -> int:
    return check_channel_type(_integer(params, 0, UINT32, "channelType", "channel_type"))


def _channel_id(value: Any, kind: int) -> str:
    if not isinstance(value, str):
        raise ProtocolFault(Fault.BAD_CHANNEL_ID)
    return check_channel_id(value, kind)


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


# --- encoding ------------------------------------------------------------------------------------


def encode(packet: ServerPacket) -> bytes:
    """The text of a packet, as UTF-8. Of any but `SubAck`: nobody subscribes in JSON-RPC."""
    return _encode_json(WRITERS[type(packet)](packet))


def _result(request_id: str, result: Any) -> Frame:
    return {"jsonrpc": "2.0", "id": request_id, "result": result}


def _notification(method: str, params: Frame) -> Frame:
    return {"jsonrpc": "2.0", "method": method, "params": params}


def _header_object(header: Header) -> Frame:
    return {
        spellings[0]: True for field, spellings in HEADER_FLAGS.items() if getattr(header, field)
    }


def _connack(packet: ConnAck) -> Frame:
    result: Frame = {
        "serverVersion": packet.server_version,
        "serverKey": "",
        "salt": "",
        "timeDiff": packet.time_diff,
        "reasonCode": 1,
        "nodeId": packet.node_id,
    }
    if packet.positions is not None:
        result["positions"] = [_resumed(each) for each in packet.positions]
    return _result(packet.request_id, result)


def _resumed(answer: Resumed) -> Frame:
    members = {
        "channelId": answer.channel_id,
        "channelType": answer.channel_type,
        "state": answer.state,
        "messageSeq": answer.message_seq,
        "from": answer.first,
        "to": answer.last,
        "reason": answer.reason,
    }
    return {name: value for name, value in members.items() if value is not None}


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
        "payload": value_of(packet.payload),
    }
    optional = {
        "clientMsgNo": packet.client_msg_no,
        "topic": packet.topic,
        "expire": packet.expire,
        "setting": {name: True for name in SETTING_FLAGS if getattr(packet.setting, name)},
    }
    params.update({name: value for name, value in optional.items() if value})
    return _notification("recv", params)


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
    return _notification("disconnect", {"reasonCode": int(packet.reason), "reason": packet.text})


def _error(packet: ErrorReply) -> Frame:
    error = {"code": int(packet.reason), "message": packet.text or packet.reason.wire_name}
    if packet.request_id is None:
        return {"jsonrpc": "2.0", "error": error}
    return {"jsonrpc": "2.0", "id": packet.request_id, "error": error}


def _refusal(packet: ConnectRefused | SendRefused) -> Frame:
    return _error(ErrorReply(packet.request_id, packet.reason))


WRITERS: dict[type[ServerPacket], Callable[[Any], Frame]] = {
    ConnAck: _connack,
    ConnectRefused: _refusal,
    SendAck: _sendack,
    SendRefused: _refusal,
    Recv: _recv,
    Pong: _pong,
    Event: _event,
    DisconnectNotice: _disconnect_notice,
    ErrorReply: _error,
}
