"""The layer is only a doorbell: while it fails or hangs, everything still arrives by the tick."""

from __future__ import annotations

import asyncio

import pytest

from subscriptions import services
from subscriptions.bindings import ChannelKey
from tests.support.factories import in_thread, make_group, make_users
from tests.support.peers import Peer

BOUND = 10.0
"""Seconds: a tick of 0.5 s, of which each step that asks the layer may take LAYER_SECONDS."""


@pytest.fixture(autouse=True)
def quick(settings):
    settings.MESSAGING = {"TICK_SECONDS": 0.5, "BEHIND_GRACE": 0.1, "LAYER_SECONDS": 0.3}


async def hang(*args):
    await asyncio.Event().wait()


async def fail(*args):
    raise ConnectionError("the layer's server is gone")


@pytest.mark.parametrize("trouble", [hang, fail])
async def test_messages_joins_and_connects_arrive_without_the_layer(here, monkeypatch, trouble):
    await in_thread(make_group, "team", "alice", "bob")
    await in_thread(make_users, "carol")
    async with Peer(here.url, "alice") as alice, Peer(here.url, "bob") as bob:
        await alice.send("team", "before")
        await bob.until_heard("team", "before")
        with monkeypatch.context() as broken:
            for name in ("group_add", "group_discard", "group_send"):
                broken.setattr(here.node.layer._layer, name, trouble)
            answer = await alice.send("team", "during")
            assert answer["result"]["messageSeq"] == 2, "an acknowledgement waited for the layer"
            await bob.until_heard("team", "during", BOUND)
            async with Peer(here.url, "carol") as carol:
                await in_thread(services.join, ChannelKey(2, "team"), ["carol"], actor="test")
                await alice.send("team", "for carol, too")
                await carol.until_heard("team", "for carol, too", BOUND)
                assert carol.texts("team") == ["for carol, too"]
            await bob.until_heard("team", "for carol, too", BOUND)
        await alice.send("team", "after")
        await bob.until_heard("team", "after", BOUND)
        assert bob.texts("team") == ["before", "during", "for carol, too", "after"]
