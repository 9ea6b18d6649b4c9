"""B1 to B4 in a simulated world: whatever the tables held, a check makes them say what the database
says; nothing old changes them, a repair twice is a repair once, and none takes away what is true.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from messaging import catch_up, check
from messaging.hub import Group, LiveSession
from subscriptions.bindings import ChannelKey, GroupBinding
from tests.invariants.garbage import scramble
from tests.support.seeds import replayed_by, seeds
from tests.support.simulation import EPOCH, SimPort, Simulation

STEPS = 60
WORLDS = 300
ROUNDS = 3
"""Rounds of the check that any damage takes at most: a session that nobody lists is listed first,
then its tables are looked at, then what they say of a future that the database does not know."""


# --- what is, and what ought to be ----------------------------------------------------------------


def owed(sim):
    """{(channel, session): version of the join} of live sessions, as the database has it."""
    return {
        (channel.pk, each.session.id): channel.members[each.session.uid][0]
        for channel in sim.world.channels.values()
        for each in sim.live()
        if each.session.uid in channel.members
    }


def assert_converged(sim):
    """Both tables, what each session may hear, the list of sessions and the layer are those of the
    database, and each session stands at the head."""
    hub, memberships = sim.node.hub, owed(sim)
    by_group = {(pk, session.id) for pk, group in hub.groups.items() for session in group.bindings}
    by_session = {(pk, each.id) for each in hub.sessions.values() for pk in each.bindings}
    granted = {
        (pk, session.id): binding.joined_version
        for pk, group in hub.groups.items()
        for session, binding in group.bindings.items()
        if binding.is_open
    }
    assert by_group == by_session == memberships.keys()
    assert granted == memberships
    assert hub.sessions.keys() == {each.session.id for each in sim.live()}
    assert hub.by_uid.keys() == {each.session.uid for each in sim.live()}
    assert sim.layer.groups >= {hub.groups[pk].name for pk, _ in memberships}
    for pk, session in memberships:
        assert hub.sessions[session].heard[pk] == sim.world.channels[pk].head


def picture(sim):
    """What the tables and the layer hold of each binding that ought to be."""
    hub = sim.node.hub
    empty = Group(0, ChannelKey(2, "none"), "", 0)
    held = {}
    for pk, name in owed(sim):
        session, group = hub.sessions[name], hub.groups.get(pk, empty)
        grant = group.bindings.get(session)
        held[pk, name] = (
            pk in session.bindings, grant and (grant.version, grant.end),
            session.heard.get(pk), group.name in sim.layer.groups,
        )  # fmt: skip
    return held


# --- B1 -------------------------------------------------------------------------------------------


def fill_with_garbage(sim):
    """Every table of bindings gets any content, and the layer any groups."""
    hub, die = sim.node.hub, sim.die
    ghosts = [each for each in sim.sessions if not each.open]
    for channel in sim.world.channels.values():
        group = hub.groups.pop(channel.pk, None)
        if group is None or die.random() < 0.2:
            group = Group(channel.pk, channel.key, channel.key.group, die.randint(0, channel.head))
        if die.random() < 0.8:
            hub.groups[channel.pk] = group
        for each in [*sim.live(), *ghosts]:
            scramble(die, group, each.session, channel.version, channel.head)
        if die.random() < 0.3:
            sim.layer.groups ^= {channel.key.group}
    for each in sim.live():
        if die.random() < 0.2:
            hub.sessions.pop(each.session.id, None)
        if die.random() < 0.2:
            hub.by_uid.pop(each.session.uid, None)


@pytest.mark.parametrize("is_large", [False, True])
async def test_tables_full_of_garbage_say_what_the_database_says_after_a_few_rounds(
    request, monkeypatch, is_large
):
    count_as(is_large, monkeypatch)
    for seed in seeds(WORLDS):
        with replayed_by(request, seed):
            async with Simulation(seed, channels=4, uids=4) as sim:
                await sim.play(STEPS)
                fill_with_garbage(sim)
                for _ in range(ROUNDS):
                    await sim.tick()
                assert_converged(sim)


def count_as(is_large, monkeypatch):
    """Have the sweep take a node's bindings for too many to ask each of them, or not."""
    monkeypatch.setattr(catch_up, "BINDINGS_A_SLICE", -1 if is_large else 5_000)


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize("offset", [-1, 2], ids=["below", "ahead"])
async def test_position_that_alone_is_wrong_is_found_within_a_round(monkeypatch, offset, is_large):
    """Of the channel nothing is news, and all else about it is as the database has it."""
    count_as(is_large, monkeypatch)
    async with Simulation(1, channels=4, uids=4) as sim:
        await sim.play(STEPS)
        await sim.settle()
        places = [place for place in owed(sim) if sim.world.channels[place[0]].head > 1]
        for pk, session in places:
            sim.node.hub.sessions[session].heard[pk] += offset
        assert places
        for _ in range(sim.node.conf.check_ticks + 1):
            await sim.tick()
        assert_converged(sim)


