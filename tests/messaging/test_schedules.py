"""The promise under random schedules: each member's sessions hear every message (L1), once and in
order (L2), and nobody else hears any (S1), however reads, doorbells, hints and changes interleave.

The deliver rule and the fence are the real ones; doorbells come late, twice, in any order or never.
Each run draws its own seeds; one that fails prints the command that plays it again.
"""

from __future__ import annotations

from functools import partial

import pytest

from subscriptions.bindings import GroupBinding
from tests.support.seeds import replayed_by, seeds
from tests.support.simulation import Simulation

STEPS = 150
PARTS = 5
"""Tests that share the schedules, so that two cores can."""

CALM = 1_000
DAMAGED = 600
"""Schedules of each part, 2 ms each: 8,000 in all, in about 20 s of one core."""


async def play_many(request, count: int, damages=()) -> None:
    """As many schedules; with `damages`, the node's tables are damaged on the way as well."""
    for seed in seeds(count):
        with replayed_by(request, seed):
            async with Simulation(seed) as sim:
                sim.actions += [partial(damage, sim) for damage in damages]
                await sim.play(STEPS)
                assert sim.wrongs() == []


@pytest.mark.parametrize("part", range(PARTS))
async def test_every_schedule_keeps_the_promise(request, part):
    await play_many(request, CALM)


def lose_group_entry(sim):
    """A session vanishes from a group's table."""
    for group in sim.node.hub.groups.values():
        if group.bindings:
            group.bindings.pop(sim.die.choice(list(group.bindings)))


def lose_session_entry(sim):
    """A group vanishes from a session's table."""
    for session in sim.node.hub.sessions.values():
        if session.bindings:
            session.bindings.pop(sim.die.choice(list(session.bindings)))


def lose_layer_entry(sim):
    """The inbox vanishes from a group of the layer."""
    if sim.layer.groups:
        sim.layer.groups.discard(sim.die.choice(sorted(sim.layer.groups)))


def lose_fence(sim):
    """A group forgets what one of its sessions may hear."""
    for group in sim.node.hub.groups.values():
        if group.bindings:
            session = sim.die.choice(list(group.bindings))
            group.bindings[session] = GroupBinding(session.uid, 0)


def put_stranger_into_a_group(sim):
    """A session gets into a group's table, and nothing says what it may hear there."""
    for group in sim.node.hub.groups.values():
        strangers = [each for each in sim.live() if each.session not in group.bindings]
        if strangers:
            session = sim.die.choice(strangers).session
            group.bindings[session] = GroupBinding(session.uid, 0)


DAMAGES = [
    lose_group_entry, lose_session_entry, lose_layer_entry, lose_fence, put_stranger_into_a_group,
]  # fmt: skip


@pytest.mark.parametrize("part", range(PARTS))
async def test_tables_damaged_on_the_way_lose_and_leak_nothing(request, part):
    await play_many(request, DAMAGED, DAMAGES)
