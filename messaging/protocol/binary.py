"""The binary protocol (protocol §2): bytes to packets, and packets to bytes.

Every fault of a binary frame ends the session: the codec has no word for one, and behind broken
bytes nobody knows where the next packet begins. Only a SEND has an answer of its own, so one that
is whole but cannot be taken comes out as `BadSend`, and the session goes on.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from messaging.protocol.cipher import Cipher, agree, encrypted_length, padding_of
from messaging.protocol.faults import Fault, ProtocolFault
from messaging.protocol.fields import (
    INT64,
    TEXT_LENGTH,
    TOKEN_LENGTH,
    TOPIC_LENGTH,
    check_channel_id,
    check_channel_type,
    check_device_flag,
    check_text,
    check_uid,
)
from messaging.protocol.packets import (
    BadSend,
    ClientPacket,
    ConnAck,
    Connect,
    ConnectRefused,
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
    SendRefused,
    ServerPacket,
    Setting,
    SubAck,
    Subscribe,
)
from messaging.protocol.reasons import Reason

# --- the layout (§2.1 to §2.8) -------------------------------------------------------------------

CONNECT, CONNACK, SEND, SENDACK, RECV, RECVACK, PING, PONG, DISCONNECT, SUB, SUBACK, EVENT = range(
    1, 13
)
FROM_CLIENTS = frozenset({CONNECT, SEND, RECVACK, PING, SUB})
LONGEST = 1 << 20
"""Bytes behind the header that no packet may exceed, whatever a deployment allows."""
LENGTH_BYTES = 4
HAS_SERVER_VERSION = 0x1
"""A flag of CONNACK."""

EXPIRE_SINCE, NODE_ID_SINCE, EVENT_SINCE, LONG_SEQ_SINCE = 3, 4, 5, 6
STREAM_NO_VERSIONS = range(2, 5)
STREAM, OLD_STREAM, TOPIC = 0x02, 0x04, 0x08
"""Bits of a setting byte. The first library and JS SDK 1.0.4 have the stream's elsewhere."""
KEY_LENGTH = 32
"""Characters of a msgKey."""

HEADERS = tuple(
    Header(
        no_persist=bool(flags & 1),
        red_dot=bool(flags & 2),
        sync_once=bool(flags & 4),
        dup=bool(flags & 8),
    )
    for flags in range(16)
)
"""The header of each four bits of flags."""
SETTINGS = tuple(map(Setting.from_byte, range(256)))
"""The settings of each setting byte."""

_u16, _u32, _u64, _i64 = (struct.Struct(f">{kind}") for kind in "HIQq")
_u8_u8, _u8_u32 = struct.Struct(">BB"), struct.Struct(">BI")
_ack_short, _ack_long = struct.Struct(">QI"), struct.Struct(">QQ")
_ack_short_head, _ack_long_head = (RECVACK, _ack_short.size), (RECVACK, _ack_long.size)
_recv_short, _recv_long = struct.Struct(">QII"), struct.Struct(">QQI")
_sendack_short, _sendack_long = struct.Struct(">QIIB"), struct.Struct(">QIQB")


def flags_of(header: Header) -> int:
    """The four bits of a header."""
    return (
        (header.no_persist and 1)
        | (header.red_dot and 2)
        | (header.sync_once and 4)
        | (header.dup and 8)
    )


def head_of(kind: int, flags: int, length: int) -> bytes:
    """The fixed header of a packet with so many bytes behind it (§2.1)."""
    head = bytearray((kind << 4 | flags,))
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head)


def packed(kind: int, *fields: bytes, flags: int = 0) -> bytes:
    """A packet of these fields."""
    body = b"".join(fields)
    return head_of(kind, flags, len(body)) + body


def packed_text(text: str) -> bytes:
    """A string field."""
    field = text.encode()
    return _u16.pack(len(field)) + field


def _field(body: bytes, at: int) -> tuple[bytes, int]:
    """The bytes of a string that begins there, and where the next field begins. The highest bit of
    its length is a sign, and no length is negative."""
    (length,) = _u16.unpack_from(body, at)
    end = at + 2 + length
    if length > 0x7FFF or end > len(body):
        raise ProtocolFault(Fault.BAD_PACKET)
    return body[at + 2 : end], end


