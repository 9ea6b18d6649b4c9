"""The layer of one node: what arrives, what a hanging layer cannot hold up, what a remake cures."""

from __future__ import annotations

import asyncio

import pytest

from messaging.layer import MemoryLayer, NodeLayer
from tests.support.layers import subscribed
from tests.support.waiting import PATIENCE, eventually


@pytest.fixture
async def layer():
    """A node's end of the in-memory layer."""
    each = NodeLayer()
    await each.start()
    yield each
    await each.stop(subscribed(each) or [])


async def heard(layer):
    """The next event of the inbox."""
    return await asyncio.wait_for(layer.receive(), PATIENCE)


async def test_event_reaches_the_inboxes_of_its_group_and_no_other(layer):
    other = NodeLayer()
    await other.start()
    await layer.join(["a", "b"])
    await other.join(["b"])
    layer.publish("a", {"type": "x", "n": 1})
    layer.publish("b", {"type": "x", "n": 2})
    assert [(await heard(layer))["n"], (await heard(layer))["n"]] == [1, 2]
    assert (await heard(other))["n"] == 2
    await other.stop(["b"])


async def test_left_group_is_not_heard(layer):
    await layer.join(["a", "b"])
    await layer.leave(["a"])
    layer.publish("a", {"type": "x", "n": 1})
    layer.publish("b", {"type": "x", "n": 2})
    assert (await heard(layer))["n"] == 2
    assert subscribed(layer) == {"b"}


async def test_rejoin_mends_a_group_lost_behind_its_back(layer):
    await layer.join(["a"])
    layer._layer.groups.clear()
    assert subscribed(layer) == set()
    await layer.rejoin(["a"])
    layer.publish("a", {"type": "x"})
    assert (await heard(layer))["type"] == "x"


class Believer(MemoryLayer):
    """A layer that does not join again what it believes to be joined, as channels_redis' own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.believed = set()

    async def group_add(self, group, channel):
        if (group, channel) not in self.believed:
            self.believed.add((group, channel))
            await super().group_add(group, channel)

    async def group_discard(self, group, channel):
        self.believed.discard((group, channel))
        await super().group_discard(group, channel)


async def test_rejoin_mends_a_group_of_which_the_layer_believes_that_it_has_it(layer):
    layer._layer = Believer()
    layer.inbox = await layer._layer.new_channel()
    await layer.join(["a"])
    layer._layer.groups.clear()
    await layer.join(["a"])
    assert subscribed(layer) == set()
    await layer.rejoin(["a"])
    assert subscribed(layer) == {"a"}


async def test_remake_takes_a_new_inbox_and_the_reader_goes_on(layer):
    await layer.join(["a"])
    old = layer.inbox
    reading = asyncio.ensure_future(layer.receive())
    await asyncio.sleep(0)
    await layer.remake(["a"])
    layer.publish("a", {"type": "x"})
    assert (await asyncio.wait_for(reading, PATIENCE))["type"] == "x"
    assert layer.inbox != old
    assert layer._layer.groups["a"].keys() == {layer.inbox}


async def test_cancelled_reader_ends(layer):
    reading = asyncio.ensure_future(layer.receive())
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_layer_that_hangs_holds_nobody_up(layer, settings, monkeypatch):
    settings.MESSAGING = {"LAYER_SECONDS": 0.05}

    async def hang(*args):
        await asyncio.Event().wait()

    with monkeypatch.context() as patched:
        for name in ("group_add", "group_discard", "group_send"):
            patched.setattr(layer._layer, name, hang)
        for call in (layer.join, layer.leave, layer.rejoin):
            with pytest.raises(TimeoutError):
                await call(["a"])
        assert layer.publish("a", {"type": "x", "n": 1})
        await eventually(lambda: layer.dropped["timeout"] == 1, "the publish to be given up")
    await layer.join(["a"])
    layer.publish("a", {"type": "x", "n": 2})
    assert (await heard(layer))["n"] == 2


async def test_full_queue_drops_and_counts(settings):
    settings.MESSAGING = {"PUBLISH_QUEUE": 1}
    layer = NodeLayer()  # not started: nobody takes from the queue
    assert layer.publish("a", {"type": "x"})
    assert not layer.publish("a", {"type": "x"})
    assert layer.dropped == {"queue_full": 1}


async def test_layer_that_fails_is_tried_again_with_what_waits(layer, monkeypatch, caplog):
    async def fail(*args):
        raise ConnectionError("gone")

    await layer.join(["a"])
    with monkeypatch.context() as patched:
        patched.setattr(layer._layer, "group_send", fail)
        layer.publish("a", {"type": "x", "n": 1})
        await eventually(lambda: layer.dropped["connection"] == 1, "the event to be given up")
    layer.publish("a", {"type": "x", "n": 2})
    assert (await heard(layer))["n"] == 2
    (record,) = caplog.records
    assert (record.message, record.count) == ("event.dropped", 1)


async def test_stop_publishes_what_waits(layer):
    leaving = NodeLayer()
    await leaving.start()
    await layer.join(["a"])
    for number in range(3):
        leaving.publish("a", {"type": "x", "n": number})
    await leaving.stop([])
    assert [(await heard(layer))["n"] for _ in range(3)] == [0, 1, 2]


async def test_cancelled_reader_loses_nothing(layer):
    await layer.join(["a"])
    reading = asyncio.ensure_future(layer.receive())
    await asyncio.sleep(0)
    reading.cancel()
    layer.publish("a", {"type": "x", "n": 1})
    assert (await heard(layer))["n"] == 1


async def test_full_inbox_misses_one_event_and_stays_in_its_group(caplog):
    memory = MemoryLayer(capacity=1)
    inbox = await memory.new_channel()
    await memory.group_add("a", inbox)
    for n in (1, 2):
        await memory.group_send("a", {"type": "x", "n": n})
    assert (await memory.receive(inbox))["n"] == 1
    await memory.group_send("a", {"type": "x", "n": 3})
    assert (await memory.receive(inbox))["n"] == 3
    assert [record.message for record in caplog.records] == ["event.dropped"]


async def test_event_is_a_copy_of_its_own_for_each_inbox():
    memory = MemoryLayer()
    first, second = await memory.new_channel(), await memory.new_channel()
    event = {"type": "x", "uids": ["alice"]}
    for inbox in (first, second):
        await memory.group_add("a", inbox)
    await memory.group_send("a", event)
    (await memory.receive(first))["uids"].append("eve")
    assert (await memory.receive(second))["uids"] == event["uids"] == ["alice"]
