"""The events there are. The first three are WuKongIM's, the others our own."""

from __future__ import annotations

from enum import StrEnum


class Event(StrEnum):
    """An event by the name that its receivers see."""

    MESSAGE_STORED = "msg.notify"
    MEMBERS_OFFLINE = "msg.offline"
    ONLINE_STATUS = "user.onlinestatus"
    FINDING_OPENED = "finding.opened"
    FINDING_HEALED = "finding.healed"


BATCHED = frozenset({Event.MESSAGE_STORED, Event.ONLINE_STATUS})
"""Events whose request carries an array, so that several that follow each other share one."""
