"""One message on its way to many sockets: what was made of it for one is there for the others."""

from __future__ import annotations

import time
from collections.abc import Hashable
from typing import Any

from messaging.messages import Said, Sent, StoredMessage


class Fanout:
    """A message, and what dialects have made of it. `made` is theirs: by whatever tells apart what
    is not the same for everybody."""

    __slots__ = ("_is_person", "made", "said")

    def __init__(self, said: Said) -> None:
        self.said = said
        self.made: dict[Hashable, Any] = {}
        self._is_person = said.key.is_person

    def name_for(self, uid: str) -> str:
        """What tells apart uids that are shown different messages: in person channels the name of
        the channel, elsewhere nothing."""
        return self.said.key.seen_by(uid) if self._is_person else ""

    def sent(self, frame: bytes) -> Sent:
        """The message as this frame, which is sent now."""
        said = self.said
        is_stored = said.seq > 0
        command = None
        if is_stored and isinstance(said, StoredMessage) and said.sync_once:
            command = (said.channel, said.seq)
        return Sent(frame, said.message_id, is_stored, time.monotonic(), command=command)
