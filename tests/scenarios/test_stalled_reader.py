"""Peers that stop reading: they cost what their outbox holds, and leave nothing behind."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from messaging.models import Session
from tests.support.factories import in_thread, make_group
from tests.support.peers import Peer
from tests.support.waiting import PATIENCE, eventually


@pytest.fixture
def small(settings):
    """Little room, so that it is full soon."""
    settings.MESSAGING = {"OUTBOX_BYTES": 50_000, "OUTBOX_LOW": 10_000}


async def stall(here, uid):
    """A connection that logs in and never reads again; returns its raw socket."""
    peer = Peer(here.url, uid)
    await peer.open()
    transport = peer.socket.transport
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    transport.pause_reading()
    return peer


async def test_reader_that_stalls_catches_up_from_the_log_at_its_own_pace(small, here):
    await in_thread(make_group, "team", "alice", "bob", "carol")
    texts = [f"{number:04} " + "x" * 20_000 for number in range(400)]
    async with Peer(here.url, "alice") as alice, Peer(here.url, "carol") as carol:
        bob = await stall(here, "bob")
        (session,) = here.node.hub.by_uid["bob"].values()
        for text in texts:
            await alice.send("team", text)
        await carol.until_heard("team", texts[-1])
        assert session.lagging, "bob was never too slow"
        assert session.port.outbox.waiting_bytes <= 50_000
        bob.socket.transport.resume_reading()
        await bob.until_heard("team", texts[-1], 30)
        assert bob.texts("team") == texts
        await bob.close()


async def test_stalled_flooder_that_vanishes_leaves_no_session(small, here):
    """He asks without reading the answers, until the server waits for room, and goes."""
    await in_thread(make_group, "team", "alice", "bob")
    bob = await stall(here, "bob")
    ping = json.dumps({"id": "x" * 90, "method": "ping"})
    (member,) = here.node.members.values()
    flood = asyncio.create_task(flood_with(bob, ping))
    await eventually(lambda: waits_for_room(member), "the reader to wait for room", 30)
    flood.cancel()
    bob.socket.transport.abort()
    await eventually(lambda: not here.node.members and not here.node.hub.sessions, "bob is gone")
    async with asyncio.timeout(PATIENCE):
        while await in_thread(Session.objects.filter(closed_at=None).exists):
            pass
    row = await in_thread(Session.objects.get)
    assert row.closed_because == "gone without a word"


def waits_for_room(member):
    """Whether the socket takes no more, the outbox is full, and the session's reader waits."""
    return member.wire.paused and not member.outbox.has_room and member.outbox._changed is not None


async def flood_with(peer, frame):
    while True:
        await peer.socket.send(frame)
