"""The message log: places, repeats, verdicts, and what a failing batch does."""

from __future__ import annotations

import time
from dataclasses import replace
from unittest.mock import ANY

import pytest
from django.db import OperationalError, connection
from django.test.utils import CaptureQueriesContext

from messaging import accounts, message_table
from messaging.appender import Appender
from messaging.message_table import heads_after, message_mark, read_range
from messaging.messages import Appended, Draft, Refused
from messaging.models import Message
from messaging.permissions import Standing
from messaging.protocol.reasons import Reason
from subscriptions import services
from subscriptions.bindings import ChannelKey
from subscriptions.models import AccessRule, Channel, Membership, MembershipChange
from subscriptions.selectors import is_channel
from tests.support.factories import make_group
from tests.support.server import NETWORKED

pytestmark = pytest.mark.django_db

TEAM = ChannelKey(2, "team")


@pytest.fixture
def team():
    return make_group("team", "alice", "bob")


@pytest.fixture
def append():
    """Append drafts of alice's with one appender; returns the outcomes."""
    appender = Appender()

    def append(*drafts):
        return appender.append(drafts, wait=10.0)  # nobody else waits here: as for a caller alone

    return append


def draft(text="hi", **fields):
    return Draft(**{"key": TEAM, "sender": "alice", "payload": text.encode(), **fields})


def test_messages_of_a_batch_get_seqs_in_order(team, append):
    first, second, third = append(draft("1"), draft("2", sender="bob"), draft("3"))
    assert [each.message.seq for each in (first, second, third)] == [1, 2, 3]
    assert first.message.message_id < second.message.message_id < third.message.message_id
    assert Channel.objects.get(pk=team.pk).last_seq == 3
    stored = read_range(team.pk, TEAM, after=0, up_to=None, limit=10)
    assert stored == [first.message, second.message, third.message]


def test_message_carries_the_version_it_was_written_under(team, append):
    [before] = append(draft())
    services.join(TEAM, ["carol"], actor="test")
    [after] = append(draft())
    assert after.message.version == before.message.version + 1
    change = MembershipChange.objects.get(uid="carol")
    assert (change.version, change.seq) == (after.message.version, before.message.seq)


def test_repeat_gets_the_first_answer_in_any_batch(team, append):
    first, again = append(draft("once", client_msg_no="n"), draft("once", client_msg_no="n"))
    [later] = append(draft("once", client_msg_no="n"))
    assert not first.repeated
    assert again == later == Appended(first.message, repeated=True)
    assert Message.objects.count() == 1


def test_repeat_with_another_payload_is_a_conflict(team, append):
    append(draft("once", client_msg_no="n"))
    assert append(draft("twice", client_msg_no="n")) == [Refused(Reason.IDEMPOTENCY_CONFLICT)]


def test_same_number_of_another_sender_or_channel_is_no_repeat(team, append):
    make_group("other", "alice")
    outcomes = append(
        draft(client_msg_no="n"),
        draft(client_msg_no="n", sender="bob"),
        draft(client_msg_no="n", key=ChannelKey(2, "other")),
    )
    assert [each.repeated for each in outcomes] == [False, False, False]


def test_unstored_message_has_no_seq_and_leaves_the_head(team, append):
    [outcome] = append(draft(no_persist=True))
    assert outcome.message.seq == 0
    assert Channel.objects.get(pk=team.pk).last_seq == 0
    assert not Message.objects.exists()


def test_sender_is_judged_again_when_the_version_moved(team, append):
    assert isinstance(append(draft())[0], Appended)
    services.leave(TEAM, ["alice"], actor="test")
    assert append(draft()) == [Refused(Reason.SUBSCRIBER_NOT_EXIST)]
    services.join(TEAM, ["alice"], actor="test")
    assert isinstance(append(draft())[0], Appended)
    AccessRule.objects.create(channel_id="team", channel_type=2, uid="alice", allow=False)
    assert append(draft()) == [Refused(Reason.IN_BLACKLIST)]


def test_standing_verdict_costs_no_queries(team, append, django_assert_num_queries):
    append(draft())
    # Lock, repeats and clock, insert, on SQLite head; two for the savepoint; on PostgreSQL how long
    # to wait for the lock.
    with django_assert_num_queries(4 + 2):
        append(*[draft(str(n)) for n in range(50)])


def test_verdict_of_a_batch_that_was_rolled_back_is_forgotten(team, append, monkeypatch):
    """The row that was judged never was; another may get its primary key and version."""
    pair = ChannelKey(1, "bob@alice")

    def fail(rows):
        raise OperationalError("disk I/O error")

    with monkeypatch.context() as patched:
        patched.setattr(message_table, "insert", fail)
        assert append(draft(key=pair)) == [Refused(Reason.SYSTEM_ERROR)]
    assert not Channel.objects.filter(channel_id=pair.channel_id).exists()
    other = make_group("other", "bob", "carol")
    with connection.cursor() as cursor:
        cursor.execute("SELECT last_seq FROM wukongim_subscriptions_channel WHERE id = %s",
                       [other.pk])  # fmt: skip
    refused = append(draft(key=ChannelKey(2, "other")))
    assert refused == [Refused(Reason.SUBSCRIBER_NOT_EXIST)]


