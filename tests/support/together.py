"""Two transactions at once, each on a connection of its own, in an order that a test decides."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
from django.db import connection, connections, transaction

CHANCE = 0.5
"""Seconds that the second one gets to overtake the first, if nothing holds it."""


def interleave(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
    """Run `second` while the transaction that ran `first` is not committed yet; returns what both
    returned. Where they must not pass each other, `second` waits for the commit."""
    begun, overtaken = threading.Event(), threading.Event()

    def hold() -> Any:
        with transaction.atomic():
            answer = first()
            begun.set()
            overtaken.wait(CHANCE)
        return answer

    def follow() -> Any:
        assert begun.wait(20)
        answer = second()
        overtaken.set()
        return answer

    return tuple(future.result(30) for future in _run(hold, follow))  # type: ignore[return-value]  # two


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Run all of these at the same moment; returns what they returned."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        barrier.wait(20)
        return call()

    return [future.result(30) for future in _run(*(lambda call=call: run(call) for call in calls))]


@contextmanager
def held_by_another(statement: str, *values: Any) -> Iterator[psycopg.Connection[Any]]:
    """What the open transaction of somebody else has taken by this statement, on PostgreSQL."""
    settings = connection.settings_dict
    with psycopg.connect(
        host=settings["HOST"], port=settings["PORT"], user=settings["USER"], dbname=settings["NAME"]
    ) as holder:
        holder.execute(statement, values)
        yield holder


def _run(*calls: Callable[[], Any]) -> list[Future[Any]]:
    def closing(call: Callable[[], Any]) -> Any:
        try:
            return call()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(calls)) as executor:
        return [executor.submit(closing, call) for call in calls]
