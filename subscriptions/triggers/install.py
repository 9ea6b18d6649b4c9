"""Puts the triggers in place, and tells whether they are there as written.

Django rebuilds a table on SQLite to alter it and drops its triggers without a word, so they are
dropped before migrations and created after them.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from subscriptions.errors import TriggersMissing
from subscriptions.triggers import sqlite

MODULES: dict[str, ModuleType] = {"sqlite": sqlite}
TABLES = frozenset({sqlite.CHANNEL, sqlite.MEMBERSHIP, sqlite.CHANGE, sqlite.RULE})
OUR_APPS = "wukongim_"
"""How the labels begin of the apps whose tables hang together with the triggers'."""


def has_tables(connection: BaseDatabaseWrapper) -> bool:
    """Whether the tables are there: not before the first migration, nor on others' databases."""
    return set(connection.introspection.table_names()) >= TABLES


def install(connection: BaseDatabaseWrapper) -> None:
    """Make the triggers those that are written here, in one transaction; nothing if they are."""
    if not differing(connection):
        return
    with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
        remove(connection)
        for sql in MODULES[connection.vendor].TRIGGERS.values():
            cursor.execute(sql)


def remove(connection: BaseDatabaseWrapper) -> None:
    """Drop every trigger of ours, those of another release too: one too many counts twice."""
    with connection.cursor() as cursor:
        for name in _present(connection):
            cursor.execute(MODULES[connection.vendor].DROP.format(name=name))


def differing(connection: BaseDatabaseWrapper) -> list[str]:
    """Names of triggers that are not in the database, not as written here, or not written here."""
    present = _present(connection)
    written = {
        name: " ".join(sql.split()) for name, sql in MODULES[connection.vendor].TRIGGERS.items()
    }
    return [name for name in written | present if present.get(name) != written.get(name)]


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


def _present(connection: BaseDatabaseWrapper) -> dict[str, str]:
    with connection.cursor() as cursor:
        cursor.execute(MODULES[connection.vendor].NAMES)
        return {name: " ".join(sql.split()) for name, sql in cursor.fetchall()}


def install_after_migrate(sender: Any, using: str, **kwargs: Any) -> None:
    """`post_migrate`: the tables are as they should be, so the triggers can be."""
    connection = connections[using]
    if connection.vendor in MODULES and has_tables(connection):
        install(connection)


def remove_before_migrate(sender: Any, using: str, plan: list[Any], **kwargs: Any) -> None:
    """`pre_migrate`: a trigger that names a table being rebuilt would stop the rebuild.

    Where none of our tables is touched they stay, since nodes may be writing meanwhile.
    """
    # A migration that fails leaves them dropped: `post_migrate` comes after success only. Nodes
    # and commands then refuse to work (`require`) until `migrate` has gone through.
    touched = any(migration.app_label.startswith(OUR_APPS) for migration, _backwards in plan)
    if touched and connections[using].vendor in MODULES:
        remove(connections[using])
