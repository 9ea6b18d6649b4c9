"""Marks: whatever order transactions commit in, a sweep sees each row once."""

from __future__ import annotations

import random
from contextlib import ExitStack

import psycopg
import pytest
from django.db import connection

from subscriptions.marks import Mark, lowest, mark_of, rows_after
from subscriptions.models import Channel, MembershipChange
from tests.support.server import NETWORKED

out_of_order = pytest.mark.skipif(
    not NETWORKED, reason="SQLite commits in the order of ids; PostgreSQL is where it does not"
)
INSERT = (
    "INSERT INTO wukongim_subscriptions_membershipchange"
    " (channel_id, uid, version, seq, joined, at) VALUES (%s, 'bob', %s, 0, true, now())"
)


@pytest.fixture
def channel(transactional_db):
    return Channel.objects.create(channel_id="team", channel_type=2)


@pytest.fixture
def others():
    """Opens transactions of other people's."""
    settings = connection.settings_dict
    with ExitStack() as stack:
        yield lambda: stack.enter_context(
            psycopg.connect(
                host=settings["HOST"], port=settings["PORT"], user=settings["USER"],
                dbname=settings["NAME"],
            )
        )  # fmt: skip


def look(mark, page=100):
    """Everything since a mark, read in pages: the versions, and the mark to go on from."""
    seen, more = [], True
    while more:
        rows, mark, more = rows_after(MembershipChange, ("version",), mark, page)
        seen += [version for _, version in rows]
    return seen, mark


@out_of_order
def test_row_of_a_long_transaction_is_seen_once_it_is_committed(channel, others):
    mark = mark_of(MembershipChange)
    slow, quick = others(), others()
    slow.execute(INSERT, [channel.pk, 1])
    quick.execute(INSERT, [channel.pk, 2])
    quick.commit()
    seen, mark = look(mark)
    assert seen == [2]
    slow.commit()
    seen, mark = look(mark)
    assert seen == [1]
    assert look(mark)[0] == []


@out_of_order
def test_row_committed_between_two_pages_comes_with_the_next_look(channel, others):
    mark = mark_of(MembershipChange)
    slow, quick = others(), others()
    slow.execute(INSERT, [channel.pk, 1])
    for version in (2, 3, 4):
        quick.execute(INSERT, [channel.pk, version])
    quick.commit()
    first, half_way, more = rows_after(MembershipChange, ("version",), mark, 2)
    assert ([version for _, version in first], more) == ([2, 3], True)
    slow.commit()
    seen, mark = look(half_way, 2)
    assert seen == [4]
    assert look(mark)[0] == [1]


@out_of_order
def test_rows_that_were_rolled_back_are_never_seen(channel, others):
    mark = mark_of(MembershipChange)
    other = others()
    other.execute(INSERT, [channel.pk, 1])
    other.rollback()
    assert look(mark)[0] == []


@out_of_order
def test_marks_of_another_cluster_are_no_news(channel, others):
    """A restored dump brings numbers along that this cluster has yet to give out."""
    other = others()
    insert = INSERT.replace("at)", "at, change_mark)")
    other.execute(insert.replace("now())", "now(), 1::bigint << 40)"), [channel.pk, 1])
    other.commit()
    assert look(mark_of(MembershipChange))[0] == []


@out_of_order
@pytest.mark.parametrize("seed", range(20))
def test_every_row_is_seen_once_whatever_the_order_of_commits(channel, others, seed):
    die = random.Random(seed)
    mark, seen, version, committed = mark_of(MembershipChange), [], 0, 0
    running = {others(): 0 for _ in range(4)}
    for _ in range(60):
        other = die.choice(list(running))
        match die.choice(["insert", "insert", "commit", "roll back", "look"]):
            case "insert":
                version += 1
                other.execute(INSERT, [channel.pk, version])
                running[other] += 1
            case "commit":
                other.commit()
                committed, running[other] = committed + running[other], 0
            case "roll back":
                other.rollback()
                running[other] = 0
            case "look":
                found, mark = look(mark, die.randint(1, 3))
                seen += found
    for other in running:
        other.rollback()
    found, mark = look(mark)
    seen += found
    assert len(seen) == len(set(seen)) == committed
    assert set(seen) == set(MembershipChange.objects.values_list("version", flat=True))


def test_the_earlier_of_two_marks_is_kept():
    assert lowest(Mark(5), Mark(3)) == Mark(3)
    early, late = Mark(snapshot="7:9:7"), Mark(snapshot="8:12:8,10")
    assert lowest(late, early) == lowest(early, late) == early
