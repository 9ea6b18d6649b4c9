"""What a connect costs, what it is refused for, and that nothing falls between its steps."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections import Counter
from contextlib import asynccontextmanager
from functools import wraps

import pytest
from django.db import OperationalError, connection
from django.db.backends.utils import CursorWrapper
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from messaging import auth, check, database
from messaging.appender import Appender
from messaging.batching import Batcher
from messaging.layer import NodeLayer
from messaging.messages import Draft
from subscriptions import services
from subscriptions.bindings import ChannelKey
from subscriptions.models import Channel, Membership
from subscriptions.selectors import heads, keys_of, memberships_of
from tests.support.factories import in_thread, make_group, make_users
from tests.support.layers import inboxes, inboxes_in
from tests.support.peers import Peer
from tests.support.waiting import PATIENCE, eventually

# --- what it costs ------------------------------------------------------------------------------


@pytest.fixture
def nothing_but_connects(settings):
    """No tick and no poll asks the database meanwhile; the lease outlives the test."""
    settings.MESSAGING = {"STEPS": (), "LEASE_SECONDS": 600, "ANSWER_SECONDS": 600}


class Queries:
    """Every statement of this process, and the calls to the database and the layer that are not
    over yet."""

    def __init__(self):
        self.seen = []
        self.running = 0

    async def until_idle(self):
        """Wait until nothing is asked any more, nor by what the last answer set going: nothing
        but the database and the layer makes a connect wait, so it is at its end then."""
        quiet = 0
        async with asyncio.timeout(PATIENCE):
            while quiet < 100:
                await asyncio.sleep(0)
                quiet = 0 if self.running else quiet + 1


@pytest.fixture
def queries(monkeypatch):
    counted = Queries()
    execute = CursorWrapper._execute_with_wrappers

    def note(cursor, sql, *rest, **named):
        counted.seen.append(sql)
        return execute(cursor, sql, *rest, **named)

    def count(owner, name):
        call = getattr(owner, name)

        @wraps(call)
        async def counting(*args, **named):
            counted.running += 1
            try:
                return await call(*args, **named)
            finally:
                counted.running -= 1

        monkeypatch.setattr(owner, name, counting)

    monkeypatch.setattr(CursorWrapper, "_execute_with_wrappers", note)
    count(database.Threads, "run")
    count(NodeLayer, "join")
    return counted


def make_memberships(uid, count):
    """`count` group channels of one member."""
    make_users(uid)
    names = [f"{uid} {number}" for number in range(count)]
    Channel.objects.bulk_create([Channel(channel_id=name, channel_type=2) for name in names])
    channels = Channel.objects.filter(channel_id__in=names)
    Membership.objects.bulk_create([Membership(channel=each, uid=uid) for each in channels])


@asynccontextmanager
async def counted_connect(here, queries, uid):
    """Connects; yields the statements until nothing is asked any more, and its bindings."""
    queries.seen.clear()
    async with Peer(here.url, uid):
        await queries.until_idle()
        (session,) = here.node.hub.by_uid[uid].values()
        yield list(queries.seen), len(session.bindings)


async def use_every_reader(node):
    """Each of its threads opens its connection, which asks for this and that at first."""
    together = threading.Barrier(node.conf.database_threads)

    def ask():
        Channel.objects.exists()
        together.wait(timeout=10)

    await asyncio.gather(*(node.database.read(ask) for _ in range(node.conf.database_threads)))


async def test_connect_with_thousand_memberships_asks_no_more_than_with_ten(
    nothing_but_connects, here, queries
):
    for uid, count in (("first", 1), ("few", 10), ("many", 1000)):
        await in_thread(make_memberships, uid, count)
    await use_every_reader(here.node)
    async with (
        counted_connect(here, queries, "first"),
        counted_connect(here, queries, "few") as (few, ten),
        counted_connect(here, queries, "many") as (many, thousand),
    ):
        assert (ten, thousand) == (10, 1000)
        assert any("subscriptions_membership" in sql for sql in few), "they were not all seen"
        assert kinds(many) == kinds(few)


def kinds(statements):
    """How often each statement stands there, by its first words and without its own names."""
    return Counter(re.sub(r'"s\d+_x\d+"', "a savepoint", sql)[:120] for sql in statements)


async def test_session_has_no_inbox_of_its_own(here):
    layer = here.node.layer
    before = all_inboxes(layer)
    await in_thread(make_group, "team", *(f"u{number}" for number in range(50)))
    peers = [Peer(here.url, f"u{number}") for number in range(50)]
    answers = await asyncio.gather(*(peer.open() for peer in peers))
    assert all("result" in answer for answer in answers)
    await peers[0].send("team", "hello")
    for peer in peers[1:]:
        await peer.until_heard("team", "hello")
    group = ChannelKey(2, "team").group
    assert inboxes_in(layer, group) == {layer.inbox}
    assert all_inboxes(layer) - before <= {layer.inbox}
    await asyncio.gather(*(peer.close() for peer in peers))
    await eventually(lambda: not inboxes_in(layer, group), "the group is left")


def all_inboxes(layer):
    """Every inbox that the layer knows."""
    return set().union(*inboxes(layer).values())


# --- what it is refused for ---------------------------------------------------------------------


GOOD_SEND = (
    '{"id": "1", "method": "send",'
    ' "params": {"channelId": "team", "channelType": 2, "payload": "e30="}}'
)


async def closed_with(socket, seconds=5.0):
    """The code that the server closes the socket with, having said nothing."""
    with pytest.raises(ConnectionClosed) as closed:
        await asyncio.wait_for(socket.recv(), seconds)
    return closed.value.rcvd.code


async def test_silent_socket_is_closed_after_two_seconds(here):
    async with connect(here.url) as socket:
        began = time.monotonic()
        assert await closed_with(socket) == 4001
        assert 1.5 < time.monotonic() - began < 4


@pytest.fixture
def little_patience(settings):
    settings.MESSAGING = {"FIRST_FRAME_SECONDS": 0.3}


async def test_first_frames_limit_does_not_bind_who_is_connected(little_patience, here):
    await in_thread(make_users, "alice")
    async with Peer(here.url, "alice") as alice, connect(here.url) as silent:
        assert await closed_with(silent) == 4001
        assert (await alice.ask("ping"))["result"] is None


@pytest.mark.parametrize(
    "frame",
    [
        '{"id": "1", "method": "ping"}',
        GOOD_SEND,
        '{"method": "recvack", "params": {"messageId": "1", "messageSeq": 1}}',
        '{"id": "1", "method": "connect", "params": {}}',
        "hello",
    ],
)
async def test_other_frames_before_connect_close_without_a_word(here, frame):
    await in_thread(make_group, "team", "alice")
    async with connect(here.url) as socket:
        await socket.send(frame)
        assert await closed_with(socket) == 1008
    assert (await in_thread(Channel.objects.get, channel_id="team")).last_seq == 0


async def test_first_frame_may_have_more_behind_the_connect(here):
    await in_thread(make_users, "alice")
    params = {"uid": "alice", "token": "token-of-alice", "deviceFlag": 2}
    frames = [
        {"id": "1", "method": "connect", "params": params},
        {"id": "2", "method": "ping"},
    ]
    async with connect(here.url) as socket:
        await socket.send("".join(json.dumps(frame) for frame in frames))
        answers = [json.loads(await asyncio.wait_for(socket.recv(), 5)) for _ in frames]
        assert [answer["id"] for answer in answers] == ["1", "2"]


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:1", "x", "http://["]
)
async def test_page_of_another_site_cannot_open_a_socket(here, origin):
    with pytest.raises(InvalidStatus) as refused:
        async with connect(here.url, origin=origin):
            pass
    assert refused.value.response.status_code == 403


async def test_own_pages_listed_pages_and_no_page_may_open_a_socket(settings, here):
    settings.WUKONGIM_ALLOWED_ORIGINS = ["https://chat.example"]
    for origin in (here.http, "https://chat.example", None):
        async with connect(here.url, origin=origin) as socket:
            await socket.send("not a connect")
            assert await closed_with(socket) == 1008  # it was heard, so it was open


# --- what falls between its steps ---------------------------------------------------------------


@pytest.fixture
def check_off(settings):
    """The check would mend what fell between; here nothing may fall."""
    settings.MESSAGING = {"STEPS": ("beat", "sweep"), "TICK_SECONDS": 1.0}


def join_by_service(uid):
    services.join(ChannelKey(2, "team"), [uid], actor="test")


def join_by_sql(uid):
    """As another process would: no doorbell."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO wukongim_subscriptions_membership (channel_id, uid)"
            " SELECT id, %s FROM wukongim_subscriptions_channel WHERE channel_id = 'team'",
            [uid],
        )


