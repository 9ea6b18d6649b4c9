"""Messages that are written bit by bit (http-api §1.25): what comes under each key of one is merged
into one state, which is stored with every event.

A message has one row a key. Events of one message wait for each other, on the message's own row.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from django.db.models import Q

from messaging import doorbell
from messaging.conf import conf
from messaging.messages import StreamEvent
from messaging.models import Message, MessageEvent
from messaging.protocol.packets import Setting
from subscriptions.bindings import SYSTEM_UID, ChannelKey
from subscriptions.selectors import is_channel
from subscriptions.transactions import transact

STREAM = Setting(stream=True).to_byte()
"""The setting bit of a message that is written bit by bit."""

MAIN, FINISH = "main", "__finish__"
"""The key of events that name none, and that of the event which ends the whole message."""

DELTA, SNAPSHOT = "stream.delta", "stream.snapshot"
FINISH_TYPE = "stream.finish"
ENDS = {
    "stream.close": MessageEvent.CLOSED,
    "stream.error": MessageEvent.ERROR,
    "stream.cancel": MessageEvent.CANCELLED,
    FINISH_TYPE: MessageEvent.CLOSED,
}
"""The events that end a key, and the status that it has then."""

TYPES = (DELTA, SNAPSHOT, *ENDS)

PUBLIC = "public"
VISIBILITIES = (PUBLIC, "private", "restricted")
"""Who gets an event: the members, or whoever asks for all that is stored."""

KEYS = 100
"""Keys of one message: each event reads the rows of all."""


class EventRefused(ValueError):
    """The event cannot be recorded as it is; the text says why, and what to do."""


# --- rules ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Part:
    """What has come under one key so far."""

    status: str = MessageEvent.OPEN
    snapshot: Any = None
    end_reason: int = 0
    error: str = ""


def merge(part: Part, event_type: str, payload: Any) -> Part:
    """A part that is open after one more event. Texts grow by their deltas; every other delta, like
    a snapshot, takes the place of what was there. What ends a part may bring its last snapshot.
    """
    if event_type == DELTA:
        return replace(part, snapshot=_grown(part.snapshot, payload))
    if event_type == SNAPSHOT:
        return replace(part, snapshot=payload)
    last = {name: value for name, value in (payload or {}).items() if value is not None}
    return Part(
        status=ENDS[event_type],
        snapshot=last.get("snapshot", part.snapshot),
        end_reason=last.get("end_reason", 0),
        error=last.get("error", ""),
    )


def _grown(snapshot: Any, payload: Any) -> Any:
    if not (is_text(payload) and isinstance(payload.get("delta"), str)):
        return payload
    before = snapshot.get("text", "") if is_text(snapshot) else ""
    return {"kind": "text", "text": before + payload["delta"]}


def is_text(value: Any) -> bool:
    """Whether a snapshot or a payload is of the kind that grows."""
    return isinstance(value, dict) and value.get("kind") == "text"


# --- writing -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Anchor:
    """How a request names a message. `keys`: the channels that it may mean; `sender` and
    `message_id` choose where several have the number."""

    keys: Sequence[ChannelKey]
    client_msg_no: str
    sender: str = ""
    message_id: int = 0


@dataclass(frozen=True, slots=True)
class Given:
    """An event as the business back end gives it. `occurred_ms` 0 is now."""

    event_id: str
    event_type: str
    key: str = MAIN
    visibility: str = PUBLIC
    occurred_ms: int = 0
    payload: Any = None


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of an event: its place, or that of what came before it and still stands."""

    message: Message
    seq: int
    status: str


