"""JSON-RPC frames in the shapes that the SDKs give them, decoded at a stroke (decision 46).

Whatever has another shape, or something wrong in it, is for `jsonrpc.decode`, which says what.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from messaging.protocol.bodies import PAYLOAD_BYTES, bytes_of
from messaging.protocol.faults import ProtocolFault
from messaging.protocol.fields import (
    INT64,
    INT64_DIGITS,
    TEXT_LENGTH,
    TOPIC_LENGTH,
    check_channel_id,
    check_channel_type,
    check_request_id,
    check_text,
)
from messaging.protocol.packets import Header, Send


class _AckParams(msgspec.Struct, forbid_unknown_fields=True):
    messageId: str  # noqa: N815 - the wire's names
    messageSeq: Annotated[int, msgspec.Meta(ge=0, le=INT64)]  # noqa: N815
    header: dict[str, bool] = {}


class _Ack(msgspec.Struct, forbid_unknown_fields=True, tag_field="method", tag="recvack"):
    params: _AckParams
    jsonrpc: Literal["2.0"] = "2.0"


class _Flags(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    noPersist: bool = False  # noqa: N815 - the wire's names
    redDot: bool = False  # noqa: N815
    syncOnce: bool = False  # noqa: N815
    dup: bool = False
    end: bool = False


class _SendParams(msgspec.Struct, forbid_unknown_fields=True):
    channelId: str  # noqa: N815 - the wire's names
    channelType: int  # noqa: N815
    payload: Any
    clientMsgNo: str = ""  # noqa: N815
    header: _Flags = _Flags()
    topic: str = ""


class _Send(msgspec.Struct, forbid_unknown_fields=True, tag_field="method", tag="send"):
    id: str
    params: _SendParams
    jsonrpc: Literal["2.0"] = "2.0"


_read = msgspec.json.Decoder(_Ack | _Send).decode


def decode(frame: bytes, payload_bytes: int = PAYLOAD_BYTES) -> int | Send | None:
    """The message id of a `recvack`, or a `send`; None when `jsonrpc.decode` has to read it, which
    takes eight times as long for a `recvack` and twice as long for a `send`
    (`python -m benchmarks.codec`). One comes for each delivery, and one for each message."""
    try:
        plain = _read(frame)
        if isinstance(plain, _Ack):
            return _plain_id(plain.params.messageId)
        send = _plain_send(plain.id, plain.params)
    except (msgspec.DecodeError, UnicodeError, RecursionError, ProtocolFault):
        return None
    return send if len(send.payload) <= payload_bytes else None


def _plain_id(text: str) -> int | None:
    if not text.isascii() or not text.isdecimal() or len(text) > INT64_DIGITS:
        return None
    return value if (value := int(text)) <= INT64 else None


def _plain_send(request_id: str, params: _SendParams) -> Send:
    kind, flags = check_channel_type(params.channelType), params.header
    return Send(
        request_id=check_request_id(request_id),
        channel_id=check_channel_id(params.channelId, kind),
        channel_type=kind,
        payload=bytes_of(params.payload),
        client_msg_no=check_text(params.clientMsgNo, TEXT_LENGTH),
        header=Header(flags.noPersist, flags.redDot, flags.syncOnce, flags.dup, flags.end),
        topic=check_text(params.topic, TOPIC_LENGTH),
    )
