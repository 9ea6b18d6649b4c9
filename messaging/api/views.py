"""WuKongIM's endpoints: each reads a body, calls one service and answers in WuKongIM's shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.db import Error, connection, transaction
from rest_framework.exceptions import APIException
from rest_framework.request import Request
from rest_framework.response import Response

from messaging import auth, events, node, registry, sending
from messaging.api import history, serializers
from messaging.encoding import message_object
from messaging.messages import Appended, Draft, Outcome, Refused, StoredMessage
from messaging.permissions import makes_channel
from messaging.protocol.reasons import Reason
from subscriptions import services
from subscriptions.api.base import ACTOR, ApiView, JSONArrayBody, OpenView
from subscriptions.api.exceptions import BadRequest, Unavailable
from subscriptions.bindings import SYSTEM_UID, ChannelKey, ChannelType, person_channel_id
from subscriptions.models import Channel
from subscriptions.selectors import find_channel, is_channel


def _done(**more: Any) -> Response:
    """WuKongIM's plain success."""
    return Response({"status": 200, **more})


class UserToken(ApiView):
    """POST /user/token: what a uid's kind of device has to show at connect."""

    def post(self, request: Request) -> Response:
        """Store the token, unless the person is banned (19) or disbanded (24): then nothing."""
        body = self.body(serializers.TokenBody)
        person = find_channel(ChannelKey(ChannelType.PERSON, body["uid"]))
        if person is not None and (person.ban or person.disband):
            return Response({"status": Reason.BAN if person.ban else Reason.DISBAND})
        auth.set_token(body["uid"], body["token"], body["device_flag"], body["device_level"])
        return _done()


class OnlineStatus(ApiView):
    """POST /user/onlinestatus: which of these uids are connected, on whichever node."""

    parser_classes = [JSONArrayBody]

    def post(self, request: Request) -> Response:
        """An entry for each live session; who has none is absent. An empty list is a success."""
        if not request.data:
            return _done()
        uids = self._cleaned(serializers.OnlineBody(data={"uids": request.data}))["uids"]
        online = registry.device_flags(uids)
        return Response([{"uid": uid, "device_flag": flag, "online": 1} for uid, flag in online])


class ChannelSave(ApiView):
    """POST /channel: create or overwrite a channel's flags, and add subscribers."""

    @transaction.atomic
    def post(self, request: Request) -> Response:
        """All of it or nothing."""
        body = self.body(serializers.ChannelBody)
        key, uids = body["key"], body["subscribers"]
        services.save_channel(key, body["flags"], actor=ACTOR)
        if not key.is_person and (uids or body["reset"]):
            services.join(key, uids, actor=ACTOR, reset=body["reset"])
        return _done()


class ChannelInfo(ApiView):
    """POST /channel/info: create or overwrite a channel's flags."""

    def post(self, request: Request) -> Response:
        """Members stay as they are."""
        body = self.body(serializers.InfoBody)
        services.save_channel(body["key"], body["flags"], actor=ACTOR)
        return _done()


class ChannelDelete(ApiView):
    """POST /channel/delete: nobody can send there any more; members and messages stay."""

    @transaction.atomic
    def post(self, request: Request) -> Response:
        """Set `disband` and leave the other flags; a channel that is missing is no error."""
        key = self.body(serializers.DeleteBody)["key"]
        channel = Channel.objects.select_for_update().filter(is_channel(key)).first()
        if channel is not None:
            flags = {name: getattr(channel, name) for name in services.FLAGS}
            services.save_channel(key, {**flags, "disband": True}, actor=ACTOR)
        return _done()


class SubscriberAdd(ApiView):
    """POST /channel/subscriber_add: make uids members; with `reset` they are all the members."""

    def post(self, request: Request) -> Response:
        """One transaction; who is a member already keeps their place and their read position."""
        body = self.body(serializers.AddBody)
        services.join(body["key"], body["subscribers"], actor=ACTOR, reset=body["reset"])
        return _done()


