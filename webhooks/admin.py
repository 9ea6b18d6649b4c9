"""The admin of webhook events: what waits, what was delivered, what was given up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.contrib import admin, messages
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import Truncator
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from subscriptions.admin_parts import PageAdmin, ReadOnly, ask, at, with_icon
from webhooks import outbox
from webhooks.conf import conf, iter_endpoints
from webhooks.metrics import dead_letters, oldest_seconds
from webhooks.models import WAITING, OutboxEvent

PREVIEW = 4_000
"""Characters of a body that its page shows."""

RECORDED = at("created_at", _("recorded"))


class StateFilter(admin.SimpleListFilter):
    """What waits, was delivered, or given up."""

    title = _("state")
    parameter_name = "state"
    states = {
        "waiting": WAITING,
        "dead": Q(dead_at__isnull=False),
        "delivered": Q(delivered_at__isnull=False),
    }

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        """The three of them."""
        return [
            ("waiting", _("waiting")),
            ("dead", _("dead letters")),
            ("delivered", _("delivered")),
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The events in the chosen state."""
        chosen = self.states.get(self.value() or "")
        return queryset if chosen is None else queryset.filter(chosen)


class EndpointFilter(admin.SimpleListFilter):
    """The endpoints that are configured."""

    title = _("endpoint")
    parameter_name = "endpoint"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Sequence[tuple[str, str]]:
        """By their names."""
        return list(iter_endpoints())

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The events of the one that is chosen."""
        return queryset.filter(endpoint=self.value()) if self.value() else queryset


@admin.register(OutboxEvent)
class OutboxEventAdmin(ReadOnly, PageAdmin):
    """Read only, but for sending again what was delivered or given up."""

    list_display = ["id", RECORDED, "event", "where", "state", "attempts", "error"]
    list_display_links = ["id", "event"]
    list_filter = [StateFilter, EndpointFilter, "event"]
    channel_lookup = None
    show_facets = admin.ShowFacets.NEVER
    search_fields = ["id__exact"]
    search_help_text = _("The number of an event.")
    ordering = ["-id"]
    actions = ["send_again"]
    fields = ["id", "event", "where", "state", "created_at", "attempts", "error", "preview"]
    readonly_fields = [
        "id",
        "event",
        "where",
        "state",
        "created_at",
        "attempts",
        "error",
        "preview",
    ]

    def has_send_again_permission(self, request: HttpRequest) -> bool:
        """Whether this user may send again."""
        return request.user.has_perm("wukongim_webhooks.send_again")

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """The list, below how the queue stands."""
        return super().changelist_view(request, {"standing": _standing(), **(extra_context or {})})

    @admin.display(description=_("endpoint"), ordering="endpoint")
    def where(self, row: OutboxEvent) -> str:
        """Its name, without what may be secret."""
        return dict(iter_endpoints()).get(row.endpoint) or gettext("no longer configured")

    @admin.display(description=_("state"))
    def state(self, row: OutboxEvent) -> SafeString:
        """In a word, with the time of it."""
        if row.delivered_at:
            return with_icon("yes", gettext("delivered %s") % _time(row.delivered_at))
        if row.dead_at:
            return with_icon("no", gettext("given up %s") % _time(row.dead_at))
        return with_icon("alert" if row.attempts else "unknown", gettext("waiting"))

    @admin.display(description=_("body"))
    def preview(self, row: OutboxEvent) -> SafeString:
        """As readable JSON."""
        text = json.dumps(json.loads(row.body), ensure_ascii=False, indent=2)
        return format_html(
            '<pre style="white-space: pre-wrap; overflow-wrap: anywhere; margin: 0">{}</pre>',
            Truncator(text.encode(errors="backslashreplace").decode()).chars(PREVIEW),
        )

    @admin.action(description=_("Send again"), permissions=["send_again"])
    def send_again(
        self, request: HttpRequest, queryset: QuerySet[OutboxEvent]
    ) -> HttpResponse | None:
        """Ask, then let the selected events wait again."""
        ended = queryset.exclude(WAITING)
        if request.POST.get("confirm") != "yes" and ended.exists():
            return self._ask(request, ended)
        count = outbox.send_again(queryset)
        text = ngettext("%d event waits again.", "%d events wait again.", count) % count
        self.message_user(request, text, messages.SUCCESS if count else messages.WARNING)
        return None

    def _ask(self, request: HttpRequest, ended: QuerySet[OutboxEvent]) -> HttpResponse:
        count = ended.count()
        return ask(
            self, request, ended, "admin/wukongim_webhooks/outboxevent/confirm_send_again.html",
            title=_("Send again"), action="send_again", button=_("Send again"),
            question=ngettext("Send %d event again?", "Send %d events again?", count) % count,
        )  # fmt: skip


def _standing() -> str:
    """How the queue stands, in a sentence."""
    if not conf().endpoints:
        return gettext(
            "No endpoint is configured, so nothing is recorded: set WUKONGIM_WEBHOOKS to be told "
            "of messages, sessions and findings."
        )
    oldest, dead = oldest_seconds(), dead_letters()
    parts = [
        gettext("The oldest event has waited for %d s.") % oldest if oldest
        else gettext("Nothing waits."),
        ngettext("There is %d dead letter.", "There are %d dead letters.", dead) % dead if dead
        else gettext("There are no dead letters."),
    ]  # fmt: skip
    return " ".join(parts)


def _time(moment: datetime) -> str:
    return f"{timezone.localtime(moment):%Y-%m-%d %H:%M:%S}"
