"""How a node ends: in order, by a power cut, and by a sweep that was mistaken."""

from __future__ import annotations

import asyncio
import json
import signal

import pytest

from tests.support.peers import Peer
from tests.support.server import ServerProcess
from tests.support.waiting import eventually

RESTARTING = {"serve": 1012, "daphne": 4012}
"""daphne sends no code of the protocol's own but 1000."""

LEASE = 3.0
QUICK = {
    "WUKONGIM_MESSAGING": json.dumps(
        {"LEASE_SECONDS": LEASE, "TICK_SECONDS": 0.5, "BEHIND_GRACE": 0.2}
    )
}


@pytest.fixture(params=["serve"])
def server(request):
    with ServerProcess(request.param, **QUICK) as process:
        process.make_group("team", "alice", "bob")
        for uid in ("alice", "bob"):
            process.make_user(uid)
        yield process


def nodes(server):
    """{node: whether it has given its lease back} of all nodes that ever were."""
    return dict(
        server.query("SELECT id, stopped_at IS NOT NULL FROM wukongim_messaging_node ORDER BY id")
    )


def sessions(server, uid):
    """(node, why it was closed or None) of a uid's session rows, oldest first."""
    return server.query(
        "SELECT node_id, CASE WHEN closed_at IS NULL THEN NULL ELSE closed_because END"
        " FROM wukongim_messaging_session WHERE uid = ? ORDER BY opened_at",
        uid,
    )


def findings(server):
    """(kind, uid, how it was healed) of everything found so far."""
    return server.query(
        "SELECT kind, uid, CASE WHEN healed_at IS NULL THEN NULL ELSE healed_by END"
        " FROM wukongim_subscriptions_finding ORDER BY id"
    )


async def chat(alice, bob, text):
    """Both hear each other."""
    await alice.send("team", text)
    await bob.until_heard("team", text)
    await bob.send("team", f"{text}, too")
    await alice.until_heard("team", f"{text}, too")


@pytest.mark.parametrize("server", ["serve", "daphne"], indirect=True)
async def test_stopped_node_leaves_nothing_behind(server):
    async with Peer(server.url, "alice") as alice, Peer(server.url, "bob") as bob:
        await chat(alice, bob, "hello")
        assert await asyncio.to_thread(server.stop) == 0
        for peer in (alice, bob):
            await asyncio.wait_for(peer.reader, 5)
            assert peer.socket.close_code == RESTARTING[server.server]
            assert peer.notices == []
    assert nodes(server) == {1: 1}
    assert sessions(server, "alice") == [(1, "restarting")]
    assert findings(server) == []


async def test_what_was_acknowledged_before_a_stop_is_kept(server):
    """A batch that waits is appended before the node goes, and the sender hears of it."""
    async with Peer(server.url, "alice") as alice, Peer(server.url, "bob") as bob:
        await chat(alice, bob, "hello")
        futures = [alice.post("send", alice.message("team", f"m{n}")) for n in range(300)]
        await futures[0]
        assert await asyncio.to_thread(server.stop) == 0
        await asyncio.wait_for(alice.reader, 5)
        answers = await asyncio.gather(*futures, return_exceptions=True)
    acknowledged = {
        a["result"]["messageSeq"] for a in answers if isinstance(a, dict) and "result" in a
    }
    stored = {seq for (seq,) in server.query("SELECT seq FROM wukongim_messaging_message")}
    assert acknowledged
    assert acknowledged <= stored


async def test_sessions_of_a_killed_node_are_found_and_closed_by_the_next(server):
    async with Peer(server.url, "alice") as alice, Peer(server.url, "bob") as bob:
        await chat(alice, bob, "hello")
        assert await asyncio.to_thread(server.stop, signal.SIGKILL) == -signal.SIGKILL
        await asyncio.wait_for(alice.reader, 5)
    assert sessions(server, "alice") == [(1, None)]
    assert nodes(server) == {1: 0}
    await asyncio.to_thread(server.start)
    async with Peer(server.url, "alice") as alice, Peer(server.url, "bob") as bob:
        await chat(alice, bob, "hello again")
        await eventually(lambda: nodes(server)[1], "the dead node is swept", 4 * LEASE)
        await eventually(lambda: findings(server), "the dead node is found")
        assert findings(server) == [("dead_session", "", "beat")]
        for uid in ("alice", "bob"):
            assert sessions(server, uid) == [(1, "lease of its node is over"), (2, None)]
        await chat(alice, bob, "still here")
        assert nodes(server) == {1: 1, 2: 0}


async def test_node_that_was_swept_registers_itself_and_its_sessions_again(server):
    async with Peer(server.url, "alice") as alice, Peer(server.url, "bob") as bob:
        await chat(alice, bob, "hello")
        server.query(
            "UPDATE wukongim_messaging_session"
            " SET closed_at = CURRENT_TIMESTAMP, closed_because = 'swept'"
        )
        server.query("UPDATE wukongim_messaging_node SET stopped_at = CURRENT_TIMESTAMP")
        back = {(1, None)}
        for uid in ("alice", "bob"):
            await eventually(lambda uid=uid: set(sessions(server, uid)) == back, f"{uid} is back")
        assert nodes(server) == {1: 0}
        await chat(alice, bob, "nobody noticed")
        assert alice.texts("team") == ["hello, too", "nobody noticed, too"]
        assert bob.texts("team") == ["hello", "nobody noticed"]


async def test_session_row_that_was_closed_behind_its_back_is_opened_again(server):
    async with Peer(server.url, "alice") as alice, Peer(server.url, "bob") as bob:
        await chat(alice, bob, "hello")
        server.query(
            "UPDATE wukongim_messaging_session"
            " SET closed_at = CURRENT_TIMESTAMP, closed_because = 'by hand' WHERE uid = 'bob'"
        )
        await eventually(lambda: sessions(server, "bob") == [(1, None)], "the row is open again")
        await eventually(
            lambda: findings(server) == [("unregistered_session", "bob", "check")],
            "a finding says so",
        )
        await chat(alice, bob, "hello again")
