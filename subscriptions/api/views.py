"""Memberships, findings, health, audits and repairs as resources below one prefix."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from rest_framework.exceptions import NotFound
from rest_framework.generics import ListAPIView
from rest_framework.pagination import Cursor, CursorPagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse

from subscriptions import audits, group_bindings
from subscriptions.api import health
from subscriptions.api.base import ACTOR, ApiView
from subscriptions.api.exceptions import BadRequest
from subscriptions.api.serializers import (
    AuditRequestSerializer,
    ExplanationQuery,
    FindingQuery,
    FindingSerializer,
    MembershipQuery,
    MembershipSerializer,
    audit_outcome,
)
from subscriptions.explain.questions import as_json, explain_delivery
from subscriptions.models import Audit, Finding, Membership
from subscriptions.selectors import is_channel


class Pages(CursorPagination):
    """Pages by primary key, so that a page costs the same however far down it is."""

    page_size = 100
    page_size_query_param = "limit"
    max_page_size = 1000
    ordering = "id"

    def decode_cursor(self, request: Request) -> Cursor | None:
        """Where the page begins. Raises BadRequest for what no list has given."""
        try:
            cursor: Cursor | None = super().decode_cursor(request)
            if cursor is not None and cursor.position is not None:
                int(cursor.position)
        except (NotFound, ValueError) as error:
            raise BadRequest("cursor: is none that a list has given.") from error
        return cursor


class NewestFirst(Pages):
    """The same, the newest row first."""

    ordering = "-id"


class MembershipList(ApiView, ListAPIView):
    """GET memberships?channel=TYPE:ID&uid=&group_binding=: who belongs where, and hears it?"""

    serializer_class = MembershipSerializer
    pagination_class = Pages

    def get_queryset(self) -> QuerySet[Membership]:
        """The memberships that the query string asks for."""
        wanted = self.query(MembershipQuery)
        rows = Membership.objects.select_related("channel")
        if "channel" in wanted:
            rows = rows.filter(is_channel(wanted["channel"], "channel__"))
        if "uid" in wanted:
            rows = rows.filter(uid=wanted["uid"])
        if "group_binding" in wanted:
            rows = group_bindings.filter_by_state(rows, wanted["group_binding"])
        return rows

    def get_serializer(self, *args: Any, **kwargs: Any) -> Any:
        """The page's serializer, with the states of all its rows read at once."""
        states = group_bindings.states(args[0])
        return self.serializer_class(*args, context={"states": states}, **kwargs)


class FindingList(ApiView, ListAPIView):
    """GET findings?open=1&kind=&channel=TYPE:ID&uid=: what was wrong, the newest first."""

    serializer_class = FindingSerializer
    pagination_class = NewestFirst

    def get_queryset(self) -> QuerySet[Finding]:
        """The findings that the query string asks for."""
        wanted = self.query(FindingQuery)
        rows = Finding.objects.select_related("channel")
        if "channel" in wanted:
            rows = rows.filter(is_channel(wanted["channel"], "channel__"))
        if "open" in wanted:
            rows = rows.filter(healed_at__isnull=wanted["open"] == "1")
        return rows.filter(**{name: wanted[name] for name in ("kind", "uid") if name in wanted})


class Explanations(ApiView):
    """GET explanations?uid=&channel=TYPE:ID&seq=: why did they hear, or not hear, that message?"""

    def get(self, request: Request) -> Response:
        """200 with a verdict, also when that is `unknown`."""
        question = self.query(ExplanationQuery)["question"]
        return Response(as_json(question, explain_delivery(question)))


class Health(ApiView):
    """GET health: the state of all group bindings in one word, with its numbers."""

    def get(self, request: Request) -> Response:
        """Always 200; the word is in `state`."""
        return Response(health.summary())


class AuditCollection(ApiView):
    """POST audits: ask the nodes to check. They answer later, at the address that is returned."""

    repair = False
    detail = "subscriptions-audit"

    def post(self, request: Request) -> Response:
        """202 with the audit's id and address."""
        wanted = self.body(AuditRequestSerializer)
        audit = audits.request_audit(wanted["scope"], wanted["kinds"], self.repair, ACTOR)
        url = reverse(self.detail, [audit.pk], request=request)
        return Response({"id": str(audit.pk), "url": url}, 202, headers={"Location": url})


class RepairCollection(AuditCollection):
    """POST repairs: ask the nodes to check and to mend what they find. Twice changes nothing."""

    repair = True
    detail = "subscriptions-repair"


class AuditDetail(ApiView):
    """GET audits/ID: the nodes' answers so far, added up."""

    repair = False

    def get(self, request: Request, pk: str) -> Response:
        """200 with `status` running, done or could_not_finish; 404 for an id of the other kind."""
        try:
            audit = Audit.objects.get(pk=UUID(pk), repair=self.repair)
        except (Audit.DoesNotExist, ValueError) as error:
            raise NotFound("There is no such audit.") from error
        return Response(audit_outcome(audit))


class RepairDetail(AuditDetail):
    """GET repairs/ID: the same for a repair."""

    repair = True
