"""Joining and leaving through the services: one transaction, named, announced once."""

from __future__ import annotations

import logging

import pytest
from django.db import DatabaseError, connection, transaction
from django.test.utils import CaptureQueriesContext

from subscriptions import services, signals
from subscriptions.bindings import ChannelKey
from subscriptions.errors import ChannelMissing, InvalidChannel, InvalidUid, TriggersMissing
from subscriptions.models import Channel, Membership, MembershipChange
from tests.support.triggers import refusing, without_trigger

pytestmark = pytest.mark.django_db

KEY = ChannelKey(2, "team")


def join(*uids, **options):
    return services.join(KEY, uids, actor="test", **options)


def members():
    return set(Membership.objects.values_list("uid", flat=True))


def lines():
    rows = MembershipChange.objects.order_by("version")
    return list(rows.values_list("uid", "joined", "actor", "reason"))


@pytest.fixture
def heard(db):
    """What `membership_changed` said, in order."""
    said = []

    def hear(sender, signal, **fields):
        said.append(fields)

    signals.membership_changed.connect(hear)
    yield said
    signals.membership_changed.disconnect(hear)


def test_join_says_who_is_new_and_writes_them_once(db):
    assert join("alice", "bob", "alice", " ") == ["alice", "bob"]
    assert join("bob", "carol") == ["carol"]
    assert [line[0] for line in lines()] == ["alice", "bob", "carol"]
    assert members() == {"alice", "bob", "carol"}


def test_leave_says_who_was_a_member_and_twice_is_once(db):
    join("alice", "bob")
    assert services.leave(KEY, ["bob", "eve"], actor="test") == ["bob"]
    assert services.leave(KEY, ["bob"], actor="test") == []
    assert services.leave(ChannelKey(2, "none"), ["bob"], actor="test") == []
    assert members() == {"alice"}
    assert len(lines()) == 3


def test_changes_carry_actor_and_reason(db):
    join("alice", reason="hired")
    services.leave(KEY, ["alice"], actor="x" * 200, reason="y" * 300)
    assert lines() == [
        ("alice", True, "test", "hired"), ("alice", False, "x" * 150, "y" * 200),
    ]  # fmt: skip


def test_reset_keeps_the_place_of_those_who_stay(db):
    join("alice", "bob")
    assert join("bob", "carol", reset=True) == ["carol"]
    assert members() == {"bob", "carol"}
    assert Membership.objects.get(uid="bob").joined_version == 2
    assert lines()[2:] == [("alice", False, "test", "reset"), ("carol", True, "test", "")]
    assert join(reset=True) == []
    assert members() == set()


def test_leave_all_empties_a_channel_and_needs_one(db):
    join("alice", "bob")
    assert services.leave_all(KEY, actor="test") == 2
    assert services.leave_all(KEY, actor="test") == 0
    with pytest.raises(ChannelMissing, match="2:none"):
        services.leave_all(ChannelKey(2, "none"), actor="test")


def test_any_number_of_uids_is_one_transaction_in_pages(db, settings):
    settings.SUBSCRIPTIONS = {"PAGE_SIZE": 100}
    uids = [f"u{n}" for n in range(1_001)]
    most = 0

    def count(execute, text, params, many, context):
        nonlocal most
        most = max(most, len(params or ()))
        return execute(text, params, many, context)

    with connection.execute_wrapper(count):
        assert join(*uids) == uids
        assert join(*uids[:1_000], reset=True) == []
        assert services.leave(KEY, uids, actor="test") == uids[:1_000]
    assert most < 1_000  # ten columns a row at most, ten times below what SQLite takes
    assert [line[0] for line in lines()[:1_001]] == uids
    assert lines()[1_001] == ("u1000", False, "test", "reset")
    versions = list(MembershipChange.objects.order_by("id").values_list("version", flat=True))
    assert versions == list(range(1, 2_003))


def test_failure_in_a_later_page_takes_the_earlier_ones_back(transactional_db, settings):
    settings.SUBSCRIPTIONS = {"PAGE_SIZE": 2}
    join("zoe")
    with refusing("u4"), pytest.raises(DatabaseError, match="refused"):
        join(*[f"u{n}" for n in range(6)])
    assert members() == {"zoe"}
    assert Channel.objects.get().membership_version == 1


@pytest.mark.parametrize(
    ("name", "change", "uids"),
    [
        ("wukongim_membership_joined", services.join, ["bob"]),
        ("wukongim_membership_left", services.leave, ["alice"]),
    ],
)
def test_change_that_no_trigger_counts_is_refused(transactional_db, name, change, uids):
    join("alice")
    counted = r"manage.py migrate.*1 memberships written, 0"
    with without_trigger(name), pytest.raises(TriggersMissing, match=counted):
        change(KEY, uids, actor="test")
    assert members() == {"alice"}


