"""One message on its way to many sockets: what was made of it for one is there for the others."""

from __future__ import annotations

import time
from collections.abc import Hashable
from typing import Any

from messaging.messages import Said, StoredMessage


class Fanout:
    """A message, and what dialects have made of it. `made` is theirs: by whatever tells apart what
    is not the same for everybody.

    One value for all sockets. A socket that has to be sent it again keeps one of its own (`again`).
    `at`: when it is sent (monotonic); `resends`: how often it was sent again; `command`: of a
    stored command, its channel's pk and its seq.
    """

    __slots__ = (
        "_is_person",
        "at",
        "command",
        "is_stored",
        "made",
        "message_id",
        "resends",
        "said",
    )

    def __init__(self, said: Said) -> None:
        self.said = said
        self.message_id = said.message_id
        self.is_stored = said.seq > 0
        self.at, self.resends = time.monotonic(), 0
        self.command: tuple[int, int] | None = None
        if self.is_stored and isinstance(said, StoredMessage) and said.sync_once:
            self.command = (said.channel, said.seq)
        self.made: dict[Hashable, Any] = {}
        self._is_person = said.key.is_person

    def name_for(self, uid: str) -> str:
        """What tells apart uids that are shown different messages: in person channels the name of
        the channel, elsewhere nothing."""
        return self.said.key.seen_by(uid) if self._is_person else ""

    def again(self, now: float) -> Fanout:
        """The same on its way to one socket once more. What was made of it for others is made
        anew, so that a message nobody else waits for is not kept."""
        other = Fanout(self.said)
        other.at, other.resends = now, self.resends + 1
        return other