# --- B2 -------------------------------------------------------------------------------------------


def say_again_what_is_old(sim):
    """Every page of a change log that could have been read up to now, and every binding that was
    ever granted, come once more."""
    hub = sim.node.hub
    for channel in sim.world.channels.values():
        for since in sim.die.sample(range(channel.version), channel.version):
            page = sim.world.changes_since(channel.pk, since, sim.die.randint(1, 3))
            hub.apply(channel.pk, page)
        for each in sim.live():
            if channel.pk in each.session.bindings:
                version = sim.die.randrange(channel.version)
                old = GroupBinding(each.session.uid, version, version, 0)
                hub.bind(each.session, channel.pk, channel.key, old, sim.die.randint(0, 9))
                page = sim.world.changes_of({channel.pk: [each.session.uid]})[channel.pk]
                older = replace(page, version=version, changes=())
                hub.rebind([each.session], channel.pk, older, None)


async def test_nothing_old_changes_what_is_newer(request):
    """B2."""
    for seed in seeds(WORLDS):
        with replayed_by(request, seed):
            async with Simulation(seed) as sim:
                await sim.play(STEPS)
                before = picture(sim)
                say_again_what_is_old(sim)
                await sim.run_dry()
                assert picture(sim) == before


# --- B3 -------------------------------------------------------------------------------------------


async def test_asking_for_a_member_mends_the_bindings_whether_or_not_the_row_is_new(request):
    """B3. No check runs: what support does, adding somebody again, is enough, and twice is once."""
    for seed in seeds(WORLDS):
        with replayed_by(request, seed):
            async with Simulation(seed) as sim:
                whole = await played_and_damaged(sim)
                for channel in sim.world.channels.values():
                    await sim.node.news.ensure({channel.pk: list(channel.members)})
                assert picture(sim) == whole
                for channel in sim.world.channels.values():
                    await sim.node.news.ensure({channel.pk: list(channel.members)})
                assert picture(sim) == whole


async def played_and_damaged(sim):
    """Damage every binding that there is after a while; returns what there was."""
    await sim.play(STEPS)
    whole = picture(sim)
    for pk, session in owed(sim):
        damage(sim, sim.node.hub.groups[pk], sim.node.hub.sessions[session])
    return whole


def damage(sim, group, session):
    """One binding is lost from some of the tables, and the group perhaps from the layer."""
    if sim.die.random() < 0.5:
        session.bindings.pop(group.channel, None)
    if sim.die.random() < 0.5:
        group.bindings.pop(session, None)
    if sim.die.random() < 0.5:
        sim.layer.groups.discard(group.name)


async def test_repair_of_the_same_findings_again_changes_nothing(request):
    """B3, for the check: what it found may be mended any number of times."""
    for seed in seeds(WORLDS):
        with replayed_by(request, seed):
            async with Simulation(seed) as sim:
                whole = await played_and_damaged(sim)
                found = check.check_memory(sim.node) + check.check_layer(sim.node)
                for _ in range(2):
                    assert all([gone async for _, gone in check.repair(sim.node, found)])
                    assert picture(sim) == whole


# --- B4 -------------------------------------------------------------------------------------------


