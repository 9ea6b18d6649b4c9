"""Who is heard, who is not, and who is not judged: rounds of a node among others, tick by tick."""

from __future__ import annotations

from dataclasses import replace

import pytest
from django.utils import timezone

from messaging import registry
from messaging.layer import MemoryLayer, NodeLayer
from messaging.node import Node
from messaging.peers import ROUND_TICKS, group_of
from subscriptions.audit import Kind
from subscriptions.live import NodeView
from tests.support.layers import subscribed

ME, OTHER, THIRD = 1, 2, 3
LEASE = 20.0


def view(node):
    """A node that has just beaten, and hears itself."""
    return NodeView(
        node=node, host=f"web-{node}", pid=40 + node, started_at=timezone.now(), sessions=0,
        groups=0, expected=0, bindings=0, check_age=None, probe_ms=0.5, probe_missed=0,
        lease_left=LEASE, is_silent=False,
    )  # fmt: skip


class Nodes:
    """Stands in for the database: nodes that hold a lease, and how often it was asked."""

    def __init__(self, *nodes):
        self.views = {node: view(node) for node in nodes}
        self.asked = 0

    async def read(self, question, *args):
        assert question is registry.node_views
        self.asked += 1
        return list(self.views.values())

    def change(self, node, **values):
        self.views[node] = replace(self.views[node], **values)


@pytest.fixture
async def node(monkeypatch):
    """A node among two others, as over a network; only its layer was started."""
    monkeypatch.setattr("messaging.layer.NodeLayer.reaches_others", True)
    each = Node()
    each.id = ME
    each.database.close()
    each.database = Nodes(ME, OTHER, THIRD)
    each.layer = NodeLayer(MemoryLayer())
    await each.layer.start()
    await each.layer.join([each.own_group])
    yield each
    await each.layer.stop(subscribed(each.layer))


async def probe(node, peer, **says):
    """`peer` probes itself, which `node` hears if it is in that group; `says` of whom it is."""
    layer = node.layer._layer
    await layer.group_send(group_of(peer), {"type": "probe", "n": 1, **(says or {"node": peer})})
    while node.layer.inbox in layer.channels and not layer.channels[node.layer.inbox].empty():
        node._dispatch(await node.layer.receive())


async def round_of(node, *heard):
    """A whole round in which these are heard; returns who is not, by then."""
    await node.peers.listen()
    for peer in heard:
        await probe(node, peer)
    for _ in range(ROUND_TICKS - 1):
        assert not await node.peers.listen()
    return set(node.peers.unheard)


async def test_who_is_heard_is_left_alone_until_the_next_round(node):
    await node.peers.listen()
    assert subscribed(node.layer) == {group_of(each) for each in (ME, OTHER, THIRD)}
    await probe(node, OTHER)
    await node.peers.listen()
    assert subscribed(node.layer) == {group_of(ME), group_of(THIRD)}
    assert set(node._own_groups) >= subscribed(node.layer)


async def test_who_beats_and_is_not_heard_for_a_round_is_named_until_heard(node):
    assert await round_of(node, OTHER) == set()
    assert await round_of(node, OTHER) == {THIRD}
    [found] = node.peers.check()
    assert (found.kind, found.reason) == (Kind.DEAF_NODE, "peer")
    assert found.detail == "not heard: 3 (web-3, process 43)"
    assert await round_of(node, OTHER, THIRD) == {THIRD}
    assert await round_of(node, OTHER, THIRD) == set()
    assert node.peers.check() == []


async def test_who_is_heard_while_a_round_ends_is_heard_in_the_next(node):
    await round_of(node, OTHER)
    await node.peers.listen()
    assert set(node.peers.unheard) == {THIRD}
    await probe(node, THIRD)
    for _ in range(ROUND_TICKS):
        await node.peers.listen()
    assert THIRD not in node.peers.unheard


@pytest.mark.parametrize(
    "state",
    [{"lease_left": LEASE - 3.1}, {"probe_ms": None}, {"probe_missed": 1}],
    ids=["frozen", "just started", "deaf itself"],
)
@pytest.mark.parametrize("end", ["begin", "end"])
async def test_who_may_not_be_able_to_probe_is_not_judged(node, state, end):
    healthy = node.database.views[THIRD]
    if end == "begin":
        node.database.change(THIRD, **state)
    await round_of(node, OTHER)
    node.database.views[THIRD] = healthy
    if end == "end":
        node.database.change(THIRD, **state)
    assert await round_of(node, OTHER) == set()


async def test_who_has_gone_is_forgotten_and_its_group_left(node):
    await round_of(node)
    await node.peers.listen()
    assert set(node.peers.unheard) == {OTHER, THIRD}
    del node.database.views[THIRD]
    for _ in range(ROUND_TICKS):
        await node.peers.listen()
    assert set(node.peers.unheard) == {OTHER}
    assert subscribed(node.layer) == {group_of(ME), group_of(OTHER)}


async def test_node_that_does_not_hear_itself_judges_nobody(node):
    await round_of(node, OTHER)
    node.probe.missed = 1
    assert await round_of(node, OTHER) == set()
    node.probe.missed = 0
    assert await round_of(node, OTHER) == {THIRD}
    node.probe.missed = 1
    assert await round_of(node, OTHER, THIRD) == {THIRD}, "what was found stays until judged anew"


async def test_older_release_that_is_heard_without_its_number_is_not_accused(node):
    await node.peers.listen()
    await probe(node, OTHER, release="older")
    await probe(node, THIRD)
    for _ in range(ROUND_TICKS):
        await node.peers.listen()
    assert node.peers.unheard == {}
    for _ in range(ROUND_TICKS):
        await node.peers.listen()
    assert set(node.peers.unheard) == {OTHER, THIRD}


async def test_probe_of_another_is_not_taken_for_an_answer_to_ones_own(node):
    await node.peers.listen()
    node.probe.sent = 1
    await probe(node, OTHER)
    await probe(node, THIRD, release="older")
    assert node.probe.seen == 0
    await probe(node, ME)
    assert node.probe.seen == 1


async def test_round_is_one_statement_and_nobody_else_means_no_group(node):
    node.database.views = {ME: view(ME)}
    await round_of(node)
    await round_of(node)
    assert node.database.asked == 2
    assert subscribed(node.layer) == {group_of(ME)}


async def test_layer_in_memory_asks_nothing(node, monkeypatch):
    monkeypatch.undo()
    assert not node.layer.reaches_others
    await round_of(node)
    assert node.database.asked == 0
