"""What the queue says of itself: the same for every process that is asked."""

from __future__ import annotations

from django.db.models import ExpressionWrapper, F
from django.db.models.fields import DurationField
from django.db.models.functions import Now

from webhooks import outbox
from webhooks.conf import iter_endpoints
from webhooks.models import OutboxEvent


def oldest_seconds() -> float:
    """The age of the oldest event that waits for an endpoint that is configured; 0 when none
    does. One step of the index for each endpoint."""
    age = ExpressionWrapper(Now() - F("created_at"), output_field=DurationField())
    ages = [
        found.total_seconds()
        for key, _ in iter_endpoints()
        for found in outbox.waiting(key).annotate(age=age).values_list("age", flat=True)[:1]
    ]
    return max(0.0, *ages) if ages else 0.0


def dead_letters() -> int:
    """How many events for such endpoints were given up and not sent again."""
    keys = [key for key, _ in iter_endpoints()]
    return OutboxEvent.objects.filter(dead_at__isnull=False, endpoint__in=keys).count()
