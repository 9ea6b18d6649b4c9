"""A list of rows as a table in plain SQL: how one statement asks about many things at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from django.db import connection


def locks_rows() -> bool:
    """Whether transactions hold single rows; on SQLite one holds the whole database."""
    return connection.vendor == "postgresql"


def wanted_rows(columns: Mapping[str, str], rows: Iterable[Sequence[Any]]) -> tuple[str, list[Any]]:
    """A table expression `wanted` of these rows, at least one, and its parameters. `columns`: their
    names, with their types on PostgreSQL, which takes a list for each, whatever there is."""
    listed = list(rows)
    head = f"WITH wanted ({', '.join(columns)}) AS"
    if locks_rows():
        arrays = ", ".join(f"%s::{kind}[]" for kind in columns.values())
        return f"{head} (SELECT * FROM unnest({arrays}))", [
            list(column) for column in zip(*listed, strict=True)
        ]
    marks = ", ".join([f"({', '.join(['%s'] * len(columns))})"] * len(listed))
    return f"{head} (VALUES {marks})", [value for row in listed for value in row]
