"""The sweep alone: nobody rings, nothing checks, and what is new is found all the same."""

from __future__ import annotations

import asyncio

import pytest
from django.db import OperationalError, connection

from messaging.appender import Appender
from messaging.messages import Draft
from subscriptions.bindings import ChannelKey
from subscriptions.models import Finding, Membership
from subscriptions.selectors import changes_after
from tests.support.factories import in_thread, make_group, make_users
from tests.support.peers import PATIENCE, Peer
from tests.support.server import running_server

TEAM = ChannelKey(2, "team")
BOUND = 5.0
"""Seconds within which what nobody rang for must be heard."""


@pytest.fixture(autouse=True)
def only_the_sweep(settings):
    settings.MESSAGING = {"STEPS": ("beat", "sweep")}


def append_elsewhere(text):
    """As another process without a node does: into the log, and no doorbell."""
    Appender().append([Draft(TEAM, "alice", f'{{"type":1,"content":"{text}"}}'.encode())])


def join_by_sql(channel, uid):
    """As a database shell does."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO wukongim_subscriptions_membership (channel_id, uid) VALUES (%s, %s)",
            [channel.pk, uid],
        )


async def test_message_without_a_doorbell_is_heard_and_recorded(here):
    await in_thread(make_group, "team", "alice", "bob")
    async with Peer(here.url, "bob") as bob:
        await here.come_to_rest()  # a look that is under way would find it, and nothing was missed
        await in_thread(append_elsewhere, "nobody rang")
        await bob.until_heard("team", "nobody rang", BOUND)
        async with asyncio.timeout(PATIENCE):
            while not await in_thread(Finding.objects.exists):
                pass
    finding = await in_thread(Finding.objects.get)
    assert (finding.kind, finding.reason) == ("binding_behind", "doorbell")
    assert (finding.from_seq, finding.to_seq, finding.healed_by) == (1, 1, "sweep")


async def test_join_by_sql_to_a_channel_that_the_node_does_not_serve_is_noticed(here):
    channel = await in_thread(make_group, "team", "alice")
    await in_thread(make_users, "bob")

    def join_then_write():
        append_elsewhere("before the join")
        join_by_sql(channel, "bob")
        append_elsewhere("after the join")

    async with Peer(here.url, "bob") as bob:
        await in_thread(join_then_write)
        await bob.until_heard("team", "after the join", BOUND)
        assert bob.texts("team") == ["after the join"]


async def test_stay_that_was_over_before_anybody_noticed_is_owed_and_no_more(here):
    channel = await in_thread(make_group, "team", "alice", "carol")
    await in_thread(make_users, "bob")

    def stay_for_one_message():
        bob = Membership.objects.filter(channel=channel, uid="bob")
        join_by_sql(channel, "bob")
        append_elsewhere("while bob was there")
        bob._raw_delete(bob.db)
        append_elsewhere("after bob left")

    async with Peer(here.url, "bob") as bob, Peer(here.url, "carol") as carol:
        await in_thread(stay_for_one_message)
        await carol.until_heard("team", "after bob left", BOUND)
        await bob.until_heard("team", "while bob was there", BOUND)
        assert bob.texts("team") == ["while bob was there"]


@pytest.mark.parametrize("passed", [False, True])
async def test_look_that_is_under_way_reaches_what_the_sweep_finds_meanwhile(
    transactional_db, settings, monkeypatch, passed
):
    """It began with a lower head, and has yet to read the log, or has read it."""
    settings.MESSAGING = {"STEPS": ("beat",)}
    async with running_server() as here:
        channel = await in_thread(make_group, "team", "alice", "bob")
        async with Peer(here.url, "bob") as bob:
            catch_up, gate = here.node.catch_up, asyncio.Event()
            read = catch_up._catch_up

            async def held(channel):
                if passed:
                    await read(channel)
                await gate.wait()
                if not passed:
                    await read(channel)

            monkeypatch.setattr(catch_up, "_catch_up", held)
            catch_up.look(channel.pk)
            await asyncio.sleep(0)
            await in_thread(append_elsewhere, "meanwhile")
            assert await catch_up.sweep_heads() == [], "who is being fetched for has missed nothing"
            monkeypatch.setattr(catch_up, "_catch_up", read)
            gate.set()
            await bob.until_heard("team", "meanwhile", BOUND)


@pytest.mark.parametrize("failing", [False, True])
async def test_sweeps_that_are_asked_for_while_one_runs_are_one(
    transactional_db, settings, monkeypatch, failing
):
    """It sees what came after the log was read for the first; where it fails, the next is made."""
    settings.MESSAGING = {"STEPS": ("beat",)}
    async with running_server() as here:
        channel = await in_thread(make_group, "team", "alice")
        await in_thread(make_users, "bob")
        reading, gate, reads = asyncio.Event(), asyncio.Event(), []
        read, sweep = here.node.database.read, here.node.catch_up.sweep_changes

        async def held(question, *args):
            answer = await read(question, *args)
            if question is changes_after:
                reads.append(args)
                reading.set()
                if len(reads) == 1:
                    await gate.wait()
                if len(reads) == 2 and failing:
                    raise OperationalError
            return answer

        async with Peer(here.url, "bob") as bob:
            await here.come_to_rest()
            monkeypatch.setattr(here.node.database, "read", held)
            first = asyncio.create_task(sweep())
            await reading.wait()
            await in_thread(join_by_sql, channel, "bob")
            others = [asyncio.create_task(sweep()) for _ in range(3)]
            await asyncio.sleep(0)
            gate.set()
            failures = await asyncio.gather(first, *others, return_exceptions=True)
            assert [type(each) for each in failures if each] == [OperationalError] * failing
            assert len(reads) == 2 + failing
            assert [s.uid for s in here.node.hub.groups[channel.pk].bindings] == [bob.uid]
