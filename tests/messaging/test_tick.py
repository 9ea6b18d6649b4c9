"""The steps of the tick by themselves: beats without a break, rounds that are whole."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

import pytest
from django.db import OperationalError

from messaging import check, registry
from messaging.conf import conf
from messaging.hub import LiveSession
from messaging.node import Node
from messaging.protocol.close_codes import CloseCode
from messaging.tick import UIDS_A_SLICE
from subscriptions.audit import Disagreement, Kind
from subscriptions.bindings import ChannelKey, GroupBinding
from tests.support.waiting import eventually


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

    beat = write

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


async def test_tick_begins_a_period_after_the_one_before_however_long_its_steps_take(
    node, time, monkeypatch
):
    lasting, began = [0.1, 1.5, 5.0, 0.1], []

    async def sleep(seconds):
        time.now += seconds

    async def step():
        began.append(time.now)
        if not lasting:
            raise asyncio.CancelledError
        time.now += lasting.pop(0)

    monkeypatch.setattr("messaging.tick.metrics.sleep", sleep)
    node.conf = replace(node.conf, steps=("sweep",), tick_seconds=2.0)
    node.tick._steps = {"sweep": step}
    with suppress(asyncio.CancelledError):
        await node.tick.run()
    first, second, third, fourth = [after - before for before, after in pairwise(began)]
    assert all(2.0 <= each <= 2.1 for each in (first, second, fourth))
    assert third == pytest.approx(5.5)


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

    node.database.beat = ask_meanwhile
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


@pytest.mark.parametrize("slices", [1, 2, 3, 5])
async def test_memory_is_compared_as_often_whatever_a_round_takes(node, monkeypatch, slices):
    compared: list[int] = []
    ticks = 2 * slices + 3
    monkeypatch.setattr(check, "check_memory", lambda node: compared.append(tick) or [])
    monkeypatch.setattr(check, "check_layer", lambda node: [])
    monkeypatch.setattr(check, "check_memberships", nothing_found)
    monkeypatch.setattr(check, "check_sessions", nothing_found)
    node.hub.by_uid = {f"u{number}": {} for number in range(slices * UIDS_A_SLICE)}
    for tick in range(ticks):  # noqa: B007 - the closure above has it
        await node.tick.check()
    assert compared == list(range(0, ticks, node.conf.check_ticks))


async def test_slice_that_fails_keeps_no_other_from_being_looked_at_but_the_round_does_not_count(
    node, monkeypatch
):
    asked, fails = [], True

    async def ask(node, uids):
        asked.append(len(uids))
        if fails and len(asked) == 2:
            raise OperationalError("a row is held")
        return []

    monkeypatch.setattr(check, "check_memberships", ask)
    monkeypatch.setattr(check, "check_sessions", nothing_found)
    node.hub.by_uid = {f"u{number}": {} for number in range(3 * UIDS_A_SLICE)}
    for _ in range(3):
        with suppress(OperationalError):
            await node.tick.check()
    assert sum(asked) == 3 * UIDS_A_SLICE
    assert (node.tick.rounds, registry.mark_checked in node.database.written) == (0, False)
    fails = False
    for _ in range(3):
        await node.tick.check()
    assert (node.tick.rounds, registry.mark_checked in node.database.written) == (1, True)


async def nothing_found(*args):
    """A part of the check, for which all is well."""
    return []


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


async def test_step_that_hangs_holds_up_no_beat(node, settings):
    """A sweep may wait for a database that is busy; a lease may not."""
    settings.MESSAGING = {"TICK_SECONDS": 0.05, "LEASE_SECONDS": 20}
    node.conf = conf()
    beats = asyncio.Queue()

    async def hang():
        await asyncio.Event().wait()

    async def beat():
        beats.put_nowait(True)

    node.tick._steps |= {"sweep": hang, "beat": beat}
    running = [asyncio.create_task(each()) for each in (node.tick.run, node.tick.run_beats)]
    async with asyncio.timeout(5):
        for _ in range(5):
            await beats.get()
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def test_node_that_drains_goes_on_to_probe_and_judges_nothing(node, settings):
    """Others listen to its probes for as long as it beats."""
    settings.MESSAGING = {"TICK_SECONDS": 0.01, "STEPS": ["probe"]}
    node.conf, node.draining = conf(), True
    running = asyncio.create_task(node.tick.run())
    await eventually(lambda: node.probe.sent > 2 * node.conf.probe_misses, "probes of which none")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert node.probe.missed == 0
    assert node.database.written == []


class Layer:
    """A node's layer whose connection is made anew when the test lets it."""

    def __init__(self, node):
        self.remade, self.released = 0, asyncio.Event()
        node.layer.remake = self.remake
        node.layer.publish = lambda *args: None
        node.peers.listen = self.listen

    async def remake(self, groups):
        self.remade += 1
        await self.released.wait()

    async def listen(self):
        return False


