"""What WuKongIM's SDKs need of a server beyond the packets' layouts, a test for each, by name.

"1.0.4" is wukongimjssdk as npm has it: the real one. Of 1.3.5 and of easyjssdk there is no
package: a client of ours does what 1.3.5 does, and `ELSEWHERE` says where the rest is tested.
"""

from __future__ import annotations

import ast
import asyncio
import base64
import json
import re
from pathlib import Path

import httpx
import pytest

from messaging.protocol.reasons import Reason
from tests.support.binary_client import DUP, Reader
from tests.support.binary_peers import CONNACK, EVENT, PONG, RECV, BinaryPeer
from tests.support.javascript import CONNECTED, SEND, JavaScriptUser
from tests.support.sdk import GROUP, PERSON, User
from tests.support.server import ServerProcess

ROOT = Path(__file__).resolve().parents[2]
WEB, DESKTOP = 1, 2
RECVACK, PING = 6, 7

ELSEWHERE = {
    "easyjssdk takes a frame with an id, even null, for an answer": (
        "messaging/protocol/test_jsonrpc.py::"
        "test_notification_has_no_id_and_an_error_only_one_that_could_be_read"
    ),
    "easyjssdk reads a text payload as base64": (
        "messaging/protocol/test_jsonrpc.py::test_payload_that_is_no_object_goes_out_as_base64"
    ),
    "wukong-easy-sdk ends the session on a frame of another shape": (
        "messaging/protocol/test_jsonrpc.py::test_encoded_frame_is_one_that_the_sdks_take"
    ),
    "wukong-easy-sdk needs a header in each recv": (
        "messaging/protocol/test_jsonrpc.py::test_recv_without_flags_has_a_header_all_the_same"
    ),
    "wukong-easy-sdk comes back by itself": (
        "scenarios/test_sdk_chat.py::test_sdk_comes_back_by_itself_after_a_restart"
    ),
    "wukong-easy-sdk does not come back after a 1008": (
        "scenarios/test_sdk_chat.py::test_socket_that_is_refused_is_closed"
    ),
    "1.0.4 comes back by itself, and sends again what was not answered": (
        "scenarios/test_javascript_sdk.py::test_messages_sent_again_after_a_crash_are_stored_once"
    ),
    "1.0.4 does not come back when it was refused or sent away": (
        "scenarios/test_javascript_sdk.py::"
        "test_who_was_sent_away_stays_away_and_who_was_cut_off_comes_back"
    ),
    "1.0.4 forgets a message by the number in the answer, refused or not": (
        "scenarios/test_javascript_sdk.py::"
        "test_refused_send_is_answered_by_its_number_and_the_session_goes_on"
    ),
    "1.0.4 keeps commands from the message listeners": (
        "scenarios/test_javascript_sdk.py::test_command_goes_to_the_command_listeners"
    ),
    "clients of each version are answered in theirs, and refused in a form that all can read": (
        "messaging/protocol/test_binary.py::test_refused_connect_is_v3s_form_in_every_version"
    ),
}


@pytest.fixture(scope="module")
def server():
    with ServerProcess() as process:
        process.make_user("alice", flag=WEB)
        process.make_user("bob", flag=DESKTOP)
        process.make_group("team", "alice", "bob")
        yield process


async def send_by_rest(server, payload, **more):
    """POST /message/send of these bytes to the team; returns the answer's data."""
    body = {"channel_id": "team", "channel_type": 2, "from_uid": "bob", **more}
    body["payload"] = base64.b64encode(payload).decode()
    return (await asyncio.to_thread(server.post, "/message/send", **body)).json()["data"]


def text(content):
    return json.dumps({"type": 1, "content": content}).encode()


def bodies_in(message):
    """The bodies of the packets that a WebSocket message  (protocol §2.1)."""
    bodies = []
    reader = Reader(message)
    while reader.body:
        length = shift = 0
        byte = 0x80 if reader.number("B") >> 4 not in (PING, PONG) else 0
        while byte & 0x80:
            byte = reader.number("B")
            length |= (byte & 0x7F) << shift
            shift += 7
        bodies.append(Reader(reader.take(length)))
    return bodies


