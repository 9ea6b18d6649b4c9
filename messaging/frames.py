"""WebSocket frames as bytes (RFC 6455 §5.2): made once, written to as many sockets as are to have
them; and of those that come, what can be told without a parser.

What comes is parsed by the WebSocket library. But for each delivery there is an acknowledgement,
and of its cost that was half; and of a session that is silent the answers to pings are nearly all.
A frame that is plain, whole and there at once is read here.
"""

from __future__ import annotations

import struct

from websockets.frames import apply_mask

TEXT, BINARY, PING, PONG = 0x81, 0x82, 0x89, 0x8A
"""First byte of a whole frame: final, no extension bits (RFC 6455 §5.2)."""

TWO_BYTES, EIGHT_BYTES = 126, 127
"""Length bytes that say: the length follows, in so many bytes."""

MASK_BIT, MASK, MASKED = 0x80, 4, 6
"""What a length byte has when a mask follows, as behind all that clients send; how long that is;
and how long the shortest such header is."""


def text_frame(text: bytes) -> bytes:
    """The frame in which a server sends this text, which is UTF-8. Unmasked (§5.1)."""
    return _header(TEXT, len(text)) + text


def binary_header(length: int) -> bytes:
    """What stands before so many bytes when a server sends them."""
    return _header(BINARY, length)


def ping_frame(content: bytes) -> bytes:
    """The frame of a ping, which is answered by a pong with the same content (§5.5.2)."""
    return _header(PING, len(content)) + content


def _header(kind: int, length: int) -> bytes:
    if length < TWO_BYTES:
        return struct.pack("!BB", kind, length)
    if length < 1 << 16:
        return struct.pack("!BBH", kind, TWO_BYTES, length)
    return struct.pack("!BBQ", kind, EIGHT_BYTES, length)


def content_of(frame: bytes) -> bytes:
    """What is in a frame that was made here."""
    start = {TWO_BYTES: 4, EIGHT_BYTES: 10}.get(frame[1], 2)
    return frame[start:]


def whole_frame(data: bytes, start: int) -> tuple[int, bytes, int] | None:
    """First byte and content of the frame that begins at `start`, and where the next begins. None
    unless it is a message or a pong, all there, and as plain as frames are: final, no extension
    bits, masked, below 64 KiB, and of a text UTF-8."""
    if len(data) < start + MASKED or data[start] not in (TEXT, BINARY, PONG):
        return None
    length, begin = data[start + 1] - MASK_BIT, start + MASKED
    if length == TWO_BYTES and data[start] != PONG:
        length, begin = int.from_bytes(data[start + 2 : start + 4], "big"), begin + 2
        if length < TWO_BYTES:
            return None
    elif not 0 <= length < TWO_BYTES:
        return None
    end = begin + length
    if end > len(data):
        return None
    content = apply_mask(data[begin:end], data[begin - MASK : begin])
    if data[start] == TEXT and not _is_text(content):
        return None
    return data[start], content, end


def _is_text(content: bytes) -> bool:
    """Whether this may be in a text frame (RFC 6455 §8.1)."""
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def bytes_to_come(data: bytes, at: int) -> int | None:
    """How many bytes of a frame are still to come behind `data`, of which the first `at` belong to
    an earlier one. None when that cannot be told, since it ends within a header."""
    size = len(data)
    while at < size:
        head = data[at : at + 10]
        length = head[1] & (MASK_BIT - 1) if len(head) > 1 else TWO_BYTES
        header = MASKED
        if length == TWO_BYTES:
            length, header = int.from_bytes(head[2:4], "big"), MASKED + 2
        elif length == EIGHT_BYTES:
            length, header = int.from_bytes(head[2:10], "big"), MASKED + 8
        if size - at < header:
            return None
        at += header + length
    return at - size
