"""B1, O2 to O4 on a server as it runs: tables, layer, book and health are the real ones."""

from __future__ import annotations

import random
import time
from contextlib import AsyncExitStack
from dataclasses import replace

import httpx
import pytest

from messaging import metrics
from subscriptions.audit import MANY
from subscriptions.models import Channel, Finding, Membership
from tests.invariants.garbage import scramble
from tests.support.factories import in_thread, make_group, make_users
from tests.support.layers import lose_group, subscribed
from tests.support.peers import Peer
from tests.support.seeds import replayed_by, seeds
from tests.support.server import API_TOKEN
from tests.support.waiting import eventually

ROOMS = 8
UIDS = ["ann", "ben", "cat", "dan", "eve"]
FRESH = 2.0


@pytest.fixture(autouse=True)
def quick(settings):
    """Each tick is a whole round of the check."""
    settings.MESSAGING = {"TICK_SECONDS": 0.2, "BEHIND_GRACE": 0.05, "CHECK_TICKS": 1}
    settings.SUBSCRIPTIONS = {"CHECK_FRESH_SECONDS": FRESH}


async def test_garbage_in_a_live_node_gives_way_to_what_the_database_says(request, here):
    """B1."""
    [seed] = seeds(1)
    die = random.Random(seed)
    with replayed_by(request, seed):
        await in_thread(make_users, *UIDS)
        rooms = {f"room{n}": die.sample(UIDS, die.randint(1, 4)) for n in range(ROOMS)}
        for room, members in rooms.items():
            await in_thread(make_group, room, *members)
        async with AsyncExitStack() as stack:
            peers = {uid: await stack.enter_async_context(Peer(here.url, uid)) for uid in UIDS}
            for room, members in rooms.items():
                await peers[members[0]].send(room, "before")
            owed = await in_thread(memberships)
            fill_with_garbage(here.node, die, await in_thread(channels))
            await eventually(lambda: held(here.node) == owed, "the tables to be true again")
            names = {group.name for group in here.node.hub.groups.values()}
            await eventually(lambda: names <= subscribed(here.node.layer), "the layer to be whole")
            for room, members in rooms.items():
                await peers[members[0]].send(room, "after")
                for uid in members[1:]:
                    await peers[uid].until_heard(room, "after")
            for uid, peer in peers.items():
                for room, members in rooms.items():
                    others = members[1:]
                    assert peer.texts(room).count("after") == (uid in others), (uid, room)


def memberships():
    """{(channel, uid): (version of the join, head)} of the database."""
    rows = Membership.objects.filter(uid__in=UIDS).select_related("channel")
    return {(row.channel_id, row.uid): (row.joined_version, row.channel.last_seq) for row in rows}


def channels():
    """(pk, version, head) of each channel."""
    return list(Channel.objects.values_list("pk", "membership_version", "last_seq"))


def held(node):
    """{(channel, uid): (version of the join, position)} where all tables agree that it may hear."""
    return {
        (pk, session.uid): (group.bindings[session].joined_version, session.heard[pk])
        for session in node.hub.sessions.values()
        for pk, group in session.bindings.items()
        if node.hub.groups.get(pk) is group
        and session in group.bindings
        and group.bindings[session].is_open
        and pk in session.heard
    }


def fill_with_garbage(node, die, rows):
    """Every table gets any content; groups vanish from the hub, and from the layer."""
    sessions = list(node.hub.sessions.values())
    for pk, version, head in rows:
        group = node.hub.groups.get(pk)
        if group is None:
            continue
        for session in sessions:
            scramble(die, group, session, version, head)
        if die.random() < 0.3:
            lose_group(node.layer, group.name)
        if die.random() < 0.3:
            del node.hub.groups[pk]


async def test_loss_of_a_whole_hub_is_mended_and_leaves_one_record(here):
    """O2, O3: one row that counts, not one for each binding."""
    rooms = [f"room{n}" for n in range(MANY + 10)]
    for room in rooms:
        await in_thread(make_group, room, "ann", "ben")
    async with Peer(here.url, "ann") as ann, Peer(here.url, "ben") as ben:
        hub = here.node.hub
        bindings = hub.binding_count
        assert bindings == 2 * len(rooms)
        for group in hub.groups.values():
            group.bindings.clear()
        for session in hub.sessions.values():
            session.bindings.clear()
        await eventually(lambda: hub.binding_count == bindings, "all bindings to be back")
        await until(lambda: Finding.objects.filter(healed_by="check").exists())
        await ann.send(rooms[0], "after")
        await ben.until_heard(rooms[0], "after")
    [finding] = await in_thread(lambda: list(Finding.objects.all()))
    assert (finding.kind, finding.memberships) == ("missing_group_binding", bindings)
    assert finding.healed_at is not None


async def until(question):
    """Ask the database until it says yes."""
    deadline = time.monotonic() + 10
    while not await in_thread(question):
        assert time.monotonic() < deadline, "waited in vain"


async def test_check_that_stops_is_shown_to_be_old(here):
    """O4: what nobody looks at is unchecked, however healthy it was."""
    await in_thread(make_group, "room", "ann")
    async with Peer(here.url, "ann"):
        await until_state(here, "healthy")
        before = metrics.LAST_CHECK._value.get()
        assert 0 <= time.time() - before < FRESH
        steps = tuple(step for step in here.node.conf.steps if step != "check")
        here.node.conf = replace(here.node.conf, steps=steps)
        health = await until_state(here, "unchecked")
        [node] = health["nodes"]
        assert node["last_check_age_seconds"] > FRESH
        assert (node["bindings_held"], node["silent"]) == (1, False)
        stopped = metrics.LAST_CHECK._value.get()
        assert time.time() - stopped > FRESH
        here.node.conf = replace(here.node.conf, steps=(*steps, "check"))
        await until_state(here, "healthy")
        assert metrics.LAST_CHECK._value.get() > stopped


async def until_state(here, state):
    """Ask for the health until it is so; returns all that it says."""
    headers = {"token": API_TOKEN}
    async with httpx.AsyncClient(base_url=here.http, trust_env=False, headers=headers) as client:
        deadline = time.monotonic() + 10
        while True:
            health = (await client.get("/subscriptions/health")).json()
            if health["state"] == state:
                return health
            assert time.monotonic() < deadline, health