def test_bad_draft_fails_alone(team, append):
    good, bad, fine = append(draft("1"), draft("2", topic="\ud800"), draft("3"))
    assert bad == Refused(Reason.SYSTEM_ERROR)
    assert [good.message.seq, fine.message.seq] == [1, 2]


def test_database_that_is_gone_fails_the_batch_once(team, append, monkeypatch):
    asked = []

    def fail(keys, wait):
        asked.append(len(keys))
        raise OperationalError("database is locked")

    monkeypatch.setattr(message_table, "lock_channels", fail)
    assert append(*[draft()] * 8) == [Refused(Reason.SYSTEM_ERROR)] * 8
    assert asked == [1]


def test_first_message_makes_a_person_channel_with_both(append):
    [outcome] = append(draft(key=ChannelKey(1, "bob@alice")))
    assert outcome.message.seq == 1
    rows = Membership.objects.filter(channel=outcome.message.channel)
    assert sorted(rows.values_list("uid", "joined_seq")) == [("alice", 0), ("bob", 0)]
    changes = MembershipChange.objects.filter(channel=outcome.message.channel)
    assert {(each.actor, each.reason) for each in changes} == {("alice", "first message")}


def test_first_message_makes_an_agent_channel_with_both(append):
    key = ChannelKey(11, "alice@bot")
    assert append(draft(key=key, sender="eve")) == [Refused(Reason.NOT_ALLOW_SEND)]
    assert not Channel.objects.exists()
    first, answer = append(draft(key=key), draft(key=key, sender="bot"))
    assert (first.message.seq, answer.message.seq) == (1, 2)
    assert members(key) == ["alice", "bot"]


def test_first_message_of_a_visitor_makes_his_channel_which_agents_join(append):
    key = ChannelKey(10, "alice")
    assert append(draft(key=key, sender="bob")) == [Refused(Reason.SUBSCRIBER_NOT_EXIST)]
    assert isinstance(append(draft(key=key))[0], Appended)
    assert members(key) == ["alice"]
    assert append(draft(key=key, sender="bob")) == [Refused(Reason.SUBSCRIBER_NOT_EXIST)]
    services.join(key, ["bob"], actor="test")
    assert isinstance(append(draft(key=key, sender="bob"))[0], Appended)


@pytest.mark.parametrize(("kind", "name"), [(1, "bob@alice"), (11, "alice@bot"), (10, "alice")])
def test_back_end_makes_the_channels_that_a_first_message_makes(append, kind, name):
    key = ChannelKey(kind, name)
    [outcome] = append(draft(key=key, trusted=True))
    assert outcome.message.seq == 1
    assert members(key) == sorted(name.split("@"))


@pytest.mark.parametrize("kind", [2, 3, 6, 10])
def test_back_end_makes_no_other_channel(append, kind):
    refused = append(draft(key=ChannelKey(kind, "team"), trusted=True))
    assert refused == [Refused(Reason.CHANNEL_NOT_EXIST)]
    assert not Channel.objects.exists()


@pytest.mark.parametrize("kind", [3, 6])
def test_anybody_sends_where_it_is_open_and_nobody_where_there_is_nothing(append, kind):
    key = ChannelKey(kind, "help")
    assert append(draft(key=key)) == [Refused(Reason.CHANNEL_NOT_EXIST)]
    services.save_channel(key, {"ban": True, "disband": True})
    assert isinstance(append(draft(key=key))[0], Appended)
    assert members(key) == []


def members(key):
    rows = Membership.objects.filter(is_channel(key, "channel__"))
    return sorted(rows.values_list("uid", flat=True))


# --- what the database says of a sender -----------------------------------------------------------


PAIR = ChannelKey(1, "bob@alice")


def rule(uid, allow, name="bob", kind=1):
    AccessRule.objects.create(channel_id=name, channel_type=kind, uid=uid, allow=allow)


def standing(key=PAIR, sender="alice"):
    return message_table.standings({(key, sender): None})[key, sender]


def test_each_fact_is_told_of_the_right_side():
    """Nothing of bob's is said of alice, whose message it is, nor the other way round."""
    assert standing() == standing(sender="bob") == Standing()
    for make, fact in [
        (lambda: services.save_channel(ChannelKey(1, "alice"), {"send_ban": True}),
         "sender_banned"),
        (lambda: services.save_channel(ChannelKey(1, "bob"), {"allow_stranger": True}),
         "strangers"),
        (lambda: rule("alice", False), "denied"),
        (lambda: rule("alice", True), "allowed"),
        (lambda: accounts.add(["alice"], actor="test"), "system"),
        (lambda: accounts.add(["bob"], actor="test"), "peer_system"),
    ]:  # fmt: skip
        before, reversed_before = standing(), standing(sender="bob")
        make()
        assert standing() == replace(before, **{fact: True})
        mirrored = {"system": "peer_system", "peer_system": "system"}
        added = {mirrored[fact]: True} if fact in mirrored else {}
        assert standing(sender="bob") == replace(reversed_before, **added)