class SubscriberRemove(ApiView):
    """POST /channel/subscriber_remove: end memberships. Twice is once."""

    def post(self, request: Request) -> Response:
        """Delivery ends with the commit of the same transaction."""
        body = self.body(serializers.RemoveBody)
        services.leave(body["key"], body["subscribers"], actor=ACTOR)
        return _done()


class SubscriberRemoveAll(ApiView):
    """POST /channel/subscriber_remove_all: end all memberships of a channel that exists."""

    def post(self, request: Request) -> Response:
        """400 for a channel that is missing."""
        services.leave_all(self.body(serializers.RemoveAllBody)["key"], actor=ACTOR)
        return _done()


SUBMITTED = "wukongim.submitted"
"""Where the scope of a request has what `messaging.api.direct` has asked of the log already."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A draft that the log was given, and its outcome; None while it has not answered."""

    draft: Draft
    outcome: Outcome | None


class MessageSend(ApiView):
    """POST /message/send: append a message as the back end, whom no membership judges.

    Plain requests never come here where `messaging.api.direct` stands before Django.
    """

    def post(self, request: Request) -> Response:
        """Answers once the message is stored; a repeated client_msg_no gets the first answer."""
        done: Submitted | None = getattr(request, "scope", {}).get(SUBMITTED)
        if done is None:
            body = self.body(serializers.SendBody)
            if body["key"] is None:
                return self._send_to_each(body)
            done = _send(draft_of(body, body["key"]))
        if done.outcome is None:
            raise Unavailable(
                "The message log has not answered in time; the message may still be stored. "
                f"Send it again with client_msg_no {done.draft.client_msg_no}: it is stored once."
            )
        if isinstance(done.outcome, Refused):
            raise _refusal(done.outcome.reason)
        return Response(yes(done.outcome.message))

    def _send_to_each(self, body: dict[str, Any]) -> Response:
        """A command to each uid, in the person channel that it has with the server itself: there
        it is found again over /message/sync, and nobody else has to be in it (decision 36)."""
        drafts = [draft_of(body, _between(SYSTEM_UID, uid)) for uid in body["subscribers"]]
        outcomes = sending.send_all(drafts)
        sent = sum(isinstance(each, Appended) for each in outcomes)
        if sent < len(drafts):
            raise _sent_in_part(sent, outcomes, body["client_msg_no"])
        return _done()


class MessageSendBatch(ApiView):
    """POST /message/sendbatch: a person message to each of many, as the back end."""

    def post(self, request: Request) -> Response:
        """200 whatever becomes of them: who is not in `fail_uids` has it."""
        body = self.body(serializers.SendBatchBody)
        uids = body["subscribers"]
        outcomes = sending.send_all([draft_of(body, _between(body["from_uid"], u)) for u in uids])
        failed = {
            uid: _why(outcome, body["client_msg_no"])
            for uid, outcome in zip(uids, outcomes, strict=True)
            if not isinstance(outcome, Appended)
        }
        return Response({"fail_uids": [*failed], "reason": [*failed.values()]})


def _between(a: str, b: str) -> ChannelKey:
    return ChannelKey(ChannelType.PERSON, person_channel_id(a, b))


def _sent_in_part(sent: int, outcomes: Sequence[Outcome | None], number: str) -> APIException:
    """400 if it would be refused again, 503 if it may do later."""
    text = f"{sent} of {len(outcomes)} were sent. "
    refused = [each for each in outcomes if isinstance(each, Refused) and not sending.is_ours(each)]
    if not refused:
        return Unavailable(text + _again(number))
    reason = refused[0].reason
    return BadRequest(text + _words(reason), reason=reason.value)


def _why(outcome: Outcome | None, number: str) -> str:
    return _words(outcome.reason) if isinstance(outcome, Refused) else _again(number)


