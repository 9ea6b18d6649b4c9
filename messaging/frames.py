"""WebSocket frames as bytes: made once, written to as many sockets as are to have them."""

from __future__ import annotations

import struct

TEXT = 0x81
"""First byte of a whole text frame: final, no extension bits (RFC 6455 §5.2)."""

TWO_BYTES, EIGHT_BYTES = 126, 127
"""Length bytes that say: the length follows, in so many bytes."""


def text_frame(text: bytes) -> bytes:
    """The frame in which a server sends this text, which is UTF-8. Unmasked (§5.1)."""
    length = len(text)
    if length < TWO_BYTES:
        return struct.pack("!BB", TEXT, length) + text
    if length < 1 << 16:
        return struct.pack("!BBH", TEXT, TWO_BYTES, length) + text
    return struct.pack("!BBQ", TEXT, EIGHT_BYTES, length) + text


def text_of(frame: bytes) -> str:
    """The text of a frame that `text_frame` made."""
    start = {TWO_BYTES: 4, EIGHT_BYTES: 10}.get(frame[1], 2)
    return frame[start:].decode()
