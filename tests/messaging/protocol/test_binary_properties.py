"""What holds for every packet of the binary protocol, in every version."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messaging.protocol.binary import LONGEST, BinaryCodec, Splitter, flags_of
from messaging.protocol.cipher import Cipher
from messaging.protocol.faults import Fault, ProtocolFault
from messaging.protocol.fields import DEVICE_FLAGS
from messaging.protocol.packets import (
    BadSend,
    ClientPacket,
    ConnAck,
    Connect,
    DisconnectNotice,
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
from tests.support.binary_client import LIMIT, PAYLOAD_BYTES, Client

VERSIONS = range(1, 7)
KEY, IV = b"0123456789abcdef", b"AbCdEfGhIjKlMnOp"


def pair(version: int) -> tuple[BinaryCodec, Client]:
    """A session's two ends, with a fixed key: hypothesis asks for thousands."""
    codec, client = BinaryCodec(LIMIT, PAYLOAD_BYTES, newest=6), Client(version, private=PRIVATE)
    codec.cipher, codec.version, client.cipher = Cipher(KEY, IV), version, Cipher(KEY, IV)
    codec._announced = version
    return codec, client


PRIVATE = Client(6).private

# --- packets -------------------------------------------------------------------------------------

versions = st.sampled_from(VERSIONS)
printable = st.characters(exclude_categories=["Cc", "Cs"])
names = st.text(printable.filter(lambda each: each not in "@#&"), min_size=1, max_size=100)
uids = names.filter(lambda name: not name.isspace())
texts = st.text(printable, max_size=100)
any_text = st.text(max_size=300)
headers = st.builds(Header, *[st.booleans()] * 3, dup=st.booleans())
u8, u32, i63 = st.integers(0, 0xFF), st.integers(0, 0xFFFFFFFF), st.integers(0, (1 << 63) - 1)
payloads = st.binary(min_size=1, max_size=300)
channels = st.one_of(
    st.tuples(st.integers(2, 10), names), st.tuples(st.just(1), uids),
    st.tuples(st.just(11), st.builds("{}@{}".format, uids, uids)),
)  # fmt: skip
topics = st.none() | st.text(printable, max_size=255)
settings = st.builds(
    lambda receipt, signal, stream: {"receipt": receipt, "signal": signal, "stream": stream},
    st.booleans(), st.booleans(), st.booleans(),
)  # fmt: skip


@st.composite
def sends(draw) -> Send:
    kind, channel_id = draw(channels)
    topic = draw(topics)
    return Send(
        request_id=str(draw(u32)),
        channel_id=channel_id,
        channel_type=kind,
        payload=draw(payloads),
        client_msg_no=draw(texts),
        header=draw(headers),
        setting=Setting(**draw(settings), topic=topic is not None),
        topic=topic or "",
        expire=draw(u32),
    )


connects = st.builds(
    Connect, st.just(""), uids, st.text(printable, max_size=1000), texts,
    st.sampled_from(DEVICE_FLAGS), i63, u8, client_key=texts,
)  # fmt: skip
recvacks = st.builds(RecvAck, i63, u32, headers)
subscribes = st.builds(Subscribe, any_text, any_text, u8, u8, any_text, u8)
client_packets = st.one_of(sends(), recvacks, st.just(Ping("")), subscribes)


def written(client: Client, packet: ClientPacket, setting: int | None = None) -> bytes:
    """How a client writes it. `setting`: the byte itself, if it has bits that nobody reads."""
    if isinstance(packet, Send):
        topic = packet.topic if packet.setting.topic else None
        setting = packet.setting.to_byte() if setting is None else setting
        stream = "" if setting & 0x06 and 2 <= client.negotiated < 5 else None
        return client.send(
            int(packet.request_id), packet.channel_id, packet.channel_type, packet.payload,
            packet.client_msg_no, flags_of(packet.header), setting, packet.expire, topic, stream,
        )  # fmt: skip
    if isinstance(packet, RecvAck):
        return client.recvack(packet.message_id, packet.message_seq, flags_of(packet.header))
    if isinstance(packet, Subscribe):
        return client.subscribe(packet.channel_id, packet.channel_type, packet.action,
                                packet.sub_no, packet.param, packet.setting)  # fmt: skip
    if isinstance(packet, Connect):
        announcing = Client(packet.version, private=PRIVATE)
        return announcing.connect(packet.uid, packet.token, packet.device_id, packet.device_flag,
                                  packet.client_timestamp, packet.client_key)  # fmt: skip
    return client.ping()


def as_heard(packet: ClientPacket, version: int) -> ClientPacket:
    """What can be left of it in this version."""
    if not isinstance(packet, Send):
        return packet
    setting, expire = packet.setting, packet.expire if version >= 3 else 0
    if version < 5:
        setting = Setting.from_byte(setting.to_byte() & ~0x02)
    return Send(
        packet.request_id, packet.channel_id, packet.channel_type, packet.payload,
        packet.client_msg_no, packet.header, setting, packet.topic, expire,
    )  # fmt: skip


# --- both ways -----------------------------------------------------------------------------------


