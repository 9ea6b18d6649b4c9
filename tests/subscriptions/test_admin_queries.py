"""What the pages of the admin ask of the database does not grow with what is in it.

How much each list may ask is in test_admin; here every page is compared with itself.
"""

from __future__ import annotations

from datetime import timedelta

import psycopg
import pytest
from django.apps import apps
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from messaging.models import Device, Message, Node, RefusedSend, Session
from subscriptions.admin_parts import PageList
from subscriptions.audit import Kind
from subscriptions.group_bindings import State
from subscriptions.models import (
    AccessRule,
    Audit,
    AuditAnswer,
    Channel,
    Finding,
    Membership,
    MembershipChange,
)
from tests.support.admin_pages import admin_url, iter_pages, log_in, log_in_operator
from tests.support.server import NETWORKED

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)
LARGE = "c7"
"""The channel of all users, which a search for it finds, too."""


def fill(start: int, end: int) -> None:
    """Rows number `start` to `end` of everything, and all those users in one large channel, too.
    However long the test takes every second node lives, and the others are dead."""
    numbers, now = range(start, end), timezone.now()
    leases = [now + HOUR, now - HOUR]
    nodes = Node.objects.bulk_create(
        Node(host=f"h{n}", pid=n, lease_until=leases[n % 2], checked_at=now) for n in numbers
    )
    channels = Channel.objects.bulk_create(
        Channel(channel_id=f"c{n}", channel_type=2) for n in numbers
    )
    large = Channel.objects.get(channel_id=LARGE)
    Membership.objects.bulk_create(
        Membership(channel=channel, uid=f"u{n}")
        for n, own in zip(numbers, channels, strict=True)
        for channel in {own, large}
    )
    Session.objects.bulk_create(
        Session(id=f"s{n}-{node.pk}", uid=f"u{n}", device_flag=n % 3, node=node)
        for n in numbers
        for node in nodes[:2]
    )
    Finding.objects.bulk_create(
        Finding(kind=Kind.MISSING_GROUP_BINDING, channel=channel, uid=f"u{n}", node_id=nodes[0].pk,
                key=f"{n}{healed}", healed_at=healed and now)
        for n, channel in zip(numbers, channels, strict=True)
        for healed in (None, now)
    )  # fmt: skip
    Message.objects.bulk_create(
        Message(channel=large, seq=n + 1, version=1, message_id=n + 1, sender=f"u{n}",
                payload=b"{}", created_ms=1_790_000_000_000)
        for n in numbers
    )  # fmt: skip
    Device.objects.bulk_create(Device(uid=f"u{n}", flag=n % 3, token_hash="") for n in numbers)
    AccessRule.objects.bulk_create(
        AccessRule(channel_id=f"c{n}", channel_type=2, uid=f"u{n}", allow=n % 2) for n in numbers
    )
    RefusedSend.objects.bulk_create(
        RefusedSend(channel_id=f"c{n}", channel_type=2, sender=f"u{n}", reason=4) for n in numbers
    )
    audits = Audit.objects.bulk_create(Audit(repair=n % 2, actor="x") for n in numbers)
    AuditAnswer.objects.bulk_create(
        AuditAnswer(audit=audit, node_id=node, finished_at=now)
        for audit in audits
        for node in (0, 1)
    )
    User.objects.bulk_create(User(username=f"staff{n}", is_staff=True) for n in numbers)


def prices(viewer: User) -> dict[str, int]:
    """How many statements each page takes."""
    client = log_in(viewer)
    return {name: price(client, url) for name, url in iter_pages(viewer)}


def price(client: Client, url: str) -> int:
    """Statements that a page takes, without the one for its keys where a list of ours has several
    pages."""
    with CaptureQueriesContext(connection) as statements:
        answer = client.get(url)
    assert answer.status_code == 200, url
    listed = answer.context and answer.context.get("cl")
    return len(statements) - (isinstance(listed, PageList) and listed.multi_page)


@pytest.mark.skipif(NETWORKED, reason="how many statements are made is no matter of the database")
@pytest.mark.timeout(300)  # 20 s alone; several times that beside what fills another database
def test_every_page_takes_the_same_statements_however_many_rows_there_are():
    operator = User.objects.create_superuser("operator")
    ContentType.objects.get_for_models(*apps.get_models())  # asked for once in a process's life
    fill(0, 10)
    few = prices(operator)
    fill(10, 200)
    many = prices(operator)
    assert len(few) > 150
    assert few.keys() <= many.keys()
    assert {name: (few[name], many[name]) for name in few if few[name] != many[name]} == {}
    for name in many.keys() - few.keys():  # there was but one page
        assert name.endswith(": last page")
        assert many[name] == many[name.replace("last page", "list")]


@pytest.fixture
def admin() -> Client:
    """A superuser, logged in."""
    return log_in_operator()


@pytest.mark.parametrize("model", [Membership, MembershipChange, Message, Session])
def test_last_page_is_found_without_reading_what_comes_before_it(admin, model):
    fill(0, 60)
    with CaptureQueriesContext(connection) as statements:
        changes = admin.get(admin_url(model, "changelist"), {"p": 2}).context["cl"]
    everything = changes.root_queryset.order_by(*changes.queryset.query.order_by)
    assert changes.result_list == list(everything)[50:100]
    [keys] = [each["sql"] for each in statements if " OFFSET " in each["sql"]]
    assert "JOIN" not in keys
    assert keys.startswith(f'SELECT "{model._meta.db_table}"."{model._meta.pk.name}" AS "pk" FROM')


@pytest.mark.skipif(connection.vendor == "sqlite", reason="SQLite plans without statistics")
def test_page_is_read_though_the_statistics_say_that_there_is_next_to_nothing(admin):
    """So it is after much was written at once, until PostgreSQL has counted anew. It looked for
    the keys of the page again for each row, for minutes."""
    fill(0, 10)
    analyze()
    fill(10, 200)
    analyze()
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = '20s'")
    listed = admin_url(Membership, "changelist")
    for state in State:
        assert admin.get(listed, {"group_binding": state}).status_code == 200


def analyze() -> None:
    """Count the rows from outside, where those of the test are not there yet."""
    with psycopg.connect(**connection.get_connection_params(), autocommit=True) as other:
        other.execute("ANALYZE")


def test_group_bindings_are_never_counted_for_a_filter(admin):
    fill(0, 10)
    listed = admin_url(Membership, "changelist")
    plain = price(admin, listed)
    assert price(admin, f"{listed}?_facets=True") == plain
