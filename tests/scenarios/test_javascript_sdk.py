"""WuKongIM's JavaScript SDK (wukongimjssdk 1.0.4), as npm has it, against a server process, with
WuKongIM's Python SDK on the other side: binary frames here, JSON-RPC there, one chat."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
from contextlib import asynccontextmanager

import pytest

from messaging.protocol.reasons import Reason
from tests.support.javascript import (
    CONNECT_FAIL,
    CONNECT_KICK,
    CONNECTED,
    DISCONNECTED,
    JavaScriptUser,
)
from tests.support.sdk import GROUP, PATIENCE, PERSON, User
from tests.support.server import ServerProcess

COUNT = 200
WEB, DESKTOP = 1, 2


@pytest.fixture(scope="module")
def server():
    with ServerProcess() as process:
        process.make_user("alice", flag=WEB)
        for uid in ("alice", "bob"):
            process.make_user(uid, flag=DESKTOP)
        yield process


async def say_many(user, channel, kind, texts):
    """Send one after the other, each acknowledged before the next; returns {seq: (id, text)}."""
    acknowledged = {}
    for text in texts:
        answer = await user.say(channel, kind, text)
        acknowledged[answer["messageSeq"]] = (answer["messageId"], text)
    return acknowledged


def as_sent(messages):
    """What was heard, in the shape of `say_many`: in order, and each only once."""
    seqs = [message["messageSeq"] for message in messages]
    assert seqs == sorted(set(seqs))
    return {m["messageSeq"]: (m["messageId"], m["payload"]["content"]) for m in messages}


def send_by_rest(server, channel, kind, content, **more):
    """POST /message/send of a content; returns the answer's data."""
    payload = base64.b64encode(json.dumps(content).encode()).decode()
    body = {"channel_id": channel, "channel_type": kind, "payload": payload, **more}
    return server.post("/message/send", **body).json()["data"]


def history(server, channel, kind, uid):
    """What a client pulls of a channel: (text, id) of each message, oldest first."""
    page = server.post(
        "/channel/messagesync", login_uid=uid, channel_id=channel, channel_type=kind, limit=100
    ).json()
    return [
        (json.loads(base64.b64decode(each["payload"]))["content"], each["message_idstr"])
        for each in page["messages"]
    ]


def stored_in(server, channel):
    """The seqs in the database, whether or not the server runs."""
    rows = server.query(
        "SELECT m.seq FROM wukongim_messaging_message m JOIN wukongim_subscriptions_channel c"
        " ON c.id = m.channel_id WHERE c.channel_id = ? ORDER BY m.seq",
        channel,
    )
    return [seq for (seq,) in rows]


# --- chat ----------------------------------------------------------------------------------------


async def test_both_sdks_exchange_hundreds_of_messages(server):
    server.make_group("pair", "alice", "bob")
    async with JavaScriptUser(server, "alice") as alice, User(server, "bob") as bob:
        group = {user: [f"{user.uid} {n} 你好" for n in range(COUNT)] for user in (alice, bob)}
        person = {user: [f"{user.uid} {n}" for n in range(COUNT)] for user in (alice, bob)}
        in_group, in_group_bob, to_bob, to_alice = await asyncio.gather(
            say_many(alice, "pair", GROUP, group[alice]),
            say_many(bob, "pair", GROUP, group[bob]),
            say_many(alice, "bob", PERSON, person[alice]),
            say_many(bob, "alice", PERSON, person[bob]),
        )
        for user in (alice, bob):
            await user.until(lambda user=user: len(user.received) >= 2 * COUNT)
        await bob.say("alice", PERSON, "that was all")
        await alice.until_heard("bob", PERSON, "that was all")
    assert sorted({**in_group, **in_group_bob}) == list(range(1, 2 * COUNT + 1))
    assert sorted({**to_bob, **to_alice}) == list(range(1, 2 * COUNT + 1))
    assert as_sent(alice.heard("pair", GROUP)) == in_group_bob
    assert as_sent(bob.heard("pair", GROUP)) == in_group
    assert as_sent(alice.heard("bob", PERSON)[:-1]) == to_alice
    assert as_sent(bob.heard("alice", PERSON)) == to_bob
    assert (alice.statuses()[:1], alice.errors) == ([CONNECTED], [])


