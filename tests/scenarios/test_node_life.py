"""How a node ends: in order, against odds, by a power cut, and by a sweep that was mistaken."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from contextlib import AsyncExitStack, closing

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from messaging import metrics, node, registry
from messaging.messages import Draft
from messaging.models import Message
from subscriptions.bindings import ChannelKey
from subscriptions.models import Finding
from tests.support.cluster import running_nodes, spread
from tests.support.factories import in_thread, make_group
from tests.support.peers import Peer
from tests.support.server import NETWORKED, ServerProcess, running_server
from tests.support.services import Postgres, Valkey
from tests.support.waiting import eventually

RESTARTING = {"serve": 1012, "daphne": 4012}
"""daphne sends no code of the protocol's own but 1000."""

other_services = pytest.mark.skipif(not NETWORKED, reason="services of their own, in both runs")
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


async def test_what_was_stored_before_a_stop_was_acknowledged(server):
    """A send that waits is appended and answered before its socket closes; later ones are not
    taken, so that their sender may repeat them elsewhere."""
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
    assert acknowledged == stored - {1, 2}


async def test_what_waits_without_a_session_is_appended_before_the_node_ends(here, settings):
    """Of the HTTP API's calls, for one: nobody waits for them while the sessions leave."""
    settings.MESSAGING = {"LOG_BATCH": 5}
    await in_thread(make_group, "team", "alice")
    key = ChannelKey(2, "team")
    waiting = [
        here.node.log.submit(Draft(key=key, sender="alice", payload=b"hello")) for _ in range(200)
    ]
    assert await node.stop_node()
    assert all(future.done() for future in waiting)
    assert [future.result().message.seq for future in waiting] == list(range(1, 201))
    assert await in_thread(Message.objects.count) == 200


async def test_clients_are_asked_to_leave_one_after_the_other(server):
    closed = {}
    async with AsyncExitStack() as stack:
        for n in range(60):
            peer = Peer(server.url, "alice", deviceId=f"d{n}")
            await stack.enter_async_context(peer)
            peer.reader.add_done_callback(
                lambda _, peer=peer: closed.setdefault(peer, time.monotonic())
            )
        assert await asyncio.to_thread(server.stop) == 0
        await eventually(lambda: len(closed) == 60, "all are closed")
        assert {peer.socket.close_code for peer in closed} == {1012}
    counts = spread(list(closed.values()), 0.1)  # 60 × 10 ms
    assert len(counts) >= 5, counts
    assert max(counts) <= 30, counts
    assert set(sessions(server, "alice")) == {(1, "restarting")}
    [(writes,)] = server.query("SELECT count(DISTINCT closed_at) FROM wukongim_messaging_session")
    assert writes <= 5


async def test_node_that_drains_is_not_ready_and_sends_newcomers_elsewhere(here, settings):
    settings.MESSAGING = {"TOKEN_REQUIRED": False}
    async with AsyncExitStack() as stack:
        for n in range(100):
            await stack.enter_async_context(Peer(here.url, f"u{n}"))
        late = Peer(here.url, "late")
        draining = asyncio.create_task(here.node.drain())
        await eventually(lambda: here.node.draining, "it drains")
        async with httpx.AsyncClient(base_url=here.http, trust_env=False) as client:
            answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["reason"] == "the node is draining"
        with pytest.raises((ConnectionResetError, ConnectionClosed)):
            await late.open()
        await asyncio.wait_for(late.reader, 5)
        assert late.socket.close_code == 1012
        await draining
        assert not here.node.members
        assert await in_thread(Finding.objects.count) == 0


async def test_reader_that_stalled_is_cut_and_holds_up_no_stop(server):
    async with Peer(server.url, "alice") as alice, Peer(server.url, "bob") as bob:
        await chat(alice, bob, "hello")
        bob.socket.transport.pause_reading()
        for _ in range(200):
            await alice.send("team", "x" * 40_000)
        began = time.monotonic()
        assert await asyncio.to_thread(server.stop) == 0
        assert time.monotonic() - began < 15
        bob.socket.transport.resume_reading()
    assert '"socket.cut"' in server.log_text()
    assert nodes(server) == {1: 1}
    assert sessions(server, "bob") == [(1, "restarting")]


@other_services
@pytest.mark.parametrize("trouble", ["frozen", "stopped"])
async def test_node_ends_though_its_database_does_not_answer(trouble):
    with Postgres() as postgres:
        url = f"{postgres.url}/{postgres.create_database()}"
        with closing(ServerProcess(WUKONGIM_DATABASE_URL=url, **QUICK)) as server:
            server.manage("migrate", "--verbosity", "0")
            server.start()
            server.make_user("alice")
            async with Peer(server.url, "alice") as alice:
                code = await asyncio.to_thread(stop_without, postgres, trouble, server)
                await asyncio.wait_for(alice.reader, 5)
                assert alice.socket.close_code == 1012
            assert code == 1
            assert '"node.left_behind"' in server.log_text()


