"""Who has to go when somebody connects, gets a new token, or is banned (protocol §4.1)."""

from __future__ import annotations

import asyncio

import pytest

from messaging import auth
from messaging.models import Session
from messaging.protocol.reasons import Reason
from tests.support.factories import in_thread, make_group, make_users
from tests.support.peers import Peer
from tests.support.waiting import PATIENCE, eventually

KICKED = 4003
CONNECT_KICK = 12


@pytest.fixture(autouse=True)
def quick_tick(settings):
    """What the tick finds, it finds sooner."""
    settings.MESSAGING = {"TICK_SECONDS": 0.4, "BEHIND_GRACE": 0.1}


def live_sessions(uid):
    rows = Session.objects.filter(uid=uid, closed_at__isnull=True)
    return sorted(rows.values_list("device_flag", "device_id"))


async def until_live(uid, *expected):
    """Wait until these (device flag, device id) are the uid's open session rows."""
    async with asyncio.timeout(PATIENCE):
        while True:
            if await in_thread(live_sessions, uid) == sorted(expected):
                return
            await asyncio.sleep(0.02)


async def until_kicked(peer, reason):
    """Wait until the peer was told why, and its socket closed."""
    await asyncio.wait_for(peer.reader, 10)
    assert peer.socket.close_code == KICKED
    (notice,) = peer.notices
    assert notice["method"] == "disconnect"
    assert "id" not in notice
    assert notice["params"]["reasonCode"] == CONNECT_KICK
    assert notice["params"]["reason"] == reason


async def still_there(*peers):
    """Every one of them answers, and was told nothing."""
    for peer in peers:
        assert (await peer.ask("ping"))["result"] is None
        assert peer.notices == []


async def make_master(here, uid, flag=2):
    """Give the uid's kind of device a token of level 1."""
    body = {"uid": uid, "token": f"token-of-{uid}", "device_flag": flag, "device_level": 1}
    await here.post("/user/token", **body)


async def test_same_device_id_displaces_the_first_connection(here):
    await in_thread(make_group, "team", "alice", "bob")
    async with (
        Peer(here.url, "alice", deviceId="laptop") as first,
        Peer(here.url, "bob") as bob,
        Peer(here.url, "alice", deviceId="laptop") as second,
    ):
        await until_kicked(first, "replaced by a new connection of this device")
        await bob.send("team", "to the second alone")
        await second.until_heard("team", "to the second alone")
        assert first.texts("team") == []
        await still_there(second, bob)
        await until_live("alice", (2, "laptop"))
        displaced = await in_thread(Session.objects.exclude(closed_at=None).get)
        assert displaced.closed_because == "kicked"


async def test_two_connects_of_one_device_at_once_leave_one(here):
    await in_thread(make_users, "alice")
    peers = [Peer(here.url, "alice", deviceId="laptop") for _ in range(5)]
    answers = await asyncio.gather(*(peer.open() for peer in peers))
    assert all(answer["result"]["reasonCode"] == 1 for answer in answers)
    await eventually(lambda: sum(peer.reader.done() for peer in peers) == 4, "four are closed")
    (survivor,) = [peer for peer in peers if not peer.reader.done()]
    await still_there(survivor)
    await until_live("alice", (2, "laptop"))
    await survivor.close()


async def test_slaves_with_other_device_ids_stay(here):
    await in_thread(make_group, "team", "alice", "bob")
    async with (
        Peer(here.url, "alice", deviceId="laptop") as laptop,
        Peer(here.url, "alice", deviceId="desk") as desk,
        Peer(here.url, "alice", deviceId="") as nameless,
        Peer(here.url, "alice", deviceId="") as nameless_too,
        Peer(here.url, "bob") as bob,
    ):
        await two_ticks(here.node)
        await bob.send("team", "to all of them")
        for peer in (laptop, desk, nameless, nameless_too):
            await peer.until_heard("team", "to all of them")
        await still_there(laptop, desk, nameless, nameless_too)


async def two_ticks(node):
    """Wait until two whole ticks have passed."""
    sent = node.probe.sent
    await eventually(lambda: node.probe.sent >= sent + 3, "three more ticks")


async def test_master_displaces_every_session_of_its_flag_and_no_other(here):
    await in_thread(make_users, "alice", flag=1)
    await in_thread(make_users, "alice")
    async with (
        Peer(here.url, "alice", deviceFlag=1, deviceId="browser") as browser,
        Peer(here.url, "alice", deviceId="desk") as slave,
    ):
        await make_master(here, "alice", flag=2)
        await until_kicked(slave, "login in other device")
        async with (
            Peer(here.url, "alice", deviceId="desk") as first,
            Peer(here.url, "alice", deviceId="laptop") as second,
        ):
            await until_kicked(first, "login in other device")
            await still_there(second, browser)
            await until_live("alice", (1, "browser"), (2, "laptop"))