async def test_hundreds_of_messages_sent_without_waiting_arrive_in_order(server):
    server.make_group("rush", "alice", "bob")
    async with JavaScriptUser(server, "alice") as alice, User(server, "bob") as bob:
        texts = [f"m{n}" for n in range(COUNT)]
        acks = [alice.post("rush", GROUP, {"type": 1, "content": text}) for text in texts]
        assert [(await ack)["messageSeq"] for ack in acks] == list(range(1, COUNT + 1))
        await bob.until_heard("rush", GROUP, texts[-1])
        assert bob.texts("rush", GROUP) == texts


async def test_ones_other_devices_hear_and_the_sending_one_does_not(server):
    async with (
        JavaScriptUser(server, "alice") as phone,
        JavaScriptUser(server, "alice") as tablet,
        User(server, "alice") as laptop,
        User(server, "bob") as bob,
    ):
        await phone.say("bob", PERSON, "from one of three")
        await tablet.until_heard("bob", PERSON, "from one of three")
        await laptop.until_heard("bob", PERSON, "from one of three")
        await bob.until_heard("alice", PERSON, "from one of three")
        await bob.say("alice", PERSON, "to all three")
        for device in (phone, tablet, laptop):
            await device.until_heard("bob", PERSON, "to all three")
        assert phone.texts("bob", PERSON) == ["to all three"]
        assert tablet.heard("bob", PERSON)[0]["fromUid"] == "alice"


async def test_refused_send_is_answered_by_its_number_and_the_session_goes_on(server):
    server.make_group("closed", "bob")
    server.make_group("open", "alice", "bob")
    async with JavaScriptUser(server, "alice") as alice:
        accepted = await alice.say("open", GROUP, "first")
        refused = await alice.say("closed", GROUP, "let me in")
        again = await alice.say("open", GROUP, "third")
        reasons = [ack["reasonCode"] for ack in (accepted, refused, again)]
        assert reasons == [Reason.SUCCESS, Reason.SUBSCRIBER_NOT_EXIST, Reason.SUCCESS]
        assert [ack["clientSeq"] for ack in (accepted, refused, again)] == [1, 2, 3]
        assert (refused["messageSeq"], again["messageSeq"]) == (0, 2)
        assert alice.statuses() == [CONNECTED]


async def test_command_goes_to_the_command_listeners(server):
    server.make_group("team", "alice", "bob")
    async with JavaScriptUser(server, "alice") as alice:
        content = {"type": 99, "cmd": "typing", "param": {"who": "bob"}}
        header = {"sync_once": 1, "red_dot": 0}
        await asyncio.to_thread(
            send_by_rest, server, "team", GROUP, content, from_uid="bob", header=header
        )
        await alice.until(lambda: alice.commands)
        [command] = alice.commands
        assert (command["payload"], command["fromUid"]) == (content, "bob")
        assert (command["channelId"], command["channelType"]) == ("team", GROUP)
        assert command["header"]["syncOnce"] is True
        assert alice.received == []


async def test_system_has_no_uid_as_a_sender(server):
    server.make_group("news", "alice")
    async with JavaScriptUser(server, "alice") as alice:
        for channel, kind in (("news", GROUP), ("alice", PERSON)):
            content = {"type": 1, "content": "closing at nine"}
            await asyncio.to_thread(send_by_rest, server, channel, kind, content)
        await alice.until(lambda: len(alice.received) == 2)
        [in_group] = alice.heard("news", GROUP)
        [to_alice] = alice.heard("____system", PERSON)
        assert (in_group["fromUid"], to_alice["fromUid"]) == ("", "")


# --- the connection ------------------------------------------------------------------------------


