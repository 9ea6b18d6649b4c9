"""How far a sweep has read a table that only grows, so that no line is ever passed over.

On SQLite rows are committed in the order of their ids: the last id says it all. On PostgreSQL a
transaction may commit long after others that began later, with ids below theirs. There each row
carries the transaction that wrote it, and what is new is what the previous look's snapshot did not
see: that transaction was under way then, or had not begun.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.db import connection
from django.db.models import BigIntegerField, Func, Model


class TransactionId(Func):
    """The writing transaction's number on PostgreSQL, NULL elsewhere: default of `change_mark`."""

    arity = 0
    output_field = BigIntegerField()

    def as_sql(self, *args: Any, **kwargs: Any) -> tuple[str, list[Any]]:  # type: ignore[override]  # no parameters, ever
        return "NULL", []

    def as_postgresql(self, *args: Any, **kwargs: Any) -> tuple[str, list[Any]]:
        return "(pg_current_xact_id()::text::bigint)", []


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a table's history, from which a sweep goes on.

    Where commits come in the order of ids, `row` is the last id read. On PostgreSQL `snapshot` is
    what was visible to the last complete look (as PostgreSQL writes it: xmin:xmax:running); half
    way through the next one `upto` is the snapshot that it reads, and `row` the last id of it.
    """

    row: int = 0
    snapshot: str = ""
    upto: str = ""

    @property
    def next_transaction(self) -> int:
        """The first transaction that had not begun."""
        return int(self.snapshot.split(":")[1])

    @property
    def running(self) -> list[int]:
        """Transactions that were under way."""
        return [int(number) for number in self.snapshot.split(":")[2].split(",") if number]


def mark_of(model: type[Model]) -> Mark:
    """Where `model`'s table is now: a sweep from here sees what is committed later."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT pg_current_snapshot()::text")
            return Mark(snapshot=cursor.fetchone()[0])
        cursor.execute(f"SELECT COALESCE(MAX(id), 0) FROM {model._meta.db_table}")
        return Mark(row=cursor.fetchone()[0])


def lowest(mark: Mark, now: Mark) -> Mark:
    """The earlier of both: after a restore the table may be behind a mark that was taken of it."""
    if now.snapshot:
        return min(mark, now, key=lambda each: each.next_transaction)
    return min(mark, now, key=lambda each: each.row)


def rows_after(
    model: type[Model], columns: Sequence[str], mark: Mark, limit: int
) -> tuple[list[tuple[Any, ...]], Mark, bool]:
    """New rows in the order of their ids, at most `limit`; where to go on; whether there are more.

    One statement. Pages of one look are of one snapshot, so what is committed between them comes
    with the next look.
    """
    table, names = model._meta.db_table, ", ".join(columns)
    with connection.cursor() as cursor:
        if not mark.snapshot:
            cursor.execute(
                f"SELECT id, {names} FROM {table} WHERE id > %s ORDER BY id LIMIT %s",
                [mark.row, limit + 1],
            )
            rows, snapshot = cursor.fetchall(), ""
        else:
            condition, values = _is_new(mark)
            cursor.execute(
                f"SELECT look.snapshot, m.* FROM {LOOK} LEFT JOIN LATERAL (SELECT id, {names}"
                f" FROM {table} WHERE {condition} ORDER BY id LIMIT %s) m ON TRUE",
                [*values, limit + 1],
            )
            found = cursor.fetchall()
            rows, snapshot = [row[1:] for row in found if row[1] is not None], found[0][0]
    more = len(rows) > limit
    rows = rows[:limit]
    if not snapshot:
        return rows, Mark(row=rows[-1][0] if rows else mark.row), more
    if more:
        upto = mark.upto or snapshot
        return rows, Mark(row=rows[-1][0], snapshot=mark.snapshot, upto=upto), True
    return rows, Mark(snapshot=mark.upto or snapshot), False


def highest_after(
    model: type[Model], group: str, value: str, mark: Mark
) -> tuple[dict[int, int], Mark]:
    """{`group`: highest `value`} of the new rows, and where to go on. One statement."""
    table = model._meta.db_table
    with connection.cursor() as cursor:
        if not mark.snapshot:
            cursor.execute(
                f"SELECT {group}, MAX({value}), MAX(id) FROM {table} WHERE id > %s"
                f" GROUP BY {group}",
                [mark.row],
            )
            rows = cursor.fetchall()
            last = max([mark.row, *(row[2] for row in rows)])
            return {row[0]: row[1] for row in rows}, Mark(row=last)
        condition, values = _is_new(mark)
        cursor.execute(
            f"SELECT look.snapshot, m.* FROM {LOOK} LEFT JOIN (SELECT {group}, MAX({value})"
            f" FROM {table} WHERE {condition} GROUP BY {group}) m ON TRUE",
            values,
        )
        found = cursor.fetchall()
    return {row[1]: row[2] for row in found if row[1] is not None}, Mark(snapshot=found[0][0])


LOOK = "(SELECT pg_current_snapshot()::text AS snapshot) look"


def _is_new(mark: Mark) -> tuple[str, list[Any]]:
    """The condition on rows that the mark's look did not see, by the index of `change_mark`.

    Numbers that this cluster has not given out yet are of the one that the table came from (a
    restored dump): they say nothing here.
    """
    condition = (
        "change_mark IS NOT NULL AND (change_mark = ANY(%s) OR change_mark >= %s)"
        " AND change_mark < pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
    )
    values: list[Any] = [mark.running, mark.next_transaction]
    if mark.upto:
        condition += " AND id > %s AND pg_visible_in_snapshot(change_mark::text::xid8, %s)"
        values += [mark.row, mark.upto]
    return condition, values
