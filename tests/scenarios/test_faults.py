"""Two nodes with traffic while something breaks: nothing lost, leaked, heard twice or out of order.

Judged by the ledger after the fault, which has to be mended within five seconds of its end.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from messaging.log import SLOW_SECONDS
from tests.support.peers import Peer
from tests.support.server import ServerProcess, networked_settings
from tests.support.services import Valkey
from tests.support.traffic import Ledger, traffic, until_clean
from tests.support.waiting import eventually
from wukongim import environment

LEASE = 6
UNCHANGED = 0.5
"""Seconds that an acknowledgement takes at most, on a busy machine too. One that waited for Redis
would take two seconds, the time that a call of the layer has."""
HEALED_WITHIN = 5.0
RATE = 50
IDLE_SECONDS = environment.POSTGRES_SESSION["idle_in_transaction_session_timeout"] / 1000
HELD_AT_MOST = IDLE_SECONDS + 2 * SLOW_SECONDS + UNCHANGED
"""What a send takes at most whose room a frozen node held: until PostgreSQL has ended that, until
the turn of its lane that is under way is over, then its own, and what any send takes."""
FREEZES = 3
OUTAGE = 10.0
"""Seconds that a service is away."""
UIDS = [f"u{number}" for number in range(12)]
SENDERS = 4
KILL_CONNECTIONS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


class Scene:
    """The two nodes, what they stand on, and the people: the first half of them on each node."""

    def __init__(self, valkey, first, second):
        self.valkey, self.first, self.second = valkey, first, second
        self.peers = []

    @property
    def senders(self):
        """Half of them on each node."""
        half = len(self.peers) // 2
        return self.peers[: SENDERS // 2] + self.peers[half : half + SENDERS // 2]

    @asynccontextmanager
    async def people(self):
        """Everybody connected, each to one node."""
        async with AsyncExitStack() as stack:
            for number, uid in enumerate(UIDS):
                server = self.first if number < len(UIDS) // 2 else self.second
                self.peers.append(await stack.enter_async_context(Peer(server.url, uid)))
            yield self.peers
        self.peers = []


@pytest.fixture(scope="module")
def scene():
    with Valkey() as valkey:
        settings = networked_settings(
            WUKONGIM_REDIS_URL=valkey.url,
            WUKONGIM_MESSAGING=json.dumps({"LEASE_SECONDS": LEASE}),
        )
        with ServerProcess(**settings) as first, ServerProcess(**settings) as second:
            for uid in UIDS:
                first.make_user(uid)
            yield Scene(valkey, first, second)


@pytest.fixture
def rooms(scene):
    """Empty rooms with everybody in them: each test has its own, so that positions begin at 0."""
    names = [f"room{number}-{os.urandom(4).hex()}" for number in range(5)]
    for name in names:
        scene.first.make_group(name, *UIDS)
    return names


@asynccontextmanager
async def subscribers_killed(scene):
    """Every connection that hears is cut, again and again."""
    with scene.valkey.client as client:
        for _ in range(20):
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            await asyncio.sleep(0.25)
    yield


@asynccontextmanager
async def valkey_stopped(scene):
    scene.valkey.stop()
    await asyncio.sleep(OUTAGE)
    scene.valkey.start()
    yield


@asynccontextmanager
async def valkey_frozen(scene):
    with scene.valkey.frozen():
        await asyncio.sleep(OUTAGE)
    yield


@asynccontextmanager
async def valkey_restarted_empty(scene):
    scene.valkey.stop(signal.SIGKILL)
    scene.valkey.start()
    yield


@asynccontextmanager
async def database_connections_killed(scene):
    for _ in range(10):
        scene.first.query(KILL_CONNECTIONS)
        await asyncio.sleep(0.5)
    yield


FAULTS = [
    subscribers_killed, valkey_stopped, valkey_frozen, valkey_restarted_empty,
    database_connections_killed,
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_everything_is_heard_once_and_in_order_whatever_broke(scene, rooms, fault):
    async with scene.people() as peers:
        async with traffic(scene.senders, rooms, RATE) as sent:
            await eventually(lambda: len(sent.acknowledged) > 2 * RATE, "traffic flows")
            began = time.monotonic()
            async with fault(scene):
                ended = max(time.monotonic(), began + 1)
                heads = Ledger(scene.first, rooms).heads
                took = await until_clean(scene.first, peers, rooms, HEALED_WITHIN, heads)
        await until_clean(scene.first, peers, rooms, HEALED_WITHIN)
    before, meanwhile = sent.percentile(0.99, end=began), sent.percentile(0.99, began, ended)
    print(  # noqa: T201 - for the report
        f"{fault.__name__}: {len(sent.acknowledged)} acknowledged, {len(sent.refused)} refused; "
        f"healed {took:.1f} s after the fault; SENDACK p99 {before * 1000:.0f} ms before, "
        f"{meanwhile * 1000:.0f} ms meanwhile"
    )
    assert sent.unanswered == 0
    assert not sent.refused
    if fault is not database_connections_killed:
        assert meanwhile < UNCHANGED


async def test_node_frozen_beyond_its_lease_tells_nobody_what_is_not_theirs(scene, rooms):
    """Doorbells wait in its socket, and it knows of no removal: the fence has to hold. What is
    sent to it is answered when it wakes."""
    async with scene.people() as peers:
        removed = next(peer for peer in peers if peer.uid == UIDS[-1])
        async with both_send(scene, rooms) as (sent, late):
            await eventually(lambda: len(sent.acknowledged) > RATE, "traffic flows")
            await eventually(lambda: len(late.acknowledged) > RATE, "there, too")
            os.kill(scene.second.pid, signal.SIGSTOP)
            frozen = time.monotonic()
            try:
                await asyncio.sleep(1)
                for room in rooms:
                    body = {"channel_id": room, "channel_type": 2, "subscribers": [removed.uid]}
                    await asyncio.to_thread(scene.first.post, "/channel/subscriber_remove", **body)
                await eventually(lambda: swept(scene), "it is taken for dead", 2 * LEASE + 5)
                await asyncio.sleep(max(0.0, frozen + LEASE + 2 - time.monotonic()))
            finally:
                os.kill(scene.second.pid, signal.SIGCONT)
            heads = Ledger(scene.first, rooms).heads
            await until_clean(scene.first, peers, rooms, HEALED_WITHIN, heads)
        await until_clean(scene.first, peers, rooms, HEALED_WITHIN)
        await eventually(lambda: not swept(scene), "it registered itself again")
    assert not sent.refused
    assert sent.percentile(1) < HELD_AT_MOST
    assert not late.refused
    assert sent.unanswered == late.unanswered == 0
    assert 0 < len(removed.heard[rooms[0]]) < len(peers[-2].heard[rooms[0]])


async def test_node_frozen_in_a_transaction_holds_up_no_room_of_others_for_long(scene, rooms):
    """Again and again while both write to the same rooms, and each time until it holds some."""
    async with scene.people() as peers:
        async with both_send(scene, rooms, 4 * RATE) as (sent, late):
            await eventually(lambda: len(sent.acknowledged) > RATE, "traffic flows")
            for _ in range(FREEZES):
                try:
                    await until_frozen_in_a_transaction(scene)
                    await asyncio.sleep(IDLE_SECONDS + 1)
                    assert not held(scene)
                finally:
                    os.kill(scene.second.pid, signal.SIGCONT)
                await asyncio.sleep(1)
            heads = Ledger(scene.first, rooms).heads
            await until_clean(scene.first, peers, rooms, HEALED_WITHIN, heads)
        await until_clean(scene.first, peers, rooms, HEALED_WITHIN)
        await eventually(lambda: not swept(scene), "it registered itself again")
    print(  # noqa: T201 - for the report
        f"{FREEZES} times frozen in a transaction: SENDACK of the other node p50 "
        f"{sent.percentile(0.5) * 1000:.0f} ms, at most {sent.percentile(1):.1f} s"
    )
    assert sent.percentile(1) < HELD_AT_MOST
    assert not sent.refused
    assert not late.refused
    assert sent.unanswered == late.unanswered == 0


@asynccontextmanager
async def both_send(scene, rooms, rate_of_second=RATE):
    """Traffic of the people on each node by itself."""
    half = SENDERS // 2
    async with (
        traffic(scene.senders[:half], rooms, RATE) as first,
        traffic(scene.senders[half:], rooms, rate_of_second) as second,
    ):
        yield first, second


async def until_frozen_in_a_transaction(scene):
    """Freeze the second node; if it holds nothing then, let it go on, and again."""
    for _ in range(200):
        os.kill(scene.second.pid, signal.SIGSTOP)
        await asyncio.sleep(0.2)
        if held(scene):
            return
        os.kill(scene.second.pid, signal.SIGCONT)
        await asyncio.sleep(random.uniform(0.02, 0.05))
    raise AssertionError("it was never in a transaction")


def held(scene):
    """How many transactions wait for a process that does not go on."""
    [(count,)] = scene.first.query(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND state = 'idle in transaction' AND clock_timestamp() - state_change > '0.1 s'"
    )
    return count


def swept(scene):
    """Whether the second node counts as ended, and so do its sessions."""
    rows = scene.first.query(
        "SELECT n.stopped_at IS NOT NULL, count(s.id) FROM wukongim_messaging_node n"
        " LEFT JOIN wukongim_messaging_session s ON s.node_id = n.id AND s.closed_at IS NULL"
        " WHERE n.pid = ? GROUP BY 1",
        scene.second.pid,
    )
    return rows == [(True, 0)]
