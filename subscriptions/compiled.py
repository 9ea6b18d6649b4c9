"""Queries that are asked again and again, worked out once.

Django works out the SQL of a query each time that it is asked. For what a tick asks, nearly always
in vain, that took four times as long as asking: 1.2 of 1.5 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any

from django.db import connection
from django.db.models import QuerySet

MakeRows = Callable[..., "QuerySet[Any, Any]"]


def ask(make: MakeRows, *args: Hashable) -> list[tuple[Any, ...]]:
    """The rows of `make(*args)` as the database's driver returns them: for columns that Django does
    not convert. What `make` returns may depend on nothing but its arguments."""
    statement, values = _compiled(make, args)
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return list(cursor.fetchall())


@lru_cache(maxsize=100)
def _compiled(make: MakeRows, args: tuple[Hashable, ...]) -> tuple[str, tuple[Any, ...]]:
    statement, values = make(*args).query.get_compiler(connection=connection).as_sql()
    return statement, tuple(values)
