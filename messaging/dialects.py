"""How one peer speaks: which codec its packets go through, and what carries them (protocol §0.2).

A JSON-RPC frame is the same for everybody who is shown the same, so it is made once a message. A
binary peer has a key of its own: of its frames all but the encryption is made once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from messaging.conf import conf
from messaging.encoding import packet_of
from messaging.fanout import Fanout
from messaging.frames import binary_header, content_of, text_frame
from messaging.protocol import jsonrpc, plain
from messaging.protocol.binary import CONNECT, BinaryCodec, SharedRecv
from messaging.protocol.packets import ClientPacket, Connect, Event, Recv, Send, ServerPacket

SERVER_VERSION = 5
"""The newest protocol version this server speaks (protocol §2.2): no SDK is there to try 6 with."""


class Dialect(Protocol):
    """One session's way to speak."""

    @property
    def waits(self) -> bool:
        """Whether a packet has begun to come whose end has not."""

    def decode(self, data: bytes) -> list[ClientPacket]:
        """The packets that are whole with this. Raises ProtocolFault."""

    def decode_plain(self, data: bytes) -> int | Send | None:
        """The message id of an acknowledgement, or a send, that is all there is and in order; None
        when `decode` has to read it."""

    def start(self, connect: Connect) -> tuple[str, str]:
        """Whoever this is was admitted: what encryption needs to be told, as ConnAck has it.
        Raises ValueError if it cannot begin."""

    def frame_of(self, packet: ServerPacket) -> bytes:
        """A packet as it is written. Empty where the dialect has no word for it."""

    def frame_for(self, fanout: Fanout, uid: str) -> bytes:
        """A message as this peer is sent it: the same bytes each time."""

    def content_of(self, frame: bytes) -> dict[str, Any]:
        """What an ASGI server is to send, of a frame that was made here."""


class JsonRpc:
    """JSON-RPC in text frames (§1). It keeps nothing of a session."""

    waits = False

    def decode(self, data: bytes) -> list[ClientPacket]:
        """All packets of a message: none comes in pieces (§1.1)."""
        return jsonrpc.decode(data, conf().payload_bytes, conf().resume_positions)

    def decode_plain(self, data: bytes) -> int | Send | None:
        """What is in the shape that the SDKs send."""
        return plain.decode(data, conf().payload_bytes)

    def start(self, connect: Connect) -> tuple[str, str]:
        """Nothing is encrypted."""
        return "", ""

    def frame_of(self, packet: ServerPacket) -> bytes:
        """A text frame."""
        return text_frame(jsonrpc.encode(packet))

    def frame_for(self, fanout: Fanout, uid: str) -> bytes:
        """The same for everybody who is shown the same."""
        name = fanout.name_for(uid)
        frame: bytes | None = fanout.made.get(name)
        if frame is None:
            frame = fanout.made[name] = self.frame_of(packet_of(fanout.said, uid))
        return frame

    def content_of(self, frame: bytes) -> dict[str, Any]:
        """A text."""
        return {"text": content_of(frame).decode()}


class Binary:
    """The binary protocol (§2), in binary frames or, over TCP, in none. `header`: what stands
    before a packet of some length; `content` takes it away."""

    __slots__ = ("_codec", "_content", "_header")

    def __init__(
        self, header: Callable[[int], bytes], content: Callable[[bytes], bytes], first_bytes: int
    ) -> None:
        self._header, self._content = header, content
        self._codec = BinaryCodec(first_bytes, conf().payload_bytes, SERVER_VERSION)

    @property
    def waits(self) -> bool:
        """Whether a packet has begun to come."""
        return self._codec.waits

    def decode(self, data: bytes) -> list[ClientPacket]:
        """In whatever pieces they come (§0.3)."""
        return self._codec.decode(data)

    def decode_plain(self, data: bytes) -> int | Send | None:
        """What is whole, with nothing before it that is not."""
        return self._codec.decode_plain(data)

    def start(self, connect: Connect) -> tuple[str, str]:
        """Agree on a version and a key, and let packets be as long as they may."""
        self._codec.allow(conf().frame_bytes)
        return self._codec.start(connect)

    def frame_of(self, packet: ServerPacket) -> bytes:
        """One packet a frame (§0.3)."""
        data = self._codec.encode(packet)
        return self._header(len(data)) + data if data else b""

    def frame_for(self, fanout: Fanout, uid: str) -> bytes:
        """A message with this session's key."""
        key = (self._codec.version, self._header, fanout.name_for(uid))
        shared: SharedRecv | Event | None = fanout.made.get(key)
        if shared is None:
            shared = fanout.made[key] = self._shared(packet_of(fanout.said, uid))
        if isinstance(shared, Event):
            return self.frame_of(shared)
        return self._codec.encode_shared(shared)

    def _shared(self, packet: Recv | Event) -> SharedRecv | Event:
        if isinstance(packet, Event):
            return packet
        shared = SharedRecv.of(packet, self._codec.version)
        return shared.behind(self._header(shared.length))

    def content_of(self, frame: bytes) -> dict[str, Any]:
        """Bytes."""
        return {"bytes": self._content(frame)}


JSON_RPC = JsonRpc()
BRACES = (b"{", b"[")


def dialect_of(first: bytes, in_frames: bool, first_bytes: int) -> Dialect | None:
    """How a peer speaks whose first message begins like this. None for what is no connect of
    either protocol, and for JSON without WebSocket frames, which nothing would keep apart.
    `first_bytes`: how long a first packet may be."""
    if first.lstrip().startswith(BRACES):
        return JSON_RPC if in_frames else None
    if not first or first[0] >> 4 != CONNECT:
        return None
    if in_frames:
        return Binary(binary_header, content_of, first_bytes)
    return Binary(no_header, bytes, first_bytes)


def no_header(length: int) -> bytes:
    """Over TCP packets follow each other."""
    return b""