async def flooded(server, alice, count=50):
    """Give alice much to be told at once: answers to her messages, and those of others."""
    acks = [alice.post("team", GROUP, {"type": 1, "content": f"a{n}"}) for n in range(count)]
    before = len(alice.received)
    await asyncio.gather(*(send_by_rest(server, text(f"b{n}")) for n in range(count)), *acks)
    await alice.until(lambda: len(alice.received) == before + count)


# --- what 1.0.4 is sent --------------------------------------------------------------------------


async def test_104_is_sent_one_packet_a_frame_as_it_would_lose_others(server):
    async with JavaScriptUser(server, "alice") as alice:
        await flooded(server, alice)
        assert [len(bodies_in(frame.content)) for frame in alice.came] == [1] * (1 + 50 + 50)
        numbers = [message["messageSeq"] for message in alice.received]
        assert numbers == sorted(set(numbers))


async def test_104_is_sent_no_text_frame_and_no_ping_byte_as_both_deafen_it(server):
    async with JavaScriptUser(server, "alice", heartbeatInterval=50) as alice:
        await flooded(server, alice)
        await alice.until(lambda: [frame.kind for frame in alice.came].count(PONG) >= 3)
        assert all(frame.binary for frame in alice.came)
        assert PING not in {frame.kind for frame in alice.came}
        await send_by_rest(server, text("do you still hear me?"))
        await alice.until_heard("team", GROUP, "do you still hear me?")


async def test_104_is_answered_each_ping_by_a_byte_and_stays(server):
    """After three in vain it would hang up."""
    async with JavaScriptUser(server, "alice", heartbeatInterval=50) as alice:
        await alice.until(lambda: [frame.kind for frame in alice.came].count(PONG) >= 6)
        assert {frame.content for frame in alice.came if frame.kind == PONG} == {b"\x80"}
        assert alice.statuses() == [CONNECTED]


async def test_104_speaks_version_2_whose_connack_names_no_version(server):
    async with JavaScriptUser(server, "alice") as alice:
        [connect] = bodies_in(alice.sent[0].content)
        assert connect.number("B") == 2
        assert alice.came[0].content[0] == CONNACK << 4


async def test_104_is_sent_no_event_and_no_stream_bit_as_it_knows_neither(server):
    async with JavaScriptUser(server, "alice") as alice, BinaryPeer(server.url, "bob") as bob:
        await send_by_rest(server, text("growing"), client_msg_no="g1", is_stream=1, from_uid="x")
        event = {"event_id": "e1", "event_type": "stream.delta", "client_msg_no": "g1"}
        place = {"channel_id": "team", "channel_type": 2, "from_uid": "x"}
        payload = {"kind": "text", "delta": "!"}
        await asyncio.to_thread(server.post, "/message/event", **place, **event, payload=payload)
        await send_by_rest(server, text("next"), from_uid="x")
        await alice.until_heard("team", GROUP, "next")
        await bob.until_heard("team", "next")
        assert alice.texts("team", GROUP) == ["growing", "next"]
        assert [notice["type"] for notice in bob.notices] == [EVENT]
        assert {frame.kind for frame in alice.came} == {CONNACK, RECV}
        assert (alice.statuses(), alice.errors) == ([CONNECTED], [])


async def test_104_reads_ids_as_unsigned_and_gets_none_that_are_negative(server):
    async with JavaScriptUser(server, "alice") as alice:
        ack = await alice.say("team", GROUP, "mine")
        data = await send_by_rest(server, text("yours"))
        await alice.until_heard("team", GROUP, "yours")
        [heard] = alice.received
        assert heard["messageId"] == str(data["message_id"])
        assert 0 < int(ack["messageId"]) < int(heard["messageId"]) < 1 << 63


