"""WuKongIM's endpoints: each reads a body, calls one service and answers in WuKongIM's shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.db import Error, connection, transaction
from rest_framework.request import Request
from rest_framework.response import Response

from messaging import auth, node, registry, sending
from messaging.api import history, serializers
from messaging.messages import Draft, Outcome, Refused, StoredMessage
from messaging.protocol.reasons import Reason
from subscriptions import services
from subscriptions.api.base import ACTOR, ApiView, JSONArrayBody, OpenView
from subscriptions.api.exceptions import BadRequest, Unavailable
from subscriptions.bindings import ChannelKey, ChannelType
from subscriptions.models import Channel, Membership
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
        done = done or _send(draft_of(self.body(serializers.SendBody)))
        if done.outcome is None:
            raise Unavailable(
                "The message log has not answered in time; the message may still be stored. "
                f"Send it again with client_msg_no {done.draft.client_msg_no}: it is stored once."
            )
        if isinstance(done.outcome, Refused):
            raise _refusal(done.outcome.reason)
        return Response(yes(done.outcome.message))


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


def draft_of(body: dict[str, Any]) -> Draft:
    """What a cleaned `SendBody` asks the log for."""
    return Draft(
        key=body["key"],
        sender=body["from_uid"],
        payload=body["payload"],
        client_msg_no=body["client_msg_no"],
        expire=body["expire"],
        trusted=True,
        **body["header"],
    )


def _send(draft: Draft) -> Submitted:
    """Append a draft, from a thread."""
    if not draft.key.is_person and find_channel(draft.key) is None:
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
    advice = ADVICE.get(reason, "The message was not stored.")
    return BadRequest(
        f"Refused with reason {reason.value} ({reason.wire_name}). {advice}", reason=reason.value
    )


class MessageSync(ApiView):
    """POST /channel/messagesync: a part of a channel's log, for its members."""

    def post(self, request: Request) -> Response:
        """Members read all that is kept; everybody else gets an empty page."""
        body = self.body(serializers.SyncBody)
        start, end = body["start_message_seq"], body["end_message_seq"]
        key, uid = body["key"], body["login_uid"]
        channel = _channel_of_member(key, uid)
        wanted = history.span(start, end, body["pull_mode"])
        messages, more = history.read(channel, wanted, body["limit"])
        return Response(
            {
                "start_message_seq": start,
                "end_message_seq": end,
                "more": int(more),
                "messages": [serializers.message_object(each, key, uid) for each in messages],
            }
        )


def _channel_of_member(key: ChannelKey | None, uid: str) -> int | None:
    """The channel's pk if `uid` is a member of it now."""
    if key is None:
        return None
    rows = Membership.objects.filter(is_channel(key, "channel__"), uid=uid)
    return rows.values_list("channel_id", flat=True).first()


class Route(OpenView):
    """GET /route: the address for sockets, which is this very host."""

    def get(self, request: Request) -> Response:
        """`ws_addr` is right for the scheme of the request, so clients that know only it do."""
        secure = f"wss://{request.get_host()}" if request.is_secure() else ""
        plain = f"ws://{request.get_host()}"
        return Response({"tcp_addr": "", "ws_addr": secure or plain, "wss_addr": secure})


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
