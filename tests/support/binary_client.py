"""The client's side of the binary protocol: it writes what SDKs send and reads what they are sent.

Written from the layouts of protocol §2, without the server's codec, so that the two check each
other. A client has the same cipher as its server.
"""

from __future__ import annotations

import base64
import struct
from hashlib import md5
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from messaging.protocol.binary import BinaryCodec
from messaging.protocol.cipher import Cipher, cipher_of
from messaging.protocol.packets import ConnAck, Connect

LIMIT, PAYLOAD_BYTES = 1 << 20, 1 << 16
RECEIPT, SIGNAL, NO_ENCRYPT, TOPIC, OLD_STREAM, STREAM = 0x80, 0x20, 0x10, 0x08, 0x04, 0x02
NO_PERSIST, RED_DOT, SYNC_ONCE, DUP = 1, 2, 4, 8


def varint(number: int) -> bytes:
    """A remaining length."""
    groups = []
    while True:
        number, group = divmod(number, 128)
        groups.append(group | (0x80 if number else 0))
        if not number:
            return bytes(groups)


def string(text: str | bytes) -> bytes:
    """A string field."""
    field = text.encode() if isinstance(text, str) else text
    return struct.pack(">h", len(field)) + field


def framed(kind: int, body: bytes, flags: int = 0) -> bytes:
    """A packet."""
    return bytes([kind * 16 + flags]) + varint(len(body)) + body


