"""Messages: sending and reading them, commands, and those that are written bit by bit."""

from __future__ import annotations

from collections.abc import Mapping

from rest_framework.views import APIView

from messaging import events
from messaging.api import commands, reading, serializers, views
from messaging.api import events as event_views
from messaging.api.described.shapes import (
    CHANNEL,
    MESSAGE,
    MESSAGE_EXAMPLE,
    PAYLOAD,
    SNAPSHOT,
    SUCCESS,
    TEAM,
)
from messaging.models import MessageEvent
from subscriptions.api.description import (
    SWITCH,
    TEXT,
    WHOLE,
    Answer,
    Operation,
    either,
    error,
    many,
    named,
    one_of,
    shape,
)

ONE_MESSAGE = Answer(either(MESSAGE, shape(status=one_of(404))), MESSAGE_EXAMPLE)
MESSAGE_PAGE = Answer(
    named(
        "MessagePage",
        shape(start_message_seq=WHOLE, end_message_seq=WHOLE, more=SWITCH, messages=many(MESSAGE)),
    ),
    {"start_message_seq": 0, "end_message_seq": 0, "more": 0, "messages": [MESSAGE_EXAMPLE]},
)
MESSAGES: dict[type[APIView], Operation] = {
    views.MessageSend: Operation(
        Answer(
            shape(
                "data",
                status=one_of(200),
                data=shape(message_id=WHOLE, client_msg_no=TEXT, message_seq=WHOLE),
            ),
            {
                "status": 200,
                "data": {"message_id": 1042, "client_msg_no": "c-1", "message_seq": 7},
            },
        ),
        body=serializers.SendBody,
        example={
            "header": {"no_persist": 0, "red_dot": 1, "sync_once": 0},
            "from_uid": "alice",
            **TEAM,
            "payload": PAYLOAD,
            "client_msg_no": "c-1",
            "expire": 0,
            "is_stream": 0,
        },
        others={
            400: error(
                400,
                "Refused with reason 5 (channel_not_exist). There is no such channel: create it"
                " with POST /channel.",
                "The request cannot be done as it is; `reason` is there where the log refused.",
                reason=5,
            )
        },
    ),
    views.MessageSendBatch: Operation(
        Answer(
            shape(fail_uids=many(TEXT), reason=many(TEXT)),
            {
                "fail_uids": ["bob"],
                "reason": ["Refused with reason 19 (ban). The channel is banned."],
            },
        ),
        body=serializers.SendBatchBody,
        example={
            "header": {"no_persist": 0, "red_dot": 1, "sync_once": 0},
            "from_uid": "alice",
            "subscribers": ["bob", "carol"],
            "payload": PAYLOAD,
            "client_msg_no": "c-2",
        },
    ),
    views.MessageSync: Operation(
        MESSAGE_PAGE,
        body=serializers.SyncBody,
        example={
            "login_uid": "alice",
            **TEAM,
            "start_message_seq": 0,
            "end_message_seq": 0,
            "pull_mode": 0,
            "limit": 100,
            "event_summary_mode": "full",
        },
    ),
    reading.MaxMessageSeq: Operation(
        Answer(shape(message_seq=WHOLE), {"message_seq": 7}),
        query=reading.ReaderQuery,
        given={"login_uid": "alice", **TEAM},
    ),
    reading.LastMessage: Operation(
        ONE_MESSAGE, query=reading.MemberQuery, given={"login_uid": "alice", **TEAM}
    ),
    reading.Messages: Operation(
        MESSAGE_PAGE,
        body=reading.MessagesBody,
        example={
            "login_uid": "alice",
            **TEAM,
            "message_seqs": [1, 2],
            "message_ids": [1042],
            "client_msg_nos": ["c-1"],
        },
    ),
    reading.MessageFind: Operation(
        ONE_MESSAGE,
        body=reading.MessageBody,
        example={"login_uid": "alice", **TEAM, "client_msg_no": "c-1"},
    ),
    reading.MessageByNumber: Operation(
        ONE_MESSAGE,
        query=reading.NumberQuery,
        given={"login_uid": "alice", **TEAM, "client_msg_no": "c-1"},
    ),
    commands.CommandSync: Operation(
        Answer(
            many(MESSAGE),
            [
                {
                    **MESSAGE_EXAMPLE,
                    "header": {"no_persist": 0, "red_dot": 0, "sync_once": 1},
                }
            ],
        ),
        body=commands.OfferBody,
        example={"uid": "alice", "limit": 200},
    ),
    commands.CommandAcknowledge: Operation(
        SUCCESS,
        body=commands.AcknowledgeBody,
        example={"uid": "alice", "last_message_seq": 7},
    ),
}

ANCHOR = {**TEAM, "client_msg_no": "stream-1", "from_uid": "alice", "event_key": "main"}
EVENTS: dict[type[APIView], Operation] = {
    event_views.MessageEvents: Operation(
        Answer(
            shape(
                status=one_of(200),
                data=shape(
                    client_msg_no=TEXT,
                    event_key=TEXT,
                    event_id=TEXT,
                    msg_event_seq=WHOLE,
                    stream_status=TEXT,
                    **CHANNEL,
                    from_uid=TEXT,
                ),
            ),
            {
                "status": 200,
                "data": {
                    **ANCHOR,
                    "event_id": "e-1",
                    "msg_event_seq": 1,
                    "stream_status": MessageEvent.OPEN,
                },
            },
        ),
        body=serializers.EventBody,
        example={
            **ANCHOR,
            "event_id": "e-1",
            "event_type": events.DELTA,
            "visibility": events.PUBLIC,
            "occurred_at": 1764000000000,
            "payload": {"kind": "text", "delta": "Hel"},
        },
    ),
    event_views.MessageEventSync: Operation(
        Answer(
            shape(
                status=one_of(200),
                data=shape(
                    client_msg_no=TEXT,
                    from_msg_event_seq=WHOLE,
                    next_msg_event_seq=WHOLE,
                    more=SWITCH,
                    events=many(
                        shape(
                            msg_event_seq=WHOLE,
                            event_id=TEXT,
                            event_key=TEXT,
                            event_type=one_of(*events.TYPES),
                            visibility=one_of(*events.VISIBILITIES),
                            occurred_at=WHOLE,
                            payload=SNAPSHOT,
                        )
                    ),
                    filtered_by_event_key=TEXT,
                ),
            ),
            {
                "status": 200,
                "data": {
                    "client_msg_no": "stream-1",
                    "from_msg_event_seq": 0,
                    "next_msg_event_seq": 1,
                    "more": 0,
                    "events": [
                        {
                            "msg_event_seq": 1,
                            "event_id": "e-1",
                            "event_key": "main",
                            "event_type": events.DELTA,
                            "visibility": events.PUBLIC,
                            "occurred_at": 1764000000000,
                            "payload": {"kind": "text", "text": "Hel"},
                        }
                    ],
                    "filtered_by_event_key": "main",
                },
            },
        ),
        body=serializers.EventSyncBody,
        example={**ANCHOR, "from_msg_event_seq": 0, "limit": 200, "include_private": 0},
    ),
}

OPERATIONS: Mapping[type[APIView], Operation] = {**MESSAGES, **EVENTS}
