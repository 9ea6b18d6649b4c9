"""The layer is only a doorbell: while it fails or hangs, everything still arrives by the tick."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from uuid import uuid4

import pytest

from messaging.catch_up import CHANNELS_A_PART
from messaging.check import check_layer, repair
from subscriptions import services
from subscriptions.bindings import ChannelKey
from subscriptions.models import Finding
from tests.support.factories import in_thread, make_group, make_users
from tests.support.layers import lose_group, subscribed
from tests.support.peers import Peer
from tests.support.server import running_server
from tests.support.services import Valkey
from tests.support.waiting import eventually
from wukongim import environment

BOUND = 10.0
"""Seconds: a tick of 0.5 s, of which each step that asks the layer may take LAYER_SECONDS."""

HEALED = 5.0
"""Seconds from the end of a fault until everything is heard: the product's promise."""

ONE_BY_ONE = ("group_add", "group_discard", "group_send")
MANY = ("group_add_many", "group_discard_many", "group_send_many")


@pytest.fixture(autouse=True)
def quick(settings):
    settings.MESSAGING = {"TICK_SECONDS": 0.5, "BEHIND_GRACE": 0.1, "LAYER_SECONDS": 0.3}


async def hang(*args):
    await asyncio.Event().wait()


async def fail(*args):
    raise ConnectionError("the layer's server is gone")


@pytest.mark.parametrize("trouble", [hang, fail])
async def test_messages_joins_and_connects_arrive_without_the_layer(here, monkeypatch, trouble):
    await in_thread(make_group, "team", "alice", "bob")
    await in_thread(make_users, "carol")
    async with Peer(here.url, "alice") as alice, Peer(here.url, "bob") as bob:
        await alice.send("team", "before")
        await bob.until_heard("team", "before")
        with monkeypatch.context() as broken:
            layer = here.node.layer
            for name in MANY if layer._takes_many else ONE_BY_ONE:
                broken.setattr(layer._layer, name, trouble)
            answer = await alice.send("team", "during")
            assert answer["result"]["messageSeq"] == 2, "an acknowledgement waited for the layer"
            await bob.until_heard("team", "during", BOUND)
            async with Peer(here.url, "carol") as carol:
                await in_thread(services.join, ChannelKey(2, "team"), ["carol"], actor="test")
                await alice.send("team", "for carol, too")
                await carol.until_heard("team", "for carol, too", BOUND)
                assert carol.texts("team") == ["for carol, too"]
            await bob.until_heard("team", "for carol, too", BOUND)
        await alice.send("team", "after")
        await bob.until_heard("team", "after", BOUND)
        assert bob.texts("team") == ["before", "during", "for carol, too", "after"]


async def test_sweep_goes_on_while_the_layers_connection_is_made_anew(here, monkeypatch):
    await in_thread(make_group, "team", "alice", "bob")
    async with Peer(here.url, "alice") as alice, Peer(here.url, "bob") as bob:
        remaking = asyncio.Event()

        async def remake(groups):
            remaking.set()
            await hang()

        monkeypatch.setattr(here.node.layer, "remake", remake)
        monkeypatch.setattr(here.node.layer, "publish", lambda *args: None)
        await asyncio.wait_for(remaking.wait(), BOUND)
        await alice.send("team", "meanwhile")
        await bob.until_heard("team", "meanwhile", HEALED / 2)


async def test_check_waits_once_for_a_layer_that_hangs_however_many_groups_it_lost(
    here, monkeypatch
):
    rooms = [f"room{number}" for number in range(3 * CHANNELS_A_PART)]
    for room in rooms:
        await in_thread(make_group, room, "alice")
    here.node.conf = replace(here.node.conf, steps=())
    async with Peer(here.url, "alice"):
        await eventually(lambda: not here.node.pending_groups, "the groups to be joined")
        for room in rooms:
            lose_group(here.node.layer, ChannelKey(2, room).group)
        await eventually(lambda: len(check_layer(here.node)) == len(rooms), "the loss to be seen")
        asked = []

        async def try_rejoin(groups):
            asked.append(sorted(groups))

        monkeypatch.setattr(here.node.layer, "try_rejoin", try_rejoin)
        answers = [each async for each in repair(here.node, check_layer(here.node))]
        assert asked == [sorted(ChannelKey(2, room).group for room in rooms)]
        assert [gone for _, gone in answers] == [False] * len(rooms)


