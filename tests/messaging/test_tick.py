"""The steps of the tick by themselves: beats without a break, rounds that are whole."""

from __future__ import annotations

import asyncio

import pytest
from django.db import OperationalError

from messaging import check, registry
from messaging.node import Node
from messaging.tick import UIDS_A_SLICE


class Book:
    """Stands in for the database: answers what a step writes, and remembers it."""

    def __init__(self):
        self.written = []
        self.failing = False

    async def write(self, change, *args, **kwargs):
        if self.failing:
            raise OperationalError("the database is gone")
        self.written.append(change)
        return change is registry.beat or {}

    read = write


@pytest.fixture
async def node():
    """A node that was never started, with a book for a database."""
    each = Node()
    each.database.close()
    each.database = Book()
    return each


@pytest.fixture
def time(monkeypatch):
    """The tick's clock, moved by hand."""

    class Clock:
        now = 1_000.0

    monkeypatch.setattr("messaging.tick.time.monotonic", lambda: Clock.now)
    return Clock


async def test_dead_nodes_are_swept_after_a_whole_lease_of_beats_and_not_before(node, time):
    node.tick._beating_since = time.now
    lease = node.conf.lease_seconds
    await node.tick.beat()
    time.now += lease
    await node.tick.beat()
    assert registry.sweep_dead_nodes not in node.database.written
    time.now += 1
    await node.tick.beat()
    assert registry.sweep_dead_nodes in node.database.written


async def test_beat_that_failed_gives_everybody_a_whole_lease_again(node, time):
    node.tick._beating_since = time.now
    time.now += node.conf.lease_seconds * 2
    node.database.failing = True
    with pytest.raises(OperationalError):
        await node.tick.beat()
    assert "lease could not be renewed" in node.not_ready_reason
    node.database.failing = False
    await node.tick.beat()
    assert node.ready
    assert registry.sweep_dead_nodes not in node.database.written


async def test_node_is_ready_while_its_beat_is_under_way(node):
    async def ask_meanwhile(change, *args):
        assert node.ready
        return True

    node.database.write = ask_meanwhile
    await node.tick.beat()


async def test_round_has_every_uid_though_half_of_them_go_meanwhile(node, monkeypatch):
    node.hub.by_uid = {f"u{number}": {} for number in range(5 * UIDS_A_SLICE)}
    asked = set()

    async def note(node, uids):
        asked.update(uids)
        return []

    async def nothing(node):
        return []

    monkeypatch.setattr(check, "check_memberships", note)
    monkeypatch.setattr(check, "check_sessions", nothing)
    await node.tick.check()
    for number in range(2 * UIDS_A_SLICE):
        del node.hub.by_uid[f"u{number}"]
    while not node.tick.rounds:
        assert registry.mark_checked not in node.database.written
        await node.tick.check()
    assert asked >= node.hub.by_uid.keys()
    assert registry.mark_checked in node.database.written


async def test_step_that_gives_up_waiting_leaves_the_look_to_the_others(node, monkeypatch):
    answered = asyncio.Event()

    async def slow(channel):
        await answered.wait()

    monkeypatch.setattr(node.catch_up, "_catch_up", slow)
    impatient = asyncio.create_task(node.catch_up.looked(1))
    patient = asyncio.create_task(node.catch_up.looked(1))
    await asyncio.sleep(0)
    impatient.cancel()
    await asyncio.gather(impatient, return_exceptions=True)
    answered.set()
    await patient