async def test_104_throws_at_a_payload_that_is_no_json_and_goes_on(server):
    """The bytes go out as they are, since they are the sender's business."""
    async with JavaScriptUser(server, "alice") as alice, User(server, "bob") as bob:
        data = await send_by_rest(server, b"surprise", from_uid="x")
        await send_by_rest(server, b'{"no": "type"}', from_uid="x")
        await send_by_rest(server, text("next"), from_uid="x")
        await alice.until(lambda: len(alice.received) == 2)
        assert [message["payload"] for message in alice.received] == [
            {"no": "type"},
            {"type": 1, "content": "next"},
        ]
        [error] = alice.errors
        assert "surprise" in error
        ids = [recvack_of(frame) for frame in alice.sent if frame.kind == RECVACK]
        assert ids == [int(message["messageId"]) for message in alice.received]
        assert data["message_id"] not in ids
        assert alice.statuses() == [CONNECTED]
        await bob.until(lambda: len(bob.received) == 3)
        assert base64.b64decode(bob.received[0]["payload"]) == b"surprise"


def recvack_of(frame):
    """The message id of a RECVACK."""
    [body] = bodies_in(frame.content)
    return body.number("q")


@pytest.mark.parametrize(
    "content",
    [
        {"type": 1, "content": "看 😀", "mention": {"all": 1, "uids": ["alice"]}},
        {"type": 1, "content": "x", "reply": {"message_id": "7", "payload": {"type": 1}}},
        {"type": 2, "width": 3, "height": 4, "url": "a.png"},
        {"type": 98, "data": "aGk="},
        {"type": 1001, "content": "{0} came", "extra": [{"uid": "bob", "name": "Bob"}]},
        {"type": 20001, "deep": [[{"a": None}], 1.5, True]},
    ],
    ids=lambda content: str(content["type"]) + "".join(sorted(content)[-1:]),
)
async def test_104_hears_contents_as_they_were_sent(server, content):
    async with JavaScriptUser(server, "alice") as alice, User(server, "bob") as bob:
        await bob.sdk.send("team", GROUP, content)
        await alice.until(lambda: alice.received)
        await alice.post("team", GROUP, content)
        await bob.until(lambda: bob.received)
        assert (alice.received[0]["payload"], bob.received[0]["payload"]) == (content, content)


# --- what 1.0.4 sends ----------------------------------------------------------------------------


async def test_104_numbers_its_messages_and_marks_each_red(server):
    async with JavaScriptUser(server, "alice") as alice, User(server, "bob") as bob:
        assert [(await alice.say("team", GROUP, each))["clientSeq"] for each in "ab"] == [1, 2]
        await bob.until_heard("team", GROUP, "b")
        for message in bob.received:
            assert message["header"] == {"redDot": True}
            assert re.fullmatch("[0-9a-f]{32}3", message["clientMsgNo"])


async def test_104_sends_again_with_the_same_number_and_without_dup(server):
    """So what was stored is told by sender, channel and clientMsgNo alone."""
    async with JavaScriptUser(server, "alice") as alice, User(server, "bob") as bob:
        await alice.deafen()
        ack = alice.post("team", GROUP, {"type": 1, "content": "hello?"})
        await bob.until_heard("team", GROUP, "hello?")
        await alice.cut()
        answer = await asyncio.wait_for(ack, 10)
        assert answer["messageId"] == bob.received[0]["messageId"]
        first, again = [frame.content for frame in alice.sent if frame.kind == SEND]
        assert numbers_of(first) == numbers_of(again) == (1, bob.received[0]["clientMsgNo"])
        assert not (first[0] | again[0]) & DUP
        await alice.say("team", GROUP, "good")
        await bob.until_heard("team", GROUP, "good")
        assert bob.texts("team", GROUP) == ["hello?", "good"]


def numbers_of(packet):
    """(clientSeq, clientMsgNo) of a SEND."""
    [body] = bodies_in(packet)
    body.take(1)  # setting
    return body.number("I"), body.string()