# --- from bytes to packets without a meaning -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class RawPacket:
    """A packet whose body nobody has read yet."""

    type: int
    flags: int
    body: bytes


class Splitter:
    """Cuts what a client sends into packets, however it is chopped up (§0.3, §2.1).

    Holds at most one packet that is not whole yet. Useless after it has raised.
    """

    def __init__(self, limit: int = LONGEST) -> None:
        """`limit`: the most bytes that a packet may have behind its header."""
        self.limit = min(limit, LONGEST)
        self._rest = bytearray()
        self._needed = 0
        """Bytes of `_rest` without which there is nothing to read in it."""

    @property
    def waits(self) -> bool:
        """Whether part of a packet has come."""
        return bool(self._rest)

    def feed(self, piece: bytes) -> Iterator[RawPacket]:
        """The packets that are whole now: take all of them. Raises ProtocolFault for a type that no
        client may send, and for a length above the limit before the bytes of that packet come."""
        if self._rest:
            self._rest += piece
            if len(self._rest) < self._needed:
                return
            piece = bytes(self._rest)
            self._rest.clear()
        at, end = 0, len(piece)
        while at < end:
            kind, flags = piece[at] >> 4, piece[at] & 0xF
            if kind not in FROM_CLIENTS:
                raise ProtocolFault(Fault.BAD_PACKET)
            length, start = (0, at + 1) if kind == PING else _length(piece, at + 1)
            if length > self.limit:
                raise ProtocolFault(Fault.BAD_PACKET)
            if start + length > end:
                self._rest += piece[at:]
                self._needed = start + length - at
                return
            at = start + length
            yield RawPacket(kind, flags, piece[start:at])


def _length(piece: bytes, at: int) -> tuple[int, int]:
    """The length that is written there, and where the body begins. One whose end has not come is
    taken for a byte longer than what has, and one of too many bytes is above every limit."""
    length = 0
    for position, byte in enumerate(piece[at : at + LENGTH_BYTES]):
        length |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            return length, at + position + 1
    if len(piece) < at + LENGTH_BYTES:
        return 0, len(piece) + 1
    return LONGEST + 1, at


# --- packets for many ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SharedRecv:
    """All of a RECV that is the same for everybody who is shown the same channel id in the same
    version (§2.7): only the msgKey, between `head` and `tail`, and the payload are each one's."""

    head: bytes
    tail: bytes
    signed: bytes
    """What the msgKey covers (§2.10), up to the encrypted payload, which is its end."""
    padding: bytes
    """What follows that end when it is signed."""
    plain: bytes
    """The payload with its padding."""
    length: int
    """Bytes of the packet."""

    @classmethod
    def of(cls, packet: Recv, version: int) -> SharedRecv:
        """What everybody of this version gets. The stream bit means a stream of events (§2.11); old
        versions would look for other fields behind it, each SDK behind another bit, so they are
        shown a message as any other."""
        setting = packet.setting.to_byte() | (TOPIC if packet.topic else 0)
        if version < EVENT_SINCE:
            setting &= ~STREAM
        numbers = _recv_long if version >= LONG_SEQ_SINCE else _recv_short
        tail = b"".join(
            (
                packed_text(packet.from_uid), packed_text(packet.channel_id),
                bytes((packet.channel_type,)),
                _u32.pack(packet.expire) if version >= EXPIRE_SINCE else b"",
                packed_text(packet.client_msg_no),
                numbers.pack(packet.message_id, packet.message_seq, packet.timestamp),
                packed_text(packet.topic) if setting & TOPIC else b"",
            )
        )  # fmt: skip
        signed = (
            f"{packet.message_id}{packet.message_seq}{packet.client_msg_no}{packet.timestamp}"
            f"{packet.from_uid}{packet.channel_id}{packet.channel_type}"
        ).encode()
        start, plain = bytes((setting, 0, KEY_LENGTH)), packet.payload
        encrypted = encrypted_length(len(plain))
        length = len(start) + KEY_LENGTH + len(tail) + encrypted
        head = head_of(RECV, flags_of(packet.header), length)
        return cls(head + start, tail, signed, padding_of(len(signed) + encrypted),
                   plain + padding_of(len(plain)), len(head) + length)  # fmt: skip

    def behind(self, header: bytes) -> SharedRecv:
        """The same with what carries it before it."""
        return replace(self, head=header + self.head)

    def sealed(self, cipher: Cipher) -> bytes:
        """The packet of one receiver."""
        payload = cipher.encrypt_padded(self.plain)
        key = cipher.sign_padded(b"".join((self.signed, payload, self.padding)))
        return b"".join((self.head, key, self.tail, payload))