def test_channels_of_others_know_nothing_of_receivers():
    services.save_channel(ChannelKey(1, "team"), {"allow_stranger": True})
    accounts.add(["team"], actor="test")
    rule("alice", True, name="team", kind=1)
    assert standing(TEAM) == standing(ChannelKey(10, "team")) == Standing()


def test_receivers_list_counts_only_where_the_setting_says_so(append, settings):
    def answer():
        outcome = append(draft(key=PAIR))[0]
        return outcome.reason if isinstance(outcome, Refused) else Reason.SUCCESS

    rule("carol", True)
    assert answer() == Reason.SUCCESS
    Membership.objects.all().delete()
    services.join(PAIR, ["alice", "bob"], actor="test")  # the permit is over
    settings.MESSAGING = {"PERSON_ALLOW_LISTS": True}
    assert answer() == Reason.NOT_IN_WHITELIST
    rule("alice", True)
    assert answer() == Reason.SUCCESS
    AccessRule.objects.all().delete()
    assert answer() == Reason.NOT_IN_WHITELIST
    services.save_channel(ChannelKey(1, "bob"), {"allow_stranger": True})
    assert answer() == Reason.SUCCESS
    services.save_channel(ChannelKey(1, "bob"), {"allow_stranger": False})
    assert answer() == Reason.NOT_IN_WHITELIST
    rule("alice", True)
    rule("alice", False)
    assert answer() == Reason.IN_BLACKLIST


def test_list_of_a_person_counts_for_what_he_gets_not_for_what_he_sends(append):
    append(draft(key=PAIR))
    rule("alice", False)
    assert append(draft(key=PAIR), draft(key=PAIR, sender="bob")) == [
        Refused(Reason.IN_BLACKLIST), ANY,
    ]  # fmt: skip
    assert Message.objects.filter(sender="bob").exists()


def test_system_account_sends_everywhere_until_its_permit_is_over(team, append, monkeypatch):
    def send():
        return append(draft(sender="notifier"))[0]

    assert send() == Refused(Reason.SUBSCRIBER_NOT_EXIST)
    accounts.add(["notifier"], actor="test")
    assert isinstance(send(), Appended)
    accounts.remove(["notifier"], actor="test")
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + Appender.PERMIT_SECONDS)
    assert send() == Refused(Reason.SUBSCRIBER_NOT_EXIST)


def test_everybody_sends_to_a_system_account(append):
    rule("alice", False)
    assert append(draft(key=PAIR)) == [Refused(Reason.IN_BLACKLIST)]
    accounts.add(["bob"], actor="test")
    assert isinstance(append(draft(key=PAIR))[0], Appended)


@pytest.mark.django_db(transaction=True)
def test_heads_after_a_mark_are_the_newest_of_each_channel(team, append):
    make_group("other", "alice")
    append(draft())
    mark = message_mark()
    append(draft(), draft(), draft(key=ChannelKey(2, "other")))
    heads, newest = heads_after(mark)
    assert heads == {team.pk: 3, Channel.objects.get(channel_id="other").pk: 1}
    assert heads_after(newest)[0] == {}


def test_range_is_open_below_and_closed_above(team, append):
    append(*[draft(str(n)) for n in range(1, 6)])
    found = read_range(team.pk, TEAM, after=1, up_to=4, limit=2)
    assert [message.seq for message in found] == [2, 3]


def test_repeats_of_many_channels_are_found_by_the_index(team):
    """Not in all combinations of their channels, senders and numbers."""
    numbered = {(number, f"u{number}", f"n{number}") for number in range(500)}
    with CaptureQueriesContext(connection) as queries:
        assert message_table.find_stored(numbered, {})[0] == []
    (statement,) = [query["sql"] for query in queries]
    explain = "EXPLAIN" if NETWORKED else "EXPLAIN QUERY PLAN"
    with connection.cursor() as cursor:
        if NETWORKED:
            cursor.execute("SET LOCAL enable_seqscan = off")  # there are no rows to scan yet
        cursor.execute(f"{explain} {statement}")
        plan = "\n".join(str(row) for row in cursor.fetchall())
    assert "wukongim_message_once" in plan
    assert "SCAN m" not in plan
    assert "Seq Scan on wukongim_messaging_message" not in plan


def test_no_index_of_messages_is_on_the_channel_alone(db):
    """Others begin with the channel: this one would be written with each message for nothing."""
    with connection.cursor() as cursor:
        found = connection.introspection.get_constraints(cursor, Message._meta.db_table)
    indexed = [each["columns"] for each in found.values() if each["index"] or each["unique"]]
    assert ["channel_id", "seq"] in indexed
    assert ["channel_id"] not in indexed
