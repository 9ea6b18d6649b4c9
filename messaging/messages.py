"""The values that travel between the log, the layer and the hub."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

from messaging.protocol.reasons import Reason
from subscriptions.bindings import ChannelKey

EVENT_VERSION = 1
"""Version of the doorbell's shape. A node that does not know a shape only looks."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A message that wants to be appended. Validated at the edge already."""

    key: ChannelKey
    sender: str
    payload: bytes
    client_msg_no: str = ""
    origin: str = ""
    red_dot: bool = False
    sync_once: bool = False
    no_persist: bool = False
    setting: int = 0
    topic: str = ""
    expire: int = 0
    trusted: bool = False
    """Sent by the business back end: lists and memberships do not judge it (protocol §4.5.6)."""


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message as it is in the log; `seq` 0 when it was not stored (`noPersist`)."""

    channel: int
    key: ChannelKey
    seq: int
    version: int
    message_id: int
    sender: str
    payload: bytes
    created_ms: int
    client_msg_no: str = ""
    origin: str = ""
    red_dot: bool = False
    sync_once: bool = False
    setting: int = 0
    topic: str = ""
    expire: int = 0

    @property
    def timestamp(self) -> int:
        """Unix seconds, as the wire has it."""
        return self.created_ms // 1000

    def to_event(self) -> dict[str, Any]:
        """The doorbell that carries this message: plain values that every layer can pack."""
        event: dict[str, Any] = {"type": "message", "v": EVENT_VERSION}
        for name in FIELDS:
            event[name] = getattr(self, name)
        event["key"] = [self.key.channel_type, self.key.channel_id]
        return event

    @classmethod
    def from_event(cls, event: dict[str, Any]) -> StoredMessage:
        """The message in a doorbell. Raises KeyError or TypeError when it is another shape."""
        values = {key: value for key, value in event.items() if key not in ("type", "v")}
        kind, name = values.pop("key")
        return cls(key=ChannelKey(kind, name), **values)


FIELDS = tuple(each.name for each in fields(StoredMessage))


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """An event of a message that is written bit by bit, on its way to who is online (protocol
    §2.11). It is in nobody's position: who misses it, misses it.

    `data` is a JSON object without `channel_id`, which members of a person channel are each shown
    their own; text, so that every layer can pack it. `timestamp` in milliseconds.
    """

    channel: int
    key: ChannelKey
    version: int
    id: str
    type: str
    timestamp: int
    data: str
    origin = ""
    seq = message_id = 0

    def to_event(self) -> dict[str, Any]:
        """The doorbell that carries it."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {"type": "stream", "v": EVENT_VERSION, "event": {**values, "key": [*self.key]}}

    @classmethod
    def from_event(cls, event: dict[str, Any]) -> StreamEvent:
        """What a doorbell carries. Raises KeyError or TypeError when it is another shape."""
        values = dict(event["event"])
        kind, name = values.pop("key")
        return cls(key=ChannelKey(kind, name), **values)

    def data_for(self, uid: str) -> str:
        """`data` as `uid` is shown it."""
        name = json.dumps(self.key.seen_by(uid), ensure_ascii=False)
        return f'{{"channel_id": {name}, {self.data[1:]}'


Said = StoredMessage | StreamEvent
"""What is offered to sessions."""


@dataclass(frozen=True, slots=True)
class Appended:
    """The log's yes: what the sender is told. A repeat gets the first answer again."""

    message: StoredMessage
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """The log's no, with the reason code that the sender is told."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Held:
    """Not tried, since somebody else holds the channel's row; or, `alone`, since the channel has
    yet to be made, which may have to wait for somebody. Only the log sees this.

    `message_id` is not 0 where an earlier attempt may have been committed under it, its answer
    lost: whoever tries again has to say so.
    """

    alone: bool = False
    message_id: int = 0


Outcome = Appended | Refused