# --- the session ---------------------------------------------------------------------------------


class BinaryCodec:
    """One session's side of the protocol: what has come in pieces, its version, and its cipher.

    `decode` the CONNECT, `start` with it, then `encode` its answer. Until `start` nothing can be
    deciphered: a SEND before it is a `BadSend`.
    """

    __slots__ = ("_announced", "_newest", "_payload_bytes", "_splitter", "cipher", "version")

    def __init__(self, limit: int, payload_bytes: int, newest: int) -> None:
        """`limit`: bytes of a packet; `payload_bytes`: of a message body as it is read;
        `newest`: the newest version that this server speaks."""
        self.version = newest
        self.cipher: Cipher | None = None
        self._splitter = Splitter(limit)
        self._payload_bytes = payload_bytes
        self._newest = newest
        self._announced = 0

    def start(self, connect: Connect) -> tuple[str, str]:
        """Agree on a cipher and a version (§2.2, §2.10); returns the server's key and the salt,
        which belong into the ConnAck. Raises ValueError for a client key that is none."""
        agreement = agree(connect.client_key)
        self.cipher = agreement.cipher
        self._announced = connect.version
        self.version = min(connect.version, self._newest)
        return agreement.server_key, agreement.salt

    @property
    def waits(self) -> bool:
        """Whether a packet has begun to come whose end has not."""
        return self._splitter.waits

    def allow(self, limit: int) -> None:
        """From now on packets may have so many bytes."""
        self._splitter.limit = min(limit, LONGEST)

    # --- decoding ----------------------------------------------------------------------------

    def decode(self, piece: bytes) -> list[ClientPacket]:
        """The packets that are whole with these bytes, in order.

        Raises ProtocolFault for the first that cannot be read; those before it are in the
        exception's `packets`. The codec is useless then, and the session over.
        """
        packets: list[ClientPacket] = []
        try:
            for raw in self._splitter.feed(piece):
                packets.append(self._read(raw))  # noqa: PERF401 - a fault keeps those before it
        except ProtocolFault as fault:
            fault.packets = packets
            raise
        return packets

    def decode_plain(self, piece: bytes) -> int | Send | None:
        """The message id of a RECVACK, or a SEND, that is all there is and in order; None when
        `decode` has to read it. One comes for each delivery, and one for each message."""
        if self._splitter.waits or not piece:
            return None
        if piece[0] >> 4 == SEND:
            return self._plain_send(piece)
        kind, length = _ack_long_head if self.version >= LONG_SEQ_SINCE else _ack_short_head
        if len(piece) != length + 2 or piece[0] >> 4 != kind or piece[1] != length:
            return None
        (message_id,) = _u64.unpack_from(piece, 2)
        return int(message_id) if message_id <= INT64 else None

    def _plain_send(self, piece: bytes) -> Send | None:
        length, start = _length(piece, 1)
        if start + length != len(piece) or length > self._splitter.limit:
            return None
        try:
            packet = self._read(RawPacket(SEND, piece[0] & 0xF, piece[start:]))
        except ProtocolFault:
            return None
        return packet if isinstance(packet, Send) else None

    def _read(self, raw: RawPacket) -> ClientPacket:
        try:
            return READERS[raw.type](self, raw)
        except (struct.error, IndexError, UnicodeDecodeError):
            raise ProtocolFault(Fault.BAD_PACKET) from None

    def _connect(self, raw: RawPacket) -> Connect:
        """The same in every version (§2.3)."""
        if self.cipher is not None:
            raise ProtocolFault(Fault.CONNECTED_ALREADY)
        version, device_flag = _u8_u8.unpack_from(raw.body)
        device_id, at = _field(raw.body, 2)
        uid, at = _field(raw.body, at)
        token, at = _field(raw.body, at)
        (timestamp,) = _i64.unpack_from(raw.body, at)
        client_key, at = _field(raw.body, at + 8)
        _require(at == len(raw.body) and timestamp >= 0)
        return Connect(
            request_id="",
            uid=check_uid(uid.decode()),
            token=check_text(token.decode(), TOKEN_LENGTH),
            device_id=check_text(device_id.decode(), TEXT_LENGTH),
            device_flag=check_device_flag(device_flag),
            client_timestamp=timestamp,
            version=version,
            client_key=check_text(client_key.decode(), TEXT_LENGTH),
        )

    def _send(self, raw: RawPacket) -> Send | BadSend:
        """A message (§2.5), or why it is refused.

        The number of an old stream is dropped and so is its bit, which means something else since
        version 5. The bit for "not encrypted" (0x10) is ignored: no msgKey covers it, so whoever
        could change a packet on its way would set it and send what he likes.
        """
        body, header = raw.body, HEADERS[raw.flags]
        bits, seq = _u8_u32.unpack_from(body)
        client_msg_no, at = _field(body, 5)
        if self.version in STREAM_NO_VERSIONS and bits & (STREAM | OLD_STREAM):
            _, at = _field(body, at)
        channel_id, at = _field(body, at)
        channel_type, expire = body[at], 0
        at += 1
        if self.version >= EXPIRE_SINCE:
            (expire,) = _u32.unpack_from(body, at)
            at += 4
        key, at = _field(body, at)
        topic, at = _field(body, at) if bits & TOPIC else (b"", at)
        signed = b"%d%b%b%d%b" % (seq, client_msg_no, channel_id, channel_type, body[at:])
        try:
            return Send(
                request_id=str(seq),
                payload=self._opened(body[at:], key, signed),
                channel_type=check_channel_type(channel_type),
                channel_id=check_channel_id(channel_id.decode(), channel_type),
                client_msg_no=check_text(client_msg_no.decode(), TEXT_LENGTH),
                header=header,
                setting=SETTINGS[bits if self.version >= EVENT_SINCE else bits & ~STREAM],
                topic=check_text(topic.decode(), TOPIC_LENGTH),
                expire=expire,
            )
        except ProtocolFault as fault:
            return BadSend(str(seq), fault.fault.reason, header)

    def _opened(self, text: bytes, key: bytes, signed: bytes) -> bytes:
        """The payload, if the key is that of what was signed. Like V2, with one reason for
        whatever is wrong with either."""
        if self.cipher is None:
            raise ProtocolFault(Fault.BAD_PAYLOAD)
        if not hmac.compare_digest(self.cipher.sign(signed), key):
            raise ProtocolFault(Fault.BAD_PAYLOAD)
        try:
            payload = self.cipher.decrypt(text)
        except ValueError:
            raise ProtocolFault(Fault.BAD_PAYLOAD) from None
        if not 0 < len(payload) <= self._payload_bytes:
            raise ProtocolFault(Fault.BAD_PAYLOAD)
        return payload

    def _recvack(self, raw: RawPacket) -> RecvAck:
        layout = _ack_long if self.version >= LONG_SEQ_SINCE else _ack_short
        message_id, message_seq = layout.unpack(raw.body)
        _require(message_id <= INT64)
        return RecvAck(message_id, message_seq, HEADERS[raw.flags])

    def _ping(self, raw: RawPacket) -> Ping:
        return Ping("")

    def _subscribe(self, raw: RawPacket) -> Subscribe:
        """Taken as it is: nothing comes of it but an answer that repeats it (§2.8)."""
        sub_no, at = _field(raw.body, 1)
        channel_id, at = _field(raw.body, at)
        channel_type, action = _u8_u8.unpack_from(raw.body, at)
        param, at = _field(raw.body, at + 2)
        _require(at == len(raw.body))
        return Subscribe(
            sub_no.decode(), channel_id.decode(), channel_type, action, param.decode(), raw.body[0]
        )

    # --- encoding ----------------------------------------------------------------------------

    def encode(self, packet: ServerPacket) -> bytes:
        """The bytes of a packet; none for what this session's version has no packet for."""
        return WRITERS[type(packet)](self, packet)

    def encode_shared(self, shared: SharedRecv) -> bytes:
        """The RECV of this session, from what it shares with others of its version."""
        if self.cipher is None:
            raise ValueError("a RECV before the session has a cipher")
        return shared.sealed(self.cipher)

    def _connack(self, packet: ConnAck) -> bytes:
        """It names the session's version, never one above the client's, to those who look for it:
        clients that announced more than 3 (§2.4)."""
        named = self._announced > EXPIRE_SINCE
        return packed(
            CONNACK,
            bytes((self.version,)) if named else b"",
            _i64.pack(packet.time_diff),
            bytes((Reason.SUCCESS,)),
            packed_text(packet.server_key),
            packed_text(packet.salt),
            _u64.pack(packet.node_id) if self.version >= NODE_ID_SINCE else b"",
            flags=HAS_SERVER_VERSION if named else 0,
        )

    def _connect_refused(self, packet: ConnectRefused) -> bytes:
        """In V3's form, which every version can read: no server version, and a node of 0."""
        return packed(CONNACK, bytes(8), bytes((packet.reason,)), bytes(4), bytes(8))

    def _sendack(self, packet: SendAck) -> bytes:
        return self._send_answer(
            packet.request_id, packet.header, packet.message_id, packet.message_seq, Reason.SUCCESS
        )

    def _send_refused(self, packet: SendRefused) -> bytes:
        return self._send_answer(
            packet.request_id, packet.header, packet.message_id, 0, packet.reason
        )

    def _send_answer(
        self, request_id: str, header: Header, message_id: int, seq: int, reason: Reason
    ) -> bytes:
        """Repeats the flags of the SEND, as V2 does (§2.6)."""
        layout = _sendack_long if self.version >= LONG_SEQ_SINCE else _sendack_short
        fields = layout.pack(message_id, int(request_id), seq, reason)
        return packed(SENDACK, fields, flags=flags_of(header))

    def _recv(self, packet: Recv) -> bytes:
        return self.encode_shared(SharedRecv.of(packet, self.version))

    def _pong(self, packet: Pong) -> bytes:
        return bytes((PONG << 4,))

    def _event(self, packet: Event) -> bytes:
        """SDK 1.0.4 cannot bear one (§3.1)."""
        if self.version < EVENT_SINCE:
            return b""
        return packed(
            EVENT,
            packed_text(packet.id),
            packed_text(packet.type),
            _i64.pack(packet.timestamp),
            packet.data.encode(),
        )

    def _disconnect(self, packet: DisconnectNotice) -> bytes:
        return packed(DISCONNECT, bytes((packet.reason,)), packed_text(packet.text))

    def _suback(self, packet: SubAck) -> bytes:
        return packed(
            SUBACK,
            packed_text(packet.sub_no),
            packed_text(packet.channel_id),
            bytes((packet.channel_type, packet.action, packet.reason)),
        )

    def _nothing(self, packet: ErrorReply) -> bytes:
        return b""


def _require(condition: bool) -> None:
    if not condition:
        raise ProtocolFault(Fault.BAD_PACKET)


READERS: dict[int, Callable[[BinaryCodec, RawPacket], ClientPacket]] = {
    CONNECT: BinaryCodec._connect,
    SEND: BinaryCodec._send,
    RECVACK: BinaryCodec._recvack,
    PING: BinaryCodec._ping,
    SUB: BinaryCodec._subscribe,
}
WRITERS: dict[type[ServerPacket], Callable[[BinaryCodec, Any], bytes]] = {
    ConnAck: BinaryCodec._connack,
    ConnectRefused: BinaryCodec._connect_refused,
    SendAck: BinaryCodec._sendack,
    SendRefused: BinaryCodec._send_refused,
    Recv: BinaryCodec._recv,
    Pong: BinaryCodec._pong,
    Event: BinaryCodec._event,
    DisconnectNotice: BinaryCodec._disconnect,
    SubAck: BinaryCodec._suback,
    ErrorReply: BinaryCodec._nothing,
}
