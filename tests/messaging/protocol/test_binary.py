"""The binary protocol: golden packets of the SDKs, their quirks, and everything bad."""

import json
from pathlib import Path

import pytest

from messaging.protocol import jsonrpc
from messaging.protocol.binary import LONGEST, BinaryCodec, RawPacket, SharedRecv, Splitter
from messaging.protocol.cipher import Cipher
from messaging.protocol.faults import Fault, ProtocolFault
from messaging.protocol.packets import (
    BadSend,
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
    Setting,
    SubAck,
    Subscribe,
)
from messaging.protocol.reasons import Reason
from tests.support.binary_client import (
    LIMIT,
    NO_ENCRYPT,
    OLD_STREAM,
    PAYLOAD_BYTES,
    RECEIPT,
    RED_DOT,
    SIGNAL,
    STREAM,
    Client,
    framed,
    session,
    string,
    varint,
)

FOLDER = Path(__file__).parents[2] / "vectors"
CRYPTO = json.loads((FOLDER / "crypto.json").read_text())
FROM_CLIENTS = {
    case["name"]: case
    for case in json.loads((FOLDER / "client_to_server.json").read_text())["cases"]
}
_server = json.loads((FOLDER / "server_to_client.json").read_text())
FROM_SERVERS = {case["name"]: case for case in _server["cases"] + _server["v6_unverified"]}
VARINTS = json.loads((FOLDER / "ids.json").read_text())["varint"]
HELLO = '{"content":"hi é中","type":1}'.encode()
VERSIONS = range(1, 7)


def vector_cipher() -> Cipher:
    return Cipher(CRYPTO["aes_key_ascii"].encode(), CRYPTO["iv_ascii_equals_connack_salt"].encode())


def vector_codec(version: int, announced: int | None = None) -> BinaryCodec:
    """In a session with the vectors' keys."""
    codec = BinaryCodec(LIMIT, PAYLOAD_BYTES, newest=6)
    codec.cipher, codec.version = vector_cipher(), version
    codec._announced = version if announced is None else announced
    return codec


def vector_client(version: int) -> Client:
    client = Client(version)
    client.cipher = vector_cipher()
    return client


def new_codec(**limits: int) -> BinaryCodec:
    """Before CONNECT."""
    return BinaryCodec(
        limits.get("limit", LIMIT), limits.get("payload_bytes", PAYLOAD_BYTES), newest=5
    )


def refused(codec: BinaryCodec, piece: bytes) -> ProtocolFault:
    with pytest.raises(ProtocolFault) as caught:
        codec.decode(piece)
    return caught.value


# --- golden packets ------------------------------------------------------------------------------

CLIENT_KEY = CRYPTO["client"]["public_b64"]
MSG_NO = "0f8fad5bd9cb469fa16570867728950e_0_3"
LONG = FROM_CLIENTS["send_v5_group_long_payload"]["fields"]["payload_text"].encode()


def connected(version: int) -> Connect:
    return Connect("", "alice", "tk-αβ", "d41d8cd98f00b204e9800998ecf8427eW", 1, 1700000000123,
                   version, client_key=CLIENT_KEY)  # fmt: skip


def sent(**fields) -> Send:
    return Send(**{
        "request_id": "7", "channel_id": "bob", "channel_type": 1, "payload": HELLO,
        "client_msg_no": MSG_NO, "header": Header(red_dot=True), **fields,
    })  # fmt: skip


ALL_FLAGS = Header(no_persist=True, red_dot=True, sync_once=True, dup=True)
CLIENT_PACKETS = {
    "connect_v5": connected(5),
    "connect_v2": connected(2),
    "send_v5_person_reddot": sent(),
    "send_v5_expire": sent(expire=3600),
    "send_v5_nopersist_synconce_dup": sent(header=ALL_FLAGS),
    "send_v5_group_long_payload": sent(channel_id="g1", channel_type=2, payload=LONG),
    "send_v2_person_reddot": sent(),
    "send_v2_stream": sent(),
    "recvack_v5": RecvAck(1900000000000000001, 42, Header(red_dot=True)),
    "ping": Ping(""),
    "sub_data_channel": Subscribe("", "d1", 7, 0, "{}"),
    "unsub_data_channel": Subscribe("", "d1", 7, 1),
}
_SEND = {"seq": 7, "channel_id": "bob", "channel_type": 1, "payload": HELLO,
         "client_msg_no": MSG_NO, "flags": RED_DOT}  # fmt: skip
