"""Who may send: every rule in its order, those of the channel before those of the sender."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messaging.permissions import Standing, judge
from messaging.protocol.reasons import Reason
from subscriptions.bindings import CARRIED_TYPES, SYSTEM_UID, ChannelKey, ChannelType

GROUP = ChannelKey(2, "team")
PERSON = ChannelKey(1, "bob@alice")
MEMBER = Standing(exists=True, member=True)
EVERYTHING = Standing(
    exists=True, ban=True, disband=True, sender_banned=True, member=False, denied=True,
    has_allow_list=True, allowed=False,
)  # fmt: skip
STANDINGS = st.builds(Standing, *[st.booleans()] * 8)


def test_rules_of_a_group_are_asked_in_order():
    order = [
        (Reason.SEND_BAN, {"sender_banned": False}),
        (Reason.BAN, {"ban": False}),
        (Reason.DISBAND, {"disband": False}),
        (Reason.IN_BLACKLIST, {"denied": False}),
        (Reason.SUBSCRIBER_NOT_EXIST, {"member": True}),
        (Reason.NOT_IN_WHITELIST, {"allowed": True}),
    ]
    standing = EVERYTHING
    for reason, lifted in order:
        assert judge(GROUP, "alice", standing) == reason
        standing = replace(standing, **lifted)
    assert judge(GROUP, "alice", standing) == Reason.SUCCESS


def test_rules_of_a_person_channel_are_asked_in_order():
    order = [
        (Reason.SEND_BAN, {"sender_banned": False}),
        (Reason.DISBAND, {"disband": False}),
        (Reason.IN_BLACKLIST, {"denied": False}),
        (Reason.SUBSCRIBER_NOT_EXIST, {"member": True}),
    ]
    standing = EVERYTHING
    for reason, lifted in order:
        assert judge(PERSON, "alice", standing) == reason
        standing = replace(standing, **lifted)
    assert judge(PERSON, "alice", standing) == Reason.SUCCESS


def test_first_message_of_a_person_needs_no_membership_but_no_denial():
    assert judge(PERSON, "alice", Standing()) == Reason.SUCCESS
    assert judge(PERSON, "alice", Standing(denied=True)) == Reason.IN_BLACKLIST
    assert judge(PERSON, "alice", Standing(sender_banned=True)) == Reason.SEND_BAN


def test_group_that_does_not_exist_has_no_members():
    assert judge(GROUP, "alice", Standing()) == Reason.SUBSCRIBER_NOT_EXIST


@pytest.mark.parametrize("kind", [7, 8, 10, 11, 0, 13, 99])
@pytest.mark.parametrize("trusted", [True, False])
def test_types_that_are_not_carried_are_refused_to_everybody(kind, trusted):
    key = ChannelKey(kind, "x")
    assert judge(key, SYSTEM_UID, MEMBER, trusted) == Reason.NOT_SUPPORT_CHANNEL_TYPE


@given(standing=STANDINGS, kind=st.sampled_from(sorted(CARRIED_TYPES - {ChannelType.PERSON})))
def test_every_other_type_is_judged_as_a_group(standing, kind):
    assert judge(ChannelKey(kind, "x"), "alice", standing) == judge(GROUP, "alice", standing)


@pytest.mark.parametrize(("sender", "trusted"), [("alice", True), (SYSTEM_UID, False)])
@given(standing=STANDINGS, key=st.sampled_from([GROUP, PERSON]))
def test_back_end_and_system_are_stopped_by_the_channel_alone(sender, trusted, standing, key):
    verdict = judge(key, sender, standing, trusted)
    if standing.ban and key == GROUP:
        assert verdict == Reason.BAN
    elif standing.disband:
        assert verdict == Reason.DISBAND
    elif key == GROUP and not standing.exists:
        assert verdict == Reason.CHANNEL_NOT_EXIST
    else:
        assert verdict == Reason.SUCCESS


@given(standing=STANDINGS, key=st.sampled_from([GROUP, PERSON]))
def test_nobody_else_sends_without_being_a_member_but_first_between_persons(standing, key):
    if judge(key, "alice", standing) == Reason.SUCCESS:
        assert standing.member or (key == PERSON and not standing.exists)
        assert not any((standing.denied, standing.sender_banned, standing.disband))
