"""The layer over a real Valkey: what a node relies on, and each way in which Redis lets it down."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager, suppress
from uuid import uuid4

import pytest

from messaging import redis_layer
from messaging.layer import BATCH_BYTES, BATCH_EVENTS, NodeLayer
from messaging.redis_hearing import Hearing
from messaging.redis_layer import RedisLayer
from tests.support.layers import channel, lose_group, shard_of, subscribed
from tests.support.services import Valkey, valkey
from tests.support.waiting import PATIENCE, eventually

BOUND = 5.0
"""Seconds from the end of a fault until a node hears again: the product's promise."""


def channel_layer(server, prefix=None, **config):
    """A layer of its own, as another process has: connections, groups and all."""
    prefix = prefix or f"tests-{uuid4().hex}"
    return RedisLayer(hosts=[{"address": server.url}], prefix=prefix, **config)


@asynccontextmanager
async def node_layer(server, prefix=None, **config):
    """A node's end of such a layer."""
    layer = NodeLayer(channel_layer(server, prefix, **config))
    await layer.start()
    try:
        yield layer
    finally:
        await layer.stop([])


@pytest.fixture
async def layer():
    """A node on the Valkey that the tests share."""
    async with node_layer(valkey()) as each:
        yield each


@pytest.fixture
def own():
    """A Valkey that a test may break."""
    with Valkey() as server:
        yield server


@pytest.fixture
async def broken(own):
    """A node on that Valkey, in group `a`."""
    async with node_layer(own) as each:
        await each.join(["a"])
        yield each


async def heard(layer):
    """The next event of the inbox."""
    return await asyncio.wait_for(layer.receive(), PATIENCE)