_CONNECT = {"uid": "alice", "token": "tk-αβ", "device_id": "d41d8cd98f00b204e9800998ecf8427eW",
            "client_timestamp": 1700000000123, "client_key": CLIENT_KEY}  # fmt: skip
CLIENT_CALLS = {
    "connect_v5": ("connect", _CONNECT),
    "connect_v2": ("connect", _CONNECT),
    "send_v5_person_reddot": ("send", _SEND),
    "send_v5_expire": ("send", _SEND | {"expire": 3600}),
    "send_v5_nopersist_synconce_dup": ("send", _SEND | {"flags": 15}),
    "send_v5_group_long_payload": (
        "send", _SEND | {"channel_id": "g1", "channel_type": 2, "payload": LONG}
    ),
    "send_v2_person_reddot": ("send", _SEND),
    "send_v2_stream": ("send", _SEND | {"setting": OLD_STREAM, "stream_no": "st-1"}),
    "recvack_v5": (
        "recvack", {"message_id": 1900000000000000001, "message_seq": 42, "flags": RED_DOT}
    ),
    "ping": ("ping", {}),
    "sub_data_channel": ("subscribe", {"channel_id": "d1", "channel_type": 7, "param": "{}"}),
    "unsub_data_channel": ("subscribe", {"channel_id": "d1", "channel_type": 7, "action": 1}),
}  # fmt: skip


@pytest.mark.parametrize("name", FROM_CLIENTS)
def test_packet_of_an_sdk_is_read(name):
    case = FROM_CLIENTS[name]
    codec = vector_codec(case["negotiated_version"])
    if case["packet"] == "CONNECT":
        codec = new_codec()
    assert codec.decode(bytes.fromhex(case["hex"])) == [CLIENT_PACKETS[name]]


@pytest.mark.parametrize("name", FROM_CLIENTS)
def test_test_client_writes_what_the_sdk_writes(name):
    method, arguments = CLIENT_CALLS[name]
    client = vector_client(FROM_CLIENTS[name]["negotiated_version"])
    assert getattr(client, method)(**arguments).hex() == FROM_CLIENTS[name]["hex"]


def received(**fields) -> Recv:
    return Recv(**{
        "message_id": 1900000000000000001, "message_seq": 42, "timestamp": 1700000001,
        "channel_id": "bob", "channel_type": 1, "from_uid": "bob", "payload": HELLO,
        "client_msg_no": "cmn-1", "header": Header(red_dot=True), **fields,
    })  # fmt: skip


ACK = SendAck("7", 1900000000000000001, 42)
SERVER_PACKETS = {
    "connack_v5_ok": ConnAck(
        "", 5, -15, 1001, server_key=CRYPTO["server"]["public_b64"], salt="AbCdEfGhIjKlMnOp"
    ),
    "sendack_v2_ok": ACK,
    "sendack_v5_ok": ACK,
    "recv_v5_person": received(),
    "recv_v2_person": received(),
    "recv_v5_expire": received(expire=3600),
    "event_v5": Event(
        "evt-1", "stream.delta", 1700000000000,
        '{"client_msg_no":"cmn-1","payload":{"kind":"text","delta":"he"}}',
    ),
    "disconnect_kick": DisconnectNotice(Reason.CONNECT_KICK, "login in other device"),
    "suback_ok": SubAck("", "d1", 7, 0, Reason.SUCCESS),
    "pong": Pong(""),
    "recv_v6_person": received(),
}  # fmt: skip
WITH_A_TAIL = {"sendack_v5_with_trailing_clientMsgNo": 5, "sendack_v6": 6}
"""V3 appends clientMsgNo to a SENDACK, which no SDK reads; we do not."""
NOT_OURS = {"connack_v5_authfail", "recvack_v6", *WITH_A_TAIL}
"""V2's form of a refusal, and a packet of clients."""


