"""O1 to O3 in a simulated world: whom a check believes, what it writes down, how much it does."""

from __future__ import annotations

import itertools

import pytest

from messaging import catch_up
from tests.support.seeds import replayed_by, seeds
from tests.support.simulation import Simulation

STEPS = 60
WORLDS = 400


@pytest.mark.parametrize("is_large", [False, True])
async def test_heads_are_the_databases_whatever_hub_and_layer_say(request, monkeypatch, is_large):
    """O1. The layer claims to deliver everything and delivers nothing; the hub takes channels for
    older, then for newer than they are. On a large node groups alone are compared with it."""
    if is_large:
        monkeypatch.setattr(catch_up, "BINDINGS_A_SLICE", -1)
    for seed in seeds(WORLDS):
        with replayed_by(request, seed):
            async with Simulation(seed) as sim:
                await sim.play(STEPS)
                hub = sim.node.hub
                sim.layer.groups |= {channel.key.group for channel in sim.world.channels.values()}
                for group in hub.groups.values():
                    group.head = 0
                append_everywhere(sim)
                await sim.tick()
                assert sim.wrongs() == []

                for group in hub.groups.values():
                    group.head += 3
                    sim.node.look(group.channel)
                await sim.run_dry()
                await sim.tick()
                append_everywhere(sim)
                await sim.tick()
                assert sim.wrongs() == []


def append_everywhere(sim):
    """A message in each channel that nobody is rung for."""
    for channel in sim.world.channels.values():
        sim.world.append(channel, "backend", "")


# --- O2 -------------------------------------------------------------------------------------------


def lose_group_entry(group, session):
    del group.bindings[session]


def lose_session_entry(group, session):
    del session.bindings[group.channel]


def lose_both_entries(group, session):
    lose_group_entry(group, session)
    lose_session_entry(group, session)


REASONS = {
    lose_group_entry: "group table",
    lose_session_entry: "session table",
    lose_both_entries: "both tables",
}


async def test_each_disagreement_leaves_one_record_and_nothing_else_does(request):
    """O2."""
    for seed in seeds(WORLDS):
        with replayed_by(request, seed):
            async with Simulation(seed, channels=4, uids=4) as sim:
                await sim.play(STEPS)
                sim.world.recorded.clear()
                damaged = damage_some(sim)
                await sim.tick()
                await sim.tick()
                assert sorted(
                    (each.reason, each.channel, each.session, by) for each, by in sim.world.recorded
                ) == sorted((*each, "check") for each in damaged)


def damage_some(sim):
    """Some bindings and groups are damaged, each in one way. Returns what ought to be recorded."""
    damaged = []
    for group in sim.node.hub.groups.values():
        for session, binding in list(group.bindings.items()):
            if binding.is_open and sim.die.random() < 0.4:
                lose = sim.die.choice(list(REASONS))
                lose(group, session)
                damaged.append((REASONS[lose], group.channel, session.id))
        if sim.die.random() < 0.3:
            sim.layer.groups.discard(group.name)
            damaged.append(("layer", group.channel, ""))
    return damaged


# --- O3 -------------------------------------------------------------------------------------------


FEW = 15
"""Statements of a tick that finds nothing wrong, and a few for the first that is."""

A_CHANNEL = 2
"""Statements that mend all bindings of one channel: one asks what is to be fetched; who is a member
and what the ledger grants is asked of many channels at once."""


@pytest.mark.parametrize("sessions", [1, 10])
@pytest.mark.parametrize("channels", [5, 40])
async def test_node_that_lost_everything_asks_a_few_statements_a_channel(channels, sessions):
    """O3. Neither members nor sessions raise their number, and it is all whole after that tick."""
    async with Simulation(1, channels, uids=20) as sim:
        await crowd(sim, sessions)
        bindings = sim.node.hub.binding_count
        assert bindings == channels * 20 * sessions
        lose_everything(sim)
        assert await statements(sim, sim.tick()) <= FEW + A_CHANNEL * channels
        assert sim.node.hub.binding_count == bindings
        assert await statements(sim, sim.tick()) <= FEW


async def crowd(sim, sessions):
    """Everybody is a member of every channel, and has so many sessions."""
    for channel, uid in itertools.product(sim.world.channels.values(), sim.uids):
        sim.world.join(channel, uid)
        sim.world.append(channel, uid, "")
    sim.parked.hurry = True
    for uid in sim.uids:
        for _ in range(sessions):
            await sim._connect(uid)
    await sim.settle()


def lose_everything(sim):
    """Both tables of the hub are empty; positions remember."""
    for group in sim.node.hub.groups.values():
        group.bindings.clear()
    for session in sim.node.hub.sessions.values():
        session.bindings.clear()


async def statements(sim, step):
    """How often a step asks the database."""
    database, asked = sim.node.database, []
    read = database.read

    async def counted(question, *args, **kwargs):
        asked.append(question.__name__)
        return await read(question, *args, **kwargs)

    database.read = database.write = counted
    await step
    del database.read, database.write
    return len(asked)