async def hears_again(layer, group="a", seconds=BOUND):
    """The node hears what it publishes, by itself and within the bound."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        layer.publish(group, {"type": "x", "at": deadline})
        with suppress(TimeoutError):
            while True:
                event = await asyncio.wait_for(layer.receive(), 0.1)
                if event.get("at") == deadline:
                    return
    raise AssertionError(f"deaf for {seconds} s")


@asynccontextmanager
async def monitored(server):
    """The commands that Valkey gets meanwhile, as MONITOR shows them."""
    seen = []
    with server.client as client, client.monitor() as monitor:
        yield seen
        end = uuid4().hex
        with server.client as other:
            other.echo(end)
        for command in monitor.listen():
            if end in command["command"]:
                return
            seen.append(command["command"])


def subscribes(seen):
    return [command for command in seen if command.startswith("SUBSCRIBE ")]


# --- what a node relies on ----------------------------------------------------------------------


async def test_two_nodes_hear_each_other_and_no_other_installation():
    prefix = f"tests-{uuid4().hex}"
    async with (
        node_layer(valkey(), prefix) as first,
        node_layer(valkey(), prefix) as second,
        node_layer(valkey()) as stranger,
    ):
        for each in (first, second, stranger):
            await each.join(["a"])
        first.publish("a", {"type": "x", "n": 1})
        assert [(await heard(each))["n"] for each in (first, second)] == [1, 1]
        second.publish("a", {"type": "x", "n": 2})
        assert [(await heard(each))["n"] for each in (first, second)] == [2, 2]
        stranger.publish("a", {"type": "x", "n": 3})
        assert (await heard(stranger))["n"] == 3, "another installation was heard"


async def test_joining_a_thousand_groups_is_one_command_and_so_is_leaving(layer):
    await layer.join(["first"])
    groups = [f"g{number}" for number in range(1000)]
    async with monitored(valkey()) as seen:
        await layer.join(groups)
        assert subscribed(layer) == {"first", *groups}
        await layer.leave(groups)
        await layer.join(["last"])
    joined, _ = subscribes(seen)
    assert len(joined.split()) == 1 + 1000
    assert sum(command.startswith("UNSUBSCRIBE ") for command in seen) == 1
    assert subscribed(layer) == {"first", "last"}


async def test_joined_group_is_subscribed_when_the_join_returns(layer):
    for number in range(200):
        group = f"g{number}"
        await layer.join([group])
        with valkey().client as client:
            assert client.pubsub_numsub(channel(layer, group))[0][1] == 1


async def test_rejoin_says_it_again_and_is_never_out_of_the_group(layer):
    groups = [f"g{number}" for number in range(1000)]
    await layer.join(groups)
    async with monitored(valkey()) as seen:
        for number in range(20):
            layer.publish("g7", {"type": "x", "n": number})
            await layer.rejoin(groups)
    assert len(subscribes(seen)) == 20
    assert not any(command.startswith("UNSUBSCRIBE") for command in seen)
    assert [(await heard(layer))["n"] for _ in range(20)] == list(range(20))


@pytest.fixture
def writes(monkeypatch):
    """The batches that were written, as (events, bytes)."""
    seen = []
    publish = redis_layer.Shard.publish_many

    async def measured(shard, messages):
        seen.append((len(messages), sum(len(body) for _, body in messages)))
        await publish(shard, messages)

    monkeypatch.setattr(redis_layer.Shard, "publish_many", measured)
    return seen


async def test_events_arrive_in_order_many_in_one_write(layer, writes):
    await layer.join(["a", "b"])
    count = 3000
    for number in range(count):
        assert layer.publish("ab"[number % 2], {"type": "x", "n": number})
    assert [(await heard(layer))["n"] for _ in range(count)] == list(range(count))
    assert len(writes) == count / BATCH_EVENTS
    assert {events for events, _ in writes} == {BATCH_EVENTS}


async def test_large_events_go_in_batches_of_bounded_size(layer, writes):
    await layer.join(["a"])
    for number in range(60):
        layer.publish("a", {"type": "x", "n": number, "payload": bytes(64 << 10)})
    assert [(await heard(layer))["n"] for _ in range(60)] == list(range(60))
    assert max(size for _, size in writes) <= BATCH_BYTES + (65 << 10)


async def test_three_hundred_publishers_at_once_do_not_fail(layer):
    """redis-py 8 has 100 connections to give, and channels_redis asked for one each."""
    await layer.join(["a"])
    sends = [layer._layer.group_send("a", {"type": "x", "n": number}) for number in range(300)]
    await asyncio.gather(*sends)
    assert {(await heard(layer))["n"] for _ in range(300)} == set(range(300))


async def test_idle_node_hears_after_longer_than_the_socket_may_be_silent(layer, monkeypatch):
    """redis-py 8 gives up a read after 5 s by default: an idle node must not mind. Nothing but
    time shows that. Not even the question of the tick keeps the connection busy here."""
    monkeypatch.setattr(redis_layer, "ASK_SECONDS", 60.0)
    await layer.join(["a"])
    identity = await client_id(layer)
    await asyncio.sleep(6)
    layer.publish("a", {"type": "x"})
    assert (await heard(layer))["type"] == "x"
    assert await client_id(layer) == identity
    assert layer.reconnects == 0


async def client_id(layer):
    """The server's id of the connection that hears."""
    with valkey().client as client:
        name = shard_of(layer)._hearing.connection._writer.get_extra_info("sockname")
        (found,) = [c for c in client.client_list() if c["addr"] == f"{name[0]}:{name[1]}"]
    return found["id"]


async def test_cancelled_reader_loses_nothing(layer):
    """channels_redis gives an inbox up with all that is in it when its reader is cancelled."""
    await layer.join(["a"])
    reading = asyncio.ensure_future(layer.receive())
    inbox = layer._layer._get_layer().channels[layer.inbox]
    await eventually(lambda: bool(inbox._getters), "the reader to wait")
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    for number in range(3):
        layer.publish("a", {"type": "x", "n": number})
    await layer._queue.join()
    await layer.rejoin(["a"])  # Redis answers in order: by now the events are here, unread
    assert [(await heard(layer))["n"] for _ in range(3)] == [0, 1, 2]


async def test_full_inbox_misses_one_event_and_the_reader_goes_on(caplog):
    async with node_layer(valkey(), capacity=1) as layer:
        await layer.join(["a"])
        for number in range(5):
            layer.publish("a", {"type": "x", "n": number})
        dropped = [{"count": 1, "why": "inbox full"}] * 4
        await eventually(lambda: drops(caplog) == dropped, "four events to find no room")
        assert (await heard(layer))["n"] == 0
        layer.publish("a", {"type": "x", "n": 5})
        assert (await heard(layer))["n"] == 5


