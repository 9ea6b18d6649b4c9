"""Holes in the log and sessions of the dead are named, and mended where that is possible."""

from __future__ import annotations

import itertools
from datetime import timedelta

import pytest
from django.db.models import F

from messaging import registry, storage
from messaging.models import Message, Node, Session
from subscriptions.audit import Kind
from subscriptions.models import Channel
from tests.support.factories import make_group

pytestmark = pytest.mark.django_db

IDS = itertools.count(1)


def fill(channel, *seqs, head):
    """A channel's log with these seqs, and its head."""
    Message.objects.bulk_create(
        [
            Message(channel=channel, seq=seq, version=1, message_id=next(IDS), created_ms=0,
                    sender="alice", payload=b"x")
            for seq in seqs
        ]
    )  # fmt: skip
    Channel.objects.filter(pk=channel.pk).update(last_seq=head)


def look(*scopes, repair=False, kinds=tuple(Kind)):
    found = storage.check(list(scopes), kinds, repair)
    return [(each.kind, each.channel, each.from_seq, each.to_seq, done) for each, done in found]


@pytest.mark.parametrize(
    ("seqs", "head"), [([], 0), ([1], 1), ([1, 2, 3], 3), ([5, 6], 6)]
)  # fmt: skip
def test_log_without_a_hole_is_whole(db, seqs, head):
    fill(make_group("team", "alice"), *seqs, head=head)
    assert look() == []


@pytest.mark.parametrize(
    ("seqs", "head", "first", "last", "mended"),
    [
        ([1, 2, 3], 2, 2, 3, True),
        ([1, 2, 3], 0, 0, 3, True),
        ([5, 6], 5, 5, 6, True),
        ([1, 3], 3, 3, 3, False),
        ([1, 3], 2, 2, 3, False),
        ([1, 2], 5, 2, 5, False),
        ([], 4, 0, 4, False),
    ],
)
def test_hole_is_named_and_a_low_head_raised(db, seqs, head, first, last, mended):
    channel = make_group("team", "alice")
    fill(channel, *seqs, head=head)
    hole = ("log_hole", channel.pk, first, last)
    assert look() == [(*hole, False)]
    assert Channel.objects.get().last_seq == head
    assert look(repair=True) == [(*hole, mended)]
    assert Channel.objects.get().last_seq == max([head, *seqs])
    assert (look() == []) is mended


def test_looks_where_the_scope_says(db):
    team, other = make_group("team", "alice", "bob"), make_group("other", "alice")
    for channel in (team, other):
        fill(channel, 1, 2, head=1)

    def channels(*scopes):
        return {row[1] for row in look(*scopes)}

    assert channels() == {team.pk, other.pk}
    assert channels({"channel": "2:team"}) == {team.pk}
    assert channels({"channel": "2:team", "uid": "eve"}) == {team.pk}
    assert channels({"uid": "bob"}) == {team.pk}
    assert channels({"uid": "alice"}) == {team.pk, other.pk}
    assert channels({"uid": "eve"}) == set()
    assert channels({"uid": "bob"}, {"channel": "2:other"}) == {team.pk, other.pk}
    assert look(kinds=["dead_session"], repair=True) == []
    assert Channel.objects.filter(last_seq=1).count() == 2


def test_logs_are_looked_at_in_one_statement(db, django_assert_num_queries):
    for number in range(20):
        fill(make_group(f"room{number}", "alice"), 1, head=1)
    with django_assert_num_queries(1):
        assert storage.check_log([], False) == []


def test_sessions_of_a_dead_node_are_named_and_closed(db):
    node = registry.register_node()
    registry.open_sessions([Session(pk="s1", uid="alice", device_flag=0, node_id=node)])
    assert look() == []
    Node.objects.update(lease_until=F("lease_until") - timedelta(hours=1))
    dead = ("dead_session", None, None, None)
    assert look() == [(*dead, False)]
    assert look(kinds=["log_hole"], repair=True) == []
    assert Session.objects.filter(closed_at__isnull=True).exists()
    assert look(repair=True) == [(*dead, True)]
    assert Session.objects.get().closed_because == "dead"
    assert look(repair=True) == []
