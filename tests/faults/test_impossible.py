"""Faults that have no place here to begin in, and what each of them would look like if it had."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from contextlib import AsyncExitStack

import pytest
from asgiref.sync import async_to_sync
from django.apps import apps

from subscriptions import services
from subscriptions.bindings import ChannelKey
from tests.faults.proxy import Proxy
from tests.support.factories import in_thread, make_group, make_users
from tests.support.peers import Peer
from tests.support.server import ServerProcess
from tests.support.waiting import eventually

TEAM = ChannelKey(2, "team")


async def test_repeated_and_present_uids_hide_nobody_behind_them(here):
    """F07. Each uid of a list is a row of its own: [a, a, b], then [one who is there, c]."""
    await in_thread(make_users, "ann", "ben", "cat", "dan")
    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(Peer(here.url, uid)) for uid in
                 ("ann", "ben", "cat", "dan")]  # fmt: skip
        for uids in (["ann", "ann", "", "ben"], ["ben", "cat", "cat", "dan"]):
            body = {"channel_id": "team", "channel_type": 2, "subscribers": uids}
            await here.post("/channel/subscriber_add", **body)
        body = {"channel_id": "team", "channel_type": 2, "payload": "eyJjb250ZW50IjoiaGkifQ=="}
        await here.post("/message/send", **body)
        for peer in peers:
            await peer.until_heard("team", "hi")


def test_what_a_reader_keeps_is_in_one_row():
    """F17. There is no list of conversations that could differ from the memberships, and no number
    of unread messages: both are worked out from the head and one row, in one statement."""
    kept = {
        (model.__name__, field.name)
        for name in ("wukongim_subscriptions", "wukongim_messaging")
        for model in apps.get_app_config(name).get_models()
        for field in model._meta.get_fields()
        if "seq" in field.name or "unread" in field.name
    }
    assert kept == {
        ("Channel", "last_seq"),
        ("Membership", "joined_seq"), ("Membership", "read_seq"), ("Membership", "hidden_seq"),
        ("Membership", "command_seq"), ("Membership", "command_offered_seq"),
        ("MembershipChange", "seq"), ("Message", "seq"), ("MessageEvent", "seq"),
        ("Finding", "from_seq"), ("Finding", "to_seq"),
    }  # fmt: skip


async def test_sockets_that_come_and_go_never_get_what_another_was_sent(here):
    """F27. A frame goes to the socket that its session was opened by, whatever number the system
    gave that socket: each of six clients has a room of its own, and reconnects in the midst of its
    messages."""
    uids = [f"u{number}" for number in range(6)]
    for uid in uids:
        await in_thread(make_group, f"room-of-{uid}", uid)
    ending = asyncio.Event()

    async def write():
        body = {"channel_type": 2, "payload": "eyJjb250ZW50IjoiaGkifQ=="}
        while not ending.is_set():
            posts = (
                here.post("/message/send", channel_id=f"room-of-{uid}", **body) for uid in uids
            )
            await asyncio.gather(*posts)

    async def come_and_go(uid):
        heard = 0
        for _ in range(10):
            async with Peer(here.url, uid) as peer:
                await peer.until(lambda peer=peer: bool(peer.heard))
                assert peer.heard.keys() == {f"room-of-{uid}"}
                heard += len(peer.heard[f"room-of-{uid}"])
        return heard

    writing = asyncio.create_task(write())
    heard = await asyncio.gather(*(come_and_go(uid) for uid in uids))
    ending.set()
    await writing
    assert min(heard) >= 10


async def test_threads_publish_through_the_node_and_its_loop_alone(here):
    """F48. Twenty threads, each with an event loop of its own, change memberships at once: the one
    layer of the process is used by the node's loop only, and everybody is heard of."""
    uids = [f"u{number}" for number in range(20)]
    await in_thread(make_group, "team", "ann")
    await in_thread(make_users, *uids)
    threads = set()
    publish = here.node.layer.publish

    def watched(group, event):
        threads.add(threading.get_ident())
        return publish(group, event)

    here.node.layer.publish = watched
    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(Peer(here.url, uid)) for uid in uids]

        async def join(uid):
            await in_thread(services.join, TEAM, [uid], actor="test")

        await asyncio.gather(*(asyncio.to_thread(async_to_sync(join), uid) for uid in uids))
        async with Peer(here.url, "ann") as ann:
            await ann.send("team", "hi")
            for peer in peers:
                await peer.until_heard("team", "hi")
    assert threads == {threading.get_ident()}


class ShortPings(ServerProcess):
    """`manage.py serve` that pings each three seconds."""

    @property
    def _arguments(self) -> list[str]:
        _, *command = super()._arguments
        code = (
            "import sys, django; django.setup();"
            "from messaging import serving; from django.core import management;"
            "serving.PING_INTERVAL = 3;"
            "management.execute_from_command_line(['manage.py', *sys.argv[1:]])"
        )
        return ["-c", code, *command]


def closed(server):
    """The sessions that have ended, as the server logged it."""
    return [line for line in server.log_text().splitlines() if '"session.closed"' in line]


@pytest.fixture
def short_pings():
    with ShortPings() as server:
        yield server


async def test_server_that_stood_still_reads_the_answers_to_its_pings_first(short_pings):
    """F24. Its clock has run past every limit when it goes on, while the answers wait in its
    sockets: nobody is closed for a silence that was the server's own."""
    uids = [f"u{number}" for number in range(20)]
    for uid in uids:
        short_pings.make_user(uid)
    short_pings.make_group("team", *uids)
    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(Peer(short_pings.url, uid)) for uid in uids]
        await asyncio.sleep(3.5)  # the interval: everybody has been pinged
        os.kill(short_pings.pid, signal.SIGSTOP)
        await asyncio.sleep(7)  # longer than until the next ping and the one after it
        os.kill(short_pings.pid, signal.SIGCONT)
        await peers[0].send("team", "hi")
        for peer in peers[1:]:
            await peer.until_heard("team", "hi")
        assert not any(peer.reader.done() for peer in peers)
    with Proxy(short_pings.port) as proxy:  # as a client whose answers really do not come is
        eve = Peer(short_pings.url.replace(str(short_pings.port), str(proxy.port)), uids[0])
        await eve.open()
        with proxy.swallowing():
            await eventually(lambda: len(closed(short_pings)) > len(uids), "eve to be closed")
        await eve.close()
