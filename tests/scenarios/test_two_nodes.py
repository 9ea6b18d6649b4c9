"""Two server processes on one PostgreSQL and one Valkey, and what remains when one is killed."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from contextlib import AsyncExitStack

import pytest

from subscriptions.bindings import ChannelKey
from tests.support.sdk import GROUP, PERSON, User
from tests.support.server import ServerProcess, networked_settings
from tests.support.services import Valkey
from tests.support.waiting import eventually

LEASE = 6
BOUND = LEASE + 5
COUNT = 50
WORDS = [f"message {number}" for number in range(1, COUNT + 1)]
OPEN_SESSIONS = (
    "SELECT s.uid FROM wukongim_messaging_session s JOIN wukongim_messaging_node n"
    " ON n.id = s.node_id WHERE s.closed_at IS NULL AND n.pid = ? ORDER BY s.uid"
)


@pytest.fixture
def valkey():
    with Valkey() as each:
        yield each


@pytest.fixture
def pair(valkey):
    settings = networked_settings(
        WUKONGIM_REDIS_URL=valkey.url,
        WUKONGIM_MESSAGING=json.dumps({"LEASE_SECONDS": LEASE}),
    )
    with ServerProcess(**settings) as first, ServerProcess(**settings) as second:
        for uid in ("ann", "bea", "cat", "dan"):
            first.make_user(uid)
        first.make_group("all", "ann", "bea", "cat", "dan")
        first.make_group("ours", "ann", "bea")
        yield first, second


def subscribers(valkey, first, channel):
    """How many connections the Valkey publishes a group channel's events to."""
    prefix = first.environment["WUKONGIM_REDIS_PREFIX"]
    name = f"{prefix}__group__{ChannelKey(2, channel).group}"
    with valkey.client as client:
        [(_, count)] = client.pubsub_numsub(name)
    return count


def online(server):
    """Who is connected, by the business server's question."""
    answer = server.client.post("/user/onlinestatus", json=["ann", "bea", "cat", "dan"])
    return [entry["uid"] for entry in answer.json()]


def stored(server, channel, uid):
    """The seqs and texts that a client of `uid` pulls."""
    body = {"login_uid": uid, "channel_id": channel, "channel_type": 2, "limit": 1000}
    messages = server.post("/channel/messagesync", **body).json()["messages"]
    return [message["message_seq"] for message in messages]


async def test_two_processes_chat_and_one_that_is_killed_leaves_nothing(pair, valkey):
    first, second = pair
    async with AsyncExitStack() as stack:
        ann, bea = [await stack.enter_async_context(User(first, uid)) for uid in ("ann", "bea")]
        cat, dan = [await stack.enter_async_context(User(second, uid)) for uid in ("cat", "dan")]
        for word in WORDS:
            await ann.say("all", GROUP, f"ann {word}")
            await cat.say("all", GROUP, f"cat {word}")
            await bea.say("dan", PERSON, f"bea {word}")
        for user, others in ((ann, "cat"), (bea, "ann cat"), (cat, "ann"), (dan, "ann cat")):
            for other in others.split():
                await user.until_heard("all", GROUP, f"{other} {WORDS[-1]}")
            seqs = [message["messageSeq"] for message in user.heard("all", GROUP)]
            assert seqs == sorted(set(seqs))
            assert len(seqs) == COUNT * len(others.split())
        await dan.until_heard("bea", PERSON, f"bea {WORDS[-1]}")
        assert dan.texts("bea", PERSON) == [f"bea {word}" for word in WORDS]
        assert online(second) == ["ann", "bea", "cat", "dan"]
        assert subscribers(valkey, first, "all") == 2
        assert subscribers(valkey, first, "ours") == 1

        pid = first.pid
        first.stop(signal.SIGKILL)
        killed = time.monotonic()
        assert len(second.query(OPEN_SESSIONS, pid)) == 2
        await cat.say("all", GROUP, "the survivor is unharmed")
        await dan.until_heard("all", GROUP, "the survivor is unharmed")

        await eventually(lambda: online(second) == ["cat", "dan"], "presence is gone", BOUND)
        await eventually(lambda: not second.query(OPEN_SESSIONS, pid), "rows are closed", BOUND)
        await eventually(lambda: subscribers(valkey, first, "ours") == 0, "it left Valkey", BOUND)
        assert subscribers(valkey, first, "all") == 1
        assert time.monotonic() - killed < BOUND

        first.start()
        await ann.until(lambda: ann.connects() == 2)
        await bea.until(lambda: bea.connects() == 2)
        await cat.say("all", GROUP, "welcome back")
        for user in (ann, bea, dan):
            await user.until_heard("all", GROUP, "welcome back")
            assert user.texts("all", GROUP).count("welcome back") == 1
        pulled = await asyncio.to_thread(stored, second, "all", "ann")
        assert pulled == list(range(1, 2 * COUNT + 3))
        assert online(first) == ["ann", "bea", "cat", "dan"]
