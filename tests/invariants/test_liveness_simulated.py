"""L1 in a simulated world: what was written before a tick is heard by the end of it, though nothing
came through the layer. L2, order and once, is judged in every schedule of tests/messaging/.
"""

from __future__ import annotations

from tests.support.seeds import replayed_by, seeds
from tests.support.simulation import Simulation

STEPS = 150
WORLDS = 400


async def test_every_message_is_heard_within_a_tick_without_the_layer(request):
    """No doorbell, no hint and no group ever arrives; members come and go, sessions come and go,
    and the database is as slow as the seed says. Then one sweep, and nothing else of the tick; and
    once more, when nothing is new but messages."""
    for seed in seeds(WORLDS):
        with replayed_by(request, seed):
            async with Simulation(seed) as sim:
                mute = {sim.ring, sim.repeat_bell, sim.hint, sim.sweep}
                sim.actions = [each for each in sim.actions if each not in mute]
                for _ in range(STEPS):
                    await sim.step()
                sim.parked.resume_all()
                await sim.run_dry()
                sim.drain()
                for _ in range(2):
                    await sim.node.tick.sweep()
                    await sim.run_dry()
                    assert sim.wrongs() == []
                    for channel in sim.world.channels.values():
                        sim.world.append(channel, "backend", "")