def drops(caplog):
    records = [record for record in caplog.records if record.message == "event.dropped"]
    return [{"count": record.count, "why": record.why} for record in records]


async def test_stopped_node_leaves_nothing_behind(own, caplog):
    layer = NodeLayer(channel_layer(own))
    await layer.start()
    await layer.join(["a", "b"])
    layer.publish("elsewhere", {"type": "x"})
    await layer.stop(["a", "b"])
    with own.client as client:
        await eventually(
            lambda: client.pubsub_channels() == [] and len(client.client_list()) == 1,
            "its connections to be closed",
        )
        assert int(client.info("commandstats")["cmdstat_publish"]["calls"]) == 1
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_stopping_leaves_other_inboxes_of_the_process_alone():
    shared = channel_layer(valkey())
    stays = await shared.new_channel("somebody.")
    await shared.group_add("a", stays)
    layer = NodeLayer(shared)
    await layer.start()
    await layer.join(["a", "b"])
    await layer.stop(["a", "b"])
    await shared.group_send("a", {"type": "x"})
    assert (await asyncio.wait_for(shared.receive(stays), PATIENCE))["type"] == "x"
    with valkey().client as client:
        name = shared._get_layer()._get_group_channel_name("b")
        assert client.pubsub_numsub(name)[0][1] == 0
    await shared.close(stays)


async def test_groups_are_spread_over_several_servers(own):
    hosts = [{"address": valkey().url}, {"address": own.url}]
    layer = NodeLayer(RedisLayer(hosts=hosts, prefix=f"tests-{uuid4().hex}"))
    await layer.start()
    groups = {f"g{number}" for number in range(50)}
    await layer.join(groups)
    assert subscribed(layer) == groups
    for group in groups:
        layer.publish(group, {"type": "x", "group": group})
    assert {(await heard(layer))["group"] for _ in groups} == groups
    with own.client as client:
        assert 0 < len(client.pubsub_channels()) < 50
    await layer.stop(groups)


async def test_server_that_does_not_tell_its_count_serves_all_the_same(own):
    with own.client as client:
        client.execute_command("ACL", "SETUSER", "default", "-client|info")
    async with node_layer(own) as layer:
        await layer.join(["a"])
        await hears_again(layer)
        assert layer.reconnects == 0


# --- Redis lets it down -------------------------------------------------------------------------


async def test_killed_connections_come_back_by_themselves(own, broken):
    await broken.join([f"g{number}" for number in range(300)])
    kills = 0
    with own.client as client:
        while kills < 20:
            kills += client.client_kill_filter(_type="pubsub")
            await asyncio.sleep(0.02)
    await hears_again(broken)
    assert subscribed(broken) == {"a"} | {f"g{number}" for number in range(300)}
    assert broken.reconnected.is_set()
    assert 1 <= broken.reconnects <= 20


@pytest.mark.parametrize("turns", range(6))
async def test_reconnects_just_as_the_present_connection_fails(broken, monkeypatch, turns):
    """However many turns of the loop lie between: a task that has failed is still being told of."""
    lost = asyncio.Event()

    async def read_until_lost(self):
        await lost.wait()
        raise ConnectionError("the connection was lost")

    with monkeypatch.context() as reading:
        reading.setattr(Hearing, "read", read_until_lost)
        broken._layer.reconnect()
        await eventually(lambda: shard_of(broken)._hearing, "the connection to be open")
    old = shard_of(broken)._receive_task
    lost.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    await broken.remake(["a"])
    await hears_again(broken)
    await eventually(old.done, "the end of who was cancelled", BOUND)