def _again(number: str) -> str:
    return (
        "The message log has not answered in time; what has no answer may still be stored. "
        f"Send it again with client_msg_no {number}: it is stored once."
    )


def yes(message: StoredMessage) -> dict[str, Any]:
    """The body that answers a send whose message was appended."""
    return {
        "status": 200,
        "data": {
            "message_id": message.message_id,
            "client_msg_no": message.client_msg_no,
            "message_seq": message.seq,
        },
    }


def draft_of(body: dict[str, Any], key: ChannelKey) -> Draft:
    """What a cleaned `SendBody` asks the log for, to be appended to this channel."""
    return Draft(
        key=key,
        sender=body["from_uid"],
        payload=body["payload"],
        client_msg_no=body["client_msg_no"],
        expire=body["expire"],
        setting=events.STREAM if body["is_stream"] else 0,
        trusted=True,
        **body["header"],
    )


def _send(draft: Draft) -> Submitted:
    """Append a draft, from a thread."""
    if not makes_channel(draft.key, draft.sender) and find_channel(draft.key) is None:
        sending.refuse(draft, Reason.CHANNEL_NOT_EXIST)
        return Submitted(draft, Refused(Reason.CHANNEL_NOT_EXIST))
    try:
        return Submitted(draft, sending.send(draft))
    except TimeoutError:
        return Submitted(draft, None)


ADVICE = {
    Reason.CHANNEL_NOT_EXIST: "There is no such channel: create it with POST /channel.",
    Reason.BAN: "The channel is banned: POST /channel/info with ban 0 lifts that.",
    Reason.DISBAND: "The channel is disbanded: POST /channel/info with disband 0 revives it.",
    Reason.NOT_SUPPORT_CHANNEL_TYPE: "Channels of this type cannot be sent to.",
    Reason.IDEMPOTENCY_CONFLICT: "This client_msg_no was used for another payload: make a new one.",
    Reason.RATE_LIMIT: "Too many messages wait to be stored: send again later.",
    Reason.SYSTEM_ERROR: "The message could not be stored; the server's log says why.",
}


def _refusal(reason: Reason) -> BadRequest:
    return BadRequest(_words(reason), reason=reason.value)


def _words(reason: Reason) -> str:
    advice = ADVICE.get(reason, "The message was not stored.")
    return f"Refused with reason {reason.value} ({reason.wire_name}). {advice}"


class MessageSync(ApiView):
    """POST /channel/messagesync: a part of a channel's log, for its members."""

    def post(self, request: Request) -> Response:
        """Members read all that is kept; everybody else gets an empty page."""
        body = self.body(serializers.SyncBody)
        start, end = body["start_message_seq"], body["end_message_seq"]
        key, uid = body["key"], body["login_uid"]
        channel = history.find_readable(key, uid)
        wanted = history.span(start, end, body["pull_mode"])
        messages, more = history.read(channel, wanted, body["limit"])
        streams = events.event_meta(messages, full=body["event_summary_mode"] == "full")
        return Response(
            {
                "start_message_seq": start,
                "end_message_seq": end,
                "more": int(more),
                "messages": [
                    message_object(each, key, uid, streams.get(each.pk)) for each in messages
                ],
            }
        )


class Health(OpenView):
    """GET /health: whether the process answers and reaches its database."""

    def get(self, request: Request) -> Response:
        """200 or 500. The error itself is for the log: it may name hosts."""
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
        except Error:
            return Response({"status": "error", "message": "the database does not answer"}, 500)
        return Response({"status": "ok"})


class Ready(OpenView):
    """GET /readyz: whether new sessions should come to this process."""

    def get(self, request: Request) -> Response:
        """200, or 503 with the reason."""
        current = node.current_node()
        if current is not None and current.ready:
            return Response({"ready": True})
        reason = current.not_ready_reason if current else "no node runs in this process"
        return Response({"ready": False, "reason": reason}, 503)
