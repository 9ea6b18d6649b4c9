"""What bad input gets: one table.

Before `connect` was accepted every fault closes the socket without a word (protocol §0.4), code
1008. Afterwards the peer is told and keeps its session, unless `closes` says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from messaging.protocol.packets import ClientPacket
from messaging.protocol.reasons import Reason


class Fault(Enum):
    """(reason code, text, closes an open session)."""

    NOT_JSON = (Reason.UNKNOWN, "the frame is not JSON in UTF-8", False)
    NOT_OBJECT = (Reason.UNKNOWN, "a frame is a JSON object; there are no batches", False)
    TOO_DEEP = (Reason.UNKNOWN, "the frame is nested too deeply", False)
    TOO_MANY = (Reason.UNKNOWN, "a frame holds at most 100 objects", False)
    BAD_ID = (Reason.UNKNOWN, "id must be a text of 1 to 100 characters, none a control", False)
    BAD_VERSION = (Reason.UNKNOWN, 'jsonrpc, if present, must be "2.0"', False)
    UNKNOWN_METHOD = (Reason.UNKNOWN, "there is no such method", False)
    NOT_A_NOTIFICATION = (Reason.UNKNOWN, "this method needs an id", False)
    NOT_A_REQUEST = (Reason.UNKNOWN, "this method takes no id", False)
    BAD_PARAMS = (Reason.UNKNOWN, "params are missing or have a wrong type", False)
    BAD_TEXT = (Reason.UNKNOWN, "a text is too long or has control characters", False)
    BAD_POSITIONS = (
        Reason.UNKNOWN,
        "positions are a list, one a channel and not too many",
        False,
    )
    BAD_UID = (Reason.AUTH_FAIL, "a uid has 1 to 100 characters without @ # &", False)
    BAD_DEVICE = (Reason.AUTH_FAIL, "deviceFlag is 0, 1, 2 or 99", False)
    BAD_CHANNEL_ID = (Reason.CHANNEL_ID_ERROR, "this cannot be a channel id", False)
    BAD_CHANNEL_TYPE = (
        Reason.NOT_SUPPORT_CHANNEL_TYPE,
        "this channel type is not served",
        False,
    )
    BAD_PAYLOAD = (
        Reason.PAYLOAD_DECODE_ERROR,
        "the payload is empty, too large or not base64",
        False,
    )
    NOT_SERVED = (Reason.NOT_ALLOW_SEND, "subscribing is not done over the wire", False)
    CONNECTED_ALREADY = (Reason.UNKNOWN, "connect comes once, as the first frame", True)
    BAD_PACKET = (Reason.UNKNOWN, "these bytes are no packet, or one that is too long", True)

    @property
    def reason(self) -> Reason:
        """The code that the peer is told."""
        return self.value[0]

    @property
    def text(self) -> str:
        """What the peer is told in words."""
        return self.value[1]

    @property
    def closes(self) -> bool:
        """Whether an open session ends by it."""
        return self.value[2]


class ProtocolFault(Exception):
    """A frame that cannot be taken. `packets` are those before it in the same frame."""

    def __init__(self, fault: Fault, request_id: str | None = None) -> None:
        super().__init__(fault.text)
        self.fault, self.request_id = fault, request_id
        self.packets: Sequence[ClientPacket] = ()
