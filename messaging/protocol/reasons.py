"""Reason codes (protocol §2.9): what a refused or successful packet is answered with."""

from __future__ import annotations

from enum import IntEnum


class Reason(IntEnum):
    """WuKongIM's reason codes. Success is 1; 0 stands for frames that mean nothing."""

    UNKNOWN = 0
    SUCCESS = 1
    AUTH_FAIL = 2
    SUBSCRIBER_NOT_EXIST = 3
    IN_BLACKLIST = 4
    CHANNEL_NOT_EXIST = 5
    USER_NOT_ON_NODE = 6
    SENDER_OFFLINE = 7
    MSG_KEY_ERROR = 8
    PAYLOAD_DECODE_ERROR = 9
    FORWARD_SEND_PACKET_ERROR = 10
    NOT_ALLOW_SEND = 11
    CONNECT_KICK = 12
    NOT_IN_WHITELIST = 13
    QUERY_TOKEN_ERROR = 14
    SYSTEM_ERROR = 15
    CHANNEL_ID_ERROR = 16
    NODE_MATCH_ERROR = 17
    NODE_NOT_MATCH = 18
    BAN = 19
    NOT_SUPPORT_HEADER = 20
    CLIENT_KEY_IS_EMPTY = 21
    RATE_LIMIT = 22
    NOT_SUPPORT_CHANNEL_TYPE = 23
    DISBAND = 24
    SEND_BAN = 25
    CHANNEL_DELETING = 26
    PROTOCOL_UPGRADE_REQUIRED = 27
    IDEMPOTENCY_CONFLICT = 28
    MESSAGE_SEQ_EXHAUSTED = 29

    @property
    def wire_name(self) -> str:
        """The constant's name as WuKongIM writes it in error messages: `ReasonAuthFail`."""
        words = self.name.split("_")
        return "Reason" + "".join(word if word == "ID" else word.capitalize() for word in words)
