"""The database changes under a running node in ways that no door allows: it is noticed, and the
node lives on."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3

import pytest
from django.db import connection, transaction

from messaging.models import Node
from subscriptions import audits, services
from subscriptions.bindings import ChannelKey
from subscriptions.models import Finding
from tests.support.factories import in_thread, make_group
from tests.support.peers import Peer
from tests.support.server import NETWORKED
from tests.support.waiting import PATIENCE, eventually


@pytest.fixture(autouse=True)
def quick(settings):
    settings.MESSAGING = {"TICK_SECONDS": 0.5, "BEHIND_GRACE": 0.1}


@contextlib.contextmanager
def shell():
    """The database file, as another program opens it."""
    with contextlib.closing(sqlite3.connect(connection.settings_dict["NAME"])) as other:
        yield other
        other.commit()


async def until_found(**what):
    """Wait until there is such a finding, and return it."""
    async with asyncio.timeout(PATIENCE):
        while (found := await in_thread(Finding.objects.filter(**what).first)) is None:
            pass
    return found


def run(*statements):
    """Run statements as somebody who knows no foreign key, nor on PostgreSQL any trigger."""
    if NETWORKED:
        with transaction.atomic(), connection.cursor() as cursor:
            for statement in ("SET LOCAL session_replication_role = replica", *statements):
                cursor.execute(statement)
        return
    with shell() as other:
        other.execute("PRAGMA foreign_keys = OFF")
        for statement in statements:
            other.execute(statement)


def delete_channel(pk):
    run(
        f"DELETE FROM wukongim_subscriptions_membership WHERE channel_id = {pk}",
        f"DELETE FROM wukongim_subscriptions_channel WHERE id = {pk}",
    )


async def test_deleted_channel_is_let_go_and_the_check_goes_on(here, caplog):
    channel = await in_thread(make_group, "room", "alice", "bob")
    async with Peer(here.url, "alice") as alice, Peer(here.url, "bob") as bob:
        await alice.send("room", "hello")
        await bob.until_heard("room", "hello")
        await in_thread(delete_channel, channel.pk)
        await eventually(lambda: channel.pk not in here.node.hub.groups, "the group to go")
        found = await until_found(kind="stray_group_binding", healed_at__isnull=False)
        assert (found.channel, found.detail) == (None, f"channel row {channel.pk} is gone")
        rounds = here.node.tick.rounds
        await eventually(lambda: here.node.tick.rounds > rounds + 1, "another round")
        asked = await in_thread(audits.request_audit)
        assert (await in_thread(audits.wait, asked)).status == "done"
        await alice.send("bob", "still there?", kind=1)
        await bob.until_heard("alice", "still there?")
    assert "tick.failed" not in {record.message for record in caplog.records}


@pytest.mark.skipif(
    NETWORKED, reason="PostgreSQL is restored into another database: its nodes start anew"
)
async def test_restored_database_is_noticed_and_what_comes_is_heard(here, tmp_path):
    """Its heads and versions are lower than what the node holds: it would wait for ever."""
    await in_thread(make_group, "room", "alice", "bob")

    def copy(restore):
        with shell() as other, contextlib.closing(sqlite3.connect(tmp_path / "backup")) as backup:
            backup.backup(other) if restore else other.backup(backup)

    async with Peer(here.url, "alice") as alice, Peer(here.url, "bob") as bob:
        await alice.send("room", "kept")
        await bob.until_heard("room", "kept")
        await in_thread(copy, restore=False)
        for number in range(5):
            await alice.send("room", f"lost {number}")
        await bob.until_heard("room", "lost 4")
        await in_thread(copy, restore=True)
        found = await until_found(kind="missing_group_binding", reason="ahead")
        assert found.healed_by in ("check", "")
        await until_found(reason="ahead", healed_at__isnull=False)
        assert (await alice.send("room", "new"))["result"]["messageSeq"] == 2
        await bob.until_heard("room", "new")
        await in_thread(services.join, ChannelKey(2, "other"), ["alice", "bob"], actor="test")
        await alice.send("other", "in a new room")
        await bob.until_heard("other", "in a new room")


async def test_deleted_node_row_comes_back_with_its_sessions(here):
    await in_thread(make_group, "room", "alice", "bob")
    async with Peer(here.url, "alice") as alice, Peer(here.url, "bob") as bob:
        await in_thread(
            run, "DELETE FROM wukongim_messaging_session", "DELETE FROM wukongim_messaging_node"
        )
        async with asyncio.timeout(PATIENCE):
            while not await in_thread(Node.objects.filter(session_rows__uid="bob").exists):
                pass
        async with Peer(here.url, "alice", deviceId="other") as other:
            await other.send("room", "hello")
            await bob.until_heard("room", "hello")
            await alice.until_heard("room", "hello")