@pytest.fixture
def in_the_gap(here, monkeypatch):
    """Have something done once, when bob's memberships were read and before he is answered;
    returns a list that will hold what was read."""

    def install(act):
        read, gap = here.node.database.read, []

        async def read_then_act(question, *args, **kwargs):
            answer = await read(question, *args, **kwargs)
            if question is memberships_of and args == (["bob"],) and not gap:
                gap.append(answer)
                await act()
            return answer

        monkeypatch.setattr(here.node.database, "read", read_then_act)
        return gap

    return install


@pytest.mark.parametrize("join", [join_by_service, join_by_sql])
async def test_join_between_the_read_and_the_answer_is_heard(check_off, here, in_the_gap, join):
    await in_thread(make_group, "team", "alice")
    await in_thread(make_users, "bob")

    async def join_in_between():
        await alice.send("team", "before the join")
        await in_thread(join, "bob")
        await alice.send("team", "in the gap")

    async with Peer(here.url, "alice") as alice:
        gap = in_the_gap(join_in_between)
        async with Peer(here.url, "bob") as bob:
            assert gap == [{}]
            await alice.send("team", "afterwards")
            await bob.until_heard("team", "afterwards", 5)
            assert bob.texts("team") == ["in the gap", "afterwards"]


async def test_join_between_the_read_and_the_answer_is_heard_in_a_quiet_room(
    nothing_but_connects, here, in_the_gap
):
    """The sweep that the join rings for cannot bind whoever is still connecting, no later message
    shows the hole, and no tick finds it."""
    await in_thread(make_group, "team", "alice")
    await in_thread(make_users, "bob")

    async def join_and_send():
        await in_thread(join_by_service, "bob")
        (bob,) = here.node.hub.by_uid["bob"].values()
        await eventually(lambda: bob.missed, "the join is learned")
        await alice.send("team", "in the gap")
        await here.come_to_rest()

    async with Peer(here.url, "alice") as alice:
        in_the_gap(join_and_send)
        async with Peer(here.url, "bob") as bob:
            await bob.until_heard("team", "in the gap")


