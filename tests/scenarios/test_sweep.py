"""The sweep alone: nobody rings, nothing checks, and what is new is found all the same."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from django.db import InterfaceError, OperationalError, connection

from messaging.appender import Appender
from messaging.message_table import heads_after
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


@pytest.mark.parametrize("held_at", ["_learn", "_catch_up"])
async def test_look_that_is_under_way_reaches_what_the_sweep_finds_meanwhile(
    transactional_db, settings, monkeypatch, held_at
):
    """It knows of a lower head, and has yet to ask who is behind, or asks no more."""
    settings.MESSAGING = {"STEPS": ("beat",)}
    async with running_server() as here:
        channel = await in_thread(make_group, "team", "alice", "bob")
        async with Peer(here.url, "bob") as bob:
            await here.come_to_rest()
            catch_up, held, gate = here.node.catch_up, asyncio.Event(), asyncio.Event()
            step = getattr(catch_up, held_at)

            async def hold(channel):
                await step(channel)
                held.set()
                await gate.wait()

            monkeypatch.setattr(catch_up, held_at, hold)
            catch_up.look(channel.pk)
            await held.wait()
            await in_thread(append_elsewhere, "meanwhile")
            assert await catch_up.sweep_heads() == [], "who is being fetched for has missed nothing"
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


async def test_sweep_that_is_taken_up_in_the_middle_sees_what_came_since(
    transactional_db, settings, monkeypatch
):
    """It has read a page of what was there, and ended: the next one reads the rest of that, and
    then what is there now. Whoever asked for it counts on that."""
    settings.MESSAGING = {"STEPS": ("beat",), "CHANGE_PAGE": 1}
    async with running_server() as here:
        channel = await in_thread(make_group, "team", "alice")
        other = await in_thread(make_group, "other", "alice")
        await in_thread(make_users, "bob", "carol", "dave")
        catch_up, failed = here.node.catch_up, []
        sweep_channel = catch_up._sweep_channel

        async def fail_once(*args):
            if not failed:
                failed.append(args)
                raise OperationalError
            await sweep_channel(*args)

        async with Peer(here.url, "bob") as bob, Peer(here.url, "carol"), Peer(here.url, "dave"):
            await here.come_to_rest()
            monkeypatch.setattr(catch_up, "_sweep_channel", fail_once)
            for uid in ("carol", "dave"):
                await in_thread(join_by_sql, channel, uid)
            with pytest.raises(OperationalError):
                await catch_up.sweep_changes()
            await in_thread(join_by_sql, other, bob.uid)
            await catch_up.sweep_changes()
            groups = here.node.hub.groups
            assert {each.uid for each in groups[channel.pk].bindings} == {"carol", "dave"}
            assert {each.uid for each in groups[other.pk].bindings} == {"bob"}


async def test_mark_that_is_lowered_while_the_log_is_read_stays_low(
    transactional_db, settings, monkeypatch
):
    """After a restore: what gets the same numbers again is read again."""
    settings.MESSAGING = {"STEPS": ("beat",)}
    async with running_server() as here:
        channel = await in_thread(make_group, "team", "alice", "bob")
        await here.come_to_rest()
        catch_up, read, swept = here.node.catch_up, here.node.database.read, []
        before = catch_up._change_mark, catch_up._message_mark
        await in_thread(append_elsewhere, "one")
        await in_thread(join_by_sql, channel, "carol")

        async def lower(question, *args):
            answer = await read(question, *args)
            if question is changes_after and not swept:
                catch_up._change_mark = replace(before[0])
            if question is changes_after:
                swept.append(len(answer[0]))
            if question is heads_after:
                catch_up._message_mark = replace(before[1])
            return answer

        monkeypatch.setattr(here.node.database, "read", lower)
        await catch_up.sweep_changes()
        assert swept == [1, 1], "the line is read once more"
        await catch_up.sweep_heads()
        assert catch_up._message_mark == before[1]


@pytest.mark.parametrize("error", [OperationalError, InterfaceError, ValueError])
async def test_channel_that_cannot_be_swept_is_owed_and_keeps_none_beside_it_from_that(
    transactional_db, settings, monkeypatch, error
):
    """Where it is the database it is swept later; else nothing would come of it later either."""
    settings.MESSAGING = {"STEPS": ("beat",), "DATABASE_THREADS": 2}
    async with running_server() as here:
        channels = [await in_thread(make_group, name, "alice") for name in ("a", "b", "c", "d")]
        await in_thread(make_users, "bob")
        catch_up = here.node.catch_up
        sweep_channel, bad = catch_up._sweep_channel, [channels[1].pk]

        async def fail_once(channel, floor):
            if channel in bad:
                bad.remove(channel)
                raise error
            await sweep_channel(channel, floor)

        def bound():
            groups = here.node.hub.groups
            return [name for name, each in zip("abcd", channels, strict=True) if each.pk in groups]

        async with Peer(here.url, "bob"):
            await here.come_to_rest()
            monkeypatch.setattr(catch_up, "_sweep_channel", fail_once)
            for channel in channels:
                await in_thread(join_by_sql, channel, "bob")
            if error is ValueError:
                await catch_up.sweep_changes()
                assert bound() == ["a", "c", "d"]
                return
            with pytest.raises(error):
                await catch_up.sweep_changes()
            assert bound() == ["a"]
            await catch_up.sweep_changes()
            assert bound() == ["a", "b", "c", "d"]
