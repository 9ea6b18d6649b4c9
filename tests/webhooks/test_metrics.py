"""What the queue says of itself, on which two alerts rest."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from tests.support.server import API_TOKEN
from webhooks import outbox
from webhooks.conf import endpoint_key
from webhooks.events import Event
from webhooks.metrics import dead_letters, oldest_seconds
from webhooks.models import OutboxEvent

pytestmark = pytest.mark.django_db

A, B = "https://a.example/hook", "https://b.example/hook"


def record(*ages):
    """An event of each of these ages, in seconds, for every endpoint."""
    for age in ages:
        before = set(OutboxEvent.objects.values_list("pk", flat=True))
        outbox.record(Event.FINDING_OPENED, age)
        recorded = timezone.now() - timedelta(seconds=age)
        OutboxEvent.objects.exclude(pk__in=before).update(created_at=recorded)


def give_up(url):
    row = outbox.waiting(endpoint_key(url))[0]
    OutboxEvent.objects.filter(pk=row.pk).update(dead_at=timezone.now())


def test_oldest_is_the_first_that_waits_for_any_endpoint(configure):
    configure(A, B)
    assert oldest_seconds() == 0
    record(3_000, 2_000, 1_000)
    outbox.mark_delivered(outbox.next_batch(endpoint_key(A)))
    give_up(B)
    assert oldest_seconds() == pytest.approx(2_000, abs=60)
    outbox.mark_delivered(outbox.next_batch(endpoint_key(A)))
    assert oldest_seconds() == pytest.approx(2_000, abs=60)
    outbox.mark_delivered(outbox.next_batch(endpoint_key(B)))
    assert oldest_seconds() == pytest.approx(1_000, abs=60)


def test_dead_letters_count_until_they_are_sent_again(configure):
    configure(A, B)
    record(2, 1)
    give_up(A)
    give_up(A)
    give_up(B)
    assert dead_letters() == 3
    outbox.send_again(OutboxEvent.objects.filter(endpoint=endpoint_key(A)))
    assert dead_letters() == 1


def test_endpoint_that_is_configured_no_more_does_not_count(configure, django_assert_num_queries):
    configure(A, B)
    record(3_000, 2_000)
    give_up(B)
    outbox.mark_delivered(list(outbox.waiting(endpoint_key(A))))
    configure(A)
    assert (oldest_seconds(), dead_letters()) == (0, 0)
    configure()
    with django_assert_num_queries(0):
        assert (oldest_seconds(), dead_letters()) == (0, 0)


def test_queue_is_asked_once_an_endpoint_whatever_waits(configure, django_assert_num_queries):
    configure(A, B)
    outbox.record_all(Event.MESSAGE_STORED, range(500))
    with django_assert_num_queries(3):
        oldest_seconds(), dead_letters()


def test_metrics_show_both_and_name_nobody(configure):
    configure(A)
    record(3_000, 2_000)
    give_up(A)
    text = APIClient(headers={"token": API_TOKEN}).get("/metrics").content.decode()
    shown = [line.split() for line in text.splitlines() if line.startswith("wukongim_webhooks")]
    assert [name for name, _ in shown] == [
        "wukongim_webhooks_oldest_seconds", "wukongim_webhooks_dead_letters",
    ]  # fmt: skip
    assert [float(value) for _, value in shown] == [pytest.approx(2_000, abs=60), 1]
