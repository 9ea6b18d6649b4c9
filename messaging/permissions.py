"""Who may send: one pure rule for wire and REST, in the order of protocol §4.5."""

from __future__ import annotations

from dataclasses import dataclass

from messaging.protocol.reasons import Reason
from subscriptions.bindings import CARRIED_TYPES, SYSTEM_UID, ChannelKey, ChannelType

OPEN_TYPES = frozenset({ChannelType.CUSTOMER_SERVICE, ChannelType.INFO})
"""Anybody may send to these, if they exist."""

UNCLOSED_TYPES = OPEN_TYPES | {ChannelType.VISITORS, ChannelType.AGENT}
"""No flag of the channel stops a send to these. What is said of its sender does."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What the database says about one sender in one channel, in one snapshot. In a person channel
    the lists are the receiver's, and `has_allow_list` says whether such lists count at all."""

    exists: bool = False
    ban: bool = False
    disband: bool = False
    sender_banned: bool = False
    member: bool = False
    denied: bool = False
    has_allow_list: bool = False
    allowed: bool = False
    system: bool = False
    """The sender is a system account."""
    peer_system: bool = False
    """The receiver of a person message is one."""
    strangers: bool = False
    """The receiver of a person message takes those of anybody."""


def makes_channel(key: ChannelKey, sender: str) -> bool:
    """Whether a first message of this sender, once allowed, makes the channel with its members: all
    that are between two, and a visitor's own."""
    own = key.channel_type == ChannelType.VISITORS and key.channel_id == sender
    return key.is_of_two or own


def judge(key: ChannelKey, sender: str, standing: Standing, trusted: bool = False) -> Reason:
    """SUCCESS, or the reason why this sender may not send to this channel now.

    `trusted` is the business back end. Like a system account it passes over what is said of
    senders, not over what is said of the channel.
    """
    if key.channel_type not in CARRIED_TYPES:
        return Reason.NOT_SUPPORT_CHANNEL_TYPE
    privileged = trusted or standing.system or sender == SYSTEM_UID
    if standing.sender_banned and not privileged:
        return Reason.SEND_BAN
    if key.channel_type not in UNCLOSED_TYPES:
        if standing.ban and not key.is_person:  # a person is kept off by the deny list
            return Reason.BAN
        if standing.disband:
            return Reason.DISBAND
    if privileged:
        may = standing.exists or makes_channel(key, sender)
        return Reason.SUCCESS if may else Reason.CHANNEL_NOT_EXIST
    if key.channel_type in OPEN_TYPES:
        return Reason.SUCCESS if standing.exists else Reason.CHANNEL_NOT_EXIST
    if key.channel_type == ChannelType.AGENT:
        return Reason.SUCCESS if sender in key.pair else Reason.NOT_ALLOW_SEND
    if key.channel_type == ChannelType.VISITORS and sender == key.channel_id:
        return Reason.SUCCESS
    return _judge_person(key, sender, standing) if key.is_person else _judge_member(standing)


def _judge_person(key: ChannelKey, sender: str, standing: Standing) -> Reason:
    """By the receiver's lists. A channel that exists has its two members until one is removed."""
    if standing.peer_system or key.seen_by(sender) == SYSTEM_UID:
        return Reason.SUCCESS
    if standing.denied:
        return Reason.IN_BLACKLIST
    if standing.has_allow_list and not (standing.allowed or standing.strangers):
        return Reason.NOT_IN_WHITELIST
    if standing.exists and not standing.member:
        return Reason.SUBSCRIBER_NOT_EXIST
    return Reason.SUCCESS


def _judge_member(standing: Standing) -> Reason:
    """By the channel's own lists, as in groups."""
    if standing.denied:
        return Reason.IN_BLACKLIST
    if not standing.member:
        return Reason.SUBSCRIBER_NOT_EXIST
    if standing.has_allow_list and not standing.allowed:
        return Reason.NOT_IN_WHITELIST
    return Reason.SUCCESS
