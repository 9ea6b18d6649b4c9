"""The words of an explanation: every verdict there is, its advice, and which is worse. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """Every answer there is. The names are stable: programs compare them."""

    SENDER_REFUSED = "sender_refused"
    NO_SUCH_CHANNEL = "no_such_channel"
    UNSTORED = "unstored"
    NOT_SENT_YET = "not_sent_yet"
    NO_LONGER_KEPT = "no_longer_kept"
    NO_SUCH_MESSAGE = "no_such_message"
    NOT_A_MEMBER = "not_a_member"
    LEFT_BEFORE = "left_before"
    JOINED_LATER = "joined_later"
    NOT_YET_DELIVERED = "not_yet_delivered"
    NODE_LOST = "node_lost"
    SESSION_ENDED = "session_ended"
    EXPIRED = "expired"
    UNCLEAN_END = "unclean_end"
    UNKNOWN = "unknown"
    UNCHECKED = "unchecked"
    SESSION_BOUNDARY = "session_boundary"
    HEALED = "healed"
    DELIVERED_NORMALLY = "delivered_normally"
    OWN_MESSAGE = "own_message"
    NO_SESSION = "no_session"


ADVICE = {
    Verdict.SENDER_REFUSED: "The sender was told why. Lift what the reason names; it is not sent"
    " again by itself.",
    Verdict.NO_SUCH_CHANNEL: "Is the channel written TYPE:ID, and is this the right database?",
    Verdict.UNSTORED: "Whoever was connected then may have heard it; nothing can tell afterwards.",
    Verdict.NOT_SENT_YET: "Ask with the sender and the client message number whether it was"
    " refused.",
    Verdict.NO_LONGER_KEPT: "What is removed cannot be explained any more.",
    Verdict.NO_SUCH_MESSAGE: "The log has a hole: `repair_subscriptions --kind log_hole` says how"
    " large.",
    Verdict.NOT_A_MEMBER: "Nobody hears a channel without belonging to it. Add them, if they"
    " should.",
    Verdict.LEFT_BEFORE: "Right as it is: a membership ends with the leave. The change log says"
    " who did it.",
    Verdict.JOINED_LATER: "Right as it is: nothing from before a join is pushed. Members can pull"
    " it.",
    Verdict.NOT_YET_DELIVERED: "The server mends it by itself within seconds. If it stays: "
    "`repair_subscriptions`.",
    Verdict.NODE_LOST: "The client comes back and pulls it. See why that process ended.",
    Verdict.SESSION_ENDED: "The client pulls it when it comes back.",
    Verdict.EXPIRED: "Right as it is: clients do not show what has expired.",
    Verdict.UNCLEAN_END: "The client pulls it when it comes back. See what its log, and the"
    " server's around that time, say of the end.",
    Verdict.UNKNOWN: "Nothing can be concluded until that is known.",
    Verdict.UNCHECKED: "Ask again in a minute, when the node has looked. One that is gone never"
    " will.",
    Verdict.SESSION_BOUNDARY: "Either way the client has it: if not live, it pulled it.",
    Verdict.HEALED: "Nothing: it was delivered late. The finding says what had broken.",
    Verdict.DELIVERED_NORMALLY: "Look at the client: has it shown what it was given?",
    Verdict.OWN_MESSAGE: "Right as it is: the session that sends knows its message already.",
    Verdict.NO_SESSION: "The client pulls it when it connects.",
}
"""What to do about each."""

WORST_FIRST = (
    Verdict.NOT_YET_DELIVERED,
    Verdict.NODE_LOST,
    Verdict.SESSION_ENDED,
    Verdict.EXPIRED,
    Verdict.UNCLEAN_END,
    Verdict.UNKNOWN,
    Verdict.UNCHECKED,
    Verdict.SESSION_BOUNDARY,
    Verdict.HEALED,
    Verdict.DELIVERED_NORMALLY,
    Verdict.OWN_MESSAGE,
)
"""The whole is the worst of the sessions: whoever asks means the device that stayed silent."""

PULLED = (Verdict.NO_SESSION, Verdict.NODE_LOST, Verdict.SESSION_ENDED)
"""Verdicts after which only the client's own pull brings the message."""


@dataclass(frozen=True, slots=True)
class SessionVerdict:
    """What is concluded of one session."""

    session: str
    verdict: Verdict
    sentence: str
