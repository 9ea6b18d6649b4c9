"""Commands for those who were away (http-api §1.35 and §1.36)."""

from __future__ import annotations

from rest_framework.request import Request
from rest_framework.response import Response

from messaging import commands
from messaging.encoding import message_object
from subscriptions.api.base import ApiView
from subscriptions.api.serializers import LARGEST, Body, UidField, WholeField

DEFAULT_LIMIT, LARGEST_LIMIT = 200, 1_000


class OfferBody(Body):
    """POST /message/sync. `message_seq` is ignored, as in WuKongIM 2."""

    uid = UidField()
    limit = WholeField(default=0)

    def validate_limit(self, limit: int) -> int:
        """0 is the default, more than the largest is the largest."""
        return min(limit or DEFAULT_LIMIT, LARGEST_LIMIT)


class AcknowledgeBody(Body):
    """POST /message/syncack. `last_message_seq` has to be there and says nothing else."""

    uid = UidField()
    last_message_seq = WholeField(low=1, high=LARGEST)


class CommandSync(ApiView):
    """POST /message/sync: commands of all channels of a uid that it has not acknowledged."""

    def post(self, request: Request) -> Response:
        """A bare array of message objects, the oldest first."""
        body = self.body(OfferBody)
        uid = body["uid"]
        offered = commands.offer(uid, body["limit"])
        return Response([message_object(message, key, uid) for key, message in offered])


class CommandAcknowledge(ApiView):
    """POST /message/syncack: what the last answer gave is taken."""

    def post(self, request: Request) -> Response:
        """Always 200: without anything offered, nothing is taken."""
        commands.acknowledge(self.body(AcknowledgeBody)["uid"])
        return Response({"status": 200})
