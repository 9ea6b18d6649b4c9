"""Packets: what a frame means, whatever codec it came through."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from messaging.protocol.reasons import Reason

SETTING_BITS = {"receipt": 0x80, "signal": 0x20, "topic": 0x08, "stream": 0x02}
"""Protocol §2.5."""


@dataclass(frozen=True, slots=True)
class Header:
    """Flags of a message (§1.2)."""

    no_persist: bool = False
    red_dot: bool = False
    sync_once: bool = False
    dup: bool = False
    end: bool = False


@dataclass(frozen=True, slots=True)
class Setting:
    """Settings of a message (§1.2)."""

    receipt: bool = False
    signal: bool = False
    stream: bool = False
    topic: bool = False

    def to_byte(self) -> int:
        """The setting byte (§2.5)."""
        return sum(bit for name, bit in SETTING_BITS.items() if getattr(self, name))

    @classmethod
    def from_byte(cls, byte: int) -> Setting:
        """The settings of a setting byte; bits without a meaning are dropped."""
        return cls(**{name: bool(byte & bit) for name, bit in SETTING_BITS.items()})


@dataclass(frozen=True, slots=True)
class Position:
    """How far a client is in a channel, which it names as `recv` does (docs/reference/wire.md)."""

    channel_id: str
    channel_type: int
    message_seq: int


@dataclass(frozen=True, slots=True)
class Connect:
    """The first packet of every session (§1.3). `positions`: None where the client resumes nothing,
    as the SDKs do. `client_key`: an X25519 key in base64, of the binary protocol alone (§2.10)."""

    request_id: str
    uid: str
    token: str = ""
    device_id: str = ""
    device_flag: int = 0
    client_timestamp: int = 0
    version: int = 0
    positions: tuple[Position, ...] | None = None
    client_key: str = ""


@dataclass(frozen=True, slots=True)
class Send:
    """A message for a channel; `channel_id` as the sender calls it (§1.3). `request_id`: what the
    peer calls this request; of a binary frame, its clientSeq in decimal."""

    request_id: str
    channel_id: str
    channel_type: int
    payload: bytes
    client_msg_no: str = ""
    header: Header = Header()
    setting: Setting = Setting()
    topic: str = ""
    expire: int = 0


@dataclass(frozen=True, slots=True)
class RecvAck:
    """The receiver has this message (§1.3)."""

    message_id: int
    message_seq: int
    header: Header = Header()


@dataclass(frozen=True, slots=True)
class Ping:
    """Answer me (§1.3)."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Disconnect:
    """The client ends the session (§1.3)."""

    reason_code: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Subscribe:
    """A wish to hear a channel, or with `action` 1 no longer (§2.8). It carries no message and is
    answered with a `SubAck`."""

    sub_no: str
    channel_id: str
    channel_type: int
    action: int
    param: str = ""
    setting: int = 0


@dataclass(frozen=True, slots=True)
class BadSend:
    """A send whose body does not bear its key, or cannot be deciphered (§2.10): it is answered with
    a `SendRefused` in its turn, and the session goes on."""

    request_id: str
    reason: Reason
    header: Header = Header()


ClientPacket = Connect | Send | RecvAck | Ping | Disconnect | Subscribe | BadSend


class Resume(StrEnum):
    """What becomes of a position that a client named."""

    OK = "ok"
    GAP = "gap"
    RESET = "reset"


class ResetReason(StrEnum):
    """Why a range is not sent."""

    NOT_KEPT = "notKept"
    TOO_FAR = "tooFar"
    AHEAD = "ahead"
    NOT_MEMBER = "notMember"


@dataclass(frozen=True, slots=True)
class Resumed:
    """The answer to a position: `message_seq` is where the session begins, `first` to `last` what
    was missed and is sent (gap), or is not sent (reset)."""

    channel_id: str
    channel_type: int
    state: Resume
    message_seq: int | None = None
    first: int | None = None
    last: int | None = None
    reason: ResetReason | None = None


@dataclass(frozen=True, slots=True)
class ConnAck:
    """The connect was accepted. `time_diff`: server minus client, milliseconds. `positions`: None
    to a client that named none. `server_key` in base64 and `salt`: empty in JSON-RPC (§2.10)."""

    request_id: str
    server_version: int
    time_diff: int
    node_id: int
    positions: tuple[Resumed, ...] | None = None
    server_key: str = ""
    salt: str = ""


@dataclass(frozen=True, slots=True)
class ConnectRefused:
    """The connect was refused; the socket is closed after it."""

    request_id: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class SendRefused:
    """A send was refused: nothing was stored, or what bears `message_id` already (§2.6)."""

    request_id: str
    reason: Reason
    message_id: int = 0
    header: Header = Header()


@dataclass(frozen=True, slots=True)
class SubAck:
    """The answer to a `Subscribe`, which it names (§2.8)."""

    sub_no: str
    channel_id: str
    channel_type: int
    action: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class SendAck:
    """The message is in the log (seq 0: not stored, as asked)."""

    request_id: str
    message_id: int
    message_seq: int
    header: Header = Header()


@dataclass(frozen=True, slots=True)
class Recv:
    """A message for the client (§1.4). `timestamp` in Unix seconds."""

    message_id: int
    message_seq: int
    timestamp: int
    channel_id: str
    channel_type: int
    from_uid: str
    payload: bytes
    client_msg_no: str = ""
    header: Header = Header()
    setting: Setting = Setting()
    topic: str = ""
    expire: int = 0


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a ping."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Event:
    """A named event (§1.4); `id` and `type` never empty, `timestamp` in milliseconds."""

    id: str
    type: str
    timestamp: int
    data: str


@dataclass(frozen=True, slots=True)
class DisconnectNotice:
    """The server is about to close, and why."""

    reason: Reason
    text: str


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """A request failed; `request_id` None when the frame had none that could be read."""

    request_id: str | None
    reason: Reason
    text: str | None = None


ServerPacket = (
    ConnAck
    | ConnectRefused
    | SendAck
    | SendRefused
    | Recv
    | Pong
    | Event
    | DisconnectNotice
    | SubAck
    | ErrorReply
)