async def test_message_between_the_read_and_the_answer_is_heard_once(check_off, here, in_the_gap):
    await in_thread(make_group, "team", "alice", "bob")
    async with Peer(here.url, "alice") as alice:
        await alice.send("team", "before")
        gap = in_the_gap(lambda: alice.send("team", "in the gap"))
        async with Peer(here.url, "bob") as bob:
            assert [each.head for each in gap[0]["bob"]] == [1]
            await alice.send("team", "afterwards")
            await bob.until_heard("team", "afterwards", 5)
            assert bob.texts("team") == ["in the gap", "afterwards"]


async def test_second_look_finds_what_fell_between_in_a_quiet_room(
    nothing_but_connects, here, in_the_gap
):
    """No later message shows the hole, no tick finds it, and the group is open already, so that
    joining it does not look either."""
    await in_thread(make_group, "team", "alice", "bob")
    async with Peer(here.url, "alice") as alice:
        await here.come_to_rest()
        in_the_gap(lambda: alice.send("team", "in the gap"))
        async with Peer(here.url, "bob") as bob:
            await bob.until_heard("team", "in the gap")


async def test_second_look_that_fails_is_taken_again(
    nothing_but_connects, here, in_the_gap, monkeypatch
):
    """The group is new here, nobody rang, and no tick finds it."""
    await in_thread(make_group, "team", "alice", "bob")
    await here.come_to_rest()
    failed = []
    read = here.node.database.read

    async def fail_once(question, *args, **kwargs):
        if question is heads and not failed:
            failed.append(True)
            raise OperationalError("the connection is gone")
        return await read(question, *args, **kwargs)

    def write():
        Appender().append([Draft(ChannelKey(2, "team"), "alice", b'{"type":1,"content":"hello"}')])

    monkeypatch.setattr(here.node.database, "read", fail_once)
    in_the_gap(lambda: in_thread(write))
    async with Peer(here.url, "bob") as bob:
        await bob.until_heard("team", "hello")
    assert failed


