"""Sessions that speak the binary protocol, over WebSocket and over TCP, beside those of JSON-RPC:
one chat, one set of rules (protocol §2, §4)."""

from __future__ import annotations

import asyncio

import pytest

from messaging.models import Message
from messaging.protocol.reasons import Reason
from tests.support.binary_client import Client
from tests.support.binary_peers import (
    DISCONNECT,
    EVENT,
    SUBACK,
    BinaryPeer,
    WebSocketCarrier,
    carrier_to,
)
from tests.support.factories import in_thread, make_group, make_users
from tests.support.peers import Peer

VERSIONS = (1, 2, 3, 4, 5)


@pytest.fixture(params=["websocket", "tcp"])
async def url(request, here):
    """Where binary clients connect."""
    if request.param == "websocket":
        yield here.url
        return
    async with here.tcp() as place:
        yield place


async def ended(peer):
    await asyncio.wait_for(peer.reader, 10)


# --- chat ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
async def test_both_protocols_chat_in_groups(here, url, version):
    await in_thread(make_group, "team", "alice", "bob")
    async with BinaryPeer(url, "alice", version=version) as alice, Peer(here.url, "bob") as bob:
        for number in range(5):
            ack = await alice.send("team", f"a{number}", client_msg_no=f"n{number}")
            assert (ack["reasonCode"], ack["messageSeq"]) == (1, 2 * number + 1)
            await bob.send("team", f"b{number}")
        await bob.until_heard("team", "a4")
        await alice.until_heard("team", "b4")
        assert alice.texts("team") == [f"b{number}" for number in range(5)]
        assert bob.texts("team") == [f"a{number}" for number in range(5)]
        assert alice.seqs("team") == [2, 4, 6, 8, 10]
        assert {each["clientMsgNo"] for each in bob.heard["team"]} == {f"n{n}" for n in range(5)}


async def test_both_protocols_chat_in_person_channels(here, url):
    await in_thread(make_users, "alice", "bob")
    async with BinaryPeer(url, "alice") as alice, Peer(here.url, "bob") as bob:
        await alice.send("bob", "hello", 1)
        await bob.until_heard("alice", "hello")
        await bob.send("alice", "hello back", 1)
        await alice.until_heard("bob", "hello back")
        [heard] = alice.raw
        assert (heard["fromUID"], heard["channelID"], heard["channelType"]) == ("bob", "bob", 1)


async def test_ones_other_devices_hear_and_the_sending_one_does_not(here, url):
    await in_thread(make_users, "alice", "bob")
    async with (
        BinaryPeer(url, "alice", deviceId="phone") as phone,
        BinaryPeer(url, "alice", deviceId="tablet") as tablet,
        Peer(here.url, "alice", deviceId="laptop") as laptop,
        BinaryPeer(url, "bob") as bob,
    ):
        await phone.send("bob", "hello", 1)
        for peer, name in ((tablet, "bob"), (laptop, "bob"), (bob, "alice")):
            await peer.until_heard(name, "hello")
        await phone.ask("ping")
        assert phone.raw == []


async def test_a_message_sent_again_is_stored_once_and_answered_the_same(url):
    await in_thread(make_group, "team", "alice")
    async with BinaryPeer(url, "alice") as alice:
        first = await alice.send("team", "hello", client_msg_no="n1")
        again = await alice.send("team", "hello", client_msg_no="n1")
        other = await alice.send("team", "not hello", client_msg_no="n1")
    assert (first["messageID"], first["messageSeq"]) == (again["messageID"], again["messageSeq"])
    assert other["reasonCode"] == Reason.IDEMPOTENCY_CONFLICT
    assert await in_thread(Message.objects.count) == 1


async def test_flags_topic_and_expiry_arrive(here, url):
    await in_thread(make_group, "team", "alice", "bob")
    async with BinaryPeer(url, "alice") as alice, BinaryPeer(here.url, "bob") as bob:
        extra = {"topic": "news", "expire": 60, "setting": 0x80, "flags": 0b10}
        ack = await alice.send("team", "hello", **extra)
        assert ack["flags"] == 0b10
        await bob.until_heard("team", "hello")
        [heard] = bob.raw
        assert (heard["topic"], heard["expire"]) == ("news", 60)
        assert heard["setting"] == 0x80 | 0x08
        assert heard["flags"] == 0b10


async def test_what_is_not_to_be_stored_has_no_seq(here, url):
    await in_thread(make_group, "team", "alice", "bob")
    async with BinaryPeer(url, "alice") as alice, BinaryPeer(here.url, "bob") as bob:
        ack = await alice.send("team", "typing", flags=0b1)
        assert (ack["reasonCode"], ack["messageSeq"]) == (1, 0)
        await bob.until_heard("team", "typing")
        assert bob.raw[0]["flags"] & 1
    assert await in_thread(Message.objects.count) == 0


