"""Which failures pass by themselves, so that the same work may be tried again."""

from __future__ import annotations

import pytest
from django.db import DatabaseError, connection

from subscriptions.transactions import is_conflict, is_lock_timeout, is_transient
from tests.support.server import NETWORKED

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(not NETWORKED, reason="SQLite's errors have no names to judge by"),
]


def failure(sql, params=None):
    with pytest.raises(DatabaseError) as caught, connection.cursor() as cursor:
        cursor.execute(sql, params)
    connection.close()
    return caught.value


def test_lost_connection_passes():
    error = failure("SELECT pg_terminate_backend(pg_backend_pid())")
    assert is_transient(error)
    assert not is_conflict(error)


def test_data_that_cannot_be_sent_is_no_lost_connection():
    assert not is_transient(failure("SELECT %s", ["a\0b"]))


@pytest.mark.parametrize(
    ("sqlstate", "transient", "conflict", "lock"),
    [
        ("40P01", True, True, False),
        ("40001", True, True, False),
        ("57P05", True, False, False),
        ("55P03", False, False, True),
        ("22003", False, False, False),
    ],
)
def test_errors_are_judged_by_their_names(sqlstate, transient, conflict, lock):
    raising = f"DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{sqlstate}'; END $$"
    error = failure(raising)
    assert (is_transient(error), is_conflict(error)) == (transient, conflict)
    assert is_lock_timeout(error) is lock
