"""Clients that say how far they are: what they missed, once, in order, and honestly what not."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import asynccontextmanager, closing

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from messaging.message_table import read_range
from messaging.models import Message, Session
from subscriptions import services
from subscriptions.bindings import ChannelKey
from subscriptions.models import Channel
from subscriptions.selectors import memberships_of
from tests.support.factories import in_thread, make_group, make_users
from tests.support.peers import Peer
from tests.support.server import ServerProcess
from tests.support.waiting import PATIENCE, eventually

TEAM = ChannelKey(2, "team")


def at(seq, channel="team", kind=2):
    """A position."""
    return {"channelId": channel, "channelType": kind, "messageSeq": seq}


def ok(seq, channel="team", kind=2):
    return {**at(seq, channel, kind), "state": "ok"}


def gap(seq, upto, channel="team", kind=2):
    return {**at(seq, channel, kind), "state": "gap", "from": seq + 1, "to": upto}


def reset(first, last, reason, begins, channel="team"):
    return {**at(begins, channel), "state": "reset", "from": first, "to": last, "reason": reason}


def no_member(channel="team", kind=2):
    named = {"channelId": channel, "channelType": kind}
    return {**named, "state": "reset", "reason": "notMember"}


@asynccontextmanager
async def resumed(server, uid, *positions, **params):
    """A client that connects with these positions; yields it and what it was told of them."""
    peer = Peer(server.url, uid, positions=list(positions), **params)
    try:
        yield peer, (await peer.open())["result"]["positions"]
    finally:
        await peer.close()


async def say(peer, channel, count, kind=2):
    """Send so many messages, one behind the other; returns their seqs."""
    texts = [f"{channel} {number}" for number in range(count)]
    sent = [peer.post("send", peer.message(channel, text, kind)) for text in texts]
    return [(await asked)["result"]["messageSeq"] for asked in sent]


async def hear_all(peer, channel, upto):
    """Wait until a message was heard, and a moment in which anything too much would come as well:
    a pong leaves after whatever waits."""
    await peer.until(lambda: upto in peer.seqs(channel))
    await peer.ask("ping")


@pytest.fixture
async def team(here):
    """Alice, bob and carol are in the team; alice is there and has said five things."""
    await in_thread(make_group, "team", "alice", "bob", "carol")
    async with Peer(here.url, "alice") as alice:
        assert await say(alice, "team", 5) == [1, 2, 3, 4, 5]
        yield alice


# --- what is told and sent ----------------------------------------------------------------------


async def test_client_that_missed_nothing_is_told_so_and_goes_on(here, team):
    async with resumed(here, "bob", at(5)) as (bob, told):
        assert told == [ok(5)]
        await say(team, "team", 1)
        await hear_all(bob, "team", 6)
        assert bob.seqs("team") == [6]


async def test_client_that_names_no_positions_is_told_and_sent_what_it_always_was(here, team):
    async with connect(here.url) as socket:
        params = {"uid": "bob", "token": "token-of-bob", "deviceFlag": 2}
        await socket.send(json.dumps({"id": "1", "method": "connect", "params": params}))
        assert await socket.recv() == (
            '{"jsonrpc":"2.0","id":"1","result":{"serverVersion":5,"serverKey":"","salt":"",'
            f'"timeDiff":0,"reasonCode":1,"nodeId":{here.node.id}}}}}'
        )
        await say(team, "team", 1)
        assert json.loads(await socket.recv())["params"]["messageSeq"] == 6


async def test_gap_is_filled_in_order_and_once_while_others_write(here, team):
    async def write():
        while not enough.is_set():
            seqs.extend(await say(team, "team", 3))

    seqs, enough = [5], asyncio.Event()
    async with Peer(here.url, "carol") as carol:
        writing = asyncio.create_task(write())
        await carol.until(lambda: len(carol.seqs("team")) > 30)
        async with resumed(here, "bob", at(2)) as (bob, told):
            upto = told[0]["to"]
            assert told == [gap(2, upto)]
            assert upto > 30
            await bob.until(lambda: len(bob.seqs("team")) > upto + 30)
            enough.set()
            await writing
            await hear_all(bob, "team", seqs[-1])
            assert bob.seqs("team") == list(range(3, seqs[-1] + 1))


async def test_channels_not_named_begin_at_their_end_and_none_named_are_answered_so(here, team):
    for positions in ([], [at(7, "elsewhere")]):
        async with resumed(here, "bob", *positions) as (bob, told):
            assert told == [no_member("elsewhere") for _ in positions]
            (seq,) = await say(team, "team", 1)
            await hear_all(bob, "team", seq)
            assert bob.seqs("team") == [seq]


async def test_own_messages_of_an_earlier_session_come_and_a_person_is_named_by_the_peer(here):
    await in_thread(make_users, "alice", "bob")
    async with Peer(here.url, "alice") as alice:
        async with Peer(here.url, "bob") as bob:
            await say(bob, "alice", 2, kind=1)
            await say(alice, "bob", 2, kind=1)
            await hear_all(bob, "alice", 4)
        async with resumed(here, "bob", at(1, "alice", 1), at(0, "carol", 1)) as (bob, told):
            assert told == [gap(1, 4, "alice", 1), no_member("carol", 1)]
            await hear_all(bob, "alice", 4)
            assert bob.seqs("alice") == [2, 3, 4]
            assert [each["fromUid"] for each in bob.heard["alice"]] == ["bob", "alice", "alice"]


async def leave(uid):
    await in_thread(services.leave, TEAM, [uid], actor="test")


async def join(uid):
    await in_thread(services.join, TEAM, [uid], actor="test")


async def test_gap_across_leaves_has_what_fell_into_the_stays_alone(here, team):
    await leave("bob")  # after 5
    await say(team, "team", 3)
    await join("bob")  # after 8
    await say(team, "team", 2)
    await leave("bob")  # after 10
    await say(team, "team", 2)
    await join("bob")  # after 12
    await say(team, "team", 1)
    for position, heard in ((3, [4, 5, 9, 10, 13]), (9, [10, 13]), (12, [13])):
        async with resumed(here, "bob", at(position)) as (bob, told):
            assert told == [gap(position, 13)]
            await hear_all(bob, "team", 13)
            assert bob.seqs("team") == heard
    async with resumed(here, "bob", at(11)) as (bob, told):
        assert told == [gap(12, 13)]  # nothing of theirs lies before


async def test_numbers_before_the_first_join_are_no_gap(here, team):
    await in_thread(make_users, "dave")
    await join("dave")
    async with resumed(here, "dave", at(0)) as (_, told):
        assert told == [ok(5)]
    await say(team, "team", 2)
    async with resumed(here, "dave", at(0)) as (dave, told):
        assert told == [gap(5, 7)]
        await hear_all(dave, "team", 7)
        assert dave.seqs("team") == [6, 7]


# --- what cannot be sent ------------------------------------------------------------------------


async def remove(*seqs):
    """Remove messages as retention would."""
    await in_thread(Message.objects.filter(seq__in=seqs).delete)


async def test_removed_range_is_named_and_what_is_kept_is_sent(here, team):
    await say(team, "team", 4)
    await remove(1, 2, 3, 4, 5, 6)
    async with resumed(here, "bob", at(2)) as (bob, told):
        assert told == [reset(3, 6, "notKept", 6)]
        await hear_all(bob, "team", 9)
        assert bob.seqs("team") == [7, 8, 9]
    async with resumed(here, "bob", at(6)) as (_, told):
        assert told == [gap(6, 9)]


async def test_log_that_is_empty_by_now_is_a_reset_up_to_its_head(here, team):
    await remove(1, 2, 3, 4, 5)
    async with resumed(here, "bob", at(2)) as (bob, told):
        assert told == [reset(3, 5, "notKept", 5)]
        await say(team, "team", 1)
        await hear_all(bob, "team", 6)
        assert bob.seqs("team") == [6]
    async with resumed(here, "carol", at(5)) as (_, told):
        assert told == [gap(5, 6)]


async def test_position_beyond_the_head_is_reset_and_lower_numbers_are_heard_again(here, team):
    async with resumed(here, "bob", at(9)) as (bob, told):
        assert told == [reset(6, 9, "ahead", 5)]
        await say(team, "team", 1)
        await hear_all(bob, "team", 6)
        assert bob.seqs("team") == [6]


async def test_row_that_is_behind_its_own_log_makes_nobody_ahead(here, team):
    def append_without_the_row():
        row = Message.objects.get(seq=5)
        row.pk, row.seq, row.message_id, row.client_msg_no = None, 6, row.message_id + 10**6, "new"
        row.save()

    await in_thread(append_without_the_row)
    async with resumed(here, "bob", at(6)) as (_, told):
        assert told == [ok(6)]


async def test_outsiders_are_told_the_same_as_of_no_channel(here, team):
    await in_thread(make_users, "eve")
    await leave("carol")
    await say(team, "team", 1)
    for uid in ("eve", "carol"):
        async with resumed(here, uid, at(2), at(2, "nowhere")) as (peer, told):
            assert told == [no_member(), no_member("nowhere")]
            await team.send(uid, "hello", kind=1)
            await peer.until_heard("alice", "hello")
            assert peer.seqs("team") == []


@pytest.fixture
def ten_at_most(settings):
    settings.MESSAGING = {"LAG_MESSAGES": 10}


async def test_gaps_beyond_the_limit_are_to_be_pulled_in_the_order_of_their_channels(
    ten_at_most, here
):
    for channel, count in (("a", 4), ("b", 11), ("c", 6), ("d", 1)):
        await in_thread(make_group, channel, "alice", "bob")
        async with Peer(here.url, "alice") as alice:
            await say(alice, channel, count)
    async with resumed(here, "bob", at(0, "a"), at(0, "b"), at(0, "c"), at(0, "d")) as (bob, told):
        assert told == [
            gap(0, 4, "a"), reset(1, 11, "tooFar", 11, "b"), gap(0, 6, "c"),
            reset(1, 1, "tooFar", 1, "d"),
        ]  # fmt: skip
        await hear_all(bob, "a", 4)
        await hear_all(bob, "c", 6)
        async with Peer(here.url, "alice") as alice:
            await say(alice, "b", 1)
            await hear_all(bob, "b", 12)
        assert [bob.seqs(channel) for channel in "abcd"] == [
            [1, 2, 3, 4], [12], [1, 2, 3, 4, 5, 6], [],
        ]  # fmt: skip


@pytest.fixture
def two_positions(settings):
    settings.MESSAGING = {"RESUME_POSITIONS": 2}


async def test_too_many_positions_close_without_a_word_and_cost_nothing(two_positions, here, team):
    positions = [at(1), at(1, "b"), at(1, "c")]
    with pytest.raises(ConnectionResetError):
        async with resumed(here, "bob", *positions) as (bob, _):
            pass
    assert not await in_thread(Session.objects.filter(uid="bob").exists)
    async with resumed(here, "bob", *positions[:2]) as (bob, told):
        assert told == [gap(1, 5), no_member("b")]
        await hear_all(bob, "team", 5)
        assert bob.seqs("team") == [2, 3, 4, 5]


async def test_as_many_positions_as_are_allowed_fit_into_the_first_frame(here, team):
    others = [f"{number:032}" for number in range(999)]
    async with resumed(here, "bob", at(4), *(at(10**9, name) for name in others)) as (bob, told):
        assert told == [gap(4, 5), *(no_member(name) for name in others)]
        await hear_all(bob, "team", 5)


# --- again, at once, and in between -------------------------------------------------------------


async def test_same_question_twice_has_the_same_answer_and_the_same_messages(here, team):
    for _ in range(3):
        async with resumed(here, "bob", at(2)) as (bob, told):
            assert told == [gap(2, 5)]
            await hear_all(bob, "team", 5)
            assert bob.seqs("team") == [3, 4, 5]


async def test_two_sessions_at_once_are_answered_each_by_itself(here, team):
    async with (
        resumed(here, "bob", at(1), deviceId="desk") as (desk, first),
        resumed(here, "bob", at(3), deviceId="laptop") as (laptop, second),
    ):
        assert (first, second) == ([gap(1, 5)], [gap(3, 5)])
        await say(team, "team", 1)
        await hear_all(desk, "team", 6)
        await hear_all(laptop, "team", 6)
        assert desk.seqs("team") == [2, 3, 4, 5, 6]
        assert laptop.seqs("team") == [4, 5, 6]


async def test_device_that_connects_twice_at_once_is_left_with_one_whole_session(here, team):
    twins = [Peer(here.url, "bob", positions=[at(2)]) for _ in range(2)]
    answers = await asyncio.gather(*(twin.open() for twin in twins))
    assert [each["result"]["positions"] for each in answers] == [[gap(2, 5)]] * 2
    await eventually(lambda: sum(twin.reader.done() for twin in twins) == 1, "one is sent away")
    (left,) = [twin for twin in twins if not twin.reader.done()]
    await say(team, "team", 1)
    await hear_all(left, "team", 6)
    assert left.seqs("team") == [3, 4, 5, 6]
    for twin in twins:
        await twin.close()


async def test_connection_killed_twenty_times_leaves_no_hole(here, team):
    """F25. The client knows where it is; what it claims is that, or less, or what cannot be."""
    die = random.Random(25)
    mine, resets = [], 0
    enough = asyncio.Event()

    async def write():
        while not enough.is_set():
            await say(team, "team", 2)

    writing = asyncio.create_task(write())
    for _ in range(20):
        here_now = mine[-1] if mine else 0
        claim = die.choice([here_now, die.randint(0, here_now), here_now + 10**9])
        peer = Peer(here.url, "bob", positions=[at(claim)])
        (told,) = (await peer.open())["result"]["positions"]
        wanted = die.randint(0, 30)
        await peer.until(lambda peer=peer, wanted=wanted: len(peer.seqs("team")) >= wanted)
        peer.socket.transport.abort()
        await asyncio.gather(peer.reader, return_exceptions=True)
        heard = peer.seqs("team")
        begins = told["messageSeq"]
        assert heard == list(range(begins + 1, begins + 1 + len(heard)))
        if claim > here_now:
            assert (told["state"], told["reason"]) == ("reset", "ahead")
            resets += 1
        else:
            assert begins == claim
            mine += [seq for seq in heard if seq > here_now]
    enough.set()
    await writing
    assert 0 < resets < 20
    head = (await in_thread(Channel.objects.get, channel_id="team")).last_seq
    async with resumed(here, "bob", at(mine[-1])) as (bob, _):
        if mine[-1] < head:
            await hear_all(bob, "team", head)
        assert mine + bob.seqs("team") == list(range(1, head + 1))


@pytest.fixture
def in_between(here, monkeypatch):
    """Have something done once, when bob's memberships were read and before anything else is."""

    def install(act):
        read, done = here.node.database.read, []

        async def read_then_act(question, *args, **kwargs):
            answer = await read(question, *args, **kwargs)
            if question is memberships_of and args == (["bob"],) and not done:
                done.append(True)
                await act()
            return answer

        monkeypatch.setattr(here.node.database, "read", read_then_act)

    return install


