"""Leases, session rows, and what is closed with them."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from datetime import timedelta

import pytest
from django.db import OperationalError, connection, transaction
from django.db.models import F
from django.test.utils import CaptureQueriesContext
from websockets.exceptions import ConnectionClosed

from messaging import auth, registry
from messaging.models import Node, Session
from subscriptions import findings
from subscriptions.audit import Disagreement, Kind
from subscriptions.models import Finding
from tests.support.peers import Peer
from tests.support.together import at_once, held_by_another, interleave
from tests.support.triggers import ON_POSTGRESQL

pytestmark = pytest.mark.django_db
postgresql_only = pytest.mark.skipif(not ON_POSTGRESQL, reason="SQLite has no locks by name")

STATE = registry.Beat(3, 9, 9, 4, 1.5, 0)


@pytest.fixture
def node(db):
    return registry.register_node()


def end_lease(node):
    Node.objects.filter(pk=node).update(lease_until=F("lease_until") - timedelta(hours=1))


def connect(node, name, uid="alice", **fields):
    row = Session(pk=name, uid=uid, device_flag=fields.pop("flag", 0), node_id=node, **fields)
    with transaction.atomic():
        registry.hold_device(row.uid, row.device_flag)
        registry.open_sessions([row])
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
    with django_assert_num_queries(1):
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
        registry.open_sessions([row], heard.append)
        assert heard == []
    assert heard == rung


def test_session_that_is_opened_again_after_a_rollback_has_the_time_of_that(node):
    row = Session(pk="s1", uid="alice", device_flag=0, node_id=node)
    with transaction.atomic():
        [first] = registry.open_sessions([row])
        transaction.set_rollback(True)
    [second] = registry.open_sessions([row])
    assert first <= second == Session.objects.get().opened_at
    assert row.opened_at != first


def plan(call):
    """How the database would answer the one query of a call, if it took no table for small."""
    with CaptureQueriesContext(connection) as queries:
        call()
    [query] = queries
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET LOCAL enable_seqscan = off")
            cursor.execute("ANALYZE wukongim_messaging_session")
            cursor.execute(f"EXPLAIN {query['sql']}")
        else:
            cursor.execute(f"EXPLAIN QUERY PLAN {query['sql']}")
        return " ".join(row[-1] for row in cursor.fetchall())


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


# --- a node that was taken for dead -------------------------------------------------------------


def sweep(node):
    """Another node finds this one dead."""
    end_lease(node)
    other = registry.register_node()
    registry.sweep_dead_nodes(other)
    return other


def test_node_that_comes_back_keeps_what_its_rows_said(node):
    row = connect(node, "s1", device_id="phone")
    opened = Session.objects.get(pk="s1").opened_at
    sweep(node)
    registry.register_again(node, [row])
    back = Session.objects.get(pk="s1")
    assert (back.closed_at, back.closed_because, back.kick) == (None, "", "")
    assert (back.opened_at, back.device_id) == (opened, "phone")


def test_node_that_comes_back_writes_its_sessions_in_one_statement_a_page(node):
    rows = [connect(node, f"s{n}", f"u{n}") for n in range(50)]
    sweep(node)
    with CaptureQueriesContext(connection) as queries:
        registry.register_again(node, rows)
    assert len(open_rows()) == 50
    assert len([each for each in queries if "INSERT" in each["sql"]]) == 1


@pytest.mark.parametrize(
    ("mine", "newcomer", "kick"),
    [
        ({"device_id": "phone"}, {"device_id": "phone"}, registry.SAME_DEVICE),
        ({"device_id": "phone"}, {"device_id": "desk", "device_level": 1}, registry.OTHER_DEVICE),
        ({"device_id": "phone"}, {"device_id": "desk"}, ""),
        ({"device_id": ""}, {"device_id": ""}, ""),
        ({"device_id": "phone"}, {"device_id": "phone", "flag": 1}, ""),
        ({"device_id": "phone"}, {"device_id": "phone", "uid": "bob"}, ""),
    ],
)
def test_who_was_displaced_while_taken_for_dead_goes_after_all(node, mine, newcomer, kick):
    row = connect(node, "mine", **mine)
    other = sweep(node)
    connect(other, "newcomer", **newcomer)
    registry.register_again(node, [row])
    assert Session.objects.get(pk="mine").kick == kick
    assert Session.objects.get(pk="newcomer").kick == ""


@pytest.mark.parametrize(("level", "kick"), [(1, registry.OTHER_DEVICE), (0, "")])
def test_new_token_while_taken_for_dead_ends_what_it_would_have_ended(node, level, kick):
    row = connect(node, "mine")
    sweep(node)
    auth.set_token("alice", "secret", 0, level)
    registry.ensure_session(row)
    assert Session.objects.get(pk="mine").kick == kick


def test_many_rows_are_closed_each_with_its_reason_and_its_findings(node):
    for name in ("s1", "s2", "s3"):
        connect(node, name)
        find(node, session=name)
    registry.close_session("s3", "quit")
    registry.close_sessions({"s1": "restarting", "s2": "normal", "s3": "restarting"})
    why = dict(Session.objects.values_list("pk", "closed_because"))
    assert why == {"s1": "restarting", "s2": "normal", "s3": "quit"}
    assert still_open() == set()


def test_others_hear_when_a_leased_node_hears_its_probes(node):
    assert not registry.others_hear(node)
    other = registry.register_node()
    assert not registry.others_hear(node)
    registry.beat(other, STATE)
    assert registry.others_hear(node)
    assert not registry.others_hear(other)
    registry.beat(other, replace(STATE, probe_missed=1))
    assert not registry.others_hear(node)
    registry.beat(other, STATE)
    end_lease(other)
    assert not registry.others_hear(node)


def test_leases_are_judged_by_the_database_clock_alone(node, monkeypatch):
    """A process whose own clock is two minutes off renews and sweeps like any other (F55)."""
    true_time = time.time
    for off in (-120, 120):
        monkeypatch.setattr(time, "time", lambda off=off: true_time() + off)
        skewed = registry.register_node()
        assert registry.beat(skewed, STATE)
        assert registry.sweep_dead_nodes(skewed) == {}
        assert set(registry.live_nodes()) >= {node, skewed}


# --- two at once --------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_two_sweepers_at_once_find_a_dead_node_once(transactional_db):
    first, second = registry.register_node(), registry.register_node()
    for _ in range(5):
        dead = registry.register_node()
        for n in range(20):
            connect(dead, f"{dead}-{n}", f"u{n}")
        end_lease(dead)
        found = at_once(
            lambda: registry.sweep_dead_nodes(first), lambda: registry.sweep_dead_nodes(second)
        )
        assert sorted(found, key=len) == [{}, {dead: 20}]
        assert open_rows() == set()


@pytest.mark.django_db(transaction=True)
def test_sweeper_passes_over_what_another_sweeps(transactional_db):
    dead, first, second = (registry.register_node() for _ in range(3))
    connect(dead, "s1")
    end_lease(dead)
    found = interleave(
        lambda: registry.sweep_dead_nodes(first), lambda: registry.sweep_dead_nodes(second)
    )
    assert found == ({dead: 1}, {})


@pytest.mark.django_db(transaction=True)
def test_beat_while_the_node_is_swept_is_no_beat(transactional_db):
    late, other = registry.register_node(), registry.register_node()
    end_lease(late)
    _, kept = interleave(
        lambda: registry.sweep_dead_nodes(other), lambda: registry.beat(late, STATE)
    )
    assert not kept


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("fields", [{"device_level": 1}, {"device_id": "phone"}])
def test_two_connects_at_once_that_displace_each_other_leave_one(transactional_db, fields):
    here, there = registry.register_node(), registry.register_node()
    interleave(lambda: connect(here, "first", **fields), lambda: connect(there, "second", **fields))
    assert registry.kicked(here).keys() == {"first"}
    assert registry.kicked(there) == {}


@pytest.mark.django_db(transaction=True)
def test_node_that_comes_back_while_somebody_displaces_its_session_hears_of_it(transactional_db):
    node = registry.register_node()
    row = connect(node, "mine", device_id="phone")
    other = sweep(node)
    interleave(
        lambda: connect(other, "newcomer", device_id="phone"),
        lambda: registry.register_again(node, [row]),
    )
    assert registry.kicked(node) == {"mine": registry.SAME_DEVICE}


def waiting_for_devices():
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        return cursor.fetchone()[0]


@postgresql_only
@pytest.mark.django_db(transaction=True)
def test_frozen_connect_holds_up_others_for_two_seconds_at_most(transactional_db):
    """A node that writes itself down again waits for it, and every connect behind that node."""
    node = registry.register_node()

    def give_up():
        with pytest.raises(OperationalError, match="lock timeout"):
            registry.register_again(node, [])

    def come_behind():
        while not waiting_for_devices():
            time.sleep(0.01)
        connect(node, "s1", "zed")

    began = time.monotonic()
    with held_by_another("SELECT pg_advisory_xact_lock_shared(%s)", registry.DEVICES_LOCK):
        at_once(give_up, come_behind)
    assert time.monotonic() - began < registry.HELD_SECONDS + 2
    assert open_rows() == {"s1"}
    registry.register_again(node, [])


@postgresql_only
async def test_connect_of_a_device_that_a_frozen_one_holds_is_told_to_come_back(here, settings):
    settings.MESSAGING = {"TOKEN_REQUIRED": False}
    with held_by_another("SELECT pg_advisory_xact_lock(%s)", registry.DEVICES_LOCK):
        peer = Peer(here.url, "alice")
        with pytest.raises((ConnectionResetError, ConnectionClosed)):
            await asyncio.wait_for(peer.open(), registry.HELD_SECONDS + 3)
        await asyncio.wait_for(peer.reader, 5)
        assert peer.socket.close_code == 1013
    async with Peer(here.url, "alice"):
        assert len(here.node.members) == 1


@pytest.mark.django_db(transaction=True)
def test_connects_and_bulk_closings_at_once_never_wait_for_each_other_in_a_circle(transactional_db):
    node, other = registry.register_node(), registry.register_node()
    for turn in range(5):
        names = [f"{turn}-{n}" for n in range(30)]
        for name in names:
            connect(node, name, device_id=name)
        at_once(
            lambda names=names: registry.close_sessions(dict.fromkeys(reversed(names), "gone")),
            lambda turn=turn: connect(other, f"m{turn}", device_level=1),
            lambda: registry.kick_sessions("alice", [0], "by an operator"),
        )
        assert not [pk for pk in open_rows() if pk in names]
