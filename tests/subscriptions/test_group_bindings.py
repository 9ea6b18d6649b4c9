"""The four states of a membership's group binding, told by column and filter alike."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from messaging.models import Node, Session
from subscriptions import group_bindings, live
from subscriptions.audit import Disagreement, Kind
from subscriptions.findings import record
from subscriptions.group_bindings import State, filter_by_state, states
from subscriptions.models import Finding, Membership
from tests.support.factories import make_group

pytestmark = pytest.mark.django_db

SECOND = timedelta(seconds=1)


@pytest.fixture
def team():
    """A group whose members joined an hour ago."""
    channel = make_group("team", "alice", "bob")
    Membership.objects.update(joined_at=timezone.now() - 3600 * SECOND)
    return channel


def make_node(checked: float | None = 1.0, lease: float = 20.0, **fields) -> Node:
    """A node whose last complete check was `checked` seconds ago."""
    now = timezone.now()
    return Node.objects.create(
        host="box", pid=1, lease_until=now + lease * SECOND,
        checked_at=None if checked is None else now - checked * SECOND, **fields,
    )  # fmt: skip


def open_session(uid: str, node: Node, opened: float = 600.0, **fields) -> Session:
    """A session opened so many seconds ago."""
    fields = {"id": f"{uid}-{Session.objects.count()}", **fields}
    return Session.objects.create(
        uid=uid, node=node, device_flag=2, opened_at=timezone.now() - opened * SECOND, **fields
    )


def lose(channel, node=None, uid="", session="") -> None:
    record(
        [Disagreement(Kind.MISSING_GROUP_BINDING, "layer", channel.pk, uid, session)],
        node and node.pk,
    )


def state_of(uid: str):
    """The state of the uid's one membership; fails when column and filter disagree."""
    membership = Membership.objects.get(uid=uid)
    told = states([membership])[membership.pk]
    found = [state for state in State if filter_by_state(Membership.objects.filter(uid=uid), state)]
    assert found == [told.state]
    return told


def test_member_without_a_session_is_offline(team):
    make_node()
    assert state_of("alice") == group_bindings.GroupBindingState(State.OFFLINE)


@pytest.mark.parametrize(
    ("node", "session"),
    [
        ({}, {"closed_at": timezone.now()}),
        ({"lease": -1}, {}),
        ({"stopped_at": timezone.now()}, {}),
    ],
)
def test_session_that_is_not_live_does_not_count(team, node, session):
    open_session("alice", make_node(**node), **session)
    assert state_of("alice").state == State.OFFLINE


def test_checked_sessions_are_counted(team):
    node = make_node(checked=1)
    open_session("alice", node)
    open_session("alice", node)
    told = state_of("alice")
    assert (told.state, told.sessions, told.checked_at) == (State.BOUND, 2, node.checked_at)


@pytest.mark.parametrize(
    ("checked", "state"),
    [(119, State.BOUND), (121, State.UNCHECKED), (None, State.UNCHECKED)],
)
def test_check_must_be_recent(team, checked, state):
    open_session("alice", make_node(checked=checked))
    assert state_of("alice").state == state


def test_bound_of_a_check_is_a_setting(team, settings):
    open_session("alice", make_node(checked=150))
    settings.SUBSCRIPTIONS = {"CHECK_FRESH_SECONDS": 200}
    assert state_of("alice").state == State.BOUND


def test_one_unchecked_node_is_enough_and_its_age_is_told(team):
    old = make_node(checked=130)
    for node in (make_node(checked=1), old):
        open_session("alice", node)
    told = state_of("alice")
    assert (told.state, told.sessions, told.checked_at) == (State.UNCHECKED, 2, old.checked_at)
    open_session("alice", make_node(checked=None))
    assert state_of("alice").checked_at is None


def test_check_before_the_session_was_opened_says_nothing(team):
    open_session("alice", make_node(checked=5), opened=2)
    assert state_of("alice").state == State.UNCHECKED


def test_check_before_the_member_joined_says_nothing(team):
    open_session("alice", make_node(checked=5))
    Membership.objects.filter(uid="alice").update(joined_at=timezone.now() - 2 * SECOND)
    assert state_of("alice").state == State.UNCHECKED


def test_finding_of_a_session_makes_its_member_missing(team):
    node = make_node()
    session = open_session("alice", node)
    open_session("bob", node)
    lose(team, node, "alice", session.pk)
    assert state_of("alice").state == State.MISSING
    assert state_of("bob").state == State.BOUND


def test_missing_tells_when_it_was_last_seen(team):
    node = make_node(checked=None)
    open_session("alice", node)
    lose(team, node, "alice")
    lose(team, node, "alice")
    told = state_of("alice")
    assert told.missed_at == Finding.objects.get().last_seen
    assert told.missed_at > Finding.objects.get().first_seen
    assert state_of("bob").missed_at is None


def test_check_before_the_session_was_opened_is_none_of_it(team):
    open_session("alice", make_node(checked=5), opened=2)
    assert state_of("alice").checked_at is None


def test_finding_of_a_uid_makes_its_member_missing(team):
    node = make_node()
    open_session("alice", node)
    open_session("bob", node)
    lose(team, node, "alice")
    assert (state_of("alice").state, state_of("bob").state) == (State.MISSING, State.BOUND)


def test_lost_group_is_missing_for_all_who_are_on_its_node(team):
    deaf, other = make_node(), make_node()
    open_session("alice", deaf)
    open_session("bob", other)
    lose(team, deaf)
    assert (state_of("alice").state, state_of("bob").state) == (State.MISSING, State.BOUND)


def test_missing_outweighs_unchecked(team):
    node = make_node(checked=None)
    open_session("alice", node)
    lose(team, node, "alice")
    assert state_of("alice").state == State.MISSING


def test_finding_of_a_session_that_is_gone_says_nothing_of_the_next(team):
    node = make_node()
    lose(team, node, "alice", "gone")
    assert state_of("alice").state == State.OFFLINE
    open_session("alice", node)
    assert state_of("alice").state == State.BOUND


def test_finding_elsewhere_or_of_another_kind_or_healed_does_not_count(team):
    node, other = make_node(), make_node()
    open_session("alice", node)
    lose(make_group("other", "bob"), node)
    lose(team, other, "alice")
    record([Disagreement(Kind.STRAY_GROUP_BINDING, "x", team.pk, "alice")], node.pk)
    assert state_of("alice").state == State.BOUND
    lose(team, node, "alice")
    Finding.objects.update(healed_at=timezone.now())
    assert state_of("alice").state == State.BOUND


def test_nothing_is_known_when_nobody_provides_sessions(team, monkeypatch):
    monkeypatch.setattr(live, "_provider", None)
    assert state_of("alice") == group_bindings.GroupBindingState(State.UNCHECKED)


@pytest.mark.parametrize("members", [5, 50])
def test_states_of_a_page_are_one_query(django_assert_num_queries, members):
    channel = make_group("page", *(f"u{n}" for n in range(members)))
    node = make_node()
    for n in range(members):
        open_session(f"u{n}", node)
    lose(channel, node, "u0")
    page = list(Membership.objects.all())
    with django_assert_num_queries(1):
        told = states(page)
    assert len(told) == members
    assert states([]) == {}
