"""The page "Subscription health": is anybody deaf, in one line, and never green without a look."""

from __future__ import annotations

import re
from datetime import timedelta
from html import unescape

import pytest
from django.apps import apps
from django.contrib.auth.models import Permission, User
from django.contrib.staticfiles import finders
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from django.utils.html import strip_tags

from messaging.models import Node
from subscriptions import live
from subscriptions.audit import Disagreement, Kind
from subscriptions.findings import record
from subscriptions.models import Finding
from tests.support.admin_pages import log_in, log_in_operator, log_in_staff
from tests.support.factories import in_thread, make_group
from tests.support.peers import Peer
from tests.support.waiting import eventually

pytestmark = pytest.mark.django_db

PAGE = "admin:wukongim_subscriptions_health_changelist"
NOW = "admin:wukongim_subscriptions_health_now"


@pytest.fixture
def admin() -> Client:
    """A superuser, logged in."""
    return log_in_operator()


def make_node(age: float | None = 1.0, lease: float = 20.0, **fields) -> Node:
    now = timezone.now()
    checked = None if age is None else now - timedelta(seconds=age)
    return Node.objects.create(
        host="box", pid=41, lease_until=now + timedelta(seconds=lease), checked_at=checked, **fields
    )


def make_heal(minutes: float, healed_by: str = "sweep") -> None:
    """A finding that was healed so long ago."""
    [finding] = record([Disagreement(Kind.BINDING_BEHIND, "doorbell")], 1, healed_by)
    then = timezone.now() - timedelta(minutes=minutes)
    Finding.objects.filter(pk=finding.pk).update(healed_at=then)


def html(client: Client, name: str = NOW) -> str:
    answer = client.get(reverse(name))
    assert answer.status_code == 200
    return answer.content.decode()


def words(client: Client, name: str = NOW) -> str:
    """What the page says, without markup."""
    return " ".join(unescape(strip_tags(html(client, name).replace("<", " <"))).split())


# --- the line -----------------------------------------------------------------------------------


def state(client: Client) -> str:
    """The state as its line shows it: colour, word and icon have to agree."""
    text = html(client)
    [colour] = re.findall(r'class="health-state health-(\w+)"', text)
    icons = {"healthy": "icon-yes", "unhealthy": "icon-no", "unchecked": "icon-alert"}
    line = text.split('class="module"', 1)[0]
    assert icons[colour] in line
    assert f"<strong>{colour.capitalize()}: " in line
    return colour


def test_page_without_a_node_is_unchecked_and_says_why(admin):
    make_node(lease=-1)
    assert state(admin) == "unchecked"
    assert "No node is running, so nobody looks." in words(admin)
    assert "Unchecked: no node is running." in words(admin)


def test_page_without_anybody_who_provides_sessions_is_unchecked(admin, monkeypatch):
    monkeypatch.setattr(live, "_provider", None)
    assert state(admin) == "unchecked"


def test_page_is_healthy_only_when_every_node_has_looked_lately(admin):
    make_node(bindings=3, expected=3)
    assert state(admin) == "healthy"
    assert "3 bindings are held as expected, and no finding is open." in words(admin)
    late = make_node(age=None)
    assert state(admin) == "unchecked"
    assert f"Node {late.pk} has finished no check lately." in words(admin)
    make_node(age=600)
    assert "have finished no check lately." in words(admin)


def test_page_is_unhealthy_while_a_finding_is_open_even_without_a_node(admin):
    record([Disagreement(Kind.LOG_HOLE, "message log")], None)
    assert state(admin) == "unhealthy"
    assert "1 finding is open." in words(admin)


def test_page_is_unhealthy_when_a_node_holds_too_few_bindings(admin):
    node = make_node(bindings=3, expected=4)
    assert state(admin) == "unhealthy"
    assert f"Node {node.pk} holds fewer bindings than it expects." in words(admin)
    assert 'alt="too few:"> 3</td>' in html(admin)


# --- the numbers --------------------------------------------------------------------------------


def test_page_has_a_row_for_each_node(admin):
    node = make_node(age=7, sessions=5, bindings=12, expected=12, probe_ms=1.25)
    make_node(age=None, probe_missed=2)
    said = words(admin)
    assert f"{node.pk} box · 41 5 12 12 7 s ago 1.2 ms" in said
    assert "never missed 2 times" in said
    assert html(admin).count('alt="too old:"') == 1


def test_open_findings_are_counted_by_kind_with_age_and_lead_to_their_list(admin):
    record([Disagreement(Kind.DEAD_SESSION, "lease", session=name) for name in "abc"], 1)
    record([Disagreement(Kind.DEAD_SESSION, "lease", session="d")], 1, "check")
    Finding.objects.filter(session_id="b").update(first_seen=timezone.now() - timedelta(minutes=10))
    assert re.search(r"dead session 3 10\s?minutes ago", words(admin).replace("\xa0", " "))
    [url] = re.findall(r'<th scope="row"><a href="([^"]+)">dead session', html(admin))
    listed = admin.get(unescape(url))
    assert {row.session_id for row in listed.context["cl"].result_list} == {"a", "b", "c"}


def test_page_says_that_nothing_is_open_and_nothing_was_healed(admin):
    said = words(admin)
    assert "Open findings None." in said
    assert "Nothing had to be healed in the last day." in said


def plotted(client: Client) -> list[list[int]]:
    """The numbers of both plots, as they are told to those who do not see them."""
    told = re.findall(r'aria-label="[^"]*: ([\d, ]+)"', html(client))
    return [[int(number) for number in numbers.split(", ")] for numbers in told]


