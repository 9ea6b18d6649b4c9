"""Reads answer their question, in the same number of statements however long the answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subscriptions import selectors, services
from subscriptions.bindings import ChannelKey, Expected, Memberships
from subscriptions.models import Channel, Membership
from tests.support.factories import make_group

pytestmark = pytest.mark.django_db


def test_memberships_have_head_and_version_of_their_channel(db):
    team, other = make_group("team", "alice", "bob"), make_group("other", "alice")
    Channel.objects.filter(pk=team.pk).update(last_seq=5)
    found = selectors.memberships_of(["alice", "bob", "eve"])
    assert {uid: sorted(held) for uid, held in found.items()} == {
        "alice": [Expected(team.pk, 1, 0, 2, 5), Expected(other.pk, 1, 0, 1, 0)],
        "bob": [Expected(team.pk, 2, 0, 2, 5)],
    }


def test_memberships_are_told_one_by_one_and_without_some():
    held = Memberships([1, 2, 3], [4, 5, 6], [7, 8, 9], {1: (10, 11), 2: (12, 13)})
    assert [*held] == [Expected(1, 4, 7, 10, 11), Expected(2, 5, 8, 12, 13)]  # 3 is gone
    assert [*held.but({1})] == [Expected(2, 5, 8, 12, 13)]


def test_names_of_channels_are_found_by_number_and_numbers_by_name(db):
    team = make_group("team", "alice")
    alike = Channel.objects.create(channel_type=4, channel_id="team")
    keys = {team.pk: ChannelKey(2, "team"), alike.pk: ChannelKey(4, "team")}
    assert selectors.keys_of([*keys, 999_999]) == keys
    wanted = {ChannelKey(4, "team"), ChannelKey(2, "none")}
    assert selectors.channels_of(wanted) == {ChannelKey(4, "team"): alike.pk}


def test_joins_of_members_have_their_time_and_the_head_of_their_channel(db):
    team, other = make_group("team", "alice", "bob"), make_group("other", "alice", "eve")
    Channel.objects.filter(pk=team.pk).update(last_seq=5)
    joins = selectors.joins_of({team.pk: ["alice", "eve"], other.pk: ["bob"]})
    assert joins[team.pk, "alice"].at == Membership.objects.get(channel=team, uid="alice").joined_at
    assert joins[team.pk, "alice"].head == 5
    assert (team.pk, "eve") not in joins
    assert (other.pk, "bob") not in joins
    assert selectors.joins_of({}) == {}


def test_memberships_of_one_uid_are_one_statement(db, django_assert_num_queries):
    for number in range(30):
        make_group(f"room{number}", "alice")
    with django_assert_num_queries(1):
        assert len([*selectors.memberships_of(["alice"])["alice"]]) == 30


@pytest.mark.parametrize("read", [selectors.memberships_of, selectors.digests, selectors.heads])
def test_longer_lists_than_a_statement_takes_are_read_in_pages(db, read):
    team = make_group("team", "alice")
    wanted = range(300_000) if read is selectors.heads else [f"u{n}" for n in range(300_000)]
    found = read([*wanted, team.pk if read is selectors.heads else "alice"])
    assert len(found) == 1
    assert read([]) == {}


def test_heads_are_head_and_version(db):
    team = make_group("team", "alice", "bob")
    Channel.objects.update(last_seq=9)
    assert selectors.heads([team.pk]) == {team.pk: (9, 2)}


def test_digest_in_sql_is_the_digest_in_python(db):
    for number in range(50):
        make_group(f"room{number}", "alice", *(["bob"] if number % 3 else []))
    stored = selectors.digests(["alice", "bob", "eve"])
    assert stored == {
        uid: selectors.digest(
            Membership.objects.filter(uid=uid).values_list("channel_id", "joined_version")
        )
        for uid in ("alice", "bob")
    }


PAIR = st.tuples(st.integers(1, 10**9), st.integers(1, 10**6))


@given(st.sets(PAIR, max_size=20), PAIR)
def test_digest_changes_with_any_one_membership(pairs, other):
    changed = pairs ^ {other}
    assert selectors.digest(pairs) != selectors.digest(changed)
    assert selectors.digest(pairs) == selectors.digest(sorted(pairs, reverse=True))


def test_scopes_choose_by_channel_and_uid(db):
    make_group("team", "alice", "bob")
    make_group("other", "alice")

    def chosen(*scopes):
        rows = Membership.objects.filter(selectors.in_scopes(list(scopes)))
        return {(row.uid, str(row.channel.key)) for row in rows.select_related("channel")}

    assert len(chosen()) == 3
    assert chosen({"channel": "2:other"}) == {("alice", "2:other")}
    assert chosen({"channel": "2:team", "uid": "bob"}) == {("bob", "2:team")}
    assert chosen({"uid": "bob"}, {"channel": "2:other"}) == {
        ("bob", "2:team"), ("alice", "2:other"),
    }  # fmt: skip


def test_sweep_reads_the_change_log_from_its_mark(transactional_db):
    team = make_group("team", "alice")
    mark = selectors.change_mark()
    services.leave(team.key, ["alice"], actor="test")
    services.join(team.key, ["bob"], actor="test")
    rows, _, more = selectors.changes_after(mark, 10)
    assert [row[1:] for row in rows] == [(team.pk, "alice", 2), (team.pk, "bob", 3)]
    assert not more
    first, half_way, more = selectors.changes_after(mark, 1)
    assert (first, more) == (rows[:1], True)
    rest, end, more = selectors.changes_after(half_way, 1)
    assert (rest, more) == (rows[1:], False)
    assert selectors.changes_after(end, 10)[0] == []