async def test_connection_that_is_replaced_as_it_is_answered_says_nothing(broken, monkeypatch):
    """It would say that all is subscribed, of a connection on which nothing is yet."""
    monkeypatch.setattr(redis_layer, "ASK_SECONDS", 0.05)
    shard, ask, asked = shard_of(broken), Hearing.ask, asyncio.Event()
    whole = []

    async def ask_and_replace(self):
        await ask(self)
        if self is first and not asked.is_set():
            broken._layer.reconnect()
            asked.set()

    def note_reconnect():
        whole.append(shard._hearing is not first and channel(broken, "a") in shard.confirmed)

    first = shard._hearing
    monkeypatch.setattr(Hearing, "ask", ask_and_replace)
    broken._layer.call_when_reconnected(note_reconnect)
    await asyncio.wait_for(asked.wait(), BOUND)
    assert not shard.ready
    await eventually(lambda: whole, "the other connection")
    assert whole == [True]
    assert subscribed(broken) == {"a"}


async def test_reconnects_though_a_library_forgets_that_it_was_cancelled(
    broken, monkeypatch, caplog
):
    """redis-py does when a write has just ended. What lives on then takes nothing from who comes
    after it, and ends."""
    monkeypatch.setattr(redis_layer, "ASK_SECONDS", 0.05)
    monkeypatch.setattr(redis_layer, "ANSWER_SECONDS", 0.5)
    ask, asking, forgotten = Hearing.ask, asyncio.Event(), []

    async def ask_and_forget(self):
        asking.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            forgotten.append(self)
        await ask(self)

    with monkeypatch.context() as forgetful:
        forgetful.setattr(Hearing, "ask", ask_and_forget)
        await asyncio.wait_for(asking.wait(), BOUND)
    old = shard_of(broken)._receive_task
    await broken.remake(["a"])
    await hears_again(broken)
    await eventually(old.done, "the end of who was cancelled", BOUND)
    assert len(forgotten) == 1
    assert "layer.failed" not in caplog.messages  # nor did what it met at its end count
    await broken.join(["b"])
    await hears_again(broken, "b")
    assert subscribed(broken) == {"a", "b"}


async def test_reconnecting_subscribes_to_everything_at_once(own, broken):
    await broken.join([f"g{number}" for number in range(999)])
    async with monitored(own) as seen:
        with own.client as client:
            client.client_kill_filter(_type="pubsub")
        await asyncio.wait_for(broken.reconnected.wait(), BOUND)
    (again,) = subscribes(seen)
    assert len(again.split()) == 1 + 1000 + 1  # the groups, and the inbox
    await hears_again(broken)


async def test_restarted_server_is_found_again_and_told_everything(own, broken):
    own.stop()
    await eventually(lambda: shard_of(broken)._failures > 1, "the loss to be noticed")
    assert subscribed(broken) is None
    began = time.monotonic()
    with pytest.raises(ConnectionError):
        await broken.join(["b"])
    assert time.monotonic() - began < 0.5, "joining waited for a server that is known to be gone"
    own.start()
    await asyncio.wait_for(broken.reconnected.wait(), BOUND)
    assert subscribed(broken) == {"a", "b"}
    await hears_again(broken, "b", 1.0)


async def test_node_starts_without_a_server_and_joins_when_it_comes(own, caplog):
    own.stop()
    async with node_layer(own) as layer:
        await layer.try_join(["a"])
        assert subscribed(layer) is None
        assert layer.publish("a", {"type": "x", "n": 1})
        await eventually(lambda: layer.dropped["connection"] == 1, "the event to be given up")
        own.start()
        await asyncio.wait_for(layer.reconnected.wait(), BOUND)
        assert subscribed(layer) == {"a"}
        await hears_again(layer)
    said = [each.why for each in caplog.records if each.message == "layer.failed"]
    assert any(f"connecting to 127.0.0.1:{own.port}" in why for why in said)


async def test_stop_without_a_server_is_quick_and_quiet(own, caplog):
    layer = NodeLayer(channel_layer(own))
    await layer.start()
    await layer.join(["a"])
    own.stop()
    layer.publish("a", {"type": "x"})
    began = time.monotonic()
    await layer.stop(["a"])
    assert time.monotonic() - began < 1.5
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert {record.message for record in caplog.records} <= {"layer.failed", "event.dropped"}


