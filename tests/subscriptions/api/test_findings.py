"""GET findings and GET health."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from messaging.models import Node
from subscriptions import live
from subscriptions.audit import Disagreement, Kind
from subscriptions.findings import record
from subscriptions.models import Finding
from tests.support.factories import make_group

pytestmark = pytest.mark.django_db


@pytest.fixture
def book():
    """Three findings: one open in a channel, one open of a session, one healed."""
    team = make_group("team", "alice")
    record([Disagreement(Kind.MISSING_GROUP_BINDING, "layer", team.pk, "alice", "s1")], 7)
    record([Disagreement(Kind.DEAD_SESSION, "lease", None, "bob", "s2")], 7)
    record([Disagreement(Kind.LOG_HOLE, "message log", team.pk, from_seq=1, to_seq=3)], None, "me")


@pytest.mark.parametrize(
    ("query", "kinds"),
    [
        ("", ["log_hole", "dead_session", "missing_group_binding"]),
        ("open=1", ["dead_session", "missing_group_binding"]),
        ("open=0", ["log_hole"]),
        ("kind=dead_session", ["dead_session"]),
        ("channel=2:team", ["log_hole", "missing_group_binding"]),
        ("channel=2:team&open=1&uid=alice", ["missing_group_binding"]),
        ("uid=bob", ["dead_session"]),
        ("uid=nobody", []),
        ("channel=2:none", []),
    ],
)
def test_findings_are_filtered_and_the_newest_comes_first(api, book, query, kinds):
    answer = api.get(f"/subscriptions/findings?{query}")
    assert [finding["kind"] for finding in answer.json()["results"]] == kinds


def test_finding_has_its_place_and_how_it_ended(api, book):
    healed, dead, missing = api.get("/subscriptions/findings").json()["results"]
    assert (missing["channel"], missing["uid"], missing["session"]) == ("2:team", "alice", "s1")
    assert (missing["node"], missing["reason"], missing["healed_at"]) == (7, "layer", None)
    assert dead["channel"] is None
    assert (healed["from_seq"], healed["to_seq"], healed["healed_by"]) == (1, 3, "me")
    assert healed["healed_at"] is not None


def test_findings_come_in_pages(api, book, django_assert_num_queries):
    url, kinds = "/subscriptions/findings?limit=2", []
    while url:
        with django_assert_num_queries(1):
            page = api.get(url).json()
        kinds += [finding["kind"] for finding in page["results"]]
        url = page["next"]
    assert kinds == ["log_hole", "dead_session", "missing_group_binding"]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("opne=1", "There is no 'opne' here; there are: limit, cursor, open, kind, channel, uid."),
        ("open=yes", "open: "),
        ("kind=nonsense", "kind: "),
        ("channel=team", "is not TYPE:ID"),
        ("channel=2:a%00b", "NUL"),
        ("uid=a%00b", "control characters"),
        ("uid=", "uid: must not be empty."),
    ],
)
def test_findings_asked_for_wrongly_are_400(api, query, words):
    answer = api.get(f"/subscriptions/findings?{query}")
    assert (answer.status_code, answer.json()["status"]) == (400, 400)
    assert words in answer.json()["msg"]


# --- health ------------------------------------------------------------------------------------


def make_node(age: float | None = 1.0, lease: float = 20.0, **fields) -> Node:
    now = timezone.now()
    checked = None if age is None else now - timedelta(seconds=age)
    return Node.objects.create(
        host="box", pid=1, lease_until=now + timedelta(seconds=lease), checked_at=checked, **fields
    )


def state(api):
    return api.get("/subscriptions/health").json()["state"]


def test_health_is_unchecked_without_a_node(api):
    make_node(lease=-1)
    make_node(stopped_at=timezone.now())
    answer = api.get("/subscriptions/health").json()
    assert answer == {
        "state": "unchecked",
        "nodes": [],
        "open_findings": {},
        "oldest_open_seconds": {},
        "heals": {"last_hour": 0, "last_day": 0},
        "heals_by_step": {},
    }


def test_health_without_anybody_who_provides_sessions_is_unchecked(api, monkeypatch):
    monkeypatch.setattr(live, "_provider", None)
    assert state(api) == "unchecked"


@pytest.mark.parametrize(("age", "word"), [(1, "healthy"), (121, "unchecked"), (None, "unchecked")])
def test_health_depends_on_the_age_of_the_last_check(api, age, word):
    make_node(age=1)
    make_node(age=age)
    assert state(api) == word


def test_health_of_a_node_that_misses_its_beats_is_unchecked(api):
    """It may be frozen: what it said last is of before."""
    make_node()
    assert state(api) == "healthy"
    make_node(lease=12)
    assert state(api) == "unchecked"


def test_health_has_the_numbers_of_every_leased_node(api):
    node = make_node(
        age=5, sessions=2, bindings=4, expected=4, groups=3, probe_ms=1.5, probe_missed=1
    )
    [shown] = api.get("/subscriptions/health").json()["nodes"]
    assert 5 <= shown.pop("last_check_age_seconds") < 6
    assert shown.pop("started_at")
    assert 0 < shown.pop("lease_seconds_left") <= 20
    assert shown == {
        "node": node.pk, "host": "box", "pid": 1, "sessions": 2, "groups": 3,
        "bindings_expected": 4, "bindings_held": 4, "probe_ms": 1.5, "probes_missed": 1,
        "silent": False,
    }  # fmt: skip


def test_health_is_unhealthy_when_bindings_are_missing(api):
    make_node(bindings=3, expected=4)
    assert state(api) == "unhealthy"


def test_health_is_unhealthy_while_a_finding_is_open(api, book):
    make_node()
    answer = api.get("/subscriptions/health").json()
    assert answer["state"] == "unhealthy"
    assert answer["open_findings"] == {"dead_session": 1, "missing_group_binding": 1}
    Finding.objects.filter(kind="dead_session").update(
        first_seen=timezone.now() - timedelta(minutes=5)
    )
    ages = api.get("/subscriptions/health").json()["oldest_open_seconds"]
    assert 300 <= ages["dead_session"] < 330
    assert 0 <= ages["missing_group_binding"] < 30
    Finding.objects.update(healed_at=timezone.now())
    assert state(api) == "healthy"


def test_health_tells_heals_by_step_and_forgets_which_audit(api, book):
    healers = ["audit 0c1b2f4e-1111-4c3d-9a77-0123456789ab", "audit 1", "sweep"]
    for finding, healed_by in zip(Finding.objects.all(), healers, strict=True):
        Finding.objects.filter(pk=finding.pk).update(healed_at=timezone.now(), healed_by=healed_by)
    assert api.get("/subscriptions/health").json()["heals_by_step"] == {
        "audit": {"last_hour": 2, "last_day": 2},
        "sweep": {"last_hour": 1, "last_day": 1},
    }


def test_health_counts_heals_of_the_last_hour_and_day(api, book):
    now = timezone.now()
    ages = [timedelta(minutes=5), timedelta(hours=5), timedelta(days=5)]
    for finding, age in zip(Finding.objects.all(), ages, strict=True):
        Finding.objects.filter(pk=finding.pk).update(healed_at=now - age)
    with CaptureQueriesContext(connection) as queries:
        heals = api.get("/subscriptions/health").json()["heals"]
    assert heals == {"last_hour": 1, "last_day": 2}
    [counting] = [each["sql"] for each in queries if "last_hour" in each["sql"]]
    if connection.vendor == "sqlite":  # of a table this small PostgreSQL reads all
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN QUERY PLAN {counting}")
            assert "wukongim_finding_healed" in cursor.fetchone()[3]