def watch_unbinding(sim):
    """Note each live session that is unbound from a stay which the database confirms."""
    hub, harm = sim.node.hub, []
    unbind = hub.unbind

    def watched(session, channel):
        stay = sim.world.channels[channel].members.get(session.uid)
        group = hub.groups.get(channel)
        binding = group.bindings.get(session) if group else None
        if session.id in hub.sessions and stay and binding and binding.joined_version == stay[0]:
            harm.append(f"{session.id} in {channel}, who joined at {stay[0]}")
        unbind(session, channel)

    hub.unbind = watched
    return harm


async def test_check_with_old_answers_takes_nothing_away_that_is_true(request):
    """B4. Checks run while members come and go, and each of their answers is old when it comes."""
    for seed in seeds(WORLDS):
        with replayed_by(request, seed):
            async with Simulation(seed) as sim:
                harm = watch_unbinding(sim)
                sim.actions += [partial(begin_check, sim)] * 4
                await sim.play(2 * STEPS)
                assert harm == []
                assert sim.wrongs() == []


async def test_what_changes_during_a_check_is_news_and_no_fault(request, monkeypatch):
    """Nothing is broken here, so no check finds a binding that is not as the database has it."""
    look, found = check.check_memberships, []

    async def noted(node, uids):
        seen = await look(node, uids)
        found.extend(seen)
        return seen

    monkeypatch.setattr(check, "check_memberships", noted)
    for seed in seeds(WORLDS):
        with replayed_by(request, seed):
            async with Simulation(seed) as sim:
                sim.actions += [partial(begin_check, sim)] * 4 + [sim.resume] * 40
                await sim.play(4 * STEPS)
                assert [each for each in found if each.reason == "membership"] == []


async def joins_and_leaves(sim, channel, sweep):
    """He has the binding of a stay that neither reading of the rows knows."""
    await sim._connect("u0")
    yield
    sim.world.join(channel, "u0")
    await sweep()
    read = sim.world.memberships_of

    def memberships_of(uids):
        sim.world.leave(channel, "u0")
        return read(uids)

    sim.world.memberships_of = memberships_of
    yield


async def joined_and_leaves(sim, channel, sweep):
    """The rows have a stay that this node hears of together with its end."""
    await sim._connect("u0")
    sim.world.join(channel, "u0")
    yield
    sim.world.leave(channel, "u0")
    await sweep()
    yield


async def connects(sim, channel, sweep):
    """What his session has missed while it was let in is still being looked at."""
    sim.world.join(channel, "u0")
    yield
    await sweep()
    let_in(sim)
    yield


async def left_while_let_in(sim, channel, sweep):
    """The sweep that knew of it had passed before there was a session to tell."""
    sim.world.join(channel, "u0")
    memberships = sim.world.memberships_of(["u0"])["u0"]
    sim.world.leave(channel, "u0")
    await sweep()
    sim.node.hub.bind_all(let_in(sim), memberships, sim.world.keys_of([channel.pk]))
    yield
    await sweep()
    yield


def let_in(sim):
    session = LiveSession("s0", "u0", SimPort([]), EPOCH)
    session.connecting = False
    sim.node.hub.register(session)
    return session


@pytest.mark.parametrize(
    "person", [joins_and_leaves, joined_and_leaves, connects, left_while_let_in]
)
async def test_what_comes_while_a_check_reads_is_news_and_no_fault(monkeypatch, person):
    monkeypatch.setattr(check, "_differing", suspect_all)
    async with Simulation(1, channels=1, uids=1) as sim:
        sim.parked.hurry = True
        (channel,) = sim.world.channels.values()
        part = person(sim, channel, sim.node.catch_up.sweep_changes)
        await anext(part)
        monkeypatch.setattr(sim.node.catch_up, "sweep_changes", partial(anext, part))
        assert await check.check_memberships(sim.node, ["u0"]) == []


async def suspect_all(node, uids):
    return list(uids)


def begin_check(sim):
    """The tick's check begins; the answers to its questions come when they may."""
    sim.node.errand(sim.node.tick.check())