async def test_message_between_the_read_and_the_answer_comes_after_the_gap(here, team, in_between):
    in_between(lambda: say(team, "team", 2))
    async with resumed(here, "bob", at(3)) as (bob, told):
        assert told == [gap(3, 5)]
        await hear_all(bob, "team", 7)
        assert bob.seqs("team") == [4, 5, 6, 7]


async def test_leave_between_the_read_and_the_answer_ends_the_gap(here, team, in_between):
    async def act():
        await say(team, "team", 1)
        await leave("bob")
        await say(team, "team", 1)

    in_between(act)
    async with resumed(here, "bob", at(3)) as (bob, told):
        assert told == [gap(3, 5)]
        await bob.until(lambda: 6 in bob.seqs("team"))
        await team.send("bob", "you are out", kind=1)
        await bob.until_heard("alice", "you are out")
        assert bob.seqs("team") == [4, 5, 6]


async def test_join_between_the_read_and_the_answer_begins_at_the_join(here, team, in_between):
    await leave("bob")
    await say(team, "team", 1)

    async def act():
        await join("bob")
        await say(team, "team", 1)

    in_between(act)
    async with resumed(here, "bob", at(3)) as (bob, told):
        assert told == [no_member()]
        await say(team, "team", 1)
        await hear_all(bob, "team", 8)
        assert bob.seqs("team") == [7, 8]


