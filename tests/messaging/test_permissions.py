"""Who may send: every rule in its order, for every type, as a table, and then what always holds."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messaging.permissions import OPEN_TYPES, UNCLOSED_TYPES, Standing, judge, makes_channel
from messaging.protocol.reasons import Reason
from subscriptions.bindings import CARRIED_TYPES, SYSTEM_UID, ChannelKey, ChannelType

GROUP = ChannelKey(2, "team")
PERSON = ChannelKey(1, "bob@alice")
AGENT = ChannelKey(11, "alice@bot")
OTHERS_AGENT = ChannelKey(11, "eve@bot")
VISITORS = ChannelKey(10, "visitor")
OWN_VISITORS = ChannelKey(10, "alice")
SERVICE = ChannelKey(3, "help")
INFO = ChannelKey(6, "news")
TO_SYSTEM = ChannelKey(1, f"alice@{SYSTEM_UID}")
KEYS = [GROUP, PERSON, AGENT, OTHERS_AGENT, VISITORS, OWN_VISITORS, SERVICE, INFO, TO_SYSTEM]
LIKE_GROUPS = sorted(
    CARRIED_TYPES - OPEN_TYPES - {ChannelType.PERSON, ChannelType.AGENT, ChannelType.VISITORS}
)

MEMBER = Standing(exists=True, member=True)
EVERYTHING = Standing(
    exists=True, ban=True, disband=True, sender_banned=True, member=False, denied=True,
    has_allow_list=True, allowed=False,
)  # fmt: skip
STANDINGS = st.builds(Standing, *[st.booleans()] * len(fields(Standing)))
CHANNEL_KEYS = st.sampled_from(KEYS) | st.sampled_from(LIKE_GROUPS).map(
    lambda kind: ChannelKey(kind, "x")
)

SEND_BAN = (Reason.SEND_BAN, {"sender_banned": False})
BAN = (Reason.BAN, {"ban": False})
DISBAND = (Reason.DISBAND, {"disband": False})
DENIED = (Reason.IN_BLACKLIST, {"denied": False})
NO_MEMBER = (Reason.SUBSCRIBER_NOT_EXIST, {"member": True})
NOT_LISTED = (Reason.NOT_IN_WHITELIST, {"allowed": True})

ORDERS = [
    pytest.param(key, order, id=str(key))
    for key, order in [
        *[
            (ChannelKey(kind, "x"), [SEND_BAN, BAN, DISBAND, DENIED, NO_MEMBER, NOT_LISTED])
            for kind in LIKE_GROUPS
        ],
        (PERSON, [SEND_BAN, DISBAND, DENIED, NOT_LISTED, NO_MEMBER]),
        (TO_SYSTEM, [SEND_BAN, DISBAND]),
        (AGENT, [SEND_BAN]),
        (VISITORS, [SEND_BAN, DENIED, NO_MEMBER, NOT_LISTED]),
        (OWN_VISITORS, [SEND_BAN]),
        (SERVICE, [SEND_BAN]),
        (INFO, [SEND_BAN]),
    ]
]


@pytest.mark.parametrize(("key", "order"), ORDERS)
def test_rules_are_asked_in_order(key, order):
    """Where everything stands against the sender: what is lifted leads to the next refusal."""
    standing = EVERYTHING
    for reason, lifted in order:
        assert judge(key, "alice", standing) == reason
        standing = replace(standing, **lifted)
    assert judge(key, "alice", standing) == Reason.SUCCESS


MISSING = {
    GROUP: Reason.SUBSCRIBER_NOT_EXIST,
    PERSON: Reason.SUCCESS,
    AGENT: Reason.SUCCESS,
    OTHERS_AGENT: Reason.NOT_ALLOW_SEND,
    VISITORS: Reason.SUBSCRIBER_NOT_EXIST,
    OWN_VISITORS: Reason.SUCCESS,
    SERVICE: Reason.CHANNEL_NOT_EXIST,
    INFO: Reason.CHANNEL_NOT_EXIST,
    TO_SYSTEM: Reason.SUCCESS,
}


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_channel_that_does_not_exist_is_refused_or_made(key):
    verdict = judge(key, "alice", Standing())
    assert verdict == MISSING[key]
    assert (verdict == Reason.SUCCESS) == (key != OTHERS_AGENT and makes_channel(key, "alice"))


@pytest.mark.parametrize("kind", [7, 8, 0, 13, 99])
@pytest.mark.parametrize("trusted", [True, False])
def test_types_that_are_not_carried_are_refused_to_everybody(kind, trusted):
    key = ChannelKey(kind, "x")
    standing = replace(MEMBER, system=True)
    assert judge(key, SYSTEM_UID, standing, trusted) == Reason.NOT_SUPPORT_CHANNEL_TYPE


# --- persons ------------------------------------------------------------------------------------


def test_first_message_of_a_person_is_judged_by_the_receivers_lists():
    for standing, reason in [
        (Standing(sender_banned=True), Reason.SEND_BAN),
        (Standing(denied=True), Reason.IN_BLACKLIST),
        (Standing(has_allow_list=True), Reason.NOT_IN_WHITELIST),
        (Standing(has_allow_list=True, allowed=True), Reason.SUCCESS),
        (Standing(has_allow_list=True, strangers=True), Reason.SUCCESS),
        (Standing(has_allow_list=True, strangers=True, denied=True), Reason.IN_BLACKLIST),
    ]:
        assert judge(PERSON, "alice", standing) == reason


@given(STANDINGS, st.sampled_from([PERSON, TO_SYSTEM]))
def test_message_to_a_system_account_passes_the_receivers_lists(standing, key):
    standing = replace(standing, peer_system=standing.peer_system or key == PERSON)
    unlisted = replace(
        standing, denied=False, has_allow_list=False, member=True, peer_system=False, strangers=True
    )
    assert judge(key, "alice", standing) == judge(key, "alice", unlisted)


@given(STANDINGS)
def test_ban_of_a_person_channel_is_none(standing):
    assert judge(PERSON, "alice", standing) == judge(PERSON, "alice", replace(standing, ban=False))


@given(STANDINGS, CHANNEL_KEYS.filter(lambda key: not key.is_person))
def test_what_is_said_of_a_receiver_counts_between_persons_alone(standing, key):
    without = replace(standing, peer_system=False, strangers=False)
    assert judge(key, "alice", standing) == judge(key, "alice", without)


# --- agents and visitors ------------------------------------------------------------------------


@given(STANDINGS.filter(lambda standing: not standing.sender_banned and not standing.system))
def test_agent_channel_is_for_its_two_whatever_else(standing):
    for sender in ("alice", "bot"):
        assert judge(AGENT, sender, standing) == Reason.SUCCESS
    for sender in ("eve", "alice@bot", ""):
        assert judge(AGENT, sender, standing) == Reason.NOT_ALLOW_SEND


@given(STANDINGS)
def test_others_are_judged_in_a_visitors_channel_as_in_a_group_that_is_open(standing):
    open_group = replace(standing, ban=False, disband=False)
    assert judge(VISITORS, "agent", standing) == judge(GROUP, "agent", open_group)


@given(STANDINGS, st.sampled_from(sorted(UNCLOSED_TYPES)))
def test_flags_of_these_types_stop_nobody(standing, kind):
    key = ChannelKey(kind, "alice@bot" if kind == ChannelType.AGENT else "x")
    unflagged = replace(standing, ban=False, disband=False)
    for sender in ("alice", "x", SYSTEM_UID):
        assert judge(key, sender, standing) == judge(key, sender, unflagged)


# --- the privileged -----------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["back end", "server", "system account"])
@given(standing=STANDINGS, key=CHANNEL_KEYS)
def test_back_end_and_system_are_stopped_by_the_channel_alone(who, standing, key):
    sender = SYSTEM_UID if who == "server" else "alice"
    standing = replace(standing, system=standing.system or who == "system account")
    verdict = judge(key, sender, standing, trusted=who == "back end")
    closes = key.channel_type not in UNCLOSED_TYPES
    if standing.ban and closes and not key.is_person:
        assert verdict == Reason.BAN
    elif standing.disband and closes:
        assert verdict == Reason.DISBAND
    elif not standing.exists and not makes_channel(key, sender):
        assert verdict == Reason.CHANNEL_NOT_EXIST
    else:
        assert verdict == Reason.SUCCESS


# --- what always holds --------------------------------------------------------------------------


@given(STANDINGS.filter(lambda standing: not standing.system), CHANNEL_KEYS)
def test_nobody_else_sends_without_being_a_member_but_where_it_is_open_or_begins(standing, key):
    if judge(key, "alice", standing) != Reason.SUCCESS:
        return
    assert not standing.sender_banned
    begins = makes_channel(key, "alice") and not standing.exists
    own = key in (AGENT, OWN_VISITORS)
    to_system = key.is_person and (standing.peer_system or key == TO_SYSTEM)
    assert standing.member or begins or own or to_system or key.channel_type in OPEN_TYPES


@given(STANDINGS, CHANNEL_KEYS, st.booleans())
def test_nothing_is_sent_to_a_channel_that_neither_is_nor_is_made(standing, key, trusted):
    if judge(key, "alice", replace(standing, exists=False), trusted) == Reason.SUCCESS:
        assert makes_channel(key, "alice") or standing.member