# --- refusals ------------------------------------------------------------------------------------


async def test_refused_send_is_answered_by_its_number_and_the_session_goes_on(here, url):
    await in_thread(make_users, "alice")
    await in_thread(make_group, "team", "bob")
    async with BinaryPeer(url, "alice") as alice:
        for reason, params in (
            (Reason.SUBSCRIBER_NOT_EXIST, alice.message("team", "let me in")),
            (Reason.PAYLOAD_DECODE_ERROR, alice.message("team", "x", key=b"0" * 32)),
            (Reason.PAYLOAD_DECODE_ERROR, {**alice.message("team", "x"), "text": b"!"}),
            (Reason.CHANNEL_ID_ERROR, alice.message("bob@carol", "x", 1)),
        ):
            ack = await alice.ask("send", params)
            assert (ack["reasonCode"], ack["messageSeq"]) == (reason, 0)
        await alice.ask("ping")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"token": "wrong"}, Reason.AUTH_FAIL),
        ({"uid": "nobody"}, Reason.AUTH_FAIL),
        ({"clientKey": ""}, Reason.CLIENT_KEY_IS_EMPTY),
        ({"clientKey": "AAAA"}, Reason.CLIENT_KEY_IS_EMPTY),
        ({"clientKey": "A" * 43 + "="}, Reason.CLIENT_KEY_IS_EMPTY),
    ],
)
async def test_refused_connect_is_told_why_and_closed(url, change, reason):
    await in_thread(make_users, "alice")
    peer = BinaryPeer(url, **{"uid": "alice", **change})
    answer = await peer.open()
    assert answer["reasonCode"] == reason
    await ended(peer)
    await peer.close()


@pytest.mark.parametrize("data", [b"\x70", b"{}", b"\x00", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 9])
async def test_what_is_no_connect_is_closed_without_a_word(url, data):
    carrier = await carrier_to(url)
    await carrier.send(data)
    assert await asyncio.wait_for(carrier.packet(), 10) is None
    if isinstance(carrier, WebSocketCarrier):
        assert carrier.socket.close_code == 1008
    await carrier.close()


async def test_broken_packet_ends_the_session(url):
    await in_thread(make_users, "alice")
    async with BinaryPeer(url, "alice") as alice:
        await alice.carrier.send(b"\xf0\x01\x00")
        await ended(alice)


async def test_packets_come_in_pieces_and_several_at_once(here, url):
    await in_thread(make_group, "team", "alice", "bob")
    async with Peer(here.url, "bob") as bob, BinaryPeer(url, "alice") as alice:
        packets = b"".join(
            alice.client.send(number, **alice.message("team", f"m{number}"))
            for number in range(1, 6)
        )
        for number in range(1, 6):
            alice.answers[str(number)] = asyncio.get_running_loop().create_future()
        acks = list(alice.answers.values())
        ping = alice.client.recvack(1, 1) + packets
        for start in range(0, len(ping), 7):
            await alice.carrier.send(ping[start : start + 7])
        assert [(await ack)["messageSeq"] for ack in acks] == [1, 2, 3, 4, 5]
        await bob.until_heard("team", "m5")
        await alice.carrier.send(packets + alice.client.ping())


async def test_connect_may_come_in_pieces(url):
    await in_thread(make_users, "alice")
    carrier, client = await carrier_to(url), Client(5)
    packet = client.connect("alice", "token-of-alice", device_flag=2)
    for at in range(len(packet)):
        await carrier.send(packet[at : at + 1])
    answer = await asyncio.wait_for(carrier.packet(), 10)
    assert answer is not None
    assert client.read(answer)["reasonCode"] == 1
    await carrier.close()


# --- sessions ------------------------------------------------------------------------------------


async def test_displaced_master_is_told_why_and_closed(here, url):
    await here.post(
        "/user/token", uid="alice", token="token-of-alice", device_flag=0, device_level=1
    )
    async with (
        BinaryPeer(url, "alice", deviceFlag=0, deviceId="old") as old,
        BinaryPeer(url, "alice", deviceFlag=0, deviceId="new") as new,
    ):
        await ended(old)
        [notice] = old.notices
        assert (notice["type"], notice["reasonCode"]) == (DISCONNECT, Reason.CONNECT_KICK)
        await new.ask("ping")


async def test_removed_member_hears_no_more_and_may_not_send(here, url):
    await in_thread(make_group, "team", "alice", "bob")
    async with BinaryPeer(url, "alice") as alice, Peer(here.url, "bob") as bob:
        await bob.send("team", "before")
        await alice.until_heard("team", "before")
        body = {"channel_id": "team", "channel_type": 2, "subscribers": ["alice"]}
        await here.post("/channel/subscriber_remove", **body)
        await bob.send("team", "after")
        ack = await alice.send("team", "still here?")
        assert ack["reasonCode"] == Reason.SUBSCRIBER_NOT_EXIST
        assert alice.texts("team") == ["before"]


