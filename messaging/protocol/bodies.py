"""Message bodies in JSON-RPC: JSON to bytes as they come (protocol §1.3), bytes to JSON as they go
(§1.4). Between the two a body is bytes that nobody looks into."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import msgspec

from messaging.protocol.faults import Fault, ProtocolFault

PAYLOAD_BYTES = 1 << 16
"""Largest message body unless a deployment says otherwise: as base64, a twelfth of a frame."""
DEPTH = 100
"""Levels of a payload that goes out as an object. Other JSON readers give up at 512 (Apple's) or
about 1,000 (Python's), and a client that cannot read a frame closes for good: what nests deeper
goes out as base64, which the SDKs hand on as it is when they cannot read it."""
JSON_BEGINS = tuple('{["-0123456789tfn \t\r\n')
"""How a text begins that may be JSON (RFC 8259 §2). Most base64 begins otherwise (`eyJ…`), and to
ask in vain is a fifth of what reading a send at a stroke takes (`python -m benchmarks.codec`)."""

_decoder = msgspec.json.Decoder()
_encode_json = msgspec.json.Encoder().encode


def bytes_of(value: Any) -> bytes:
    """The body's bytes from any of its forms, tried in the order of §1.3. Raises ProtocolFault."""
    if value is None:
        payload = b""
    elif not isinstance(value, str):
        payload = _encode_json(value)
    elif value.startswith(JSON_BEGINS) and _is_json(value):
        payload = value.encode()
    else:
        payload = _from_base64(value)
    if not payload:
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


def value_of(payload: bytes) -> Any:
    """An object if the bytes are one that every client can read, else base64 (§1.4)."""
    if payload.lstrip()[:1] == b"{" and _is_json(payload) and not is_deep(payload):
        return msgspec.Raw(payload.strip())
    return base64.b64encode(payload).decode()


def is_deep(text: bytes) -> bool:
    """Whether a JSON text nests deeper than DEPTH. Level by level, so it needs no stack."""
    if text.count(b"{") + text.count(b"[") <= DEPTH:
        return False
    level = [_decoder.decode(text)]
    for _ in range(DEPTH):
        level = [
            child
            for container in level
            for child in (container.values() if isinstance(container, dict) else container)
            if isinstance(child, (dict, list))
        ]
    return bool(level)