# --- over a real Valkey -------------------------------------------------------------------------


@pytest.fixture
def redis():
    """A Valkey that a test may break."""
    with Valkey() as server:
        yield server


@asynccontextmanager
async def server_over(redis, settings):
    """A server in this loop whose layer is over that Valkey."""
    settings.CHANNEL_LAYERS = environment.channel_layers(redis.url, f"tests-{uuid4().hex}")
    async with running_server() as server:
        yield server


@pytest.fixture
async def networked(redis, settings, transactional_db):
    """Such a server."""
    async with server_over(redis, settings) as server:
        yield server


@asynccontextmanager
async def alice_and_bob(server):
    """Two members of a room who hear each other."""
    await in_thread(make_group, "team", "alice", "bob")
    async with Peer(server.url, "alice") as alice, Peer(server.url, "bob") as bob:
        await alice.send("team", "0")
        await bob.until_heard("team", "0")
        yield alice, bob


class Talk:
    """Somebody who sends until he is told to stop, and how long each answer took."""

    def __init__(self, peer, every=0.02):
        self.peer, self.every = peer, every
        self.sent, self.seconds = ["0"], []

    async def __aenter__(self):
        self.task = asyncio.ensure_future(self.talk())
        return self

    async def __aexit__(self, *error):
        self.going = False
        await self.task

    async def talk(self):
        self.going = True
        while self.going:
            began = time.monotonic()
            text = str(len(self.sent))
            answer = await self.peer.send("team", text)
            assert answer["result"]["reasonCode"] == 1
            self.seconds.append(time.monotonic() - began)
            self.sent.append(text)
            await asyncio.sleep(self.every)


async def assert_all_heard(bob, talk):
    """Everything is heard within the bound from now, once and in order."""
    await bob.until_heard("team", talk.sent[-1], HEALED)
    assert bob.texts("team") == talk.sent


async def assert_doorbells_ring(server, alice, bob):
    """What is sent now is heard by the layer, not by a tick."""
    await eventually(lambda: not server.node.pending_groups, "the groups to be joined")
    await eventually(lambda: subscribed(server.node.layer) is not None, "Redis to be connected")
    server.node.conf = replace(server.node.conf, steps=())
    await alice.send("team", "by the layer")
    await bob.until_heard("team", "by the layer")


async def test_lost_subscription_is_found_and_healed(networked):
    async with alice_and_bob(networked) as (alice, bob):
        layer, group = networked.node.layer, ChannelKey(2, "team").group
        lose_group(layer, group)
        await eventually(lambda: layer.is_subscribed(group) is False, "the loss to be seen")
        await alice.send("team", "unheard")
        await bob.until_heard("team", "unheard", HEALED)
        await eventually(lambda: layer.is_subscribed(group) is True, "the group to be joined")
        await eventually_healed("missing_group_binding", "layer")
        await assert_doorbells_ring(networked, alice, bob)
        assert bob.texts("team") == ["0", "unheard", "by the layer"]


async def eventually_healed(kind, reason):
    """There is one finding, it says this, and it is closed."""
    deadline = time.monotonic() + HEALED
    while not await in_thread(Finding.objects.filter(healed_at__isnull=False).exists):
        assert time.monotonic() < deadline, "no finding was healed"
    finding = await in_thread(Finding.objects.get)
    assert (finding.kind, finding.reason) == (kind, reason)
    assert finding.healed_by in ("check", "sweep")