async def test_leave_and_new_join_in_between_are_two_stays(here, team, in_between):
    async def act():
        await leave("bob")
        await say(team, "team", 1)
        await join("bob")
        await say(team, "team", 1)

    in_between(act)
    async with resumed(here, "bob", at(3)) as (bob, told):
        assert told == [gap(3, 5)]
        await hear_all(bob, "team", 7)
        assert bob.seqs("team") == [4, 5, 7]


async def test_answer_does_not_wait_for_the_gap(here, team, monkeypatch):
    read, released = here.node.database.read, asyncio.Event()

    async def read_late(question, *args, **kwargs):
        if question is read_range:
            await released.wait()
        return await read(question, *args, **kwargs)

    monkeypatch.setattr(here.node.database, "read", read_late)
    async with resumed(here, "bob", at(3)) as (bob, told):
        assert told == [gap(3, 5)]
        assert (await bob.ask("ping"))["result"] is None
        assert bob.seqs("team") == []
        released.set()
        await hear_all(bob, "team", 5)
        assert bob.seqs("team") == [4, 5]


@pytest.fixture
def nothing_else(settings):
    """No tick looks, and the layer has all the time it wants."""
    settings.MESSAGING = {"STEPS": (), "LEASE_SECONDS": 600, "LAYER_SECONDS": 600}