def test_every_server_vector_has_its_test():
    assert set(SERVER_PACKETS) == set(FROM_SERVERS) - NOT_OURS


@pytest.mark.parametrize("name", SERVER_PACKETS)
def test_packet_for_an_sdk_is_the_vector(name):
    version = FROM_SERVERS[name].get("version", 6)
    encoded = vector_codec(version).encode(SERVER_PACKETS[name])
    assert encoded.hex() == FROM_SERVERS[name]["hex"]


@pytest.mark.parametrize("name", [name for name in SERVER_PACKETS if "recv" in name])
def test_test_client_reads_the_vector(name):
    case = FROM_SERVERS[name]
    fields = vector_client(case.get("version", 6)).read(bytes.fromhex(case["hex"]))
    assert fields["payload"].decode() == case["fields"]["plain_utf8"]
    same = set(fields) & set(case["fields"])
    assert len(same) >= 9
    assert {key: fields[key] for key in same} == {key: case["fields"][key] for key in same}


@pytest.mark.parametrize(("name", "version"), WITH_A_TAIL.items())
def test_sendack_is_the_vector_without_its_tail(name, version):
    encoded, theirs = vector_codec(version).encode(ACK), bytes.fromhex(FROM_SERVERS[name]["hex"])
    assert theirs[2:] == encoded[2:] + string("cmn-1")


def test_recvack_of_version_6_has_a_long_seq():
    frame = bytes.fromhex(FROM_SERVERS["recvack_v6"]["hex"])
    assert vector_codec(6).decode(frame) == [RecvAck(1900000000000000001, 42, Header(red_dot=True))]
    assert vector_client(6).recvack(1900000000000000001, 42, RED_DOT) == frame


@pytest.mark.parametrize("case", VARINTS, ids=lambda case: str(case["n"]))
def test_length_of_a_packet_is_the_vector(case):
    header, length = bytes.fromhex(case["hex"]), case["n"]
    assert varint(length) == header
    packet = b"\x10" + header + bytes(length)
    splitter = Splitter()
    if length > LONGEST:
        with pytest.raises(ProtocolFault):
            list(splitter.feed(packet))
    else:
        assert list(splitter.feed(packet)) == [RawPacket(1, 0, bytes(length))]


# --- versions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, *VERSIONS, 7, 255])
@pytest.mark.parametrize("newest", [5, 6])
def test_version_is_the_clients_and_never_above_the_servers(version, newest):
    codec, _ = session(version, newest)
    assert codec.version == min(version, newest)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("newest", [5, 6])
def test_connack_names_the_version_to_clients_above_3(version, newest):
    codec, client = session(version, newest)
    ack = codec.encode(ConnAck("", 99, 3, 8))
    fields = client.read(ack)
    assert ack[0] == (0x21 if version > 3 else 0x20)
    assert fields.get("serverVersion") == (min(version, newest) if version > 3 else None)
    assert fields.get("nodeId") == (8 if version > 3 else None)


@pytest.mark.parametrize("version", VERSIONS)
def test_refused_connect_is_v3s_form_in_every_version(version):
    codec, client = session(version)
    frame = codec.encode(ConnectRefused("", Reason.AUTH_FAIL))
    assert frame == bytes.fromhex("2015") + bytes(8) + b"\x02" + bytes(12)
    assert new_codec().encode(ConnectRefused("", Reason.AUTH_FAIL)) == frame
    assert client.read(frame)["reasonCode"] == 2


@pytest.mark.parametrize("version", VERSIONS)
def test_event_is_for_version_5_and_above(version):
    codec, client = session(version)
    frame = codec.encode(Event("e", "stream.delta", 1, "{}"))
    if version < 5:
        assert frame == b""
    else:
        assert client.read(frame)["data"] == "{}"


