"""Who may send: one pure rule, in the order of protocol §4.5."""

from __future__ import annotations

from dataclasses import dataclass

from messaging.protocol.reasons import Reason
from subscriptions.bindings import CARRIED_TYPES, SYSTEM_UID, ChannelKey


@dataclass(frozen=True, slots=True)
class Standing:
    """What the database says about one sender in one channel, in one snapshot."""

    exists: bool = False
    ban: bool = False
    disband: bool = False
    sender_banned: bool = False
    member: bool = False
    denied: bool = False
    has_allow_list: bool = False
    allowed: bool = False


def judge(key: ChannelKey, sender: str, standing: Standing, trusted: bool = False) -> Reason:
    """SUCCESS, or the reason why this sender may not send to this channel now.

    `trusted` is the business back end. Like the system uid it passes over what is said of senders,
    not over what is said of the channel. All types but person are judged as groups; a group's own
    ban is none of a person channel's, which is closed by denying the sender.
    """
    if key.channel_type not in CARRIED_TYPES:
        return Reason.NOT_SUPPORT_CHANNEL_TYPE
    privileged = trusted or sender == SYSTEM_UID
    if standing.sender_banned and not privileged:
        return Reason.SEND_BAN
    if standing.ban and not key.is_person:
        return Reason.BAN
    if standing.disband:
        return Reason.DISBAND
    if privileged:
        may = standing.exists or key.is_person
        return Reason.SUCCESS if may else Reason.CHANNEL_NOT_EXIST
    if standing.denied:
        return Reason.IN_BLACKLIST
    if key.is_person and not standing.exists:
        return Reason.SUCCESS
    if not standing.member:
        return Reason.SUBSCRIBER_NOT_EXIST
    if standing.has_allow_list and not standing.allowed and not key.is_person:
        return Reason.NOT_IN_WHITELIST
    return Reason.SUCCESS