async def test_gap_does_not_wait_for_the_layer(nothing_else, here, monkeypatch):
    await in_thread(make_group, "team", "alice", "bob")
    async with Peer(here.url, "alice") as alice:
        await say(alice, "team", 5)
    await eventually(lambda: not here.node.hub.groups, "alice is gone, and her group with her")
    released = asyncio.Event()

    async def join_late(groups):
        await released.wait()

    monkeypatch.setattr(here.node.layer, "join", join_late)
    async with resumed(here, "bob", at(3)) as (bob, told):
        assert told == [gap(3, 5)]
        await hear_all(bob, "team", 5)
        assert bob.seqs("team") == [4, 5]
        released.set()


async def test_message_between_the_read_and_the_answer_is_heard_by_who_was_level(
    nothing_else, here, in_between
):
    """He does not lag, no later message shows the hole, and the group is open already."""
    await in_thread(make_group, "team", "alice", "bob")
    async with Peer(here.url, "alice") as alice:
        await say(alice, "team", 3)
        await here.come_to_rest()
        in_between(lambda: say(alice, "team", 1))
        async with resumed(here, "bob", at(3)) as (bob, told):
            assert told == [ok(3)]
            await hear_all(bob, "team", 4)
            assert bob.seqs("team") == [4]


# --- many, and slowly ---------------------------------------------------------------------------