def last_before_deaf(node):
    """One more probe that does not come back, and the node is deaf."""
    node.probe.sent, node.probe.missed = 1, node.conf.probe_misses - 1


async def test_deaf_node_makes_its_connection_anew_though_the_database_fails(node):
    layer = Layer(node)
    layer.released.set()
    node.database.failing = True
    last_before_deaf(node)
    with pytest.raises(OperationalError):
        await node.tick.send_probe()
    await eventually(lambda: node.probe.sent == 2, "the probe over the new connection")
    assert layer.remade == 1


async def test_no_probe_counts_as_missed_while_the_connection_is_made_anew(node):
    layer = Layer(node)
    last_before_deaf(node)
    for _ in range(5):
        await node.tick.send_probe()
        await asyncio.sleep(0)
    assert (node.probe.sent, node.probe.missed) == (1, node.conf.probe_misses)
    layer.released.set()
    await eventually(lambda: node.probe.sent == 2, "the probe over the new connection")
    assert layer.remade == 1


async def test_probe_is_sent_though_what_was_missed_cannot_be_looked_for(node, monkeypatch):
    layer = Layer(node)
    layer.released.set()

    async def hang():
        await asyncio.Event().wait()

    monkeypatch.setattr(node, "look_at_everything", hang)
    last_before_deaf(node)
    await node.tick.send_probe()
    await eventually(lambda: node.probe.sent == 2, "the probe over the new connection")
    await eventually(lambda: node.tick._remaking.done(), "the end of it")
    await node.tick.send_probe()
    assert node.probe.sent == 3


async def test_node_that_hears_again_takes_newcomers_though_the_database_fails(node):
    Layer(node)
    node.tick._deaf = node.deserted = True
    node.database.failing = True
    for _ in range(2):  # what could not be written is written with a later one
        with pytest.raises(OperationalError):
            await node.tick.send_probe()
        assert not node.deserted
        node.probe.seen = node.probe.sent
    node.database.failing = False
    await node.tick.send_probe()
    assert len(node.database.written) == 1


async def test_step_that_has_had_its_time_waits_for_no_record(node, monkeypatch):
    """A step is told once that it has had its time."""
    begun = []

    async def hang(*args):
        begun.append(args)
        await asyncio.Event().wait()

    async def repair(node, found):
        await hang()
        yield

    monkeypatch.setattr(check, "repair", repair)
    monkeypatch.setattr(node.database, "write", hang)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await node.tick._mend([Disagreement(Kind.DEAD_SESSION, "lease")])
    await eventually(lambda: len(begun) == 2, "the record, after the repair")


class Attended:
    """A member who is far behind in one channel: in which ticks it was attended, and asked to
    go."""

    def __init__(self, node, seq):
        self.session = LiveSession("s", "alice", None, None)
        self.ticks, self.closed = [], []
        node.members["s"] = self
        node.hub.bind(self.session, 1, ChannelKey(2, "room"), GroupBinding("alice", 1, 1, 0), 0)
        node.hub.begin_behind(self.session, 1, seq)

    def attend(self, now):
        self.ticks.append(now)

    def close_soon(self, code):
        self.closed.append(code)


@pytest.mark.parametrize("beyond", [0, 1])
async def test_sessions_are_attended_as_often_as_compared_and_laggards_asked_to_go(
    node, time, beyond
):
    member = Attended(node, node.conf.lag_messages + beyond)
    for time.now in range(7):
        await node.tick.attend_sessions()
    ticks = list(range(node.conf.check_ticks - 1, 7, node.conf.check_ticks))
    assert member.ticks == ticks
    assert member.closed == [CloseCode.TRY_AGAIN] * len(ticks) * beyond


async def test_layer_that_hangs_while_others_are_listened_to_holds_up_no_tick(node):
    """Joining and leaving their groups takes up to three times `layer_seconds`, which the sweep
    must not wait for."""
    listened, released = [], asyncio.Event()

    async def listen():
        listened.append(node.tick.rounds)
        await released.wait()
        return False

    node.peers.listen = listen
    for _ in range(3):
        await node.tick.send_probe()
        await asyncio.sleep(0)
    assert len(listened) == 1
    released.set()
    await node.tick._listening
    await node.tick.send_probe()
    await node.tick._listening
    assert len(listened) == 2