async def test_frozen_server_holds_nobody_up_and_is_served_again(own, settings):
    settings.MESSAGING = {"PUBLISH_QUEUE": 100, "LAYER_SECONDS": 0.3}
    async with node_layer(own) as layer:
        await layer.join(["a"])
        await hears_again(layer)
        with own.frozen():
            began, slowest = time.monotonic(), 0.0
            while time.monotonic() - began < 3.0:
                called = time.monotonic()
                layer.publish("a", {"type": "x"})
                slowest = max(slowest, time.monotonic() - called)
                assert layer._queue.qsize() <= 100
                await asyncio.sleep(0.001)
            assert layer.dropped["timeout"] > 0
            assert layer.dropped["queue_full"] > 0
            assert slowest < 0.2, "publishing waited for Redis"
            with pytest.raises(TimeoutError):
                await layer.join(["b"])
        await hears_again(layer)
        await layer.join(["b"])
        assert subscribed(layer) == {"a", "b"}
        dropped = layer.dropped.total()
        await hears_again(layer, "b")
        assert layer.dropped.total() == dropped


async def test_subscription_taken_away_behind_its_back_is_seen_and_mended(broken, own):
    await broken.join(["b"])
    lose_group(broken, "a")
    await eventually(lambda: subscribed(broken) == {"b"}, "the loss to be seen")
    assert broken.is_subscribed("a") is False
    assert broken.is_subscribed("b") is True
    with own.client as client:
        assert client.pubsub_numsub(channel(broken, "a"))[0][1] == 0
    await broken.rejoin(["a"])
    assert subscribed(broken) == {"a", "b"}
    await hears_again(broken)


async def test_server_that_counts_otherwise_is_not_believed(broken, own, monkeypatch):
    """Whatever made Redis forget without a word: its own count gives it away."""
    monkeypatch.setattr(redis_layer, "ASK_SECONDS", 0.05)
    hearing = shard_of(broken)._hearing
    pushed = hearing._pushed

    def all_but_one(kind, *rest):
        if kind != b"unsubscribe":
            pushed(kind, *rest)

    monkeypatch.setattr(hearing, "_pushed", all_but_one)
    lose_group(broken, "a")
    await asyncio.wait_for(broken.reconnected.wait(), BOUND)
    assert subscribed(broken) == {"a"}
    await hears_again(broken)


class Proxy:
    """Carries bytes to Valkey until it is told to swallow what comes back, or to hang up instead
    of handing on how many heard what was published."""

    def __init__(self, port: int) -> None:
        self.port, self.swallowed = port, set()
        self.hangs_up = False
        self.pipes = set()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.accept, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *error):
        self.server.close()
        for task in self.pipes:
            task.cancel()
        await asyncio.gather(*self.pipes, return_exceptions=True)

    async def accept(self, reader, writer):
        there, back = await asyncio.open_connection("127.0.0.1", self.port)
        self.pipes.add(asyncio.ensure_future(self.carry(reader, back, None)))
        self.pipes.add(asyncio.ensure_future(self.carry(there, writer, writer)))

    async def carry(self, source, target, answering):
        try:
            while data := await source.read(65536):
                if self.hangs_up and answering is not None and data.startswith(b":"):
                    self.hangs_up = False
                    return
                if answering not in self.swallowed:
                    target.write(data)
        finally:
            target.close()
            self.swallowed.discard(answering)

    def swallow(self):
        """From now on no byte comes back on the connections that there are."""
        self.swallowed = {task.get_coro().cr_frame.f_locals["answering"] for task in self.pipes}
        self.swallowed.discard(None)


async def test_write_that_broke_half_way_is_not_repeated(own):
    """Redis had taken it all. Said again, what is not stored would be heard twice."""
    async with Proxy(own.port) as proxy, node_layer(proxy) as layer:
        await layer.join(["a"])
        layer.publish("a", {"type": "x", "n": 0})
        assert (await heard(layer))["n"] == 0
        proxy.hangs_up = True
        for number in (1, 2, 3):
            layer.publish("a", {"type": "x", "n": number})
        await layer._queue.join()
        assert not proxy.hangs_up
        assert layer.dropped == {"connection": 3}
        layer.publish("a", {"type": "x", "n": 4})
        assert [(await heard(layer))["n"] for _ in range(4)] == [1, 2, 3, 4]


