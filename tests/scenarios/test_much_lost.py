"""Losses that are hard to see, and one that is too much for a single step."""

from __future__ import annotations

import asyncio

import pytest

from subscriptions import services
from subscriptions.bindings import GroupBinding
from subscriptions.models import Channel, Finding, Membership
from tests.support.factories import in_thread, make_group, make_users
from tests.support.peers import Peer
from tests.support.waiting import eventually

CHANNELS = 300
SLOW = 0.03
"""Seconds that each question takes in the last test: all are some forty, for which a step has no
time, and those of one part are about ten."""


@pytest.fixture(autouse=True)
def quick(settings):
    settings.MESSAGING = {
        "TICK_SECONDS": 0.2, "BEHIND_GRACE": 0.05, "CHECK_TICKS": 1, "LEASE_SECONDS": 2.0,
    }  # fmt: skip


@pytest.mark.parametrize("devices", [1, 2])
async def test_stranger_is_unbound_however_many_devices_she_has(here, devices):
    """With a grant, and on one of her devices only (S2)."""
    channel = await in_thread(make_group, "room", "alice")
    await in_thread(make_users, "eve")
    laptop = Peer(here.url, "eve", deviceId="laptop")
    async with Peer(here.url, "alice"), Peer(here.url, "eve"):
        if devices == 2:
            await laptop.open()
        group = here.node.hub.groups[channel.pk]
        session = next(iter(here.node.hub.by_uid["eve"].values()))
        grant = GroupBinding("eve", 1, 1, 0)
        here.node.hub.bind(session, channel.pk, channel.key, grant, 0)
        await eventually(lambda: session not in group.bindings, "eve to be unbound", 5)
        if devices == 2:
            await laptop.close()


async def test_leaver_of_a_quiet_room_is_unbound(here):
    """The last message that is his comes after he was seen to have left."""
    channel = await in_thread(make_group, "room", "alice", "bob")
    async with Peer(here.url, "alice") as alice, Peer(here.url, "bob") as bob:
        hub = here.node.hub
        deliver, hub.deliver = hub.deliver, lambda message: None
        await alice.send("room", "last")
        await in_thread(services.leave, channel.key, ["bob"], actor="test")
        await bob.until_heard("room", "last")
        hub.deliver = deliver
        await eventually(
            lambda: [*hub.groups[channel.pk].bindings] == [*hub.by_uid["alice"].values()],
            "bob to be unbound", 5,
        )  # fmt: skip


def fill():
    """Somebody in very many rooms."""
    make_users("ann")
    Channel.objects.bulk_create(
        [Channel(channel_id=f"c{number}", channel_type=2) for number in range(CHANNELS)]
    )
    pks = list(Channel.objects.values_list("pk", flat=True))
    Membership.objects.bulk_create([Membership(channel_id=pk, uid="ann") for pk in pks])


async def test_loss_that_is_too_much_for_one_step_is_mended_by_several(here):
    """A step is cut after half a lease: what it has mended by then stays mended, and is
    known to be (O3)."""
    await in_thread(fill)
    async with Peer(here.url, "ann"):
        hub, database = here.node.hub, here.node.database
        assert hub.binding_count == CHANNELS
        read = database.read

        async def slowly(question, *args):
            await asyncio.sleep(SLOW)
            return await read(question, *args)

        database.read = slowly
        for group in hub.groups.values():
            group.bindings.clear()
        for session in hub.sessions.values():
            session.bindings.clear()
        await eventually(lambda: hub.binding_count == CHANNELS, "all bindings to be back", 60)
    assert await in_thread(Finding.objects.filter(healed_by="check").exists)
