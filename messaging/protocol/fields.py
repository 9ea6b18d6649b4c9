"""What a field of a packet may be, whatever codec reads it (protocol §1.3, §2.3, §2.5)."""

from __future__ import annotations

from messaging.protocol.faults import Fault, ProtocolFault
from subscriptions.names import has_control, is_channel_id, is_uid

TEXT_LENGTH = 100
TOPIC_LENGTH = 255
TOKEN_LENGTH = 1_000
INT64 = (1 << 63) - 1
INT64_DIGITS = 19
CHANNEL_TYPES = range(1, 13)
DEVICE_FLAGS = (0, 1, 2, 99)


def check_text(text: str, length: int) -> str:
    """A text of at most so many characters, none of them a control."""
    if len(text) > length or has_control(text):
        raise ProtocolFault(Fault.BAD_TEXT)
    return text


def check_request_id(text: str) -> str:
    """What a client names a request by."""
    if not 0 < len(text) <= TEXT_LENGTH or has_control(text):
        raise ProtocolFault(Fault.BAD_ID)
    return text


def check_uid(text: str) -> str:
    """A uid."""
    if not is_uid(text):
        raise ProtocolFault(Fault.BAD_UID)
    return text


def check_device_flag(number: int) -> int:
    """The kind of a device."""
    if number not in DEVICE_FLAGS:
        raise ProtocolFault(Fault.BAD_DEVICE)
    return number


def check_channel_type(number: int) -> int:
    """A channel type that WuKongIM knows."""
    if number not in CHANNEL_TYPES:
        raise ProtocolFault(Fault.BAD_CHANNEL_TYPE)
    return number


def check_channel_id(text: str, channel_type: int) -> str:
    """A channel id. A person channel is named by the peer, or by the pair `a@b` (§4.4)."""
    if not is_channel_id(text, channel_type):
        raise ProtocolFault(Fault.BAD_CHANNEL_ID)
    return text
