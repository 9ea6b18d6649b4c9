"""POST /message/event and /message/eventsync: messages that are written bit by bit."""

from __future__ import annotations

from rest_framework.request import Request
from rest_framework.response import Response

from messaging import events
from messaging.api import serializers
from subscriptions.api.base import ApiView
from subscriptions.api.exceptions import BadRequest


class MessageEvents(ApiView):
    """POST /message/event: one more event of a message that was sent with `is_stream`."""

    def post(self, request: Request) -> Response:
        """Answers once it is stored; members who are online are told if it is public."""
        body = self.body(serializers.EventBody)
        event: events.Given = body["event"]
        try:
            recorded = events.record(body["anchor"], event)
        except events.EventRefused as error:
            raise BadRequest(str(error)) from error
        answer = {
            "client_msg_no": body["client_msg_no"],
            "event_key": event.key,
            "event_id": event.event_id,
            "msg_event_seq": recorded.seq,
            "stream_status": recorded.status,
            "channel_id": body["channel_id"],
            "channel_type": recorded.message.channel.channel_type,
            "from_uid": events.shown_sender(recorded.message),
        }
        return Response({"status": 200, "data": answer})


class MessageEventSync(ApiView):
    """POST /message/eventsync: the newest state of each key, for the back end."""

    def post(self, request: Request) -> Response:
        """Ascending by seq; a state that has gone on meanwhile is behind the page, not in it."""
        body = self.body(serializers.EventSyncBody)
        after, key = body["from_msg_event_seq"], body["event_key"]
        try:
            rows, more = events.read(
                body["anchor"], key, after, body["limit"], body["include_private"]
            )
        except events.EventRefused as error:
            raise BadRequest(str(error)) from error
        answer = {
            "client_msg_no": body["client_msg_no"],
            "from_msg_event_seq": after,
            "next_msg_event_seq": rows[-1].seq if rows else after,
            "more": int(more),
            "events": [serializers.event_object(row) for row in rows],
            "filtered_by_event_key": key,
        }
        return Response({"status": 200, "data": answer})