def test_error_has_no_bytes():
    assert new_codec().encode(ErrorReply("7", Reason.SYSTEM_ERROR)) == b""


@pytest.mark.parametrize("refusal", [ConnectRefused, SendRefused])
def test_refusal_is_an_error_in_json(refusal):
    for reason in Reason:
        error = jsonrpc.encode(ErrorReply("7", reason))
        assert jsonrpc.encode(refusal("7", reason)) == error


# --- quirks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3, 4])
@pytest.mark.parametrize("bit", [OLD_STREAM, STREAM], ids=["JS SDK 1.0.4", "others"])
def test_old_stream_number_is_read_and_dropped(version, bit):
    codec, client = session(version)
    frame = client.send(7, "team", 2, HELLO, setting=bit | RECEIPT, stream_no="st-1")
    assert codec.decode(frame) == [Send("7", "team", 2, HELLO, setting=Setting(receipt=True))]


@pytest.mark.parametrize("version", [1, 5, 6])
def test_no_stream_number_in_other_versions(version):
    codec, client = session(version)
    [packet] = codec.decode(client.send(7, "team", 2, HELLO, setting=STREAM | OLD_STREAM))
    assert packet == Send("7", "team", 2, HELLO, setting=Setting(stream=version >= 5))


@pytest.mark.parametrize("version", VERSIONS)
def test_bits_without_a_meaning_are_dropped(version):
    codec, client = session(version)
    assert codec.decode(client.send(7, "team", 2, HELLO, setting=0x41)) == [
        Send("7", "team", 2, HELLO)
    ]


@pytest.mark.parametrize("version", VERSIONS)
def test_stream_bit_of_recv_is_for_version_5_and_above(version):
    codec, client = session(version)
    packet = received(setting=Setting(stream=True, signal=True))
    fields = client.read(codec.encode(packet))
    assert fields["setting"] == (STREAM | SIGNAL if version >= 5 else SIGNAL)
    assert fields["payload"] == HELLO


def test_topic_is_written_where_there_is_one_and_where_the_bit_is():
    codec, client = session(5)
    assert client.read(codec.encode(received(topic="t")))["topic"] == "t"
    assert client.read(codec.encode(received(setting=Setting(topic=True))))["topic"] == ""
    assert "topic" not in client.read(codec.encode(received()))


def test_bit_for_no_encryption_changes_nothing():
    codec, client = session(5)
    assert codec.decode(client.send(7, "team", 2, HELLO, setting=NO_ENCRYPT)) == [
        Send("7", "team", 2, HELLO)
    ]
    plain = client.send(8, "team", 2, b"", setting=NO_ENCRYPT, text=HELLO)
    assert codec.decode(plain) == [BadSend("8", Reason.PAYLOAD_DECODE_ERROR)]


def test_ack_of_a_send_repeats_its_flags():
    codec, client = session(5)
    [send] = codec.decode(client.send(9, "team", 2, HELLO, flags=0xF))
    ack = client.read(codec.encode(SendAck("9", 1, 2, send.header)))
    assert (ack["flags"], ack["clientSeq"]) == (0xF, 9)


def test_refusal_of_a_send_names_it():
    codec, client = session(5)
    refusal = SendRefused("4294967295", Reason.SEND_BAN, 12, Header(red_dot=True))
    assert client.read(codec.encode(refusal)) == {
        "type": 4, "flags": RED_DOT, "messageID": 12, "clientSeq": 0xFFFFFFFF, "messageSeq": 0,
        "reasonCode": 25,
    }  # fmt: skip


def test_five_packets_in_one_frame_come_in_order():
    """JS SDK 1.3.5 sends so many at once (§3.1)."""
    codec, client = session(5)
    frame = b"".join(client.send(seq, "team", 2, HELLO) for seq in range(5))
    assert [packet.request_id for packet in codec.decode(frame)] == ["0", "1", "2", "3", "4"]


