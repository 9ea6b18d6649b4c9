"""S1 and S2 in a simulated world: nobody hears what is not theirs, even while nothing can be asked,
and no binding lasts that the database does not know. The schedules of tests/messaging/ have the
rest of S1; real servers, with members removed by every door, those of tests/scenarios/.
"""

from __future__ import annotations

from django.db import OperationalError

from subscriptions.audit import Kind
from subscriptions.bindings import GroupBinding, Interval
from tests.support.seeds import replayed_by, seeds
from tests.support.simulation import Simulation

STEPS = 150
WORLDS = 400


async def test_database_that_fails_withholds_what_cannot_be_judged(request):
    """S1: the fence asks nobody who does not answer, and what it withheld is heard later."""
    for seed in seeds(WORLDS):
        with replayed_by(request, seed):
            async with Simulation(seed) as sim:
                database = FailingDatabase(sim)
                sim.actions += [database.fail, database.recover]
                for _ in range(STEPS):
                    await sim.step()
                database.recover()
                await sim.settle()
                assert sim.wrongs() == []


class FailingDatabase:
    """Lets reads and writes through, or raises what Django raises when the server has gone."""

    def __init__(self, sim):
        self.database, self.failing = sim.node.database, False
        self._read = self.database.read
        self.database.read = self.database.write = self.ask

    async def ask(self, question, *args, **kwargs):
        answer = await self._read(question, *args, **kwargs)
        if self.failing:
            raise OperationalError("the server closed the connection")
        return answer

    def fail(self):
        self.failing = True

    def recover(self):
        self.failing = False


async def test_foreign_bindings_are_gone_after_a_round_and_hear_nothing_more(request):
    """S2: strangers whom every table takes for members, and sessions that have ended."""
    for seed in seeds(WORLDS):
        with replayed_by(request, seed):
            async with Simulation(seed, channels=3, uids=4) as sim:
                await sim.play(STEPS // 3)
                sim.world.recorded.clear()
                foreign = [*bind_strangers(sim), *leave_ghosts(sim)]
                await sim.tick()
                hub = sim.node.hub
                assert [
                    (pk, session)
                    for pk, session in foreign
                    if pk in hub.groups and session in hub.groups[pk].bindings
                ] == []
                assert {each.kind for each, _ in sim.world.recorded} <= {Kind.STRAY_GROUP_BINDING}
                assert len(sim.world.recorded) == len(foreign)
                before = [heard_in(pk, session) for pk, session in foreign]
                for channel in sim.world.channels.values():
                    hub.deliver(sim.world.append(channel, "backend", ""))
                await sim.settle()
                assert [heard_in(pk, session) for pk, session in foreign] == before


def heard_in(channel, session):
    """How many messages of a channel a session was sent."""
    return sum(message.channel == channel for message in session.port.heard)


def bind_strangers(sim):
    """Sessions of others get into groups with everything that delivery asks for: a place in both
    tables, a position and a grant. Returns where."""
    bound = []
    for channel in sim.world.channels.values():
        for each in sim.live():
            mates = [mate for mate in sim.live() if mate.session.uid == each.session.uid]
            known = any(change.uid == each.session.uid for change in channel.ledger)
            if len(mates) == 1 and not known and channel.version:
                stay = Interval(channel.version, channel.head)
                grant = GroupBinding.of(each.session.uid, channel.version, (stay,))
                sim.node.hub.bind(each.session, channel.pk, channel.key, grant, channel.head)
                bound.append((channel.pk, each.session))
    return bound


def leave_ghosts(sim):
    """Sessions that have ended stay in the groups' tables. Returns where."""
    left = []
    for group in sim.node.hub.groups.values():
        for each in sim.sessions:
            if not each.open and sim.die.random() < 0.5:
                group.bindings[each.session] = GroupBinding(each.session.uid, group.newest)
                left.append((group.channel, each.session))
    return left
