"""A node that the layer has forgotten: the probe alone, and the check alone, bring it back."""

from __future__ import annotations

import asyncio

import pytest

from subscriptions.models import Finding
from tests.support.factories import in_thread, make_group
from tests.support.layers import lose_group
from tests.support.peers import Peer
from tests.support.waiting import PATIENCE, eventually

BOUND = 5.0


@pytest.fixture
def only(settings, request):
    """No step of the tick but the beat and this one."""
    steps = ("beat", request.param)
    settings.MESSAGING = {"STEPS": steps, "TICK_SECONDS": 0.2, "BEHIND_GRACE": 0.1}


@pytest.mark.parametrize("only", ["probe"], indirect=True)
async def test_deaf_node_hears_again_by_its_probe_alone(only, here):
    channel = await in_thread(make_group, "team", "alice", "bob")
    layer = here.node.layer
    async with Peer(here.url, "alice") as alice, Peer(here.url, "bob") as bob:
        await alice.send("team", "before")
        await bob.until_heard("team", "before")
        for group in (here.node.own_group, channel.group):
            lose_group(layer, group)
        await eventually(lambda: layer.is_subscribed(channel.group) is not True, "it is deaf")
        await alice.send("team", "while deaf")
        await bob.until_heard("team", "while deaf", BOUND)
        await eventually(lambda: layer.is_subscribed(channel.group), "the group is joined again")
        await alice.send("team", "after")
        await bob.until_heard("team", "after")
        assert bob.texts("team") == ["before", "while deaf", "after"]
        found = Finding.objects.filter(kind="deaf_node", healed_by="probe")
        async with asyncio.timeout(PATIENCE):
            while not await in_thread(found.exists):
                pass


@pytest.mark.parametrize("only", ["check"], indirect=True)
async def test_group_that_the_layer_lost_is_joined_again_by_the_check_alone(only, here):
    channel = await in_thread(make_group, "team", "alice", "bob")
    layer = here.node.layer
    async with Peer(here.url, "alice") as alice, Peer(here.url, "bob") as bob:
        await here.come_to_rest()  # who hears of the joins now joins the group again
        lose_group(layer, channel.group)
        found = Finding.objects.filter(reason="layer", channel=channel, healed_by="check")
        async with asyncio.timeout(PATIENCE):
            while not await in_thread(found.exists):
                pass
        assert layer.is_subscribed(channel.group)
        await alice.send("team", "hello")
        await bob.until_heard("team", "hello")