async def test_group_that_ends_while_names_are_read_is_begun_again(
    nothing_but_connects, here, monkeypatch
):
    """bob's other room is new here, so its name is read; meanwhile alice leaves the one that was
    not."""
    team = await in_thread(make_group, "team", "alice", "bob")
    await in_thread(make_group, "other", "bob")
    read, asked = here.node.database.read, []

    async def read_then_end(question, *args, **kwargs):
        answer = await read(question, *args, **kwargs)
        if question is keys_of and "bob" in here.node.hub.by_uid:
            if not asked:
                await alice.close()
                await eventually(lambda: team.pk not in here.node.hub.groups, "the group ends")
            asked.append(set(answer.values()))
        return answer

    async with Peer(here.url, "alice") as alice:
        monkeypatch.setattr(here.node.database, "read", read_then_end)
        async with Peer(here.url, "bob") as bob, Peer(here.url, "alice") as again:
            assert asked == [{ChannelKey(2, "other")}, {ChannelKey(2, "team")}]
            await again.send("team", "hello")
            await bob.until_heard("team", "hello")


async def test_leave_between_the_read_and_the_answer_ends_hearing(check_off, here, in_the_gap):
    await in_thread(make_group, "team", "alice", "bob", "carol")

    async def leave_in_between():
        await alice.send("team", "still a member")
        await in_thread(Membership.objects.filter(uid="bob").delete)
        await alice.send("team", "no longer")

    async with Peer(here.url, "alice") as alice, Peer(here.url, "carol") as carol:
        gap = in_the_gap(leave_in_between)
        async with Peer(here.url, "bob") as bob:
            assert len([*gap[0]["bob"]]) == 1
            await alice.send("team", "afterwards")
            await carol.until_heard("team", "afterwards")
            await alice.send("bob", "you are out", kind=1)
            await bob.until_heard("alice", "you are out")
            assert bob.texts("team") == ["still a member"]


# --- several sessions of one uid ----------------------------------------------------------------


async def test_sessions_of_one_uid_all_hear_but_the_sending_one(here):
    await in_thread(make_group, "team", "alice", "bob")
    await in_thread(make_users, "bob", flag=0)
    async with (
        Peer(here.url, "alice", deviceId="desk") as desk,
        Peer(here.url, "alice", deviceId="laptop") as laptop,
        Peer(here.url, "bob") as bob,
        Peer(here.url, "bob", deviceFlag=0, deviceId="phone") as phone,
    ):
        await desk.send("team", "from the desk")
        for peer in (laptop, bob, phone):
            await peer.until_heard("team", "from the desk")
        await desk.send("bob", "to you alone", kind=1)
        await laptop.until_heard("bob", "to you alone")
        for peer in (bob, phone):
            await peer.until_heard("alice", "to you alone")
        await phone.send("team", "on my way")
        for peer in (desk, laptop, bob):
            await peer.until_heard("team", "on my way")
        assert desk.texts("team") == ["on my way"]
        assert laptop.texts("team") == ["from the desk", "on my way"]
        assert bob.texts("team") == ["from the desk", "on my way"]
        assert phone.texts("team") == ["from the desk"]
        assert not desk.heard["bob"]


