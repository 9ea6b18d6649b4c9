"""Puts the triggers in place, and tells whether they are there as written.

After each `migrate` they are made those that are written here. Where Django rebuilds a table to
alter it (SQLite) they are dropped before.
"""

from __future__ import annotations

import time
from types import ModuleType
from typing import Any

from django.core.management.base import CommandError
from django.db import OperationalError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from subscriptions.errors import TriggersMissing
from subscriptions.transactions import is_conflict, is_lock_timeout
from subscriptions.triggers import postgresql, sqlite
from subscriptions.triggers.rules import CHANGE, CHANNEL, MEMBERSHIP, RULE

MODULES: dict[str, ModuleType] = {"sqlite": sqlite, "postgresql": postgresql}
TABLES = frozenset({CHANNEL, MEMBERSHIP, CHANGE, RULE})
OUR_APPS = "wukongim_"
"""How the labels begin of the apps whose tables hang together with the triggers'."""

TRY_MS, PAUSE_SECONDS, PATIENCE_SECONDS = 300, 1.0, 60.0
"""What one try waits for the tables, and every writer behind it; then they pass for a second. After
a minute somebody holds them who does not mean to let go. Autovacuum lets go, but not of so short a
try: each other one waits until it does, unless it guards the database from running out of ids."""


def has_tables(connection: BaseDatabaseWrapper) -> bool:
    """Whether the tables are there: not before the first migration, nor on others' databases."""
    return set(connection.introspection.table_names()) >= TABLES


def install(connection: BaseDatabaseWrapper) -> None:
    """Make the triggers those that are written here, in one transaction; nothing if they are.

    Nodes may be writing: they wait for the moment that it takes, and it lets them pass when it
    does not get their tables at once. Raises TriggersMissing, with who holds them, after a minute.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    wait_ms = TRY_MS
    while differing(connection):
        try:
            _create(connection, wait_ms)
        except OperationalError as error:
            if connection.in_atomic_block or not (is_conflict(error) or is_lock_timeout(error)):
                raise
            if time.monotonic() > deadline:
                raise TriggersMissing(_in_the_way(connection)) from error
            time.sleep(PAUSE_SECONDS)
            wait_ms = TRY_MS + (_vacuum_gives_way(connection) if wait_ms == TRY_MS else 0)
        else:
            return


def _create(connection: BaseDatabaseWrapper, wait_ms: int) -> None:
    impatient = connection.vendor == "postgresql" and not connection.in_atomic_block
    with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
        if impatient:
            cursor.execute(f"SET LOCAL lock_timeout = {wait_ms}")
        MODULES[connection.vendor].create(cursor)


def _vacuum_gives_way(connection: BaseDatabaseWrapper) -> int:
    with connection.cursor() as cursor:
        return postgresql.vacuum_gives_way(cursor)


def _in_the_way(connection: BaseDatabaseWrapper) -> str:
    with connection.cursor() as cursor:
        holders = postgresql.holders(cursor)
    return (
        f"The triggers could not be installed within {PATIENCE_SECONDS:.0f} s, since others hold "
        f"the tables: {'; '.join(holders) or 'nobody who can be seen'}. End their transactions "
        "(SELECT pg_terminate_backend(PID) does), then run `manage.py migrate` again. Until then "
        "no node starts."
    )


def remove(connection: BaseDatabaseWrapper) -> None:
    """Drop every trigger of ours, and what belongs to them."""
    with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
        MODULES[connection.vendor].drop(cursor)


def differing(connection: BaseDatabaseWrapper) -> list[str]:
    """Triggers, and what belongs to them, that are not in the database, not as written here, or
    not written here."""
    with connection.cursor() as cursor:
        names: list[str] = MODULES[connection.vendor].differing(cursor)
    return names


def require(connection: BaseDatabaseWrapper) -> None:
    """Raise TriggersMissing unless the triggers are those that are written here."""
    if connection.vendor not in MODULES:
        raise TriggersMissing(
            f"There are no triggers for {connection.vendor}; there are for {', '.join(MODULES)}."
        )
    names = differing(connection)
    if names:
        raise TriggersMissing(
            f"The database lacks triggers, or has others: {', '.join(names)}. "
            "Run `manage.py migrate`, which installs them."
        )


def install_after_migrate(sender: Any, using: str, **kwargs: Any) -> None:
    """`post_migrate`: the tables are as they should be, so the triggers can be."""
    connection = connections[using]
    if connection.vendor not in MODULES:
        return
    if not has_tables(connection):
        remove(connection)  # functions outlive the tables
        return
    try:
        install(connection)
    except TriggersMissing as error:
        raise CommandError(str(error)) from error


def remove_before_migrate(sender: Any, using: str, plan: list[Any], **kwargs: Any) -> None:
    """`pre_migrate`: a trigger that names a table being rebuilt would stop the rebuild.

    Where none of our tables is touched they stay, since nodes may be writing meanwhile.
    """
    # A migration that fails leaves them dropped: `post_migrate` comes after success only. Nodes
    # and commands then refuse to work (`require`) until `migrate` has gone through.
    connection = connections[using]
    touched = any(migration.app_label.startswith(OUR_APPS) for migration, _backwards in plan)
    module = MODULES.get(connection.vendor)
    if touched and module is not None and module.REBUILDS_TABLES:
        remove(connection)
