"""Events that come many at once: one that nobody can read spoils no other, and none holds the rest
of the server up."""

from __future__ import annotations

import pytest

from messaging import node as nodes
from tests.support.factories import in_thread, make_group
from tests.support.peers import Peer
from tests.support.server import NETWORKED
from tests.support.waiting import eventually


class Inbox:
    """What else has come: events, or what reading one of them raises."""

    def __init__(self, *things):
        self.things = list(things)

    def __call__(self, inbox):
        while self.things:
            thing = self.things.pop(0)
            if isinstance(thing, Exception):
                raise thing
            yield thing


async def test_event_that_cannot_be_read_leaves_the_node_hearing(here, monkeypatch):
    """It comes behind one that can, as from another project on the same Redis."""
    await in_thread(make_group, "team", "alice", "bob")
    inbox = Inbox(ValueError("no msgpack"), {"type": "nothing"})
    monkeypatch.setattr(here.node.layer._layer, "received", inbox)
    async with Peer(here.url, "alice") as alice, Peer(here.url, "bob") as bob:
        await alice.send("team", "one")
        await bob.until_heard("team", "one")
        await eventually(lambda: not inbox.things, "the rest of the burst")
        await alice.send("team", "two")
        await bob.until_heard("team", "two")
        assert here.node.probe.missed == 0


@pytest.mark.skipif(not NETWORKED, reason="in memory nothing is serialised, so all can be read")
async def test_bytes_of_another_project_in_the_inbox_leave_the_node_hearing(here):
    await in_thread(make_group, "team", "alice", "bob")
    layer = here.node.layer
    queue = layer._layer._get_layer().channels[layer.inbox]
    async with Peer(here.url, "alice") as alice, Peer(here.url, "bob") as bob:
        for _ in range(3):
            queue.put_nowait(layer._layer.serialize({"type": "nothing"}))
            queue.put_nowait(b"\xc1 is no msgpack")
        await alice.send("team", "one")
        await bob.until_heard("team", "one")
        await eventually(queue.empty, "all has been taken")


async def test_burst_ends_after_a_moment_and_goes_on_in_the_next_turn(here, monkeypatch):
    """Whoever waits for the loop waits for one event more than the moment, not for all."""
    taken = []
    clock = iter(range(1_000))  # each look at the clock is a second later than the one before
    monkeypatch.setattr(nodes.time, "perf_counter", lambda: next(clock))
    inbox = Inbox(*({"type": "audit", "n": number} for number in range(3)))
    monkeypatch.setattr(here.node.layer._layer, "received", inbox)
    monkeypatch.setitem(here.node._events, "audit", lambda event: taken.append(event["n"]))
    here.node._dispatch_burst()
    assert (taken, len(inbox.things)) == ([0], 2)
    here.node._dispatch_burst()
    assert (taken, len(inbox.things)) == ([0, 1], 1)