def record(anchor: Anchor, event: Given) -> Recorded:
    """Merge an event into its message, in one transaction, and tell the members who are online.

    The last event of a key, once more, is answered as the first time and told to nobody. So is
    whatever comes after the end. Raises EventRefused. Who dies between the commit and the telling
    leaves members without it: events are counted, so they can see that and ask for the rest.
    """
    event = replace(event, occurred_ms=event.occurred_ms or time.time_ns() // 1_000_000)
    recorded, row = transact(lambda: _record(anchor, event))
    if row is not None and row.visibility == PUBLIC:
        _tell(recorded, row, event)
    return recorded


def _record(anchor: Anchor, event: Given) -> tuple[Recorded, MessageEvent | None]:
    message = find_anchor(anchor, lock=True)
    rows = {row.key: row for row in MessageEvent.objects.filter(message=message)}
    row, finish = rows.get(event.key), rows.get(FINISH)
    standing = _standing(row, finish, event)
    if standing is not None:
        return Recorded(message, standing.seq, standing.status), None
    row = row or MessageEvent(message=message, key=event.key, visibility=event.visibility)
    others = [each for key, each in rows.items() if key not in (event.key, FINISH)]
    _fill(row, event, 1 + max((each.seq for each in rows.values()), default=0))
    _check_room(row, others)
    row.save()
    if event.key == FINISH:
        open_rows = MessageEvent.objects.filter(message=message, status=MessageEvent.OPEN)
        open_rows.update(status=MessageEvent.CLOSED)
    return Recorded(message, row.seq, row.status), row


def _standing(
    row: MessageEvent | None, finish: MessageEvent | None, event: Given
) -> MessageEvent | None:
    """The row that answers an event which changes nothing any more: a repeat, or a late one."""
    if row is None:
        return finish
    is_over = finish is not None or row.status != MessageEvent.OPEN
    return row if is_over or row.event_id == event.event_id else None


def _fill(row: MessageEvent, event: Given, seq: int) -> None:
    """Merge the event into its row. What was kept from the members once stays so, since the
    snapshot has it."""
    before = Part(row.status or MessageEvent.OPEN, row.snapshot)
    part = merge(before, event.event_type, event.payload)
    row.seq, row.event_id, row.event_type = seq, event.event_id, event.event_type
    row.occurred_ms = event.occurred_ms
    row.status, row.snapshot = part.status, part.snapshot
    row.end_reason, row.error = part.end_reason, part.error
    if row.visibility == PUBLIC:
        row.visibility = event.visibility


def _check_room(row: MessageEvent, others: Collection[MessageEvent]) -> None:
    if row.key != FINISH and len(others) >= KEYS:
        raise EventRefused(f"A message has at most {KEYS} keys. Use one of them again.")
    most = conf().event_bytes
    if sum(_size(each.snapshot) for each in (row, *others)) > most:
        raise EventRefused(
            f"The snapshots of one message have at most {most} bytes together. Close the key, or "
            "go on in another message."
        )


def _size(snapshot: Any) -> int:
    """Bytes of a snapshot as JSON."""
    return 0 if snapshot is None else len(json.dumps(snapshot, ensure_ascii=False).encode())


def find_anchor(anchor: Anchor, lock: bool = False) -> Message:
    """The message, with its channel. Raises EventRefused unless there is exactly one, and it was
    sent with `is_stream`."""
    rows = Message.objects.select_related("channel").filter(
        _in_one_of(anchor.keys), client_msg_no=anchor.client_msg_no
    )
    if lock:
        rows = rows.select_for_update(of=("self",))
    found = _chosen(list(rows), anchor)
    if not found:
        raise EventRefused(
            "There is no message with this client_msg_no in this channel. Send it first, with "
            "is_stream 1; of a person channel, name the sender in from_uid."
        )
    if len(found) > 1:
        raise EventRefused("Several messages have this client_msg_no: name the one by message_id.")
    if not found[0].setting & STREAM:
        raise EventRefused("The message was not sent with is_stream 1: it has no events.")
    return found[0]


def _in_one_of(keys: Sequence[ChannelKey]) -> Q:
    wanted = Q(pk__in=[])
    for key in keys:
        wanted |= is_channel(key, "channel__")
    return wanted


def _chosen(rows: list[Message], anchor: Anchor) -> list[Message]:
    """The one that is meant, where several senders have used the number."""
    if anchor.message_id:
        return [row for row in rows if row.message_id == anchor.message_id]
    if len(rows) > 1:
        return [row for row in rows if row.sender == (anchor.sender or SYSTEM_UID)] or rows
    return rows


def _tell(recorded: Recorded, row: MessageEvent, event: Given) -> None:
    """Ring the channel with the event, through this process's node: best effort."""
    message = recorded.message
    told = {
        "client_msg_no": message.client_msg_no,
        "channel_type": message.channel.channel_type,
        "from_uid": shown_sender(message),
        "message_id": message.message_id,
        "event_key": row.key,
        "msg_event_seq": row.seq,
        "stream_status": row.status,
        "visibility": row.visibility,
    }
    if event.payload is not None:
        told["payload"] = event.payload
    stream_event = StreamEvent(
        channel=message.channel_id,
        key=message.channel.key,
        version=message.channel.membership_version,
        id=event.event_id,
        type=event.event_type,
        timestamp=event.occurred_ms,
        data=json.dumps(told, ensure_ascii=False),
    )
    doorbell.ring(message.channel.key.group, stream_event.to_event())


def shown_sender(message: Message) -> str:
    """The sender as clients are shown it: the server itself has no name."""
    return "" if message.sender == SYSTEM_UID else message.sender


# --- reading -------------------------------------------------------------------------------------


def read(
    anchor: Anchor, key: str, after: int, limit: int, include_private: bool
) -> tuple[list[MessageEvent], bool]:
    """The newest event of each key (or of one) above a seq, ascending, and whether there is more.
    Raises EventRefused."""
    rows = MessageEvent.objects.filter(message=find_anchor(anchor), seq__gt=after)
    if key:
        rows = rows.filter(key=key)
    if not include_private:
        rows = rows.filter(visibility=PUBLIC)
    found = list(rows.order_by("seq")[: limit + 1])
    return found[:limit], len(found) > limit


def event_meta(messages: Sequence[Message], full: bool = True) -> dict[int, dict[str, Any]]:
    """{pk: what a message object has besides} of those messages that are written bit by bit;
    without `full`, no snapshots. One query, or none where there are no such messages."""
    streams = {each.pk: each for each in messages if each.setting & STREAM}
    rows: dict[int, list[MessageEvent]] = {pk: [] for pk in streams}
    if streams:
        stored = MessageEvent.objects.filter(message__in=streams, visibility=PUBLIC)
        for row in stored.order_by("seq"):
            rows[row.message_id].append(row)
    return {pk: _members(streams[pk], parts, full) for pk, parts in rows.items()}


def _members(message: Message, rows: list[MessageEvent], full: bool) -> dict[str, Any]:
    """A message is complete when it was finished, or when each of its keys has ended."""
    by_key = {row.key: row for row in rows}
    parts = [row for row in rows if row.key != FINISH]
    opened = sum(row.status == MessageEvent.OPEN for row in parts)
    completed = bool(rows) and (FINISH in by_key or not opened)
    newest = max((row.seq for row in rows), default=0)
    last = by_key.get(MAIN) or by_key.get(FINISH)
    members: dict[str, Any] = {
        "end": int(completed),
        "end_reason": last.end_reason if last else 0,
        "event_meta": {
            "has_events": bool(rows),
            "completed": completed,
            "event_version": newest,
            "last_msg_event_seq": newest,
            "event_count": len(parts),
            "open_event_count": opened,
            "events": [_part_object(row, full) for row in parts],
        },
        "event_sync_hint": {"client_msg_no": message.client_msg_no, "from_msg_event_seq": 0},
    }
    if last and last.error:
        members["error"] = last.error
    if full and MAIN in by_key and by_key[MAIN].snapshot is not None:
        members["stream_data"] = _as_base64(by_key[MAIN].snapshot)
    return members


def _part_object(row: MessageEvent, full: bool) -> Mapping[str, Any]:
    shown: dict[str, Any] = {
        "event_key": row.key,
        "status": row.status,
        "last_msg_event_seq": row.seq,
        "end_reason": row.end_reason,
        "error": row.error,
    }
    if full and row.snapshot is not None:
        shown["snapshot"] = row.snapshot
    return shown


def _as_base64(snapshot: Any) -> str:
    """A text's own bytes, and the JSON of anything else."""
    text = snapshot.get("text") if is_text(snapshot) else None
    if not isinstance(text, str):
        text = json.dumps(snapshot, ensure_ascii=False)
    return base64.b64encode(text.encode()).decode()