def test_ack_or_send_that_is_all_there_is_of_a_frame_has_a_shortcut():
    for version in VERSIONS:
        codec, client = session(version)
        ack, send = client.recvack(1042, 7, RED_DOT), client.send(1, "team", 2, HELLO)
        assert codec.decode_plain(ack) == 1042
        assert [codec.decode_plain(send)] == codec.decode(send)
        for other in (b"", ack[:-1], ack + b"\x70", ack + ack, client.ping(), b"\x70" * len(ack),
                      client.recvack(-1, 7), send[:-1], send + b"\x70", send + send, send[:1],
                      send[:-1] + bytes((send[-1] ^ 1,)), b"\x30\xff\xff"):  # fmt: skip
            assert codec.decode_plain(other) is None


def test_nothing_behind_half_a_packet_has_a_shortcut():
    codec, client = session(5)
    ack, send = client.recvack(1042, 7), client.send(1, "team", 2, HELLO)
    assert codec.decode(send[:3]) == []
    assert codec.decode_plain(ack) is None
    assert codec.decode_plain(send) is None


def test_send_that_is_longer_than_a_packet_may_be_has_no_shortcut():
    codec, client = session(5)
    send = client.send(1, "team", 2, HELLO)
    codec.allow(len(send) - 3)
    assert codec.decode_plain(send) is None


# --- a send that is refused, and the session goes on ---------------------------------------------


def bad_send(codec: BinaryCodec, frame: bytes) -> Reason:
    [packet, ping] = codec.decode(frame + b"\x70")
    assert ping == Ping("")
    assert isinstance(packet, BadSend)
    assert (packet.request_id, packet.header) == ("7", Header(red_dot=True))
    return packet.reason


SEVEN = {"seq": 7, "channel_id": "team", "channel_type": 2, "payload": HELLO, "flags": RED_DOT}
_UNREADABLE = Reason.PAYLOAD_DECODE_ERROR
BAD_SENDS = {
    "wrong key": ({"key": b"0" * 32}, _UNREADABLE),
    "no key": ({"key": b""}, _UNREADABLE),
    "key of 31": ({"key": b"0" * 31}, _UNREADABLE),
    "key that is no text": ({"key": b"\xff" * 32}, _UNREADABLE),
    "payload in the clear": ({"text": HELLO}, _UNREADABLE),
    "no payload": ({"text": b""}, _UNREADABLE),
    "payload of nothing": ({"payload": b""}, _UNREADABLE),
    "payload too long": ({"payload": bytes(PAYLOAD_BYTES + 1)}, _UNREADABLE),
    "channel type 0": ({"channel_type": 0}, Reason.NOT_SUPPORT_CHANNEL_TYPE),
    "channel type 13": ({"channel_type": 13}, Reason.NOT_SUPPORT_CHANNEL_TYPE),
    "no channel": ({"channel_id": ""}, Reason.CHANNEL_ID_ERROR),
    "channel with #": ({"channel_id": "a#b"}, Reason.CHANNEL_ID_ERROR),
    "channel id too long": ({"channel_id": "x" * 202}, Reason.CHANNEL_ID_ERROR),
    "peer of two": ({"channel_id": "a@b@c", "channel_type": 1}, Reason.CHANNEL_ID_ERROR),
    "control": ({"client_msg_no": "a\x00"}, Reason.UNKNOWN),
    "clientMsgNo too long": ({"client_msg_no": "x" * 101}, Reason.UNKNOWN),
    "topic too long": ({"topic": "x" * 256}, Reason.UNKNOWN),
}


@pytest.mark.parametrize("name", BAD_SENDS)
def test_bad_send_is_answered_and_the_session_goes_on(name):
    codec, client = session(5)
    fields, reason = BAD_SENDS[name]
    assert bad_send(codec, client.send(**SEVEN | fields)) == reason


def test_payload_may_be_as_long_as_it_may():
    codec, client = session(5)
    [packet] = codec.decode(client.send(**SEVEN | {"payload": bytes(PAYLOAD_BYTES)}))
    assert packet.payload == bytes(PAYLOAD_BYTES)