async def test_killed_subscribers_lose_nothing_and_are_counted(networked, redis, caplog):
    async with alice_and_bob(networked) as (alice, bob), Talk(alice) as talk:
        with redis.client as client:
            for _ in range(20):
                client.client_kill_filter(_type="pubsub")
                await asyncio.sleep(0.05)
        killed = len(talk.sent)
        await bob.until(lambda: len(bob.heard["team"]) >= killed, HEALED)
        talk.going = False
        await talk.task
        await assert_all_heard(bob, talk)
        assert networked.node.layer.reconnects > 5
        noticed = [each for each in caplog.records if each.message == "layer.reconnected"]
        assert noticed
        assert noticed[-1].times == networked.node.layer.reconnects
        await assert_doorbells_ring(networked, alice, bob)


@pytest.mark.parametrize("lasts", [0.0, 3.0])
async def test_restarted_empty_while_messages_are_sent(networked, redis, lasts):
    async with alice_and_bob(networked) as (alice, bob), Talk(alice) as talk:
        redis.stop()
        await asyncio.sleep(lasts)
        redis.start()
        returned = len(talk.sent)
        await bob.until(lambda: len(bob.heard["team"]) >= returned, HEALED)
        talk.going = False
        await talk.task
        await assert_all_heard(bob, talk)
        assert max(talk.seconds) < 1.0, "an acknowledgement waited for Redis"
        await assert_doorbells_ring(networked, alice, bob)


async def test_missed_messages_are_fetched_by_the_reconnect_not_by_a_tick(
    redis, settings, transactional_db
):
    settings.MESSAGING = {"TICK_SECONDS": 600, "LEASE_SECONDS": 6000}
    async with server_over(redis, settings) as server, alice_and_bob(server) as (alice, bob):
        redis.stop()
        await alice.send("team", "unheard")
        redis.start()
        await bob.until_heard("team", "unheard", HEALED)


async def test_acknowledgements_do_not_notice_that_redis_is_frozen(networked, redis):
    async with alice_and_bob(networked) as (alice, bob), Talk(alice, every=0.0) as talk:
        await eventually(lambda: len(talk.sent) > 200, "a measure of how long it takes")
        before = percentile(talk.seconds)
        with redis.frozen():
            start = len(talk.seconds)
            await asyncio.sleep(3.0)  # longer than LAYER_SECONDS and several ticks
            frozen = percentile(talk.seconds[start:])
            heard = len(bob.heard["team"])
        assert frozen < before * 2 + 0.02, f"{before:.4f} s became {frozen:.4f} s"
        assert heard > start, "nothing arrived by the tick"
        thawed = len(talk.sent)
        await bob.until(lambda: len(bob.heard["team"]) >= thawed, HEALED)
        talk.going = False
        await talk.task
        await assert_all_heard(bob, talk)
        await assert_doorbells_ring(networked, alice, bob)


def percentile(seconds, share=0.95):
    """What most of them took at most. Not 99 of 100: a machine shared by many has hiccups."""
    return sorted(seconds)[int(len(seconds) * share)]


async def test_node_starts_without_redis_and_hears_by_the_tick(redis, settings, transactional_db):
    redis.stop()
    async with server_over(redis, settings) as server:
        assert server.node.ready
        await in_thread(make_group, "team", "alice", "bob")
        async with Peer(server.url, "alice") as alice, Peer(server.url, "bob") as bob:
            await alice.send("team", "by the tick")
            await bob.until_heard("team", "by the tick", HEALED)
            redis.start()
            await assert_doorbells_ring(server, alice, bob)
            assert bob.texts("team") == ["by the tick", "by the layer"]


async def test_node_that_never_hears_its_probe_is_not_ready_until_redis_is_back(networked, redis):
    redis.stop()
    await eventually(lambda: not networked.node.ready, "the silence to be noticed")
    assert "probe" in networked.node.not_ready_reason
    redis.start()
    await eventually(lambda: networked.node.ready, "the probe to come back", HEALED)