def test_heals_are_plotted_where_they_happened(admin):
    for minutes in (1, 1, 6, 59, 61, 200, 1439, 1441):
        make_heal(minutes)
    hour, day = plotted(admin)
    assert len(hour) == 12
    assert len(day) == 24
    assert hour == [1, *[0] * 9, 1, 2]
    assert day == [1, *[0] * 19, 1, 0, 1, 4]
    text = html(admin)
    assert len(re.findall(r"<rect ", text)) == 12 + 24
    assert re.findall(r'y="0" width="18" height="64"', text) == ['y="0" width="18" height="64"'] * 2
    assert [int(n) for n in re.findall(r"highest: (\d+)", text)] == [2, 4]


def test_plots_without_heals_are_empty(admin):
    assert plotted(admin) == [[0] * 12, [0] * 24]
    assert set(re.findall(r'<rect .* height="(\d+)"', html(admin))) == {"0"}


def test_heals_are_told_by_step(admin):
    for healed_by in ("sweep", "sweep", "audit 0c1b2f4e-1111-4c3d-9a77-0123456789ab"):
        make_heal(3, healed_by)
    make_heal(300, "sweep")
    said = words(admin)
    assert "audit 1 1" in said
    assert "sweep 2 3" in said


# --- how it is reached, and by whom -------------------------------------------------------------


def test_page_is_linked_from_the_admins_index_and_the_apps(admin):
    for place in (
        reverse("admin:index"),
        reverse("admin:app_list", args=["wukongim_subscriptions"]),
    ):
        text = admin.get(place).content.decode()
        assert f'<a href="{reverse(PAGE)}"' in text
        assert "Subscription health" in text


def test_page_is_for_those_who_may_see_findings():
    staff = log_in_staff("view_finding")
    assert staff.get(reverse(PAGE)).status_code == 200
    assert reverse(PAGE) in staff.get(reverse("admin:index")).content.decode()


@pytest.mark.parametrize("name", [PAGE, NOW])
def test_page_is_closed_to_everybody_else(name):
    staff = log_in_staff("view_membership", "check_group_bindings")
    assert staff.get(reverse(name)).status_code == 403
    assert reverse(PAGE) not in staff.get(reverse("admin:index")).content.decode()
    answer = Client().get(reverse(name))
    assert (answer.status_code, answer["location"].split("?")[0]) == (302, reverse("admin:login"))


def test_page_refreshes_itself_with_and_without_scripts(admin):
    text = html(admin, PAGE)
    assert f'data-url="{reverse(NOW)}"' in text
    assert '<noscript><meta http-equiv="refresh" content="5"></noscript>' in text
    for file in re.findall(r'"/static/(wukongim_subscriptions/[^"]+)"', text):
        assert finders.find(file), file
    assert 'id="health-stale" class="health-state health-unchecked" role="alert" hidden' in text
    for name in (PAGE, NOW):
        assert "no-store" in admin.get(reverse(name))["cache-control"]


def test_part_that_refreshes_is_what_the_page_shows(admin):
    make_node(bindings=1, expected=1)
    assert words(admin, NOW).split(" As of ")[0] in words(admin, PAGE)
    assert "<html" not in html(admin, NOW)


def test_page_needs_as_many_queries_whatever_there_is_and_reads_no_membership(admin):
    with CaptureQueriesContext(connection) as empty:
        html(admin, PAGE)
    for number in range(8):
        make_node(sessions=number)
        kinds = [Disagreement(kind, "", uid=f"u{number}") for kind in Kind]
        record(kinds, number)
        make_heal(number * 7)
    make_group("team", *(f"u{number}" for number in range(50)))
    with CaptureQueriesContext(connection) as full:
        html(admin, PAGE)
    assert len(full) == len(empty) <= 6
    assert not [query for query in full if "_membership" in query["sql"]]


def test_heals_are_found_by_their_index(admin):
    with CaptureQueriesContext(connection) as queries:
        html(admin)
    counting = [each["sql"] for each in queries if '"healed_at" >= ' in each["sql"]]
    assert len(counting) == 2
    if connection.vendor == "sqlite":
        for sql in counting:
            with connection.cursor() as cursor:
                cursor.execute(f"EXPLAIN QUERY PLAN {sql}")
                assert "wukongim_finding_healed" in cursor.fetchone()[3]


def test_page_has_no_table_and_no_permission_of_its_own():
    assert "health" not in {model._meta.model_name for model in apps.get_models()}
    assert not Permission.objects.filter(codename__endswith="_health").exists()


async def test_page_turns_red_when_a_finding_is_open_and_tells_of_its_heal(here):
    channel = await in_thread(make_group, "team", "alice")
    client = await in_thread(lambda: log_in(User.objects.create_superuser("operator")))
    async with Peer(here.url, "alice"):
        await eventually(lambda: here.node.tick.rounds > 0, "a whole check", 20)
        assert await in_thread(state, client) == "healthy"
        lost = Disagreement(Kind.MISSING_GROUP_BINDING, "layer", channel.pk)
        await in_thread(record, [lost], here.node.id)
        assert await in_thread(state, client) == "unhealthy"
        rounds = here.node.tick.rounds
        await eventually(lambda: here.node.tick.rounds > rounds + 1, "two whole checks", 20)
        assert await in_thread(state, client) == "healthy"
        assert "gone 1 1" in await in_thread(words, client)