@pytest.fixture
def small(settings):
    """Little room, so that it is full soon."""
    settings.MESSAGING = {"OUTBOX_BYTES": 50_000, "OUTBOX_LOW": 10_000}


async def test_gap_of_a_slow_reader_waits_in_the_log_and_not_in_memory(small, here):
    for channel in ("a", "b"):
        await in_thread(make_group, channel, "alice", "bob")
    texts = [f"{number:04} " + "x" * 20_000 for number in range(200)]
    async with Peer(here.url, "alice") as alice:
        for channel in ("a", "b"):
            for text in texts:
                await alice.send(channel, text)
    bob = Peer(here.url, "bob", positions=[at(0, "a"), at(0, "b")])
    bob.acknowledging = False
    assert (await bob.open())["result"]["positions"] == [gap(0, 200, "a"), gap(0, 200, "b")]
    bob.socket.transport.pause_reading()
    (session,) = here.node.hub.by_uid["bob"].values()
    await eventually(lambda: session.port.outbox._refused, "bob's outbox to be full")
    assert session.port.outbox.waiting_bytes <= 50_000
    bob.socket.transport.resume_reading()
    for channel in ("a", "b"):
        await bob.until_heard(channel, texts[-1], 30)
        assert bob.texts(channel) == texts
    await bob.close()


# --- under both servers -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["serve", "daphne"])
async def test_resuming_is_the_same_under_both_servers(kind):
    with closing(await asyncio.to_thread(ServerProcess(kind).start)) as server:
        for uid in ("alice", "bob"):
            await asyncio.to_thread(server.make_user, uid)
        await asyncio.to_thread(server.make_group, "team", "alice", "bob")
        async with Peer(server.url, "alice") as alice:
            await say(alice, "team", 5)
            asked = [at(2), at(9, "nowhere")]
            async with resumed(server, "bob", *asked) as (bob, told):
                assert told == [gap(2, 5), no_member("nowhere")]
                await say(alice, "team", 1)
                await hear_all(bob, "team", 6)
                assert bob.seqs("team") == [3, 4, 5, 6]
            async with connect(server.url) as socket:
                params = {"uid": "bob", "positions": [at(1), at(2)]}
                await socket.send(json.dumps({"id": "1", "method": "connect", "params": params}))
                with pytest.raises(ConnectionClosed) as closed:
                    await asyncio.wait_for(socket.recv(), PATIENCE)
                assert closed.value.rcvd.code == (1008 if kind == "serve" else 4008)
