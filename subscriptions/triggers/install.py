"""Puts the triggers in place, and tells whether they are there as written.

Django rebuilds a table on SQLite to alter it and drops its triggers without a word, so they are
dropped before migrations and created after them, every time.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from subscriptions.triggers import sqlite

MODULES: dict[str, ModuleType] = {"sqlite": sqlite}


def install(connection: BaseDatabaseWrapper) -> None:
    """Create every trigger anew. Running it twice changes nothing."""
    module = MODULES[connection.vendor]
    with connection.cursor() as cursor:
        for name, sql in module.TRIGGERS.items():
            cursor.execute(module.DROP.format(name=name))
            cursor.execute(sql)


def remove(connection: BaseDatabaseWrapper) -> None:
    """Drop every trigger, so that a migration can rebuild the tables."""
    module = MODULES[connection.vendor]
    with connection.cursor() as cursor:
        for name in module.TRIGGERS:
            cursor.execute(module.DROP.format(name=name))


def missing(connection: BaseDatabaseWrapper) -> list[str]:
    """Names of triggers that are not in the database, or not as written here."""
    module = MODULES.get(connection.vendor)
    if module is None:
        return []
    with connection.cursor() as cursor:
        cursor.execute(module.NAMES)
        present = {name: " ".join(sql.split()) for name, sql in cursor.fetchall()}
    return [
        name for name, sql in module.TRIGGERS.items() if present.get(name) != " ".join(sql.split())
    ]


def install_after_migrate(sender: Any, using: str, **kwargs: Any) -> None:
    """`post_migrate`: the tables are as they should be, so the triggers can be."""
    if connections[using].vendor in MODULES:
        install(connections[using])


def remove_before_migrate(sender: Any, using: str, **kwargs: Any) -> None:
    """`pre_migrate`: a trigger that names a table being rebuilt would stop the rebuild."""
    if connections[using].vendor in MODULES:
        remove(connections[using])
