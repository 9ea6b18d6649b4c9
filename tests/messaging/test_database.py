"""The threads of a node: whose connections they are, and what becomes of one that ends."""

from __future__ import annotations

import pytest
from django.db import OperationalError, connection

from messaging.database import DatabaseThreads
from tests.support.server import NETWORKED

pytestmark = [
    pytest.mark.skipif(not NETWORKED, reason="a file ends no connections"),
    pytest.mark.django_db(transaction=True),
]


@pytest.fixture
async def threads():
    each = DatabaseThreads()
    yield each
    each.close()


def backend():
    """The process that serves this thread's connection."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


def end(pid):
    """End the connection of that process; returns whether it is gone."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        return cursor.fetchone()[0]


def end_own():
    """What breaks under a statement."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


async def test_connection_that_the_server_has_ended_is_replaced_before_the_next_call(threads):
    before = await threads.write(backend)
    assert await threads.read(end, before)
    after = await threads.write(backend)
    assert after != before


async def test_connection_that_breaks_under_a_call_is_replaced_by_the_next(threads):
    before = await threads.write(backend)
    with pytest.raises(OperationalError):
        await threads.write(end_own)
    assert await threads.write(backend) != before


async def test_connection_is_kept_from_call_to_call(threads):
    first = await threads.write(backend)
    assert {await threads.write(backend) for _ in range(5)} == {first}
