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
    async with Peer(here.url, "alice") as alice, Peer(here.url, "bob") as bob, Peer(
        here.url, "eve"
    ) as eve:
        answer = await alice.send("team", "hello")
        assert answer["result"]["messageSeq"] == 1
        await bob.until_heard("team", "hello")
        refused = await eve.send("team", "let me in")
        assert refused["error"]["code"] == 3
        assert not alice.heard and not eve.heard


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
        await asyncio.sleep(0)
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


async def test_wrong_token_is_refused_with_its_reason(here):
    await in_thread(make_users, "alice")
    peer = Peer(here.url, "alice", token="wrong")
    answer = await peer.open()
    assert answer["error"]["code"] == 2
    await peer.reader
    assert peer.socket.close_code == 4002
