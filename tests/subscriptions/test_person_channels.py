"""Person channels made many at a time."""

from __future__ import annotations

import pytest

from subscriptions import services, signals
from subscriptions.bindings import ChannelKey, person_channel_id
from subscriptions.models import Channel, Membership, MembershipChange
from subscriptions.person_channels import open_missing
from tests.support.together import at_once

pytestmark = pytest.mark.django_db(transaction=True)


def key_of(uid, other="shop"):
    return ChannelKey(1, person_channel_id(other, uid))


def keys_of(*uids):
    return [key_of(uid) for uid in uids]


def written():
    """What is stored of each channel's members, versions and changes."""
    return sorted(
        (
            str(channel.key),
            channel.membership_version,
            sorted(Membership.objects.filter(channel=channel).values_list("uid", "joined_version")),
            sorted(channel.changes.values_list("uid", "version", "joined", "actor", "reason")),
        )
        for channel in Channel.objects.all()
    )


def test_channel_is_as_its_first_message_makes_it():
    services.join(key_of("alice"), ["shop", "alice"], actor="shop", reason="first message")
    [(_, version, _, changes)] = written()
    open_missing(keys_of("bob"), "shop", "first message")
    [other] = [each for each in written() if "bob" in each[0]]
    assert (version, len(changes)) == (2, 2)
    assert (other[1], [uid for uid, _ in other[2]]) == (2, ["bob", "shop"])
    assert [change[2:] for change in other[3]] == [change[2:] for change in changes]


def test_open_again_changes_nothing():
    assert open_missing(keys_of("alice", "bob"), "shop", "first message") == 2
    before = written()
    assert open_missing(keys_of("alice", "bob", "alice"), "shop", "first message") == 0
    assert written() == before
    assert open_missing([*keys_of("carol"), ChannelKey(2, "team")], "shop", "x") == 1
    assert Channel.objects.count() == 3


def test_channel_with_oneself_has_one_member():
    open_missing([key_of("shop")], "shop", "first message")
    assert list(Membership.objects.values_list("uid", flat=True)) == ["shop"]


def test_number_of_queries_does_not_grow(django_assert_max_num_queries):
    with django_assert_max_num_queries(10):
        open_missing(keys_of(*(f"u{n}" for n in range(50))), "shop", "first message")
    assert MembershipChange.objects.count() == 100


def test_each_is_announced_once_it_is_committed():
    heard = []

    def hear(sender, channel, uids, actor, **kwargs):
        heard.append((channel, sorted(uids), actor))

    signals.membership_changed.connect(hear)
    try:
        open_missing(keys_of("alice", "bob"), "shop", "first message")
    finally:
        signals.membership_changed.disconnect(hear)
    assert sorted(heard) == sorted(
        (key_of(u), sorted([u, "shop"]), "shop") for u in ("alice", "bob")
    )


def test_two_at_once_make_each_once():
    uids = [f"u{n}" for n in range(30)]
    made = at_once(
        lambda: open_missing(keys_of(*uids), "shop", "first message"),
        lambda: open_missing(keys_of(*reversed(uids)), "shop", "first message"),
    )
    assert sum(made) == 30
    assert {channel.membership_version for channel in Channel.objects.all()} == {2}
    assert MembershipChange.objects.count() == 60
