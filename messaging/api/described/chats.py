"""Conversations."""

from __future__ import annotations

from collections.abc import Mapping

from rest_framework.views import APIView

from messaging.api import conversations
from messaging.api.described.shapes import CHANNEL, MESSAGE, MESSAGE_EXAMPLE, SUCCESS, TEAM
from subscriptions.api.description import (
    TEXT,
    WHOLE,
    Answer,
    Operation,
    Schema,
    describes,
    many,
    named,
    shape,
    whole,
)


@describes(conversations.CountField)
def count(each: conversations.CountField) -> Schema:
    """How many messages."""
    return whole(each)


@describes(conversations.SeqsField)
def last_seqs(each: conversations.SeqsField) -> Schema:
    """`id:type:seq|id:type:seq`."""
    return {"type": "string", "maxLength": each.longest}


CONVERSATIONS = Answer(
    many(
        named(
            "Conversation",
            shape(
                **CHANNEL,
                unread=WHOLE,
                timestamp=WHOLE,
                last_msg_seq=WHOLE,
                last_client_msg_no=TEXT,
                offset_msg_seq=WHOLE,
                readed_to_msg_seq=WHOLE,
                version=WHOLE,
                recents=many(MESSAGE),
            ),
        )
    ),
    [
        {
            **TEAM,
            "unread": 2,
            "timestamp": 1764000000,
            "last_msg_seq": 7,
            "last_client_msg_no": "c-1",
            "offset_msg_seq": 0,
            "readed_to_msg_seq": 5,
            "version": 1764000000000000000,
            "recents": [MESSAGE_EXAMPLE],
        }
    ],
)

PLACE = {"uid": "alice", **TEAM}
OPERATIONS: Mapping[type[APIView], Operation] = {
    conversations.ConversationSync: Operation(
        CONVERSATIONS,
        body=conversations.SyncBody,
        example={
            "uid": "alice",
            "version": 0,
            "last_msg_seqs": "team:2:5|bob:1:1",
            "msg_count": 15,
            "only_unread": 0,
            "exclude_channel_types": [3],
            "page": 1,
            "page_size": 100,
        },
    ),
    conversations.ConversationsByChannel: Operation(
        CONVERSATIONS,
        body=conversations.ChannelsBody,
        example={"uid": "alice", "channels": [TEAM], "msg_count": 15},
    ),
    conversations.ConversationMessages: Operation(
        Answer(
            many(shape(**CHANNEL, messages=many(MESSAGE), user_last_msg_seq=WHOLE)),
            [{**TEAM, "messages": [MESSAGE_EXAMPLE], "user_last_msg_seq": 7}],
        ),
        body=conversations.MessagesBody,
        example={
            "uid": "alice",
            "channels": [{**TEAM, "last_msg_seq": 1}],
            "msg_count": 15,
            "order_by_last": 0,
        },
    ),
    conversations.ConversationChannels: Operation(
        Answer(many(shape(**CHANNEL)), [TEAM]),
        body=conversations.UidBody,
        example={"uid": "alice"},
    ),
    conversations.UnreadSet: Operation(
        SUCCESS, body=conversations.UnreadBody, example={**PLACE, "unread": 1}
    ),
    conversations.UnreadClear: Operation(SUCCESS, body=conversations.PlaceBody, example=PLACE),
    conversations.ConversationDelete: Operation(
        SUCCESS, body=conversations.PlaceBody, example=PLACE
    ),
}