def test_orm_change_that_no_trigger_counts_is_refused(transactional_db):
    channel = services.save_channel(KEY)
    with without_trigger("wukongim_membership_joined"):
        with pytest.raises(TriggersMissing), transaction.atomic():
            Membership.objects.create(channel=channel, uid="bob")
        assert members() == set()


@pytest.mark.parametrize("uid", ["a@b", "a#b", "a&b", "a\x00", "\ud800", "x" * 101])
def test_bad_uid_is_named_and_nobody_joins(db, uid):
    with pytest.raises(InvalidUid, match="This one is not"):
        join("alice", uid)
    assert members() == set()


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (ChannelKey(13, "x"), "type 13 does not exist"),
        (ChannelKey(2, ""), "1 to 201"),
        (ChannelKey(2, "x" * 202), "1 to 201"),
        (ChannelKey(2, "a@b"), "@ # &"),
        (ChannelKey(2, "a\x00"), "control"),
        (ChannelKey(1, "a@"), "the peer's uid"),
        (ChannelKey(1, "a@b@c"), "the peer's uid"),
        (ChannelKey(1, "a#@b"), "the peer's uid"),
    ],
)
def test_bad_channel_is_refused(db, key, words):
    with pytest.raises(InvalidChannel, match=words):
        services.save_channel(key)
    assert not Channel.objects.exists()


def test_canonical_puts_the_two_uids_of_a_person_channel_in_order(db):
    assert services.canonical(ChannelKey(1, "alice@bob")) == ChannelKey(1, "bob@alice")
    assert services.canonical(ChannelKey(1, "bob@alice")) == ChannelKey(1, "bob@alice")
    assert services.canonical(ChannelKey(1, "alice")) == ChannelKey(1, "alice")
    assert services.canonical(KEY) == KEY


@pytest.mark.parametrize("name", ["alice@bob", "bob@alice"])
def test_agent_channel_keeps_the_order_of_its_name_and_takes_its_two(db, name):
    key = ChannelKey(11, name)
    assert services.canonical(key) == key
    assert services.join(key, ["alice", "bob"], actor="test") == ["alice", "bob"]
    with pytest.raises(InvalidUid, match="is between two people"):
        services.join(key, ["mallory"], actor="test")


@pytest.mark.parametrize("name", ["alice", "a@b@c", "@b", "a@", "a#@b", f"{'a' * 101}@b"])
def test_agent_channel_is_named_by_both_uids(db, name):
    with pytest.raises(InvalidChannel, match="the uid and the agent's uid with an @ between"):
        services.save_channel(ChannelKey(11, name))


@pytest.mark.parametrize("kind", [2, 3, 5, 10, 12])
def test_no_other_channel_has_a_pair_for_a_name(db, kind):
    with pytest.raises(InvalidChannel):
        services.canonical(ChannelKey(kind, "a@b"))


def test_person_channel_is_one_whatever_the_order_of_its_name(db):
    one, other = ChannelKey(1, "alice@bob"), ChannelKey(1, "bob@alice")
    assert services.join(one, ["alice"], actor="test") == ["alice"]
    assert services.join(other, ["bob", "alice"], actor="test") == ["bob"]
    assert services.save_channel(one) == services.save_channel(other) == Channel.objects.get()
    assert services.leave(one, ["alice"], actor="test") == ["alice"]
    assert services.leave_all(one, actor="test") == 1
    assert Channel.objects.get().key == other


@pytest.mark.parametrize(
    ("name", "uids", "words"),
    [
        ("alice@bob", ["mallory"], "1:bob@alice is between two people"),
        ("bob@alice", ["alice", "mallory"], "1:bob@alice is between two people"),
        ("alice", ["alice"], "1:alice is a person's own row: it carries flags"),
        ("alice", ["bob"], "1:alice is a person's own row"),
    ],
)
def test_person_channel_takes_nobody_but_its_two(db, name, uids, words):
    with pytest.raises(InvalidUid, match=words):
        services.join(ChannelKey(1, name), uids, actor="test")
    assert not Channel.objects.exists()


@pytest.mark.parametrize(
    "change",
    [
        services.save_channel,
        lambda key: services.join(key, ["a"], actor="test"),
        lambda key: services.leave(key, ["a"], actor="test"),
        lambda key: services.leave_all(key, actor="test"),
    ],
)
def test_no_service_takes_a_name_that_cannot_be(db, change):
    with pytest.raises(InvalidChannel):
        change(ChannelKey(2, "a@b"))


