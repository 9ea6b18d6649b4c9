"""What several of them take or answer: fields, channels, messages."""

from __future__ import annotations

from typing import Any

from messaging.api import serializers
from messaging.conf import conf
from messaging.models import MessageEvent
from subscriptions.api.description import (
    BOOLEAN,
    DONE,
    SWITCH,
    TEXT,
    WHOLE,
    Answer,
    Schema,
    describes,
    many,
    named,
    one_of,
    shape,
    uids,
)


@describes(serializers.PayloadField)
def payload(each: serializers.PayloadField) -> Schema:
    """Standard base64."""
    longest = -(-conf().payload_bytes // 3) * 4
    return {
        "type": "string",
        "format": "byte",
        "contentEncoding": "base64",
        "minLength": 1,
        "maxLength": longest,
    }


@describes(serializers.RecipientsField)
def recipients(each: serializers.RecipientsField) -> Schema:
    """So many uids."""
    return {**uids(each), "maxItems": serializers.RECIPIENTS}


@describes(serializers.ChoiceField)
def word(each: serializers.ChoiceField) -> Schema:
    """One of a few words; an empty one is the default, where there is one."""
    return one_of(*each.words) if each.required else one_of("", *each.words)


@describes(serializers.JSONField)
def anything(each: serializers.JSONField) -> Schema:
    """Any JSON."""
    return {}


SUCCESS = Answer(DONE, {"status": 200})
PAYLOAD = "eyJ0eXBlIjogMSwgImNvbnRlbnQiOiAiSGVsbG8ifQ=="
"""{"type": 1, "content": "Hello"}"""

TEAM: dict[str, Any] = {"channel_id": "team", "channel_type": 2}

CHANNEL = {"channel_id": TEXT, "channel_type": WHOLE}
SNAPSHOT: Schema = {"description": "What has come under this key, merged."}
EVENT_META = named(
    "EventMeta",
    shape(
        has_events=BOOLEAN,
        completed=BOOLEAN,
        event_version=WHOLE,
        last_msg_event_seq=WHOLE,
        event_count=WHOLE,
        open_event_count=WHOLE,
        events=many(
            shape(
                "snapshot",
                event_key=TEXT,
                status=one_of(
                    MessageEvent.OPEN,
                    MessageEvent.CLOSED,
                    MessageEvent.ERROR,
                    MessageEvent.CANCELLED,
                ),
                last_msg_event_seq=WHOLE,
                end_reason=WHOLE,
                error=TEXT,
                snapshot=SNAPSHOT,
            )
        ),
    ),
)
MESSAGE = named(
    "Message",
    shape(
        "topic end end_reason error stream_data event_meta event_sync_hint",
        header=shape(no_persist=SWITCH, red_dot=SWITCH, sync_once=SWITCH),
        setting=WHOLE,
        message_id=WHOLE,
        message_idstr=TEXT,
        client_msg_no=TEXT,
        message_seq=WHOLE,
        from_uid=TEXT,
        **CHANNEL,
        topic=TEXT,
        expire=WHOLE,
        timestamp=WHOLE,
        payload=TEXT,
        end=SWITCH,
        end_reason=WHOLE,
        error=TEXT,
        stream_data=TEXT,
        event_meta=EVENT_META,
        event_sync_hint=shape(client_msg_no=TEXT, from_msg_event_seq=WHOLE),
    ),
)
MESSAGE_EXAMPLE = {
    "header": {"no_persist": 0, "red_dot": 1, "sync_once": 0},
    "setting": 0,
    "message_id": 1042,
    "message_idstr": "1042",
    "client_msg_no": "c-1",
    "message_seq": 7,
    "from_uid": "alice",
    **TEAM,
    "expire": 0,
    "timestamp": 1764000000,
    "payload": PAYLOAD,
}
