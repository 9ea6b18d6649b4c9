"""Changes of the database that are made anew when something was in their way.

PostgreSQL names its errors by SQLSTATE (its manual, appendix A); psycopg gives a connection that
broke none. SQLite's errors have no such name: none of them passes by itself here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from django.db import (
    DEFAULT_DB_ALIAS,
    Error,
    InterfaceError,
    OperationalError,
    connections,
    transaction,
)

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

DEADLOCK, SERIALIZATION, LOCK_NOT_AVAILABLE = "40P01", "40001", "55P03"
CONNECTION_CLASSES = ("08", "57P", "25P03")
"""A connection that failed; a server that shuts down, or starts, or ended this session, one that
was frozen in a transaction among them."""

NO_SQLSTATE = "none"

IMPATIENT = 4
"""Attempts that give up what they hold before they wait for long; the next one waits."""

PATIENCE_MS, LAST_MS = 300, 10_000
"""What one of those waits for a lock, and the last one. PostgreSQL looks for a deadlock after 1 s
of waiting: until then one side has let go, and the other, which may be somebody's own SQL, goes on
unharmed. Whoever still waits after all of that is told so: requests that wait hold connections."""


def transact(change: Callable[[], Result], using: str = DEFAULT_DB_ALIAS) -> Result:
    """Run `change` in a transaction. On PostgreSQL it is run again, a few times at most, when it
    has lost a deadlock, met a later snapshot, or held its rows for long while it waited for others.

    Raises OperationalError where somebody holds a row for longer than all of that (10 s at last).
    Inside a transaction of the caller's it is run once: only the whole can be tried again.
    """
    connection = connections[using]
    if connection.in_atomic_block or connection.vendor != "postgresql":
        with transaction.atomic(using=using):
            return change()
    for attempt in range(1, IMPATIENT + 2):
        last = attempt > IMPATIENT
        try:
            with transaction.atomic(using=using):
                with connection.cursor() as cursor:
                    cursor.execute(f"SET LOCAL lock_timeout = {LAST_MS if last else PATIENCE_MS}")
                return change()
        except OperationalError as error:
            if last or not (is_conflict(error) or is_lock_timeout(error)):
                raise
            fields = {"attempt": attempt, "error": str(error).partition("\n")[0]}
            logger.info("transaction.retried", extra=fields)
    raise AssertionError("unreachable")


def is_conflict(error: Error) -> bool:
    """Whether another transaction was preferred: this one did nothing, and would do next time."""
    return _sqlstate(error) in (DEADLOCK, SERIALIZATION)


def is_lock_timeout(error: Error) -> bool:
    """Whether a row was held by somebody else for longer than was waited."""
    return _sqlstate(error) == LOCK_NOT_AVAILABLE


def is_transient(error: Error) -> bool:
    """Whether trying again may succeed. After a lost connection nobody knows whether a commit got
    through: whoever tries again must look first."""
    state = _sqlstate(error)
    if state is None:  # psycopg's own: the connection's end, but also data that it cannot send
        return isinstance(error, OperationalError | InterfaceError)
    return is_conflict(error) or state.startswith(CONNECTION_CLASSES)


def _sqlstate(error: Error) -> str | None:
    return getattr(error.__cause__, "sqlstate", NO_SQLSTATE)