async def test_messages_sent_again_after_a_crash_are_stored_once(server):
    """Half were stored and their answers lost, half were never read."""
    server.make_group("house", "alice", "bob")
    patient = {"reconnect_delay": 0.3, "max_reconnect_delay": 0.5, "max_reconnect_attempts": 60}
    stored, unread = [[f"{word} {n}" for n in range(20)] for word in ("stored", "unread")]
    async with JavaScriptUser(server, "alice") as alice, User(server, "bob", **patient) as bob:
        await alice.say("house", GROUP, "before")
        await alice.deafen()
        sent = [alice.post("house", GROUP, {"type": 1, "content": text}) for text in stored]
        await bob.until_heard("house", GROUP, stored[-1])
        server.process.send_signal(signal.SIGSTOP)
        sent += [alice.post("house", GROUP, {"type": 1, "content": text}) for text in unread]
        await alice.until(lambda: alice.sends() == 41)
        assert not any(ack.done() for ack in sent)
        assert stored_in(server, "house") == list(range(1, 22))
        server.stop(signal.SIGKILL)
        server.start()  # not in a thread: the server would end with it
        answers = [await asyncio.wait_for(ack, PATIENCE) for ack in sent]
        await bob.until(lambda: bob.connects() == 2)
        await bob.say("house", GROUP, "after")
        await alice.until_heard("house", GROUP, "after")
        assert (alice.connects(), alice.sends(), alice.errors) == (2, 81, [])
    said = await asyncio.to_thread(history, server, "house", GROUP, "alice")
    assert [text for text, _ in said][:21] == ["before", *stored]
    assert sorted(text for text, _ in said) == sorted(["before", *stored, *unread, "after"])
    assert {answer["reasonCode"] for answer in answers} == {Reason.SUCCESS}
    ids = [dict(said)[text] for text in [*stored, *unread]]
    assert [answer["messageId"] for answer in answers] == ids
    heard = bob.texts("house", GROUP)
    assert heard[:21] == ["before", *stored]
    assert len(set(heard)) == len(heard)


async def test_messages_under_way_in_a_restart_are_stored_once(server):
    server.make_group("moving", "alice", "bob")
    async with JavaScriptUser(server, "alice") as alice:
        sent = [alice.post("moving", GROUP, {"type": 1, "content": f"m{n}"}) for n in range(COUNT)]
        await sent[0]
        assert server.stop() == 0
        sent += [alice.post("moving", GROUP, {"type": 1, "content": "late"}) for _ in range(20)]
        server.start()  # not in a thread: the server would end with it
        answers = [await asyncio.wait_for(ack, PATIENCE) for ack in sent]
        assert {answer["reasonCode"] for answer in answers} == {Reason.SUCCESS}
        everything = list(range(1, COUNT + 21))
        assert sorted(answer["messageSeq"] for answer in answers) == everything
        assert stored_in(server, "moving") == everything
        await asyncio.to_thread(
            send_by_rest, server, "moving", GROUP, {"type": 1, "content": "after"}, from_uid="bob"
        )
        await alice.until_heard("moving", GROUP, "after")
        assert (alice.connects(), alice.errors) == (2, [])


async def test_displaced_master_is_told_so(server):
    make_master(server, "mona")
    async with JavaScriptUser(server, "mona") as old, JavaScriptUser(server, "mona") as new:
        await old.until(lambda: old.status == DISCONNECTED)
        assert old.statuses() == [CONNECTED, CONNECT_KICK, DISCONNECTED]
        assert old.reasons(CONNECT_KICK) == [Reason.CONNECT_KICK]
        assert (await new.say("bob", PERSON, "it is me now"))["reasonCode"] == Reason.SUCCESS
        assert new.statuses() == [CONNECTED]


@pytest.mark.parametrize("token", ["wrong", "", "token-of-bob"])
async def test_refused_token_is_told(server, token):
    async with refused(server, token) as bob:
        assert bob.reasons(CONNECT_FAIL) == [Reason.AUTH_FAIL]


async def test_who_was_sent_away_stays_away_and_who_was_cut_off_comes_back(server):
    """Whoever is cut off last is back last, so the others would have tried before."""
    make_master(server, "moritz")
    async with (
        refused(server, "wrong") as bob,
        JavaScriptUser(server, "moritz") as old,
        JavaScriptUser(server, "moritz") as new,
        JavaScriptUser(server, "alice") as alice,
    ):
        await old.until(lambda: old.status == DISCONNECTED)
        await alice.cut()
        await alice.until(lambda: alice.connects() == 2)
        assert [user.tries() for user in (bob, old, new, alice)] == [1, 1, 1, 2]


def make_master(server, uid):
    """Give the uid a token of level 1: of its devices only the last to connect may stay."""
    body = {"uid": uid, "token": f"token-of-{uid}", "device_flag": WEB, "device_level": 1}
    server.post("/user/token", **body)


@asynccontextmanager
async def refused(server, token):
    """bob, whose token for the web is none of these, after he was refused."""
    bob = JavaScriptUser(server, "bob", token)
    await bob.open()
    try:
        await bob.until(lambda: len(bob.statuses()) == 2)
        assert bob.statuses() == [CONNECT_FAIL, DISCONNECTED]
        yield bob
    finally:
        await bob.close()