def test_signed_bytes_that_are_no_text_end_the_session():
    """Whoever signs them has the key, and means it."""
    codec, client = session(5)
    fault = refused(codec, client.send(**SEVEN | {"channel_id": b"\xff"}))
    assert fault.fault is Fault.BAD_PACKET


def test_send_before_the_exchange_of_keys_is_a_bad_send():
    codec, client = new_codec(), vector_client(5)
    packets = codec.decode(client.connect("alice") + client.send(**SEVEN))
    assert packets[1:] == [BadSend("7", Reason.PAYLOAD_DECODE_ERROR, Header(red_dot=True))]


def test_message_of_another_session_is_a_bad_send():
    _, stranger = session(5)
    codec, _ = session(5)
    assert bad_send(codec, stranger.send(**SEVEN)) == Reason.PAYLOAD_DECODE_ERROR


# --- what ends the session -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [0, 2, 4, 5, 8, 9, 11, 12, 13, 14, 15])
def test_type_that_no_client_sends_is_a_fault(kind):
    codec, _ = session(5)
    fault = refused(codec, b"\x70" + bytes([kind << 4]))
    assert fault.fault is Fault.BAD_PACKET
    assert fault.fault.closes
    assert fault.packets == [Ping("")]


@pytest.mark.parametrize(
    "head", [b"\x30\xc1\x84\x3d", b"\x30\xff\xff\xff\x7f", b"\x30\xff\xff\xff\xff"],
    ids=["a byte over 1,000,000", "the longest", "a fifth byte"],
)  # fmt: skip
def test_length_over_the_limit_is_a_fault_before_its_bytes_come(head):
    limit = 1_000_000
    assert refused(BinaryCodec(limit, 1, 5), head).fault is Fault.BAD_PACKET
    assert BinaryCodec(limit, 1, 5).decode(b"\x30" + varint(limit)) == []


def test_limit_is_never_above_the_protocols():
    assert LONGEST == 1_048_576
    splitter = Splitter(limit=1 << 30)
    assert list(splitter.feed(b"\x30" + varint(LONGEST))) == []
    with pytest.raises(ProtocolFault):
        list(Splitter(limit=1 << 30).feed(b"\x30" + varint(LONGEST + 1)))


def test_longer_packets_are_taken_once_they_are_allowed():
    long = framed(10, bytes(5) + b"\x02\x00" + string("x" * 200))
    assert refused(BinaryCodec(100, 1, 5), long).fault is Fault.BAD_PACKET
    codec = BinaryCodec(100, 1, 5)
    codec.allow(1_000)
    assert [packet.param for packet in codec.decode(long)] == ["x" * 200]
    codec.allow(LONGEST + 1)
    assert refused(codec, b"\x30" + varint(LONGEST + 1)).fault is Fault.BAD_PACKET


def test_codec_waits_while_a_packet_is_not_whole():
    codec, client = session(5)
    ack = client.recvack(1042, 7)
    assert not codec.waits
    for cut in range(1, len(ack)):
        codec.decode(ack[:cut])
        assert codec.waits
        codec.decode(ack[cut:])
        assert not codec.waits


def test_packet_without_a_body_is_judged_when_its_length_is_there():
    codec, _ = session(5)
    assert codec.decode(b"\x30") == []
    assert refused(codec, b"\x00").fault is Fault.BAD_PACKET


