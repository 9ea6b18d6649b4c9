"""How a test database is emptied on PostgreSQL, whose triggers refuse TRUNCATE."""

from __future__ import annotations

from typing import Any

from django.db.backends.postgresql.operations import DatabaseOperations

IMPORTED_ROWS = "SET LOCAL session_replication_role = replica;"
"""A superuser's word for rows that are copied from elsewhere: no trigger and no foreign key looks
at them. The tests' own user is one; a deployment's is not."""


def flush_by_delete() -> None:
    """Let `flush` delete rows past the triggers. For the few rows of a test that is faster than
    TRUNCATE, too, and it waits for nobody who still reads."""

    def sql_flush(self: DatabaseOperations, style: Any, tables: Any, **options: Any) -> list[str]:
        deletes = " ".join(f"DELETE FROM {self.quote_name(table)};" for table in tables)
        return [IMPORTED_ROWS + deletes] if tables else []

    DatabaseOperations.sql_flush = sql_flush  # type: ignore[method-assign]
