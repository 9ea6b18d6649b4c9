"""Two people chat: the whole path, through a socket of their own."""

from __future__ import annotations

import asyncio

from subscriptions import services
from subscriptions.bindings import ChannelKey
from tests.support.factories import in_thread, make_group, make_users
from tests.support.peers import Peer


async def test_group_message_reaches_members_and_nobody_else(here):
    await in_thread(make_group, "team", "alice", "bob")
    await in_thread(make_users, "eve")
    async with (
        Peer(here.url, "alice") as alice,
        Peer(here.url, "bob") as bob,
        Peer(here.url, "eve") as eve,
    ):
        answer = await alice.send("team", "hello")
        assert answer["result"]["messageSeq"] == 1
        await bob.until_heard("team", "hello")
        refused = await eve.send("team", "let me in")
        assert refused["error"]["code"] == 3
        await bob.send("eve", "this is for members", kind=1)
        await eve.until_heard("bob", "this is for members")
        assert list(eve.heard) == ["bob"]
        assert not alice.heard


async def test_person_channel_is_made_by_its_first_message(here):
    await in_thread(make_users, "alice", "bob")
    async with Peer(here.url, "alice") as alice, Peer(here.url, "bob") as bob:
        assert (await alice.send("bob", "hi", kind=1))["result"]["messageSeq"] == 1
        await bob.until_heard("alice", "hi")
        await bob.send("alice", "hi yourself", kind=1)
        await alice.until_heard("bob", "hi yourself")


async def test_joining_and_leaving_bound_what_is_heard(here):
    await in_thread(make_group, "team", "alice", "bob")
    await in_thread(make_users, "carol")
    async with Peer(here.url, "alice") as alice, Peer(here.url, "carol") as carol:
        await alice.send("team", "before")
        await in_thread(services.join, ChannelKey(2, "team"), ["carol"], actor="test")
        await alice.send("team", "during")
        await carol.until_heard("team", "during")
        await in_thread(services.leave, ChannelKey(2, "team"), ["carol"], actor="test")
        await alice.send("team", "after")
        await in_thread(services.join, ChannelKey(2, "team"), ["carol"], actor="test")
        await alice.send("team", "again")
        await carol.until_heard("team", "again")
        assert carol.texts("team") == ["during", "again"]
        assert carol.seqs("team") == [2, 4]


async def test_repeated_client_msg_no_is_stored_once(here):
    await in_thread(make_group, "team", "alice", "bob")
    async with Peer(here.url, "alice") as alice, Peer(here.url, "bob") as bob:
        first = await alice.send("team", "once", clientMsgNo="n1")
        again = await alice.send("team", "once", clientMsgNo="n1")
        assert again["result"] == first["result"]
        other = await alice.send("team", "another", clientMsgNo="n1")
        assert other["error"]["code"] == 28
        await alice.send("team", "last")
        await bob.until_heard("team", "last")
        assert bob.texts("team") == ["once", "last"]


async def test_unstored_message_is_heard_and_not_kept(here):
    await in_thread(make_group, "team", "alice", "bob")
    async with Peer(here.url, "alice") as alice, Peer(here.url, "bob") as bob:
        answer = await alice.send("team", "typing", header={"noPersist": True})
        assert answer["result"]["messageSeq"] == 0
        await bob.until_heard("team", "typing")
        assert (await alice.send("team", "stored"))["result"]["messageSeq"] == 1


async def test_unstored_message_is_not_for_outsiders(here):
    await in_thread(make_group, "team", "alice", "bob")
    await in_thread(make_users, "eve")
    async with Peer(here.url, "alice") as alice, Peer(here.url, "eve") as eve:
        refused = await eve.send("team", "typing", header={"noPersist": True})
        assert refused["error"]["code"] == 3
        await alice.send("team", "typing", header={"noPersist": True})
        await alice.send("eve", "hello", kind=1)
        await eve.until_heard("alice", "hello")
        assert not eve.heard["team"]
        assert not alice.heard["team"]


async def test_many_senders_at_once_are_heard_in_one_order(here):
    uids = [f"u{number}" for number in range(5)]
    await in_thread(make_group, "team", "listener", *uids)
    peers = [Peer(here.url, uid) for uid in uids]
    async with Peer(here.url, "listener") as listener:
        await asyncio.gather(*(peer.open() for peer in peers))
        answers = await asyncio.gather(
            *(peer.send("team", f"{peer.uid} {n}") for n in range(40) for peer in peers)
        )
        await listener.until(lambda: len(listener.heard["team"]) == 200)
        acknowledged = {a["result"]["messageSeq"]: a["result"]["messageId"] for a in answers}
        heard = {m["messageSeq"]: m["messageId"] for m in listener.heard["team"]}
        assert listener.seqs("team") == list(range(1, 201))
        assert heard == acknowledged
        for peer in peers:
            await peer.until(lambda peer=peer: len(peer.heard["team"]) == 160)
            own = [text for text in listener.texts("team") if text.startswith(f"{peer.uid} ")]
            assert own == [f"{peer.uid} {n}" for n in range(40)]
            assert peer.seqs("team") == sorted(peer.seqs("team"))
            assert set(peer.texts("team")) == set(listener.texts("team")) - set(own)
        await asyncio.gather(*(peer.close() for peer in peers))


async def test_message_of_the_back_end_reaches_every_session_of_the_members(here):
    await in_thread(make_group, "team", "alice", "bob")
    async with Peer(here.url, "alice") as alice, Peer(here.url, "bob") as bob:
        body = {"channel_id": "team", "channel_type": 2, "payload": "eyJjb250ZW50IjogImhpIn0="}
        data = (await here.post("/message/send", from_uid="alice", **body))["data"]
        for peer in (alice, bob):
            await peer.until_heard("team", "hi")
            (message,) = peer.heard["team"]
            assert message["fromUid"] == "alice"
            assert message["messageId"] == str(data["message_id"])
            assert message["messageSeq"] == data["message_seq"] == 1
        await here.post("/message/send", **body)
        await bob.until(lambda: len(bob.heard["team"]) == 2)
        assert bob.heard["team"][1]["fromUid"] == ""


async def test_what_was_missed_is_pulled_from_the_channel(here):
    await in_thread(make_group, "team", "alice", "bob")
    async with Peer(here.url, "alice") as alice:
        async with Peer(here.url, "bob") as bob:
            await alice.send("team", "heard")
            await bob.until_heard("team", "heard")
        for number in range(3):
            await alice.send("team", f"missed {number}")
        async with Peer(here.url, "bob") as bob:
            await alice.send("team", "heard again")
            await bob.until_heard("team", "heard again")
            assert bob.seqs("team") == [5]
    page = await here.post(
        "/channel/messagesync",
        login_uid="bob", channel_id="team", channel_type=2, start_message_seq=2,
        end_message_seq=5, pull_mode=1, limit=10,
    )  # fmt: skip
    assert [message["message_seq"] for message in page["messages"]] == [2, 3, 4]
    assert page["more"] == 0


async def test_wrong_token_is_refused_with_its_reason(here):
    await in_thread(make_users, "alice")
    peer = Peer(here.url, "alice", token="wrong")
    answer = await peer.open()
    assert answer["error"]["code"] == 2
    await peer.reader
    assert peer.socket.close_code == 4002