_CONNECT_START = b"\x05\x01" + string("d") + string("alice") + string("")
_TIME, _KEY = bytes(8), string("k")
BROKEN = {
    "connect: empty": framed(1, b""),
    "connect: cut": framed(1, _CONNECT_START + _TIME),
    "connect: more": framed(1, _CONNECT_START + _TIME + _KEY + b"\x00"),
    "connect: negative length": framed(1, b"\x05\x01\x80\x00" + bytes(40_000)),
    "connect: length of -1": framed(1, b"\x05\x01\xff\xff" + bytes(70_000)),
    "connect: no UTF-8": framed(1, b"\x05\x01" + string(b"\xff") + string("a") + b"\0\0" + _TIME
                                + _KEY),
    "connect: lone surrogate": framed(1, b"\x05\x01" + string(b"\xed\xa0\x80") + string("a")
                                      + b"\0\0" + _TIME + _KEY),
    "connect: negative time": framed(1, _CONNECT_START + b"\xff" * 8 + _KEY),
    "recvack: empty": framed(6, b""),
    "recvack: cut": framed(6, bytes(11)),
    "recvack: of version 6": framed(6, bytes(16)),
    "recvack: negative": framed(6, b"\xff" * 12),
    "recvack: most negative": framed(6, b"\x80" + bytes(11)),
    "sub: empty": framed(10, b""),
    "sub: cut": framed(10, b"\x00" + string("") + string("d1") + b"\x07\x00"),
    "sub: more": framed(10, b"\x00" + string("") + string("d1") + b"\x07\x00" + string("") + b"x"),
    "send: empty": framed(3, b""),
    "send: cut": framed(3, bytes(5) + string("no") + string("team") + b"\x02"),
    "send: negative length": framed(3, bytes(5) + b"\x80\x00" + bytes(40_000)),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_packet_is_a_fault(name):
    codec = new_codec() if name.startswith("connect") else session(5)[0]
    fault = refused(codec, b"\x70" + BROKEN[name] + b"\x70")
    assert (fault.fault, fault.packets) == (Fault.BAD_PACKET, [Ping("")])


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"uid": ""}, Fault.BAD_UID),
        ({"uid": "a@b"}, Fault.BAD_UID),
        ({"uid": "x" * 101}, Fault.BAD_UID),
        ({"token": "x" * 1001}, Fault.BAD_TEXT),
        ({"device_id": "x" * 101}, Fault.BAD_TEXT),
        ({"device_id": "\x1f"}, Fault.BAD_TEXT),
        ({"client_key": "x" * 101}, Fault.BAD_TEXT),
        ({"device_flag": 3}, Fault.BAD_DEVICE),
    ],
)
def test_connect_has_the_rules_of_its_fields(fields, fault):
    assert refused(new_codec(), Client(5).connect(**{"uid": "alice"} | fields)).fault is fault


def test_second_connect_is_a_fault_and_changes_nothing():
    codec, client = session(5)
    cipher = codec.cipher
    fault = refused(codec, b"\x70" + Client(2).connect("eve"))
    assert (fault.fault, fault.packets) == (Fault.CONNECTED_ALREADY, [Ping("")])
    assert (codec.cipher, codec.version) == (cipher, 5)
    assert client.read(codec.encode(received()))["payload"] == HELLO


@pytest.mark.parametrize("client_key", ["", "AAAA", "?"])
def test_connect_without_a_key_is_for_the_caller_to_refuse(client_key):
    codec = new_codec()
    [connect] = codec.decode(Client(5).connect("alice", client_key=client_key))
    with pytest.raises(ValueError, match=r"\w"):
        codec.start(connect)
    assert codec.encode(ConnectRefused("", Reason.AUTH_FAIL))


def test_subscribe_is_taken_as_it_is():
    codec, client = session(5)
    frame = client.subscribe("a#b", 99, 7, sub_no="s", param="{\n}", setting=5)
    assert codec.decode(frame) == [Subscribe("s", "a#b", 99, 7, "{\n}", 5)]


# --- one packet for many -------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_shared_packet_is_what_each_alone_would_get(version):
    packet = received(topic="t", payload=HELLO * 50)
    shared = SharedRecv.of(packet, version)
    for _ in range(3):
        codec, client = session(version)
        frame = codec.encode_shared(shared)
        assert frame == codec.encode(packet)
        assert client.read(frame)["payload"] == HELLO * 50


def test_nothing_is_received_before_the_exchange_of_keys():
    with pytest.raises(ValueError, match="cipher"):
        new_codec().encode(received())