class Reader:
    """Takes fields off a body."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    def take(self, count: int) -> bytes:
        """So many bytes."""
        taken, self.body = self.body[:count], self.body[count:]
        assert len(taken) == count, "the packet is cut off"
        return taken

    def number(self, kind: str) -> int:
        """A number of this struct format."""
        (number,) = struct.unpack(">" + kind, self.take(struct.calcsize(">" + kind)))
        return int(number)

    def string(self) -> str:
        """A string field."""
        return self.take(self.number("h")).decode()


class Client:
    """A client that announces `version`; `negotiated` is what it speaks after CONNACK."""

    def __init__(self, version: int, private: X25519PrivateKey | None = None) -> None:
        self.version = self.negotiated = version
        self.private = private or X25519PrivateKey.generate()
        self.cipher: Cipher | None = None

    # --- sending -----------------------------------------------------------------------------

    @property
    def key(self) -> str:
        """Its public key, as CONNECT has it."""
        return base64.b64encode(self.private.public_key().public_bytes_raw()).decode()

    def connect(
        self,
        uid: str,
        token: str = "",
        device_id: str = "",
        device_flag: int = 1,
        client_timestamp: int = 0,
        client_key: str | None = None,
    ) -> bytes:
        """CONNECT."""
        key = self.key if client_key is None else client_key
        return framed(
            1,
            bytes([self.version, device_flag])
            + b"".join(map(string, (device_id, uid, token)))
            + struct.pack(">q", client_timestamp)
            + string(key),
        )

    def send(
        self,
        seq: int,
        channel_id: str | bytes,
        channel_type: int,
        payload: bytes,
        client_msg_no: str = "",
        flags: int = 0,
        setting: int = 0,
        expire: int = 0,
        topic: str | None = None,
        stream_no: str | None = None,
        key: bytes | None = None,
        text: bytes | None = None,
    ) -> bytes:
        """SEND. `key` and `text`: a msgKey and a payload of one's own, such as wrong ones."""
        assert self.cipher is not None
        text = self.cipher.encrypt(payload) if text is None else text
        channel = channel_id.encode() if isinstance(channel_id, str) else channel_id
        signed = b"%d%b%b%d%b" % (seq, client_msg_no.encode(), channel, channel_type, text)
        return framed(
            3,
            bytes([setting | (TOPIC if topic is not None else 0)])
            + struct.pack(">I", seq)
            + string(client_msg_no)
            + (b"" if stream_no is None else string(stream_no))
            + string(channel)
            + bytes([channel_type])
            + (struct.pack(">I", expire) if self.negotiated >= 3 else b"")
            + string(self.msg_key(signed) if key is None else key)
            + (b"" if topic is None else string(topic))
            + text,
            flags,
        )

    def msg_key(self, signed: bytes) -> bytes:
        """The msgKey of these bytes."""
        assert self.cipher is not None
        return md5(self.cipher.encrypt(signed), usedforsecurity=False).hexdigest().encode()

    def recvack(self, message_id: int, message_seq: int, flags: int = 0) -> bytes:
        """RECVACK."""
        layout = ">qQ" if self.negotiated >= 6 else ">qI"
        return framed(6, struct.pack(layout, message_id, message_seq), flags)

    def ping(self) -> bytes:
        """PING."""
        return b"\x70"

    def subscribe(
        self, channel_id: str, channel_type: int, action: int = 0, sub_no: str = "",
        param: str = "", setting: int = 0,
    ) -> bytes:  # fmt: skip
        """SUB."""
        return framed(
            10,
            bytes([setting])
            + string(sub_no)
            + string(channel_id)
            + bytes([channel_type, action])
            + string(param),
        )

    # --- receiving ---------------------------------------------------------------------------

    def read(self, packet: bytes) -> dict[str, Any]:
        """The one packet of a WebSocket message, by the names of protocol §2; `type` is its
        number. A CONNACK with keys makes the cipher."""
        kind, flags = divmod(packet[0], 16)
        if kind == 8:
            assert packet == b"\x80"
            return {"type": 8}
        length = at = 0
        for at, byte in enumerate(packet[1:5]):
            length += (byte % 128) << 7 * at
            if byte < 128:
                break
        assert packet[2 + at + length :] == b"", "more than one packet"
        reader = Reader(packet[2 + at :])
        fields = {2: self._connack, 4: self._sendack, 5: self._recv, 9: self._disconnect,
                  11: self._suback, 12: self._event}[kind](reader, flags)  # fmt: skip
        assert reader.body == b"", "something is left over"
        return {"type": kind, "flags": flags, **fields}

    def _connack(self, reader: Reader, flags: int) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if flags & 1:
            self.negotiated = fields["serverVersion"] = reader.number("B")
        fields |= {
            "timeDiff": reader.number("q"),
            "reasonCode": reader.number("B"),
            "serverKey": reader.string(),
            "salt": reader.string(),
        }
        if self.version >= 4 or fields["reasonCode"] != 1:
            fields["nodeId"] = reader.number("Q")
        if fields["serverKey"]:
            peer = X25519PublicKey.from_public_bytes(base64.b64decode(fields["serverKey"]))
            self.cipher = cipher_of(self.private.exchange(peer), fields["salt"])
        return fields

    def _seq(self, reader: Reader) -> int:
        return reader.number("Q" if self.negotiated >= 6 else "I")

    def _sendack(self, reader: Reader, flags: int) -> dict[str, Any]:
        return {
            "messageID": reader.number("q"),
            "clientSeq": reader.number("I"),
            "messageSeq": self._seq(reader),
            "reasonCode": reader.number("B"),
        }

    def _recv(self, reader: Reader, flags: int) -> dict[str, Any]:
        """With its plain payload; a wrong msgKey is an AssertionError."""
        assert self.cipher is not None
        fields: dict[str, Any] = {"setting": reader.number("B"), "msgKey": reader.string()}
        fields |= {
            "fromUID": reader.string(),
            "channelID": reader.string(),
            "channelType": reader.number("B"),
        }
        if self.negotiated >= 3:
            fields["expire"] = reader.number("I")
        fields["clientMsgNo"] = reader.string()
        if 2 <= self.negotiated < 5:
            assert not fields["setting"] & (STREAM | OLD_STREAM), "stream fields that nobody reads"
        fields |= {
            "messageID": reader.number("q"),
            "messageSeq": self._seq(reader),
            "timestamp": reader.number("i"),
        }
        if fields["setting"] & TOPIC:
            fields["topic"] = reader.string()
        text = reader.take(len(reader.body))
        names = ("messageID", "messageSeq", "clientMsgNo", "timestamp", "fromUID", "channelID",
                 "channelType")  # fmt: skip
        signed = "".join(str(fields[name]) for name in names).encode() + text
        assert self.msg_key(signed).decode() == fields["msgKey"], "a wrong msgKey"
        return {**fields, "payload": self.cipher.decrypt(text)}

    def _disconnect(self, reader: Reader, flags: int) -> dict[str, Any]:
        return {"reasonCode": reader.number("B"), "reason": reader.string()}

    def _suback(self, reader: Reader, flags: int) -> dict[str, Any]:
        return {
            "subNo": reader.string(),
            "channelID": reader.string(),
            "channelType": reader.number("B"),
            "action": reader.number("B"),
            "reasonCode": reader.number("B"),
        }

    def _event(self, reader: Reader, flags: int) -> dict[str, Any]:
        return {
            "id": reader.string(),
            "eventType": reader.string(),
            "timestamp": reader.number("q"),
            "data": reader.take(len(reader.body)).decode(),
        }


def session(version: int, newest: int = 6) -> tuple[BinaryCodec, Client]:
    """The two ends of a session whose client announced `version`."""
    codec, client = BinaryCodec(LIMIT, PAYLOAD_BYTES, newest), Client(version)
    [connect] = codec.decode(client.connect("alice"))
    assert isinstance(connect, Connect)
    server_key, salt = codec.start(connect)
    client.read(codec.encode(ConnAck("", 0, 0, 1, server_key=server_key, salt=salt)))
    return codec, client
