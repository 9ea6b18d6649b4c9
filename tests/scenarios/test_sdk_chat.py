"""WuKongIM's own Python SDK, as PyPI has it, against a server process.

Under `manage.py serve` and under stock daphne, which has no lifespan: there the node starts with
the first session.
"""

from __future__ import annotations

import asyncio
import base64
import json

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from wukong_easy_sdk import WKIMEvent

from tests.support.sdk import GROUP, PERSON, User
from tests.support.server import ServerProcess

COUNT = 200
BY_REST = 20


@pytest.fixture(scope="module", params=["serve", "daphne"])
def server(request):
    with ServerProcess(request.param) as process:
        for uid in ("alice", "bob", "carol", "eve"):
            process.make_user(uid)
        yield process


def send_by_rest(server, channel, text, sender="shop"):
    """POST /message/send; returns the message's seq and id as the SDK has them."""
    payload = base64.b64encode(json.dumps({"type": 1, "content": text}).encode()).decode()
    body = {"from_uid": sender, "channel_id": channel, "channel_type": 2, "payload": payload}
    data = server.post("/message/send", **body).json()["data"]
    return data["message_seq"], str(data["message_id"])


async def say_many(user, channel, kind, texts, after=lambda number: None):
    """Send one after the other, each acknowledged before the next; returns {seq: (id, text)}."""
    acknowledged = {}
    for number, text in enumerate(texts, 1):
        answer = await user.say(channel, kind, text)
        assert answer["messageSeq"] > max(acknowledged, default=0)
        acknowledged[answer["messageSeq"]] = (answer["messageId"], text)
        after(number)
    return acknowledged


async def many_by_rest(server, channel, texts):
    """As `say_many`, by REST."""
    acknowledged = {}
    for text in texts:
        seq, message_id = await asyncio.to_thread(send_by_rest, server, channel, text)
        acknowledged[seq] = (message_id, text)
    return acknowledged


def as_sent(messages):
    """What was heard, in the shape of `say_many`: in order, and each only once."""
    seqs = [message["messageSeq"] for message in messages]
    assert seqs == sorted(set(seqs))
    return {m["messageSeq"]: (m["messageId"], m["payload"]["content"]) for m in messages}


async def test_two_users_exchange_hundreds_of_messages(server):
    server.make_group("pair", "alice", "bob")
    async with (
        User(server, "alice") as alice,
        User(server, "bob") as bob,
        User(server, "eve") as eve,
    ):
        group = {user: [f"{user.uid} {n} to all" for n in range(COUNT)] for user in (alice, bob)}
        person = {user: [f"{user.uid} {n}" for n in range(COUNT)] for user in (alice, bob)}
        in_group, in_group_bob, to_bob, to_alice, by_rest = await asyncio.gather(
            say_many(alice, "pair", GROUP, group[alice]),
            say_many(bob, "pair", GROUP, group[bob]),
            say_many(alice, "bob", PERSON, person[alice]),
            say_many(bob, "alice", PERSON, person[bob]),
            many_by_rest(server, "pair", [f"shop {n}" for n in range(BY_REST)]),
        )
        await alice.until(lambda: len(alice.received) >= 2 * COUNT + BY_REST)
        await bob.until(lambda: len(bob.received) >= 2 * COUNT + BY_REST)
        await eve.say("alice", PERSON, "may I join?")
        await alice.until_heard("eve", PERSON, "may I join?")
        await alice.say("eve", PERSON, "no")
        await eve.until_heard("alice", PERSON, "no")
    assert sorted({**in_group, **in_group_bob, **by_rest}) == list(range(1, 2 * COUNT + 21))
    assert sorted({**to_bob, **to_alice}) == list(range(1, 2 * COUNT + 1))
    assert as_sent(alice.heard("pair", GROUP)) == {**in_group_bob, **by_rest}
    assert as_sent(bob.heard("pair", GROUP)) == {**in_group, **by_rest}
    assert as_sent(alice.heard("bob", PERSON)) == to_alice
    assert as_sent(bob.heard("alice", PERSON)) == to_bob
    assert [message["payload"]["content"] for message in eve.received] == ["no"]
    assert all(event == WKIMEvent.CONNECT for user in (alice, bob) for event, _ in user.events)


