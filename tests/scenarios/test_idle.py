"""A node with nothing to do: what it asks the database, as PostgreSQL counts it."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
from django.db import connection

from tests.support.factories import in_thread, make_group
from tests.support.peers import Peer
from tests.support.server import NETWORKED, running_server
from tests.support.waiting import eventually

pytestmark = pytest.mark.skipif(not NETWORKED, reason="SQLite counts nobody's statements")

TICK = 0.2
ROUNDS = 10
EACH_TICK = 8
"""Statements a tick that are promised: 4 a second, where 5 are allowed, since a round has some."""


def execute(statement):
    """The rows of a statement, if it has any."""
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def asked():
    """{statement: how often} since the reset."""
    return dict(
        execute(
            "SELECT query, calls FROM pg_stat_statements WHERE query !~ 'pg_stat_statements'"
            " AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
    )


@pytest.mark.django_db(transaction=True)
async def test_idle_node_asks_eight_things_a_tick_and_each_once(settings):
    settings.MESSAGING = {"TICK_SECONDS": TICK, "ANSWER_SECONDS": TICK}
    await in_thread(execute, "CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
    for name in ("one", "other"):
        await in_thread(make_group, name, "alice", "bob")
    async with running_server() as here, AsyncExitStack() as stack:
        for uid in ("alice", "bob"):
            await stack.enter_async_context(Peer(here.url, uid))
        tick = here.node.tick
        first = tick.rounds + 2
        await eventually(lambda: tick.rounds >= first, "a whole round with both")
        await in_thread(execute, "SELECT pg_stat_statements_reset()")
        began = tick.rounds
        await eventually(lambda: tick.rounds >= began + ROUNDS, "rounds of silence", 60)
        calls = await in_thread(asked)
        ticks = (tick.rounds - began) * here.node.conf.check_ticks
    often = [text for text, count in calls.items() if count > ticks * 0.7]
    assert len(often) <= EACH_TICK, often
    assert max(calls.values()) <= ticks * 1.5, calls  # beats and polls do not wait for the steps
    assert "SELECT $1" not in calls  # a look whether the connection works
