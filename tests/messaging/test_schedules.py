"""The promise under random schedules: each member's sessions hear every message, once, in order,
and nobody else hears any, however reads, doorbells, hints and changes interleave."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.simulation import Simulation

STEPS = 150


@pytest.fixture(autouse=True)
def no_grace(settings):
    """The simulation has no clock."""
    settings.MESSAGING = {"BEHIND_GRACE": 0, "CHANGE_PAGE": 2, "FETCH_PAGE": 3, "CHECK_SLICES": 1}


async def play(seed: int, faults=()) -> Simulation:
    """One schedule; with `faults`, bindings are lost on the way as well."""
    sim = Simulation(seed)
    sim.actions += [lambda fault=fault: fault(sim) for fault in faults]
    try:
        for _ in range(STEPS):
            await sim.step()
        await sim.settle()
    finally:
        await sim.stop()
    return sim


@given(seed=st.integers(0, 2**32))
@settings(max_examples=150)
async def test_every_schedule_keeps_the_promise(seed):
    sim = await play(seed)
    assert sim.wrongs() == []


def lose_group_entry(sim):
    """A session vanishes from a group's table."""
    for group in sim.node.hub.groups.values():
        if group.sessions:
            group.sessions.pop(sim.die.choice(list(group.sessions)))


def lose_session_entry(sim):
    """A group vanishes from a session's table."""
    for session in sim.node.hub.sessions.values():
        if session.bindings:
            session.bindings.pop(sim.die.choice(list(session.bindings)))


def lose_layer_entry(sim):
    """The inbox vanishes from a group of the layer."""
    if sim.layer.groups:
        sim.layer.groups.discard(sim.die.choice(sorted(sim.layer.groups)))


@given(seed=st.integers(0, 2**32))
@settings(max_examples=150)
async def test_bindings_lost_on_the_way_lose_nothing(seed):
    sim = await play(seed, [lose_group_entry, lose_session_entry, lose_layer_entry])
    assert sim.wrongs() == []