async def test_connection_that_was_closed_meanwhile_loses_nothing(own, broken):
    broken.publish("a", {"type": "x", "n": 0})
    assert (await heard(broken))["n"] == 0
    with own.client as client:
        assert client.client_kill_filter(_type="normal", skipme=True) == 1
    await broken.rejoin(["a"])  # lets the end of the other connection come in
    broken.publish("a", {"type": "x", "n": 1})
    assert (await heard(broken))["n"] == 1
    assert broken.dropped == {}


async def test_connection_whose_other_end_fell_silent_is_given_up(own, monkeypatch):
    """No error, no end of stream, no answer: what a lost route or a failed over proxy leaves."""
    monkeypatch.setattr(redis_layer, "ASK_SECONDS", 0.1)
    monkeypatch.setattr(redis_layer, "ANSWER_SECONDS", 0.3)
    async with Proxy(own.port) as proxy, node_layer(proxy) as layer:
        await layer.join(["a"])
        await hears_again(layer)
        proxy.swallow()
        await asyncio.wait_for(layer.reconnected.wait(), BOUND)
        await hears_again(layer)


async def test_remake_takes_a_new_connection_and_loses_no_group(own, broken):
    with own.client as client:
        before = {each["id"] for each in client.client_list(_type="pubsub")}
        reading = asyncio.ensure_future(broken.receive())
        await asyncio.sleep(0)
        await broken.remake(["a", "b"])
        after = {each["id"] for each in client.client_list(_type="pubsub")}
    assert len(before) == len(after) == 1
    assert before != after
    assert subscribed(broken) == {"a", "b"}
    broken.publish("a", {"type": "x"})
    assert (await asyncio.wait_for(reading, PATIENCE))["type"] == "x"


async def test_publishing_connection_that_was_killed_loses_nothing(own, broken):
    for number in range(5):
        broken.publish("a", {"type": "x", "n": number})
        assert (await heard(broken))["n"] == number
        with own.client as client:
            client.client_kill_filter(_type="normal", skipme=True)
    assert broken.dropped.total() == 0


async def test_forbidden_to_subscribe_is_said_and_not_believed(own):
    """A server whose rules do not let the node hear must not look joined."""
    with own.client as client:
        client.execute_command("ACL", "SETUSER", "default", "resetchannels")
    async with node_layer(own) as layer:
        with pytest.raises(ConnectionError):
            await layer.join(["a"])
        assert not subscribed(layer)


async def test_stop_while_the_server_is_frozen_is_bounded_and_leaves_no_task(own, settings):
    settings.MESSAGING = {"LAYER_SECONDS": 1.0}
    layer = NodeLayer(channel_layer(own))
    await layer.start()
    await layer.join(["a"])
    with own.frozen():
        layer.publish("a", {"type": "x"})
        began = time.monotonic()
        await layer.stop(["a"])
        assert time.monotonic() - began < 2.0
        assert asyncio.all_tasks() == {asyncio.current_task()}
    with own.client as client:
        await eventually(lambda: client.pubsub_channels() == [], "its subscriptions to be gone")


async def test_joining_does_not_wait_for_a_publisher_that_hangs(broken):
    """In channels_redis both take one lock."""
    async with shard_of(broken)._lock:
        await broken.join(["b"])
    assert subscribed(broken) == {"a", "b"}


async def test_limits_are_set_and_a_project_may_set_others(own):
    async with node_layer(own) as layer:
        await layer.join(["a"])
        connection = shard_of(layer)._hearing.connection
        assert (connection.socket_timeout, connection.socket_connect_timeout) == (5, 2)
        assert connection.retry.get_retries() == 0
    hosts = [{"address": own.url, "socket_timeout": 3}]
    layer = NodeLayer(RedisLayer(hosts=hosts, prefix="tests"))
    await layer.start()
    await layer.join(["a"])
    assert shard_of(layer)._hearing.connection.socket_timeout == 3
    await layer.stop([])