def test_flags_that_change_leave_a_line_with_those_that_are_on(
    django_capture_on_commit_callbacks, caplog
):
    caplog.set_level(logging.INFO, "subscriptions.services")
    with django_capture_on_commit_callbacks(execute=True):
        services.save_channel(KEY)
        services.save_channel(KEY, {"ban": True, "large": True}, actor="boss")
        services.save_channel(KEY, {"ban": True, "large": True}, actor="boss")
        services.save_channel(KEY)
        services.save_channel(KEY, {"ban": False})
        services.save_channel(ChannelKey(1, "alice"), {"send_ban": True}, actor="boss")
    assert [(r.message, r.channel, r.flags, r.actor) for r in caplog.records] == [
        ("channel.saved", "2:team", ["large", "ban"], "boss"),
        ("channel.saved", "2:team", [], ""),
        ("channel.saved", "1:alice", ["send_ban"], "boss"),
    ]


def test_flags_that_are_so_already_are_not_written(db):
    services.save_channel(KEY, {"ban": True})
    with CaptureQueriesContext(connection) as queries:
        services.save_channel(KEY, {"ban": True})
    assert not [each["sql"] for each in queries if each["sql"].startswith("UPDATE")]


def test_flags_are_overwritten_when_given_and_kept_when_not(db):
    services.save_channel(KEY, {"ban": True, "large": True})
    services.save_channel(KEY)
    assert Channel.objects.values_list("ban", "large").get() == (True, True)
    services.save_channel(KEY, {"send_ban": True})
    assert Channel.objects.values_list("ban", "large", "send_ban").get() == (False, False, True)


# --- announcing ----------------------------------------------------------------------------------


def test_service_announces_once_after_commit(heard, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True):
        join("alice", "bob", reason="hired")
        assert heard == []
    channel = Channel.objects.get()
    assert heard == [{
        "channel": KEY, "channel_pk": channel.pk, "uids": ("alice", "bob"), "joined": True,
        "actor": "test", "reason": "hired",
    }]  # fmt: skip


def test_asking_for_a_present_member_is_announced_too(heard, django_capture_on_commit_callbacks):
    join("alice")
    with django_capture_on_commit_callbacks(execute=True):
        join("alice")
    assert [fields["uids"] for fields in heard] == [("alice",)]
    assert len(lines()) == 1


def test_orm_announces_once_after_commit(heard, django_capture_on_commit_callbacks):
    channel = services.save_channel(KEY)
    with django_capture_on_commit_callbacks(execute=True):
        for uid in ("alice", "bob", "carol"):
            Membership.objects.create(channel=channel, uid=uid)
        member = Membership.objects.get(uid="alice")
        member.read_seq = 1
        member.save()
        member.delete()
        Membership.objects.filter(uid__in=["bob", "carol"]).delete()
        assert heard == []
    said = sorted((fields["joined"], fields["uids"]) for fields in heard)
    assert said == [(j, (uid,)) for j in (False, True) for uid in ("alice", "bob", "carol")]


def test_rolled_back_change_is_not_announced(heard, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True), transaction.atomic():
        join("alice")
        transaction.set_rollback(True)
    assert heard == []


def test_receiver_that_fails_is_logged_and_hurts_nobody(
    heard, django_capture_on_commit_callbacks, caplog
):
    def fail(**fields):
        raise RuntimeError("embedder's own")

    signals.membership_changed.connect(fail)
    try:
        with django_capture_on_commit_callbacks(execute=True):
            join("alice")
    finally:
        signals.membership_changed.disconnect(fail)
    assert len(heard) == 1
    [record] = [record for record in caplog.records if record.message == "signal.failed"]
    assert "embedder's own" in str(record.exc_info[1])


def test_each_change_leaves_a_line_with_its_version(django_capture_on_commit_callbacks, caplog):
    caplog.set_level(logging.INFO, "subscriptions.services")
    with django_capture_on_commit_callbacks(execute=True):
        join("alice", "bob")
        services.leave(KEY, ["alice"], actor="boss", reason="fired")
        Membership.objects.get(uid="bob").delete()
    said = [(r.message, r.uid, r.channel, r.version, r.actor, r.reason) for r in caplog.records]
    assert said == [
        ("membership.joined", "alice", "2:team", 1, "test", ""),
        ("membership.joined", "bob", "2:team", 2, "test", ""),
        ("membership.left", "alice", "2:team", 3, "boss", "fired"),
        ("membership.left", "bob", "2:team", 4, "", ""),
    ]