@pytest.mark.parametrize(
    ("channel", "action", "reason"),
    [("team", 0, 1), ("other", 0, 11), ("team", 1, 1), ("other", 1, 1)],
)
async def test_sub_is_answered_by_the_membership(url, channel, action, reason):
    await in_thread(make_group, "team", "alice")
    await in_thread(make_group, "other", "bob")
    async with BinaryPeer(url, "alice") as alice:
        await alice.carrier.send(alice.client.subscribe(channel, 2, action, sub_no="s1"))
        await alice.ask("ping")
        [answer] = alice.notices
        assert (answer["type"], answer["reasonCode"]) == (SUBACK, reason)
        assert (answer["channelID"], answer["subNo"]) == (channel, "s1")


@pytest.mark.parametrize("version", VERSIONS)
async def test_events_go_to_version_5_only(here, url, version):
    await in_thread(make_group, "team", "alice", "bob")
    place = {"channel_id": "team", "channel_type": 2, "from_uid": "bob", "client_msg_no": "n1"}
    async with BinaryPeer(url, "alice", version=version) as alice:
        await here.post("/message/send", **place, payload="eyJ0eXBlIjoxfQ==", is_stream=1)
        event = {"event_id": "e1", "event_type": "stream.delta"}
        await here.post("/message/event", **place, **event, payload={"kind": "text", "delta": "x"})
        await here.post("/message/send", **{**place, "client_msg_no": "n2"},
                        payload="eyJ0eXBlIjoxLCAiY29udGVudCI6ICJsYXN0In0=")  # fmt: skip
        await alice.until(lambda: len(alice.raw) == 2)
        assert [each["type"] for each in alice.notices] == ([EVENT] if version == 5 else [])
        assert alice.raw[0]["setting"] == (2 if version == 5 else 0)


# --- what is asked of every client ---------------------------------------------------------------


async def test_every_refusal_has_its_reason(here):
    """The rules are the log's own, whoever asks; here it is seen that they reach a binary peer."""
    await in_thread(make_group, "team", "alice", "bob")
    await in_thread(make_group, "other", "bob")
    await in_thread(make_users, "eve")
    place = {"channel_id": "team", "channel_type": 2}
    steps = [
        (Reason.SUCCESS, "/channel/info", place),
        (Reason.NOT_IN_WHITELIST, "/channel/whitelist_add", {**place, "uids": ["bob"]}),
        (Reason.IN_BLACKLIST, "/channel/blacklist_add", {**place, "uids": ["alice"]}),
        (Reason.BAN, "/channel/info", {**place, "ban": 1}),
        (Reason.DISBAND, "/channel/info", {**place, "disband": 1}),
        (Reason.SEND_BAN, "/channel/info",
         {"channel_id": "alice", "channel_type": 1, "send_ban": 1}),
    ]  # fmt: skip
    async with BinaryPeer(here.url, "alice") as alice, BinaryPeer(here.url, "eve") as eve:
        for reason, path, body in steps:
            await here.post(path, **body)
            ack = await alice.send("team", "may I?")
            assert ack["reasonCode"] == reason
        for reason, channel, kind in (
            (Reason.SUBSCRIBER_NOT_EXIST, "other", 2),
            (Reason.CHANNEL_NOT_EXIST, "info", 6),
            (Reason.NOT_ALLOW_SEND, "alice@bob", 11),
            (Reason.CHANNEL_ID_ERROR, "alice@bob", 1),
            (Reason.NOT_SUPPORT_CHANNEL_TYPE, "team", 99),
        ):
            assert (await eve.send(channel, "may I?", kind))["reasonCode"] == reason


async def test_command_over_the_wire_is_heard_with_its_flag_and_kept_for_those_away(here, url):
    sync_once = 0b100
    await in_thread(make_group, "team", "alice", "bob", "carol")
    async with BinaryPeer(url, "alice") as alice, BinaryPeer(url, "bob") as bob:
        ack = await alice.send("team", "do it", flags=sync_once)
        assert (ack["reasonCode"], ack["flags"]) == (Reason.SUCCESS, sync_once)
        await bob.until_heard("team", "do it")
        assert (bob.raw[0]["flags"], bob.raw[0]["channelID"]) == (sync_once, "team")
    [command] = await here.post("/message/sync", uid="carol")
    assert (command["message_idstr"], command["header"]["sync_once"]) == (str(ack["messageID"]), 1)
    place = {"channel_id": "team", "channel_type": 2}
    history = await here.post("/channel/messagesync", login_uid="carol", **place)
    assert history["messages"] == []
