"""The admin of webhook events: shown, sent again, and never written."""

from __future__ import annotations

import pytest
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.utils import timezone

from tests.support.admin_pages import admin_url, log_in_operator, log_in_staff
from webhooks import outbox
from webhooks.events import Event
from webhooks.models import OutboxEvent

pytestmark = pytest.mark.django_db

URL = "https://user:secret@app.example/hook?token=t"
LIST = "changelist"


@pytest.fixture
def admin():
    return log_in_operator()


def page(client, *args, **query):
    return client.get(admin_url(OutboxEvent, *(args or [LIST])), query).content.decode()


def act(client, rows, **fields):
    chosen = {"action": "send_again", ACTION_CHECKBOX_NAME: [row.pk for row in rows], **fields}
    return client.post(admin_url(OutboxEvent), chosen, follow=True)


def record(*bodies):
    outbox.record_all(Event.FINDING_OPENED, bodies)
    return list(OutboxEvent.objects.order_by("pk"))


def test_empty_list_says_what_to_set(admin, settings):
    settings.WEBHOOKS = {}
    assert "set WUKONGIM_WEBHOOKS" in page(admin)


def test_empty_queue_says_that_nothing_waits(admin, configure):
    configure(URL)
    assert "Nothing waits. There are no dead letters." in page(admin)


def test_list_tells_states_and_no_secret(admin, configure):
    configure(URL)
    delivered, dead, _ = record(1, 2, 3)
    outbox.mark_delivered([delivered])
    OutboxEvent.objects.filter(pk=dead.pk).update(dead_at=timezone.now(), error="answered 500")
    text = page(admin)
    for word in ("delivered 20", "given up 20", "waiting", "answered 500",
                 "https://app.example/hook", "There is 1 dead letter."):  # fmt: skip
        assert word in text
    assert "secret" not in text
    assert "token=t" not in text


@pytest.mark.parametrize(("state", "index"), [("delivered", 0), ("dead", 1), ("waiting", 2)])
def test_states_are_filtered(admin, configure, state, index):
    configure(URL)
    rows = record(1, 2, 3)
    outbox.mark_delivered([rows[0]])
    OutboxEvent.objects.filter(pk=rows[1].pk).update(dead_at=timezone.now())
    response = admin.get(admin_url(OutboxEvent), {"state": state})
    assert [row.pk for row in response.context["cl"].result_list] == [rows[index].pk]


@pytest.mark.parametrize("name", ["add", "change", "delete"])
def test_events_are_read_only(admin, configure, name):
    configure(URL)
    [row] = record({"text": "<b>hi</b>"})
    args = () if name == "add" else (row.pk,)
    assert admin.post(admin_url(OutboxEvent, name, *args), {"event": "x"}).status_code == 403
    assert "&lt;b&gt;hi&lt;/b&gt;" in page(admin, "change", row.pk)


def test_list_costs_the_same_for_any_number_of_rows(
    admin, configure, django_assert_max_num_queries
):
    configure(URL)
    record(*range(100))
    with django_assert_max_num_queries(8):
        page(admin)


def test_send_again_asks_and_then_says_how_many(admin, configure):
    configure(URL)
    rows = record(1, 2, 3)
    outbox.mark_delivered(rows[:1])
    OutboxEvent.objects.filter(pk=rows[1].pk).update(dead_at=timezone.now())
    assert "Send 2 events again?" in act(admin, rows).content.decode()
    assert outbox.waiting(rows[0].endpoint).count() == 1
    assert "2 events wait again." in act(admin, rows, confirm="yes").content.decode()
    assert outbox.waiting(rows[0].endpoint).count() == 3
    assert "0 events wait again." in act(admin, rows).content.decode()


def test_send_again_needs_its_permission(configure):
    configure(URL)
    rows = record(1)
    outbox.mark_delivered(rows)
    viewer = log_in_staff("view_outboxevent")
    assert "Send again" not in page(viewer)
    act(viewer, rows, confirm="yes")
    assert not outbox.waiting(rows[0].endpoint).exists()
