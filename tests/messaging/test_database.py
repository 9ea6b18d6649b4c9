"""The threads of a node: whose connections they are, and what becomes of one that ends."""

from __future__ import annotations

import asyncio
import time

import pytest
from django.db import OperationalError, connection

from messaging import database
from messaging.conf import conf
from messaging.database import DatabaseThreads
from tests.support.factories import in_thread, make_group
from tests.support.peers import Peer
from tests.support.server import NETWORKED, running_server
from tests.support.services import frozen
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.django_db(transaction=True)
connected = pytest.mark.skipif(not NETWORKED, reason="a file ends no connections")


@pytest.fixture
async def threads():
    each = DatabaseThreads()
    yield each
    each.close()


@pytest.fixture
async def watched(settings, monkeypatch):
    """Threads that are hung up on after 0.6 s, or 0.3, of a statement that nobody answers."""
    settings.MESSAGING = {"LEASE_SECONDS": 0.6}
    monkeypatch.setattr(database, "WATCH_SECONDS", 0.05)
    each = DatabaseThreads()
    watching = asyncio.create_task(each.watch())
    yield each
    assert not watching.done()
    watching.cancel()
    each.close()


def backend(seconds=0):
    """The process that serves this thread's connection, which takes so long to say so."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid(), pg_sleep(%s)", [seconds])
        return cursor.fetchone()[0]


def backend_in_the_end():
    """The same, after statements that take longer together than one may."""
    return [backend(0.05) for _ in range(20)].pop()


def served_by():
    """What this thread's connection is, as the database's library has it."""
    connection.ensure_connection()
    return connection.connection


def others():
    """The processes that serve all other connections to this database."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pid FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        return [pid for (pid,) in cursor.fetchall()]


def end(pid):
    """End the connection of that process; returns whether it is gone."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        return cursor.fetchone()[0]


def end_own():
    """What breaks under a statement."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


@connected
async def test_connection_that_the_server_has_ended_is_replaced_before_the_next_call(threads):
    before = await threads.write(backend)
    assert await threads.read(end, before)
    after = await threads.write(backend)
    assert after != before


@connected
async def test_connection_that_breaks_under_a_call_is_replaced_by_the_next(threads):
    before = await threads.write(backend)
    with pytest.raises(OperationalError):
        await threads.write(end_own)
    assert await threads.write(backend) != before


@connected
async def test_connection_is_kept_from_call_to_call(threads):
    first = await threads.write(backend)
    assert {await threads.write(backend) for _ in range(5)} == {first}


@connected
@pytest.mark.parametrize("kind", ["read", "write", "beat", "append", "append_slowly"])
async def test_statement_that_nobody_answers_fails_and_its_thread_has_another_connection(
    watched, kind, caplog
):
    ask = getattr(watched, kind)
    pids = set(await asyncio.gather(*(ask(backend, 0.1) for _ in range(conf().database_threads))))
    assert len(pids) == (conf().database_threads if kind == "read" else 1)
    with frozen(pids):
        async with asyncio.timeout(PATIENCE):
            answers = await asyncio.gather(*(ask(backend) for _ in pids), return_exceptions=True)
        assert {type(each) for each in answers} == {OperationalError}
        assert await ask(backend) not in pids
    assert {each.message for each in caplog.records} == {"database.hung_up"}


@connected
async def test_statements_that_are_answered_may_take_as_long_as_they_like_together(watched):
    before = await watched.write(backend)
    assert await watched.write(backend_in_the_end) == before


async def test_thread_that_works_is_left_alone_however_long_it_takes(watched):
    before = await watched.write(served_by)
    await watched.write(time.sleep, 1.0)
    assert await watched.write(served_by) is before


@connected
async def test_node_whose_connections_have_all_frozen_serves_again_by_itself(
    settings, monkeypatch, transactional_db
):
    settings.MESSAGING = {"TICK_SECONDS": 0.3, "LEASE_SECONDS": 1.2, "BEHIND_GRACE": 0.1}
    monkeypatch.setattr(database, "WATCH_SECONDS", 0.2)
    async with running_server() as server:
        await in_thread(make_group, "team", "alice", "bob")
        async with Peer(server.url, "alice") as alice, Peer(server.url, "bob") as bob:
            await alice.send("team", "before")
            await bob.until_heard("team", "before")
            with frozen(await in_thread(others)):
                await alice.send("team", "during")
                await alice.send("team", "after")
                await bob.until_heard("team", "after")
                await eventually(lambda: server.node.ready, "another connection keeps the lease")
