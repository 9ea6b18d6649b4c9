"""Doorbells of another release, as during a rolling upgrade: what they say is in the database."""

from __future__ import annotations

import pytest

from messaging.appender import Appender
from messaging.messages import EVENT_VERSION, Draft
from subscriptions.bindings import ChannelKey
from tests.support.factories import in_thread, make_group
from tests.support.peers import Peer

TEAM = ChannelKey(2, "team")
DOORBELLS = {
    "a message in another shape": {"type": "message", "v": EVENT_VERSION + 1, "what": "else"},
    "another kind": {"type": "poem", "lines": 14},
}


@pytest.fixture(autouse=True)
def nothing_but_doorbells(settings):
    settings.MESSAGING = {"STEPS": ("beat",)}


@pytest.mark.parametrize("doorbell", DOORBELLS.values(), ids=DOORBELLS)
async def test_doorbell_that_is_not_understood_is_a_look(here, doorbell):
    channel = await in_thread(make_group, "team", "alice", "bob")

    def append():
        Appender().append([Draft(TEAM, "alice", b'{"type":1,"content":"hello"}')])

    async with Peer(here.url, "bob") as bob:
        await in_thread(append)
        here.node.layer.publish(TEAM.group, {**doorbell, "channel": channel.pk})
        await bob.until_heard("team", "hello")


async def test_kind_that_names_no_channel_hurts_nobody(here, caplog):
    await in_thread(make_group, "team", "alice", "bob")
    async with Peer(here.url, "alice") as alice, Peer(here.url, "bob") as bob:
        for channel in ({}, {"channel": "team"}, {"channel": None}):
            here.node.layer.publish(TEAM.group, {"type": "poem", **channel})
        await alice.send("team", "hello")
        await bob.until_heard("team", "hello")
    assert "event.failed" not in {record.message for record in caplog.records}