@given(versions, client_packets)
def test_client_packet_is_read_as_it_was_meant(version, packet):
    codec, client = pair(version)
    assert codec.decode(written(client, packet)) == [as_heard(packet, version)]


@given(connects)
def test_connect_is_read_as_it_was_meant(connect):
    frame = written(Client(6, private=PRIVATE), connect)
    assert BinaryCodec(LIMIT, PAYLOAD_BYTES, 5).decode(frame) == [connect]


@given(i63, st.integers(0, (1 << 64) - 1))
def test_recvack_of_version_6_has_any_seq(message_id, seq):
    codec, client = pair(6)
    assert codec.decode(client.recvack(message_id, seq)) == [RecvAck(message_id, seq)]


@given(versions, sends(), i63, u32, st.integers(0, (1 << 31) - 1))
def test_recv_says_what_it_was_given(version, said, message_id, seq, timestamp):
    codec, client = pair(version)
    packet = Recv(
        message_id, seq, timestamp, said.channel_id, said.channel_type, "u" + said.channel_id,
        said.payload, said.client_msg_no, said.header, said.setting, said.topic, said.expire,
    )  # fmt: skip
    heard = client.read(codec.encode(packet))
    del heard["msgKey"]
    expected = {
        "type": 5, "flags": flags_of(said.header),
        "setting": said.setting.to_byte() & (0xFF if version >= 5 else ~0x02),
        "fromUID": packet.from_uid, "channelID": packet.channel_id,
        "channelType": packet.channel_type, "clientMsgNo": packet.client_msg_no,
        "messageID": message_id, "messageSeq": seq, "timestamp": timestamp,
        "payload": packet.payload,
    }  # fmt: skip
    if version >= 3:
        expected["expire"] = packet.expire
    if packet.setting.topic:
        expected["topic"] = packet.topic
    assert heard == expected


@given(versions, u32, i63, u32, headers, st.sampled_from(Reason))
def test_answers_to_a_send_say_what_they_were_given(version, request, message_id, seq, header, why):
    codec, client = pair(version)
    common = {"type": 4, "flags": flags_of(header), "messageID": message_id, "clientSeq": request}
    ack, refusal = (
        SendAck(str(request), message_id, seq, header),
        SendRefused(str(request), why, message_id, header),
    )
    assert client.read(codec.encode(ack)) == common | {"messageSeq": seq, "reasonCode": 1}
    assert client.read(codec.encode(refusal)) == common | {"messageSeq": 0, "reasonCode": why}


@given(versions, any_text, any_text, st.integers(-(1 << 63), (1 << 63) - 1), i63, u8)
def test_other_server_packets_say_what_they_were_given(version, one, two, signed, node, number):
    codec, client = pair(version)
    assert client.read(codec.encode(Pong("")))["type"] == 8
    notice = client.read(codec.encode(DisconnectNotice(Reason.BAN, one)))
    assert (notice["reasonCode"], notice["reason"]) == (19, one)
    suback = client.read(codec.encode(SubAck(one, two, number, 255 - number, Reason.SUCCESS)))
    assert list(suback.values()) == [11, 0, one, two, number, 255 - number, 1]
    if version >= 5:
        event = client.read(codec.encode(Event(one, two, signed, two)))
        assert list(event.values()) == [12, 0, one, two, signed, two]
    ack = client.read(codec.encode(ConnAck("", 9, signed, node, salt=one)))
    assert (ack["timeDiff"], ack["reasonCode"], ack["salt"]) == (signed, 1, one)
    assert ack.get("nodeId", node) == node
    assert ack.get("serverVersion", version) == version


# --- pieces --------------------------------------------------------------------------------------

SAMPLES: list[ClientPacket] = [
    Send("7", "bob", 1, b'{"type":1}', "no-1", Header(red_dot=True), Setting(topic=True), "to"),
    Send("8", "team", 2, b"x" * 200),
    RecvAck(1900000000000000001, 42, Header(red_dot=True)),
    RecvAck(3, 1),
    Subscribe("s", "d1", 7, 1, "{}"),
]
CONNECT = Connect("", "alice", "tk-αβ", "dev", 1, 1700000000123, 5, client_key=Client(5).key)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("packet", [*SAMPLES, CONNECT], ids=lambda packet: type(packet).__name__)
def test_every_truncation_waits(version, packet):
    codec, client = pair(version)
    if isinstance(packet, Connect):
        codec.cipher = None
    frame = written(client, packet)
    for cut in range(len(frame)):
        assert codec.decode(frame[:cut]) == []
        assert codec.decode(frame[cut:]) == [packet]


@given(versions, st.lists(client_packets, max_size=8), st.data())
def test_any_split_gives_the_same_packets(version, packets, data):
    codec, client = pair(version)
    stream = b"".join(written(client, packet) for packet in packets)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    heard = [
        packet
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)
        for packet in codec.decode(stream[start:end])
    ]
    assert heard == [as_heard(packet, version) for packet in packets]