async def test_master_displaces_its_own_device_id_too(here):
    await in_thread(make_users, "alice")
    await make_master(here, "alice")
    async with (
        Peer(here.url, "alice", deviceId="desk") as first,
        Peer(here.url, "alice", deviceId="desk") as second,
    ):
        await until_kicked(first, "replaced by a new connection of this device")
        await still_there(second)


async def test_new_master_token_ends_present_sessions_of_its_flag(here):
    await in_thread(make_users, "alice", "bob")
    await in_thread(make_users, "alice", flag=0)
    async with (
        Peer(here.url, "alice", deviceId="desk") as desk,
        Peer(here.url, "alice", deviceId="laptop") as laptop,
        Peer(here.url, "alice", deviceFlag=0, deviceId="phone") as phone,
        Peer(here.url, "bob") as bob,
    ):
        await make_master(here, "alice")
        await until_kicked(desk, "login in other device")
        await until_kicked(laptop, "login in other device")
        await still_there(phone, bob)
        await until_live("alice", (0, "phone"))


async def test_new_slave_token_ends_no_session_but_the_old_token(here):
    await in_thread(make_users, "alice")
    async with Peer(here.url, "alice") as alice:
        body = {"uid": "alice", "token": "new", "device_flag": 2, "device_level": 0}
        await here.post("/user/token", **body)
        await two_ticks(here.node)
        await still_there(alice)
        assert (await refused(here, "alice", "token-of-alice"))["code"] == 2
    async with Peer(here.url, "alice", token="new") as alice:
        await still_there(alice)


async def refused(here, uid, token=""):
    """The error that a connect gets."""
    peer = Peer(here.url, uid, token)
    answer = await peer.open()
    await asyncio.wait_for(peer.reader, 5)
    assert peer.socket.close_code == 4002
    assert "result" not in answer
    return answer["error"]


async def test_banned_person_cannot_connect(here):
    await in_thread(make_users, "alice", "bob")
    await here.post("/channel/info", channel_id="alice", channel_type=1, ban=1)
    error = await refused(here, "alice")
    assert (error["code"], error["message"]) == (19, "ReasonBan")
    await until_live("alice")
    await here.post("/channel/info", channel_id="alice", channel_type=1, ban=0)
    async with Peer(here.url, "alice") as alice, Peer(here.url, "bob") as bob:
        await still_there(alice, bob)


async def test_kick_written_by_hand_is_obeyed(here):
    """A kick is a fact in the database: no doorbell has to ring for it."""
    await in_thread(make_users, "alice")
    async with Peer(here.url, "alice") as alice:
        rows = await in_thread(Session.objects.filter(uid="alice").update, kick="by an operator")
        assert rows == 1
        await until_kicked(alice, "by an operator")


class Told:
    """A way to the database that says when a question was answered."""

    def __init__(self, ask, question):
        self.ask, self.question, self.event = ask, question, asyncio.Event()

    async def __call__(self, question, *args):
        answer = await self.ask(question, *args)
        if question is self.question:
            self.event.set()
        return answer


async def test_connect_that_was_given_up_sends_nobody_away(here):
    """A node may be slow to let somebody in; who came in elsewhere meanwhile stays (F22)."""
    await in_thread(make_group, "room", "alice")
    write, waiting, released = here.node.database.write, asyncio.Event(), asyncio.Event()
    late = asyncio.get_running_loop().create_future()

    async def hold_first(change, *args):
        if change is not auth.open_sessions or waiting.is_set():
            return await write(change, *args)
        waiting.set()
        await released.wait()
        late.set_result(await write(change, *args))
        return late.result()

    here.node.database.write = hold_first
    given_up = Peer(here.url, "alice", deviceId="phone")
    opening = asyncio.ensure_future(given_up.open())
    await asyncio.wait_for(waiting.wait(), PATIENCE)
    given_up.socket.transport.abort()
    alice = Peer(here.url, "alice", deviceId="phone")
    judged = here.node.database.read = Told(here.node.database.read, auth.admit)
    arriving = asyncio.ensure_future(alice.open())
    await asyncio.wait_for(judged.event.wait(), PATIENCE)
    released.set()
    await arriving
    try:
        [admission] = await asyncio.wait_for(late, PATIENCE)
        assert (admission.reason, admission.opened_at) == (Reason.SUCCESS, None)
        await still_there(alice)
        await until_live("alice", (2, "phone"))
    finally:
        await alice.close()
    await asyncio.gather(opening, return_exceptions=True)
