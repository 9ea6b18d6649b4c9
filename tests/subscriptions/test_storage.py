"""Memberships that the change log contradicts are named, mended, and then whole."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from django.db import connection

from subscriptions import services, storage
from subscriptions.audit import Kind
from subscriptions.bindings import ChannelKey
from subscriptions.models import Membership, MembershipChange
from subscriptions.triggers import install
from tests.support.factories import make_group
from tests.support.triggers import refusing

pytestmark = pytest.mark.django_db

TEAM = [{"channel": "2:team"}]


@contextmanager
def past_triggers():
    """Write as a restored dump does: nothing counts, nothing guards."""
    install.remove(connection)
    yield
    install.install(connection)


def wrong_version():
    Membership.objects.filter(uid="alice").update(joined_version=77)


def wrong_seq():
    Membership.objects.filter(uid="alice").update(joined_seq=77)


def unknown_row():
    MembershipChange.objects.filter(uid="alice").delete()


def lost_row():
    Membership.objects.filter(uid="alice")._raw_delete("default")


def row_after_leaving():
    alice = Membership.objects.get(uid="alice", channel__channel_id="team")
    install.install(connection)
    services.leave(ChannelKey(2, "team"), ["alice"], actor="test")
    install.remove(connection)
    Membership.objects.bulk_create([Membership(channel=alice.channel, uid="alice")])
    row = Membership.objects.filter(uid="alice", channel=alice.channel)
    row.update(joined_version=alice.joined_version)


FAULTS = {
    wrong_version: True, wrong_seq: True, unknown_row: True, lost_row: False,
    row_after_leaving: True,
}  # fmt: skip
"""Each way to contradict the log, and whether alice is a member once it is mended."""


def look(scopes=(), repair=False, kinds=tuple(Kind)):
    found = storage.check(list(scopes), kinds, repair)
    return [(each.kind, each.uid, repaired) for each, repaired in found]


def tables():
    return (
        list(Membership.objects.order_by("pk").values_list()),
        list(MembershipChange.objects.order_by("pk").values_list()),
    )


@pytest.mark.parametrize("fault", FAULTS)
def test_contradiction_is_named_mended_and_then_gone(db, fault):
    team = make_group("team", "alice", "bob")
    make_group("other", "alice")
    Membership.objects.update(read_seq=3)
    with past_triggers():
        fault()
    found = ("membership_invalid", "alice")
    before = tables()
    assert (*found, False) in look(TEAM)
    assert tables() == before
    assert look(TEAM, repair=True) == [(*found, True)]
    mended = tables()
    assert look(TEAM, repair=True) == []
    assert tables() == mended
    assert team.memberships.filter(uid="alice").exists() is FAULTS[fault]
    services.join(team.key, ["alice"], actor="test")
    services.leave(team.key, ["alice"], actor="test")
    assert look(TEAM) == []


def test_mended_row_keeps_what_its_reader_keeps(db):
    make_group("team", "alice")
    Membership.objects.update(read_seq=3, hidden_seq=2)
    with past_triggers():
        unknown_row()
    look(repair=True)
    assert Membership.objects.values_list("read_seq", "hidden_seq").get() == (3, 2)


@pytest.mark.parametrize("fault", FAULTS)
def test_lines_that_mending_adds_say_so(db, fault):
    make_group("team", "alice")
    with past_triggers():
        fault()
    before = set(MembershipChange.objects.values_list("pk", flat=True))
    storage.check([], list(Kind), repair=True, reason="audit 7 of operator")
    added = MembershipChange.objects.exclude(pk__in=before)
    assert set(added.values_list("actor", "reason")) <= {("repair", "audit 7 of operator")}
    assert added.exists() is (fault in (unknown_row, lost_row, row_after_leaving))


def test_stranger_in_a_person_channel_is_mended_like_anybody(db):
    key = ChannelKey(1, "bob@alice")
    services.join(key, ["alice", "bob"], actor="test")
    channel = services.save_channel(key)
    with past_triggers():
        Membership.objects.bulk_create([Membership(channel=channel, uid="mallory")])
    assert look(repair=True) == [("membership_invalid", "mallory", True)]
    assert look() == []


def test_look_stays_in_its_scope_and_kinds(db):
    make_group("team", "alice", "bob")
    make_group("other", "alice")
    with past_triggers():
        wrong_seq()
    assert len(look()) == 2
    assert len(look(TEAM)) == 1
    assert look([{"uid": "bob"}], repair=True) == []
    assert look(kinds=[Kind.LOG_HOLE], repair=True) == []
    assert len(look(repair=True)) == 2


def test_what_cannot_be_mended_stays_found(db):
    make_group("team", "alice", "bob")
    with past_triggers():
        wrong_seq()
        lost_row()
        Membership.objects.filter(uid="bob").update(joined_seq=5)
    with refusing("alice"):
        found = look(repair=True)
    assert set(found) == {
        ("membership_invalid", "alice", False), ("membership_invalid", "bob", True),
    }  # fmt: skip