@other_services
async def test_node_ends_though_redis_does_not_answer():
    with Valkey() as valkey, ServerProcess(WUKONGIM_REDIS_URL=valkey.url, **QUICK) as server:
        server.make_user("alice")
        async with Peer(server.url, "alice") as alice:
            assert await asyncio.to_thread(stop_without, valkey, "frozen", server) == 0
            await asyncio.wait_for(alice.reader, 5)
            assert alice.socket.close_code == 1012
        assert set(nodes(server).values()) == {1}


def stop_without(service, trouble, server):
    """Stop a server whose service does not answer, or is not there; within a supervisor's time."""
    if trouble == "stopped":
        service.stop()
        return server.stop()
    with service.frozen():
        return server.stop()


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
        await eventually(lambda: nodes(server) == {1: 0}, "the node is back")
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


# --- two nodes ----------------------------------------------------------------------------------


async def test_node_frozen_beyond_its_lease_tells_nothing_to_whom_it_should_not():
    """A member is removed, a device displaced while their node sleeps: doorbells of what came
    after wait in its socket buffers, and must not be heard when it wakes."""
    messaging = {**json.loads(QUICK["WUKONGIM_MESSAGING"]), "TOKEN_REQUIRED": False}
    with running_nodes(WUKONGIM_MESSAGING=json.dumps(messaging)) as (sleeper, other):
        sleeper.make_group("team", "alice", "bob", "carol")
        again = Peer(other.url, "carol")
        async with (
            Peer(other.url, "alice") as alice,
            Peer(sleeper.url, "bob") as bob,
            Peer(sleeper.url, "carol") as carol,
        ):
            await chat(alice, bob, "hello")
            await carol.until_heard("team", "hello, too")
            os.kill(sleeper.pid, signal.SIGSTOP)
            try:
                remove = {"channel_id": "team", "channel_type": 2, "subscribers": ["bob"]}
                other.post("/channel/subscriber_remove", **remove)
                for n in range(5):
                    await alice.send("team", f"secret {n}")
                await eventually(lambda: 1 in nodes(other).values(), "it is swept", 6 * LEASE)
                await again.open()
                await alice.send("team", "after the sweep")
            finally:
                os.kill(sleeper.pid, signal.SIGCONT)
            await asyncio.wait_for(carol.reader, 10)
            assert carol.socket.close_code == 4003, "displaced while its node slept"
            await eventually(lambda: set(nodes(other).values()) == {0}, "it is back")
            await alice.send("team", "all awake")
            await again.until_heard("team", "all awake")
            join = {"channel_id": "team", "channel_type": 2, "subscribers": ["bob"]}
            other.post("/channel/subscriber_add", **join)
            await alice.send("team", "welcome back")
            await bob.until_heard("team", "welcome back")
            assert bob.texts("team") == ["hello", "welcome back"]
            assert sessions(other, "bob")[-1][1] is None
            assert '"node.registered_again"' in sleeper.log_text()
            await again.close()


async def hang(*args):
    await asyncio.Event().wait()


@pytest.mark.parametrize("elsewhere", [True, False])
async def test_deaf_node_sends_its_sessions_where_somebody_hears(
    transactional_db, settings, monkeypatch, elsewhere
):
    """With nobody else who hears they stay, and are served by the sweep."""
    settings.MESSAGING = {"TICK_SECONDS": 0.2, "BEHIND_GRACE": 0.05, "LAYER_SECONDS": 0.1,
                          "PROBE_MISSES": 1}  # fmt: skip
    async with running_server() as here:
        await in_thread(make_group, "team", "alice", "bob")
        if elsewhere:
            other = await in_thread(registry.register_node)
            await in_thread(registry.beat, other, registry.Beat(0, 0, 0, 0, 1.0, 0))
        async with Peer(here.url, "alice") as alice, Peer(here.url, "bob") as bob:
            await chat(alice, bob, "hello")
            with monkeypatch.context() as broken:
                for name in ("group_send", "group_send_many"):
                    if hasattr(here.node.layer._layer, name):
                        broken.setattr(here.node.layer._layer, name, hang)
                await eventually(lambda: here.node.probe.missed >= 3, "it is deaf")
                assert not here.node.ready
                if elsewhere:
                    for peer in (alice, bob):
                        await asyncio.wait_for(peer.reader, 10)
                        assert peer.socket.close_code == 1013
                    late = Peer(here.url, "alice")
                    with pytest.raises((ConnectionResetError, ConnectionClosed)):
                        await late.open()
                    await asyncio.wait_for(late.reader, 5)
                    assert late.socket.close_code == 1013
                else:
                    await chat(alice, bob, "deaf")
                    assert not here.node.deserted
            await eventually(lambda: here.node.ready and not here.node.deserted, "it hears again")
        async with Peer(here.url, "alice") as alice, Peer(here.url, "bob") as bob:
            await chat(alice, bob, "all is well")


async def test_loop_that_fails_begins_again(here, monkeypatch):
    failed = []

    def fail(node):
        failed.append(node)
        raise ValueError("nobody has thought of this")

    with monkeypatch.context() as failing:
        failing.setattr(metrics, "show_tick", fail)
        await eventually(lambda: failed, "the tick to fail")
    sent = here.node.probe.sent
    await eventually(lambda: here.node.probe.sent > sent, "the tick to go on")