async def test_session_that_ends_leaves_the_others_hearing(here):
    await in_thread(make_group, "team", "alice", "bob")
    async with Peer(here.url, "alice") as alice, Peer(here.url, "bob", deviceId="desk") as desk:
        async with Peer(here.url, "bob", deviceId="laptop") as laptop:
            await alice.send("team", "to both")
            await laptop.until_heard("team", "to both")
        await eventually(lambda: len(here.node.hub.by_uid["bob"]) == 1, "one of two is gone")
        await alice.send("team", "to one")
        await desk.until_heard("team", "to one")
        assert desk.texts("team") == ["to both", "to one"]
        assert laptop.texts("team") == ["to both"]


# --- many at once ---------------------------------------------------------------------------------


async def test_those_who_come_at_once_are_let_in_together(here):
    """When a node ends all its clients come to the others: one transaction for many of them."""
    uids = [f"u{number}" for number in range(60)]
    await in_thread(make_group, "team", *uids)
    write, opened = here.node.database.write, []

    async def count(change, *args):
        if change is auth.open_sessions:
            opened.append(len(args[0]))
        return await write(change, *args)

    here.node.database.write = count
    peers = [Peer(here.url, uid) for uid in uids]
    try:
        await asyncio.gather(*(peer.open() for peer in peers))
        assert sum(opened) == len(uids)
        assert len(opened) <= len(uids) / 3
        await peers[0].send("team", "hello")
        await asyncio.gather(*(peer.until_heard("team", "hello") for peer in peers[1:]))
    finally:
        await asyncio.gather(*(peer.close() for peer in peers))


async def test_one_whom_the_database_cannot_take_keeps_nobody_out(here):
    """A uid with a zero byte, which PostgreSQL refuses in the middle of a statement for all."""
    uids = [f"u{number}" for number in range(10)]
    await in_thread(make_users, *uids)
    good = [Peer(here.url, uid) for uid in uids]
    bad = [Peer(here.url, f"zero\0byte{number}") for number in range(3)]
    peers = [*good[:5], *bad, *good[5:]]
    try:
        answers = await asyncio.gather(*(peer.open() for peer in peers), return_exceptions=True)
        let_in = [peer for peer, each in zip(peers, answers, strict=True) if is_connack(each)]
        assert let_in == good
    finally:
        await asyncio.gather(*(peer.close() for peer in peers))


def is_connack(answer):
    return isinstance(answer, dict) and "result" in answer


async def test_rows_whose_turn_to_be_closed_has_not_come_are_no_damage(check_off, here):
    """Those who leave at once are closed batch by batch, and a check may come in between."""
    await in_thread(make_users, "alice", "bob", "carol")
    peers = [Peer(here.url, uid) for uid in ("alice", "bob", "carol")]
    await asyncio.gather(*(peer.open() for peer in peers))
    departures = here.node.departures
    departures._together = Batcher(departures._close_together, 1)
    released = threading.Event()
    holding = asyncio.ensure_future(here.node.database.write(released.wait, PATIENCE))
    await asyncio.gather(*(peer.close() for peer in peers))
    await eventually(lambda: len(here.node.moving) == len(peers), "all have left")
    checking = asyncio.ensure_future(check.check_sessions(here.node))
    await asyncio.sleep(0)
    released.set()
    assert await checking == []
    await holding
    await eventually(lambda: not here.node.moving, "their rows are closed")


async def test_row_of_a_session_that_the_node_does_not_know_yet_is_no_damage(check_off, here):
    """Between the commit and the turn of the one who asked for it a check may come in."""
    await in_thread(make_users, "alice")
    ask, opened, released = here.node.arrivals.open, asyncio.Event(), asyncio.Event()

    async def open_late(arrival):
        admission = await ask(arrival)
        opened.set()
        await released.wait()
        return admission

    here.node.arrivals.open = open_late
    alice = Peer(here.url, "alice")
    arriving = asyncio.ensure_future(alice.open())
    await asyncio.wait_for(opened.wait(), PATIENCE)
    found = await check.check_sessions(here.node)
    released.set()
    assert is_connack(await arriving)
    await alice.close()
    assert found == []