def heard_of(codec: BinaryCodec, pieces: list[bytes]) -> tuple[list[ClientPacket], Fault | None]:
    """What comes of them, up to a fault. Any other exception is the test's failure."""
    packets: list[ClientPacket] = []
    for piece in pieces:
        try:
            packets += codec.decode(piece)
        except ProtocolFault as fault:
            return [*packets, *fault.packets], fault.fault
    return packets, None


noise = st.lists(
    st.one_of(
        st.binary(max_size=30),
        st.builds(lambda packet: written(pair(5)[1], packet), client_packets),
        st.builds(lambda kind, body: bytes((kind << 4, len(body))) + body,
                  st.sampled_from([1, 3, 6, 10]), st.binary(max_size=100)),
    )
)  # fmt: skip


@given(versions, noise)
def test_noise_is_the_same_noise_byte_by_byte(version, pieces):
    stream = b"".join(pieces)
    single = [stream[at : at + 1] for at in range(len(stream))]
    assert heard_of(pair(version)[0], single) == heard_of(pair(version)[0], [stream])


@given(st.integers(1, 300), noise)
def test_splitter_holds_no_more_than_a_packet(limit, pieces):
    splitter = Splitter(limit)
    for at, byte in enumerate(b"".join(pieces)):
        try:
            list(splitter.feed(bytes((byte,))))
        except ProtocolFault:
            return
        assert len(splitter._rest) <= min(at + 1, limit + 5)


@given(versions, st.one_of(st.binary(max_size=20), client_packets), st.binary(max_size=2))
def test_what_is_read_at_once_is_what_decode_makes_of_it(version, packet, behind):
    codec, client = pair(version)
    frame = (packet if isinstance(packet, bytes) else written(client, packet)) + behind
    plain = codec.decode_plain(frame)
    if plain is None:
        assert behind or not isinstance(packet, Send | RecvAck), "whoever sends it is answered late"
        return
    [read] = codec.decode(frame)
    assert plain == (read.message_id if isinstance(read, RecvAck) else read)
    assert isinstance(read, Send | RecvAck)


# --- broken bytes --------------------------------------------------------------------------------


def flips(frame: bytes):
    """(position, the frame with that byte changed): each bit, and all of them."""
    for position in range(len(frame)):
        for mask in (*(1 << bit for bit in range(8)), 0xFF):
            flipped = bytearray(frame)
            flipped[position] ^= mask
            yield position, bytes(flipped)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("packet", [*SAMPLES, CONNECT], ids=lambda packet: type(packet).__name__)
def test_flipped_byte_is_refused_or_means_what_it_says(version, packet):
    frame = written(pair(version)[1], packet)
    taken = 0
    for _, flipped in flips(frame):
        codec, client = pair(version)
        if isinstance(packet, Connect):
            codec.cipher = None
        packets, fault = heard_of(codec, [flipped])
        if fault is None and packets and not isinstance(packets[0], BadSend):
            [heard] = packets
            if isinstance(heard, Ping):  # and the start of another packet
                assert flipped[0] >> 4 == 7
                continue
            setting = flipped[2 + (flipped[1] > 0x7F)] if isinstance(packet, Send) else None
            if isinstance(heard, Connect | Subscribe):  # their flags say nothing
                flipped = bytes((flipped[0] & 0xF0,)) + flipped[1:]
            assert written(client, heard, setting) == flipped
            taken += 1
    assert taken, "some change has to be one that a client could mean"


@pytest.mark.parametrize("version", VERSIONS)
def test_flipped_byte_that_is_signed_is_a_bad_send(version):
    """All from clientSeq on but the lengths of strings, expire, and what is in the topic."""
    send = Send("7", "bob", 1, b'{"type":1}', "no-1")
    frame = written(pair(version)[1], send)
    head = 3
    expire = 4 if version >= 3 else 0
    lengths = [(head + 4, 2), (head + 10, 2), (head + 15 + 1, expire + 2)]
    unsigned = {at for start, count in lengths for at in range(start, start + count)}
    for position, flipped in flips(frame):
        if position >= head and position not in unsigned:
            [packet] = pair(version)[0].decode(flipped)
            assert isinstance(packet, BadSend), position
            assert packet.reason == Reason.PAYLOAD_DECODE_ERROR


@pytest.mark.parametrize("byte", range(256))
def test_one_byte_is_a_ping_or_the_start_of_something_or_a_fault(byte):
    packets, fault = heard_of(pair(5)[0], [bytes((byte,))])
    kind = byte >> 4
    assert packets == ([Ping("")] if kind == 7 else [])
    assert fault == (None if kind in (1, 3, 6, 7, 10) else Fault.BAD_PACKET)


def test_a_megabyte_in_single_bytes_takes_no_more_than_its_bytes():
    """Not the square of them: each byte is looked at a few times."""
    codec, client = pair(5)
    codec = BinaryCodec(LONGEST, LONGEST, newest=6)
    codec.cipher = client.cipher
    frame = client.send(1, "team", 2, bytes(700_000))
    heard = [packet for byte in frame for packet in codec.decode(bytes((byte,)))]
    assert heard == [Send("1", "team", 2, bytes(700_000))]
