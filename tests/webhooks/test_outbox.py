"""The outbox: what is recorded, and what is next."""

from __future__ import annotations

import json
from contextlib import suppress

import psycopg
import pytest
from django.db import connection, transaction

from tests.support.server import NETWORKED
from webhooks import outbox
from webhooks.conf import endpoint_key
from webhooks.events import Event
from webhooks.models import OutboxEvent

A, B = "https://a.example/hook", "https://b.example/hook"
KEY = endpoint_key(A)


def ids(rows):
    return [row.pk for row in rows]


@pytest.mark.django_db
def test_nothing_is_asked_and_recorded_without_an_endpoint(settings, django_assert_num_queries):
    settings.WEBHOOKS = {}
    with django_assert_num_queries(0):
        outbox.record(Event.ONLINE_STATUS, "alice-0-1-1-1-1")
    assert not OutboxEvent.objects.exists()


@pytest.mark.django_db
def test_only_events_in_focus_are_recorded(configure, django_assert_num_queries):
    configure(A, focus_events=["user.onlinestatus"])
    with django_assert_num_queries(0):
        outbox.record(Event.FINDING_OPENED, {})
    outbox.record(Event.ONLINE_STATUS, "alice-0-1-1-1-1")
    assert [row.event for row in OutboxEvent.objects.all()] == ["user.onlinestatus"]


@pytest.mark.django_db
def test_each_endpoint_has_a_row_of_its_own(configure):
    configure(A, B)
    outbox.record_all(Event.ONLINE_STATUS, ["1", "2"])
    for url in (A, B):
        assert [row.body for row in outbox.waiting(endpoint_key(url))] == ['"1"', '"2"']


@pytest.mark.django_db
def test_rolled_back_transaction_leaves_no_row(configure):
    configure(A)
    with suppress(ZeroDivisionError), transaction.atomic():
        outbox.record(Event.ONLINE_STATUS, "alice-0-1-1-1-1")
        assert OutboxEvent.objects.exists()
        raise ZeroDivisionError
    assert not OutboxEvent.objects.exists()


@pytest.mark.django_db
def test_body_is_kept_whatever_it_has(configure):
    configure(A)
    bodies = ["", "a\nb", 'quote " \\ {x,NULL}', "\0", "\ud800", "你好", {"n": None}]
    outbox.record_all(Event.FINDING_OPENED, bodies)
    assert [json.loads(row.body) for row in outbox.waiting(KEY)] == bodies


@pytest.mark.django_db
def test_batch_is_of_one_event_in_a_row_and_bounded(configure):
    configure(A, batch=3)
    outbox.record_all(Event.MESSAGE_STORED, [{"n": n} for n in range(4)])
    outbox.record(Event.FINDING_OPENED, {"n": 4})
    outbox.record(Event.FINDING_OPENED, {"n": 5})
    outbox.record(Event.MESSAGE_STORED, {"n": 6})
    bodies = []
    while batch := outbox.next_batch(KEY):
        bodies.append(outbox.body_of(batch))
        outbox.mark_delivered(batch)
    assert bodies == [
        b'[{"n":0},{"n":1},{"n":2}]', b'[{"n":3}]', b'{"n":4}', b'{"n":5}', b'[{"n":6}]',
    ]  # fmt: skip


@pytest.mark.django_db
def test_one_that_failed_goes_alone_until_it_is_through(configure):
    configure(A)
    outbox.record_all(Event.MESSAGE_STORED, [1, 2, 3])
    first = outbox.next_batch(KEY)[0]
    assert not outbox.mark_failed(first, "answered 500")
    alone = outbox.next_batch(KEY)
    assert ids(alone) == [first.pk]
    outbox.mark_delivered(alone)
    assert len(outbox.next_batch(KEY)) == 2


@pytest.mark.django_db
def test_after_its_last_attempt_an_event_is_dead_and_the_next_one_waits(configure):
    configure(A, attempts=2)
    outbox.record_all(Event.FINDING_OPENED, [1, 2])
    first, second = outbox.waiting(KEY)
    assert not outbox.mark_failed(first, "answered 500")
    first.refresh_from_db()
    assert outbox.mark_failed(first, "x" * 1000)
    assert ids(outbox.next_batch(KEY)) == [second.pk]
    first.refresh_from_db()
    assert first.dead_at is not None
    assert (first.attempts, len(first.error)) == (2, 300)


@pytest.mark.django_db
def test_what_is_sent_again_comes_first_and_twice_is_once(configure):
    configure(A)
    outbox.record_all(Event.FINDING_OPENED, [1, 2, 3])
    first, second, _ = outbox.waiting(KEY)
    outbox.mark_delivered([first])
    OutboxEvent.objects.filter(pk=second.pk).update(dead_at=second.created_at, attempts=12)
    everything = OutboxEvent.objects.all()
    assert outbox.send_again(everything) == 2
    assert outbox.send_again(everything) == 0
    assert [row.body for row in outbox.waiting(KEY)] == ["1", "2", "3"]
    assert outbox.next_batch(KEY)[0].attempts == 0


@pytest.mark.django_db
def test_old_rows_go_and_what_waits_stays(configure):
    configure(A, B)
    outbox.record_all(Event.FINDING_OPENED, ["delivered", "dead", "waiting"])
    configure(A, retention_seconds=0.000001, dead_retention_seconds=0.000001)  # B is no more
    delivered, dead, waiting = outbox.waiting(KEY)
    outbox.mark_delivered([delivered])
    OutboxEvent.objects.filter(pk=dead.pk).update(dead_at=dead.created_at)
    OutboxEvent.objects.update(created_at="2020-01-01T00:00Z")
    OutboxEvent.objects.exclude(delivered_at=None).update(delivered_at="2020-01-01T00:00Z")
    OutboxEvent.objects.exclude(dead_at=None).update(dead_at="2020-01-01T00:00Z")
    assert outbox.purge() == 2 + 3
    assert ids(OutboxEvent.objects.all()) == [waiting.pk]
    assert outbox.purge() == 0


@pytest.mark.skipif(not NETWORKED, reason="SQLite commits in the order of ids")
@pytest.mark.django_db(transaction=True)
def test_event_of_a_transaction_that_commits_late_is_not_passed_over(configure):
    configure(A)
    settings = connection.settings_dict
    insert = (
        "INSERT INTO wukongim_webhooks_outboxevent (endpoint, event, body) VALUES (%s, %s, %s)"
        " RETURNING id"
    )
    with psycopg.connect(
        host=settings["HOST"], port=settings["PORT"], user=settings["USER"], dbname=settings["NAME"]
    ) as slow:
        [late] = slow.execute(insert, [KEY, "finding.opened", '"late"']).fetchone()
        outbox.record(Event.FINDING_OPENED, "early")
        [early] = outbox.next_batch(KEY)
        assert early.pk > late
        outbox.mark_delivered([early])
        assert outbox.next_batch(KEY) == []
        slow.commit()
    [found] = outbox.next_batch(KEY)
    assert (found.pk, found.body) == (late, '"late"')