async def test_member_removed_meanwhile_hears_all_before_and_nothing_after(server):
    server.make_group("club", "alice", "bob", "carol")
    async with (
        User(server, "alice") as alice,
        User(server, "bob") as bob,
        User(server, "carol") as carol,
    ):
        removals = []

        def remove_half_way(number):
            if number == COUNT // 2:
                removals.append(asyncio.create_task(asyncio.to_thread(remove_carol, server)))

        await asyncio.gather(
            say_many(alice, "club", GROUP, [f"a{n}" for n in range(COUNT)], remove_half_way),
            say_many(bob, "club", GROUP, [f"b{n}" for n in range(COUNT)]),
        )
        await asyncio.gather(*removals)
        await asyncio.to_thread(send_by_rest, server, "club", "last")
        await alice.until_heard("club", GROUP, "last")
        await bob.until_heard("club", GROUP, "last")
        await alice.say("carol", PERSON, "you were removed")
        await carol.until_heard("alice", PERSON, "you were removed")
    ((end,),) = server.query(
        "SELECT m.seq FROM wukongim_subscriptions_membershipchange m"
        " JOIN wukongim_subscriptions_channel c ON c.id = m.channel_id"
        " WHERE c.channel_id = 'club' AND m.uid = 'carol' AND NOT m.joined"
    )
    assert COUNT // 2 <= end < 2 * COUNT
    assert [m["messageSeq"] for m in carol.heard("club", GROUP)] == list(range(1, end + 1))
    assert len(alice.heard("club", GROUP)) == len(bob.heard("club", GROUP)) == COUNT + 1


def remove_carol(server):
    server.post(
        "/channel/subscriber_remove", channel_id="club", channel_type=2, subscribers=["carol"]
    )


async def test_socket_that_is_refused_is_closed(server):
    """daphne sends no code of the protocol's own but 1000, so there 4008 stands for 1008."""
    async with connect(server.url) as socket:
        await socket.send("no connect")
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(socket.recv(), 5)
    assert closed.value.rcvd.code == {"serve": 1008, "daphne": 4008}[server.server]


async def test_sdk_comes_back_by_itself_after_a_restart(server):
    server.make_group("house", "alice", "bob")
    patient = {"reconnect_delay": 0.3, "max_reconnect_delay": 0.5, "max_reconnect_attempts": 60}
    async with User(server, "alice", **patient) as alice, User(server, "bob", **patient) as bob:
        await alice.say("house", GROUP, "before")
        await bob.until_heard("house", GROUP, "before")
        assert await asyncio.to_thread(server.stop) == 0
        await bob.until(lambda: not bob.sdk.is_connected)
        await asyncio.to_thread(server.start)
        await asyncio.to_thread(send_by_rest, server, "house", "perhaps missed")
        for user in (alice, bob):
            await user.until(lambda user=user: user.connects() == 2)
        await alice.say("house", GROUP, "after")
        await bob.until_heard("house", GROUP, "after")
        await bob.say("house", GROUP, "welcome back")
        await alice.until_heard("house", GROUP, "welcome back")
    said = ["before", "perhaps missed", "after", "welcome back"]
    assert history(server, "house", "bob") == said
    heard = bob.texts("house", GROUP)
    assert heard == [text for text in said[:3] if text in heard]
    assert {"before", "after"} <= set(heard)


def history(server, channel, uid):
    """What a client pulls of a channel: its texts, oldest first."""
    page = server.post(
        "/channel/messagesync", login_uid=uid, channel_id=channel, channel_type=2, limit=100
    ).json()
    return [
        json.loads(base64.b64decode(message["payload"]))["content"] for message in page["messages"]
    ]
