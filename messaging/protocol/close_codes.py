"""Close codes: with which a socket is closed, why, and whether the client should come back."""

from __future__ import annotations

from enum import IntEnum


class CloseCode(IntEnum):
    """WebSocket close codes this server uses. 4000 and up are its own (RFC 6455 §7.4.2)."""

    NORMAL = 1000
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    RESTARTING = 1012
    TRY_AGAIN = 1013
    CONNECT_TIMEOUT = 4001
    AUTH_FAILED = 4002
    KICKED = 4003
    IDLE = 4004

    @property
    def reason(self) -> str:
        """What happened, in a few words."""
        return REASONS[self]

    @property
    def come_back(self) -> bool:
        """Whether a client should connect again by itself."""
        return self in COME_BACK


REASONS: dict[CloseCode, str] = {
    CloseCode.NORMAL: "the session ended as asked",
    CloseCode.POLICY_VIOLATION: "a frame that is not allowed here, such as a first one "
    "that is no connect",
    CloseCode.MESSAGE_TOO_BIG: "a frame over the limit",
    CloseCode.INTERNAL_ERROR: "the server failed",
    CloseCode.RESTARTING: "the server is restarting",
    CloseCode.TRY_AGAIN: "too far behind, or the server cannot reach its database, or hears "
    "nothing while another does",
    CloseCode.CONNECT_TIMEOUT: "no connect within two seconds",
    CloseCode.AUTH_FAILED: "uid, device or token were not accepted",
    CloseCode.KICKED: "displaced by another connection, or sent away by an operator",
    CloseCode.IDLE: "nothing was heard for three minutes",
}
COME_BACK = frozenset(
    {CloseCode.INTERNAL_ERROR, CloseCode.RESTARTING, CloseCode.TRY_AGAIN, CloseCode.IDLE}
)
