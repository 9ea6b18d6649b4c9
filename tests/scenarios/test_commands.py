"""Commands that a device has acknowledged need not be fetched (protocol §4.6, decision 0038)."""

from __future__ import annotations

import pytest

from subscriptions.models import Membership
from tests.support.factories import in_thread, make_group, make_users
from tests.support.peers import Peer
from tests.support.server import running_server
from tests.support.waiting import eventually

MASTER_FLAG, SLAVE_FLAG = 0, 2


@pytest.fixture(autouse=True)
def quick_tick(settings):
    """What the tick writes, it writes sooner."""
    settings.MESSAGING = {"TICK_SECONDS": 0.2, "BEHIND_GRACE": 0.1}


async def command(here, text):
    body = {
        "channel_id": "team",
        "channel_type": 2,
        "from_uid": "bob",
        "payload": "eyJ0eXBlIjo5OX0=",
    }
    answer = await here.post("/message/send", **body, client_msg_no=text, header={"sync_once": 1})
    return answer["data"]["message_seq"]


async def waiting(here, uid="alice"):
    return [each["message_seq"] for each in await here.post("/message/sync", uid=uid)]


async def make_master(here, uid="alice"):
    body = {"uid": uid, "token": f"token-of-{uid}", "device_flag": MASTER_FLAG, "device_level": 1}
    await here.post("/user/token", **body)


def taken():
    return Membership.objects.get(uid="alice").command_seq


async def until_taken(here, seq):
    """Wait until this is how far alice's master device has taken the commands."""
    for _ in range(100):
        if await in_thread(taken) == seq:
            return
        await here.node.tick.attend_sessions()
    raise AssertionError(f"alice has taken {await in_thread(taken)}, not {seq}")


async def test_what_a_master_device_acknowledged_is_not_given_again(here):
    await in_thread(make_group, "team", "alice", "bob")
    await make_master(here)
    async with Peer(here.url, "alice", deviceFlag=MASTER_FLAG) as phone:
        seqs = [await command(here, text) for text in "ab"]
        await phone.until(lambda: phone.seqs("team") == seqs)
        await phone.ask("ping")
        await until_taken(here, 2)
        assert await waiting(here) == []
        assert await waiting(here, "bob") == seqs


async def test_what_other_devices_acknowledged_is_given(here):
    await in_thread(make_users, "alice")
    await in_thread(make_group, "team", "alice", "bob")
    async with Peer(here.url, "alice", deviceFlag=SLAVE_FLAG) as browser:
        await command(here, "a")
        await browser.until(lambda: browser.seqs("team") == [1])
        await browser.ask("ping")
        assert here.node.commands_taken == []
        assert await waiting(here) == [1]


async def test_one_from_before_the_device_came_is_not_taken_by_the_next(here):
    await in_thread(make_group, "team", "alice", "bob")
    await make_master(here)
    await command(here, "while alice was away")
    async with Peer(here.url, "alice", deviceFlag=MASTER_FLAG) as phone:
        await command(here, "b")
        await phone.until(lambda: phone.seqs("team") == [2])
        await phone.ask("ping")
        await eventually(lambda: not here.node.commands_taken, "the tick writes what is taken")
        assert await waiting(here) == [1, 2]
        await here.post("/message/syncack", uid="alice", last_message_seq=2)
        await command(here, "c")
        await phone.until(lambda: phone.seqs("team") == [2, 3])
        await phone.ask("ping")
        await until_taken(here, 3)


async def test_a_node_that_stops_writes_what_was_taken(transactional_db, settings):
    settings.MESSAGING = {"STEPS": ["beat"]}
    async with running_server() as here:
        await in_thread(make_group, "team", "alice", "bob")
        await make_master(here)
        async with Peer(here.url, "alice", deviceFlag=MASTER_FLAG) as phone:
            await command(here, "a")
            await phone.until(lambda: phone.seqs("team") == [1])
            await phone.ask("ping")
            assert await waiting(here) == [1]
    assert await in_thread(taken) == 1
