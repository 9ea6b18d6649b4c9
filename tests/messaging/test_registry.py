"""Leases, session rows, and what is closed with them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.db.models import F
from django.test.utils import CaptureQueriesContext

from messaging import registry
from messaging.models import Node, Session
from subscriptions import findings
from subscriptions.audit import Disagreement, Kind
from subscriptions.models import Finding

pytestmark = pytest.mark.django_db

STATE = registry.Beat(3, 9, 9, 4, 1.5, 0)


@pytest.fixture
def node(db):
    return registry.register_node()


def end_lease(node):
    Node.objects.filter(pk=node).update(lease_until=F("lease_until") - timedelta(hours=1))


def connect(node, name, uid="alice", **fields):
    row = Session(pk=name, uid=uid, device_flag=fields.pop("flag", 0), node_id=node, **fields)
    registry.open_session(row)
    return row


def find(node, uid="alice", session="s1"):
    findings.record([Disagreement(Kind.MISSING_GROUP_BINDING, "", None, uid, session)], node)


def open_rows():
    return set(Session.objects.filter(closed_at__isnull=True).values_list("pk", flat=True))


def still_open():
    return set(findings.open_findings().values_list("session_id", flat=True))


def picture():
    return [
        list(model.objects.order_by("pk").values()) for model in (Node, Session, Finding)
    ]  # fmt: skip


def test_beat_renews_the_lease_and_says_how_the_node_is(node):
    end_lease(node)
    assert registry.live_nodes() == []
    assert registry.beat(node, STATE)
    assert registry.live_nodes() == [node]
    row = Node.objects.get()
    assert (row.sessions, row.bindings, row.groups, row.probe_ms) == (3, 9, 4, 1.5)


def test_beat_of_a_swept_node_is_no_beat_until_it_registers_again(node):
    row = connect(node, "s1")
    end_lease(node)
    other = registry.register_node()
    registry.sweep_dead_nodes(other)
    assert not registry.beat(node, STATE)
    registry.register_again(node, [row])
    assert registry.beat(node, STATE)
    assert open_rows() == {"s1"}


def test_sweep_closes_what_a_dead_node_left_and_says_it_once(node):
    connect(node, "s1")
    find(node)
    find(node, "bob", "")
    end_lease(node)
    other = registry.register_node()
    connect(other, "s2", "bob")
    assert registry.sweep_dead_nodes(other) == {node: 1}
    assert open_rows() == {"s2"}
    assert still_open() == set()
    assert registry.sweep_dead_nodes(other) == {}


def test_sweep_closes_rows_of_a_node_that_stopped_before(node):
    registry.stop_node(node)
    connect(node, "late")
    other = registry.register_node()
    assert registry.sweep_dead_nodes(other) == {node: 1}
    assert open_rows() == set()
    assert registry.sweep_dead_nodes(other) == {}


def test_sweep_closes_findings_that_an_ended_node_left_behind(node):
    registry.stop_node(node)
    find(node, session="")
    other = registry.register_node()
    find(other, session="s9")
    assert registry.sweep_dead_nodes(other) == {}
    assert still_open() == {"s9"}


def test_sweep_with_nothing_to_sweep_writes_nothing(node, django_assert_num_queries):
    ended = registry.register_node()
    registry.stop_node(ended)
    connect(node, "s1")
    find(node)
    before = picture()
    with django_assert_num_queries(3):
        assert registry.sweep_dead_nodes(node) == {}
    assert picture() == before


def test_sweeping_node_never_ends_itself(node):
    connect(node, "s1")
    end_lease(node)
    registry.sweep_dead_nodes(node)
    assert Node.objects.get().stopped_at is None


def test_stopped_node_gives_everything_back(node):
    connect(node, "s1")
    find(node, session="")
    registry.beat(node, STATE)
    registry.stop_node(node)
    assert registry.live_nodes() == []
    assert (open_rows(), still_open()) == (set(), set())
    assert Session.objects.get().closed_because == "node stopped"
    assert Node.objects.get().sessions == 0


def test_closing_a_session_closes_the_findings_about_it(node):
    for name in ("s1", "s2"):
        connect(node, name)
        find(node, session=name)
    registry.close_session("s1", "quit")
    assert (open_rows(), still_open()) == ({"s2"}, {"s2"})
    registry.close_session("s1", "again")
    assert Session.objects.get(pk="s1").closed_because == "quit"


def test_dead_sessions_are_those_of_the_uids_in_scope(node):
    connect(node, "s1")
    connect(node, "s2", "bob")
    assert registry.dead_sessions([]) == []
    end_lease(node)

    def dead(*scopes):
        return {each.session for each in registry.dead_sessions(list(scopes))}

    assert dead() == {"s1", "s2"}
    assert dead({"uid": "bob"}) == {"s2"}
    assert dead({"uid": "bob", "channel": "2:team"}) == {"s2"}
    assert dead({"channel": "2:team"}) == set()


@pytest.mark.parametrize(
    ("level", "device", "kicked"),
    [
        (1, "new", {"same flag", "other device"}),
        (1, "", {"same flag", "other device"}),
        (0, "phone", {"same flag"}),
        (0, "new", set()),
        (0, "", set()),
    ],
)
def test_new_session_displaces_by_flag_level_and_device(node, level, device, kicked):
    connect(node, "same flag", device_id="phone")
    connect(node, "other device", device_id="tablet")
    connect(node, "other flag", flag=1, device_id="phone")
    connect(node, "other uid", uid="bob", device_id="phone")
    connect(node, "new", device_id=device, device_level=level)
    assert set(registry.kicked(node)) == kicked


@pytest.mark.parametrize(
    ("device", "level", "rung"),
    [("phone", 0, ["alice"]), ("", 1, ["alice"]), ("tablet", 0, []), ("", 0, [])],
)
def test_displaced_sessions_are_rung_for_after_the_commit(
    node, django_capture_on_commit_callbacks, device, level, rung
):
    connect(node, "old", device_id="phone")
    heard = []
    row = Session(
        pk="new", uid="alice", device_flag=0, node_id=node, device_id=device, device_level=level
    )
    with django_capture_on_commit_callbacks(execute=True):
        registry.open_session(row, heard.append)
        assert heard == []
    assert heard == rung


def plan(call):
    """How SQLite answers the one query of a call."""
    with CaptureQueriesContext(connection) as queries:
        call()
    [query] = queries
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {query['sql']}")
        return " ".join(row[3] for row in cursor.fetchall())


def test_what_the_tick_asks_each_time_is_answered_by_a_small_index(node):
    for n in range(50):
        connect(node, f"s{n}", f"u{n}")
    assert "wukongim_session_kicked" in plan(lambda: registry.kicked(node))


def test_nodes_are_seen_as_they_last_described_themselves(node):
    [view] = registry.node_views()
    assert (view.node, view.sessions, view.check_age) == (node, 0, None)
    registry.beat(node, STATE)
    registry.mark_checked(node, 30)
    other = registry.register_node()
    view, young = registry.node_views()
    assert (view.sessions, view.expected, view.bindings, view.groups) == (3, 9, 9, 4)
    assert (view.probe_ms, view.probe_missed, young.node) == (1.5, 0, other)
    assert 30 <= view.check_age < 60
    end_lease(node)
    assert [view.node for view in registry.node_views()] == [other]


def test_live_sessions_have_the_check_of_their_node(node):
    connect(node, "s1")
    assert registry.live_sessions().get().checked_at is None
    registry.mark_checked(node, 30)
    session = registry.live_sessions().get()
    assert timedelta(seconds=29) < session.opened_at - session.checked_at < timedelta(seconds=31)
    end_lease(node)
    assert not registry.live_sessions().exists()
