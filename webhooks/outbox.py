"""The queue of events: recorded with what they tell of, taken in order, kept for a while.

Who records does so in the transaction of the change itself, so that an event is told if and only
if the change was committed. Each endpoint has a row of its own for each event. Nobody keeps a
place in the queue: what waits is a row without an end, and the lowest of those is next. So a
transaction that commits late, with ids below what was delivered already, is not passed over.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from django.db import connection
from django.db.models import F, QuerySet
from django.db.models.functions import Now

from subscriptions.clock import ago
from webhooks.conf import conf, endpoint_key
from webhooks.events import BATCHED, Event
from webhooks.models import WAITING, OutboxEvent

PURGED = 10_000
"""Rows that one look for old ones removes at most: more wait for the next."""


def wants(event: Event) -> bool:
    """Whether anybody is to be told of such an event. Asks nothing of the database."""
    settings = conf()
    return bool(settings.endpoints) and (
        not settings.focus_events or event in settings.focus_events
    )


def record(event: Event, body: Any) -> None:
    """Record one event, in the transaction of the caller's."""
    record_all(event, [body])


def record_all(event: Event, bodies: Iterable[Any]) -> None:
    """Record events of one kind, in the transaction of the caller's; nothing unless somebody
    `wants` them. A body is what JSON can hold; of those that are sent as an array, one element."""
    if not wants(event):
        return
    encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
    texts = [encode(body) for body in bodies]
    if texts:
        for url in conf().endpoints:
            _insert(endpoint_key(url), event, texts)


def _insert(endpoint: str, event: Event, bodies: list[str]) -> None:
    """By plain SQL: the log waits for this, and the ORM takes three times as long. So does an
    array, in which psycopg escapes each quote of JSON; no line break is ever within one."""
    table = OutboxEvent._meta.db_table
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                f"INSERT INTO {table} (endpoint, event, body) SELECT %s, %s, body"
                " FROM unnest(string_to_array(%s, chr(10))) WITH ORDINALITY AS b(body, place)"
                " ORDER BY place",
                [endpoint, event.value, "\n".join(bodies)],
            )
        else:
            cursor.executemany(
                f"INSERT INTO {table} (endpoint, event, body) VALUES (%s, %s, %s)",
                [(endpoint, event.value, body) for body in bodies],
            )


def waiting(endpoint: str) -> QuerySet[OutboxEvent]:
    """What waits for an endpoint, the next first."""
    return OutboxEvent.objects.filter(WAITING, endpoint=endpoint).order_by("pk")


def next_batch(endpoint: str) -> list[OutboxEvent]:
    """What the next request carries: events of one kind that follow each other. One that has failed
    goes alone, so that what cannot be taken does not take others with it."""
    rows = list(waiting(endpoint)[: conf().batch])
    if not rows or rows[0].attempts or rows[0].event not in BATCHED:
        return rows[:1]
    batch = []
    for row in rows:
        if row.event != rows[0].event or row.attempts:
            break
        batch.append(row)
    return batch


def body_of(batch: list[OutboxEvent]) -> bytes:
    """The JSON of a request."""
    text = ",".join(row.body for row in batch)
    return (f"[{text}]" if batch[0].event in BATCHED else text).encode()


def identity(batch: list[OutboxEvent]) -> str:
    """A request's id, the same for the same events: those that follow each other may have got
    another between them meanwhile, so their number is a part of it."""
    first, last = batch[0].pk, batch[-1].pk
    return f"msg_{first}" if first == last else f"msg_{first}-{last}-{len(batch)}"


def mark_delivered(batch: list[OutboxEvent]) -> None:
    """They were taken."""
    rows = OutboxEvent.objects.filter(pk__in=[row.pk for row in batch])
    rows.update(delivered_at=Now(), dead_at=None)


def mark_failed(row: OutboxEvent, why: str) -> bool:
    """One more try of this event has failed; returns whether that makes it a dead letter."""
    is_dead = row.attempts + 1 >= conf().attempts
    OutboxEvent.objects.filter(pk=row.pk).update(
        attempts=F("attempts") + 1, error=why[:300], **({"dead_at": Now()} if is_dead else {})
    )
    return is_dead


def send_again(rows: QuerySet[OutboxEvent]) -> int:
    """Let events wait again that were delivered or given up; returns how many. They come before
    what is newer. Twice is once."""
    ended = rows.exclude(WAITING)
    return ended.update(delivered_at=None, dead_at=None, attempts=0, error="")


def purge() -> int:
    """Remove what was kept for long enough: a number of rows at most. Returns how many."""
    settings, everything = conf(), OutboxEvent.objects.all()
    configured = [endpoint_key(url) for url in settings.endpoints]
    dead = ago(settings.dead_retention_seconds)
    old = [
        everything.filter(delivered_at__lt=ago(settings.retention_seconds)),
        everything.filter(dead_at__lt=dead),
        everything.filter(WAITING, created_at__lt=dead).exclude(endpoint__in=configured),
    ]
    return sum(_remove(rows) for rows in old)


def _remove(rows: QuerySet[OutboxEvent]) -> int:
    pks = list(rows.values_list("pk", flat=True)[:PURGED])
    if not pks:
        return 0
    return OutboxEvent.objects.filter(pk__in=pks).delete()[0]