async def test_104_as_a_master_comes_back_though_each_connection_has_a_new_device_id(server):
    """Its own earlier connection is the other device that it takes the place of."""
    body = {"uid": "mona", "token": "token-of-mona", "device_flag": WEB, "device_level": 1}
    server.post("/user/token", **body)
    async with JavaScriptUser(server, "mona") as mona:
        await mona.cut()
        await mona.until(lambda: mona.connects() == 2)
        assert (await mona.say("bob", PERSON, "here I am"))["reasonCode"] == Reason.SUCCESS
        rows = server.query("SELECT device_id FROM wukongim_messaging_session WHERE uid = 'mona'")
        ids = {device_id for (device_id,) in rows}
        assert len(ids) == 2
        assert all(re.fullmatch("[0-9a-f]{32}W", device_id) for device_id in ids)


async def test_104_connects_where_route_tells_it_to(server):
    route = (await asyncio.to_thread(httpx.get, f"{server.http}/route?uid=alice")).json()
    async with JavaScriptUser(server, "alice", addr=route["ws_addr"]) as alice:
        assert (await alice.say("team", GROUP, "found it"))["reasonCode"] == Reason.SUCCESS


async def test_each_sdk_connects_with_the_token_of_its_default_device_flag(server):
    """1.0.4 is a browser (1), wukong-easy-sdk a desktop (2): alice and bob have no other tokens."""
    async with JavaScriptUser(server, "alice") as alice, User(server, "bob") as bob:
        await bob.say("alice", PERSON, "from a desktop")
        await alice.until_heard("bob", PERSON, "from a desktop")
        rows = server.query(
            "SELECT DISTINCT uid, device_flag FROM wukongim_messaging_session"
            " WHERE uid IN ('alice', 'bob') AND closed_at IS NULL"
        )
    assert sorted(rows) == [("alice", WEB), ("bob", DESKTOP)]


# --- 1.3.5 ---------------------------------------------------------------------------------------


async def test_135_sends_five_packets_in_one_frame_and_is_answered_one_by_one(server):
    async with BinaryPeer(server.url, "bob", version=5) as bob, User(server, "bob") as other:
        loop = asyncio.get_running_loop()
        acks = [bob.answers.setdefault(str(n), loop.create_future()) for n in range(1, 6)]
        packets = [
            bob.client.send(n, **bob.message("team", f"m{n}"), client_msg_no=f"135-{n}")
            for n in range(1, 6)
        ]
        await bob.carrier.send(b"".join(packets))
        answers = [await asyncio.wait_for(ack, 10) for ack in acks]
        assert [answer["clientSeq"] for answer in answers] == [1, 2, 3, 4, 5]
        seqs = [answer["messageSeq"] for answer in answers]
        assert seqs == list(range(seqs[0], seqs[0] + 5))
        await other.until_heard("team", GROUP, "m5")
        assert other.texts("team", GROUP) == [f"m{n}" for n in range(1, 6)]


@pytest.mark.parametrize(("announced", "answered"), [(3, None), (4, 4), (5, 5), (6, 5)])
async def test_135_is_never_told_a_version_above_its_own(server, announced, answered):
    """It would read the sequences of version 6 wrong."""
    bob = BinaryPeer(server.url, "bob", version=announced)
    connack = await bob.open()
    assert connack["reasonCode"] == Reason.SUCCESS
    # Versions below 4 are not named at all, and 6 is not served.
    assert connack.get("serverVersion") == answered
    await bob.close()


async def test_135_is_sent_events_whose_data_is_json(server):
    async with BinaryPeer(server.url, "bob", version=5) as bob:
        await send_by_rest(server, text("growing"), client_msg_no="g2", is_stream=1, from_uid="x")
        event = {"event_id": "e2", "event_type": "stream.delta", "client_msg_no": "g2"}
        place = {"channel_id": "team", "channel_type": 2, "from_uid": "x"}
        payload = {"kind": "text", "delta": "!"}
        await asyncio.to_thread(server.post, "/message/event", **place, **event, payload=payload)
        await bob.until(lambda: bob.notices)
        assert json.loads(bob.notices[0]["data"])["client_msg_no"] == "g2"


# --- the others ----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ELSEWHERE.values(), ids=ELSEWHERE)
def test_quirk_has_its_test_elsewhere(place):
    path, name = place.split("::")
    tree = ast.parse((ROOT / "tests" / path).read_text(encoding="utf-8"))
    assert name in {getattr(node, "name", "") for node in tree.body}
