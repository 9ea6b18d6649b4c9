"""The admin of messages, devices, sessions and nodes: all of it the machine's own, to be read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import Truncator
from django.utils.timezone import get_current_timezone
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from messaging import registry
from messaging.models import Device, Message, Node, RefusedSend, Session, SystemAccount
from messaging.protocol.reasons import Reason
from subscriptions.admin_forms import clean_uid
from subscriptions.admin_parts import PageAdmin, ReadOnly, ago, at, with_icon

DEVICES = {0: _("app"), 1: _("web"), 2: _("desktop"), 99: _("system")}
"""The device flags that a client can connect with."""
REASONS = {reason.value: reason.wire_name for reason in Reason}
PREVIEW = 4_000
"""Characters of a payload that its page shows: some eighty lines."""


class NamedFilter(admin.AllValuesFieldListFilter):
    """The numbers that there are, by their names."""

    names: ClassVar[Mapping[int, Any]]

    def choices(self, changelist: Any) -> Iterator[Any]:
        """Numbers as words; "All" stays."""
        names = {str(number): name for number, name in self.names.items()}
        for choice in super().choices(changelist):
            shown = str(choice["display"])
            yield {**choice, "display": names.get(shown, shown)}


class DeviceFilter(NamedFilter):
    """Device flags."""

    names = DEVICES


class ReasonFilter(NamedFilter):
    """Reasons of refusals."""

    names = REASONS


@admin.register(Message)
class MessageAdmin(ReadOnly, PageAdmin):
    """What was sent. Its text is on its own page alone, never in the list."""

    list_display = ["stored_at", "channel", "seq", "sender", "version", "message_id",
                    "client_msg_no"]  # fmt: skip
    list_display_links = ["seq"]
    list_filter = ["sync_once", "red_dot"]
    list_select_related = ["channel"]
    search_fields = ["sender__startswith", "channel__channel_id__startswith", "message_id__exact",
                     "client_msg_no__exact"]  # fmt: skip
    search_help_text = _(
        "The beginning of a sender or channel id, TYPE:ID, a message id or client message no."
    )
    ordering = ["-id"]
    fields = ["channel", "seq", "version", "message_id", "client_msg_no", "sender", "origin",
              "stored_at", "unread", "command", "setting", "topic", "expire",
              "preview"]  # fmt: skip
    readonly_fields = ["stored_at", "unread", "command", "preview"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Message]:
        """Without payloads, which are read when they are shown."""
        return super().get_queryset(request).defer("payload")

    @admin.display(description=_("stored"), ordering="created_ms")
    def stored_at(self, message: Message) -> str:
        """When it was appended, to the millisecond."""
        moment = datetime.fromtimestamp(message.created_ms / 1000, get_current_timezone())
        return f"{moment.isoformat(' ', 'milliseconds')[:23]} {moment:%Z}"

    @admin.display(description=_("counts as unread"))
    def unread(self, message: Message) -> str:
        """In a word."""
        return _yes_or_no(message.red_dot)

    @admin.display(description=_("command"))
    def command(self, message: Message) -> str:
        """In a word."""
        return _yes_or_no(message.sync_once)

    @admin.display(description=_("payload"))
    def preview(self, message: Message) -> SafeString:
        """The payload as readable JSON; else its beginning as text, or as hexadecimal digits."""
        payload = bytes(message.payload)
        return format_html(
            '<pre style="white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; padding: 0">'
            "{}</pre>{}",
            _as_text(payload),
            gettext("%d bytes") % len(payload),
        )


def _yes_or_no(fact: bool) -> str:
    return gettext("yes") if fact else gettext("no")


def _device(flag: int) -> str:
    """A device flag's name; the number itself for one that no client has."""
    return str(DEVICES.get(flag, flag))


def _as_text(payload: bytes) -> str:
    """JSON with indents, other text as it is, anything else as hexadecimal digits."""
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return _cut(payload.hex(" "))
    try:
        text = json.dumps(json.loads(text), ensure_ascii=False, indent=2)
    except (ValueError, RecursionError):
        return _cut(text)
    return _cut(text.encode(errors="backslashreplace").decode())  # "\ud800" is JSON, not text


def _cut(text: str) -> str:
    return Truncator(text).chars(PREVIEW)


@admin.register(RefusedSend)
class RefusedSendAdmin(ReadOnly, PageAdmin):
    """Sends that were refused, the newest of them, each with the reason its sender was told."""

    channel_lookup = ""
    list_display = [at("at", _("when")), "sender", "place", "why", "client_msg_no", "unwritten"]
    list_display_links = ["sender"]
    list_filter = [("reason", ReasonFilter)]
    search_fields = ["sender__startswith", "channel_id__startswith", "client_msg_no__exact",
                     "session_id__exact"]  # fmt: skip
    search_help_text = _(
        "The beginning of a sender or channel id, TYPE:ID, a client message no. or a session's id."
    )
    ordering = ["-id"]
    fields = ["at", "sender", "place", "why", "client_msg_no", "session_id", "unwritten"]
    readonly_fields = ["place", "why"]

    @admin.display(description=_("channel"), ordering="channel_id")
    def place(self, refused: RefusedSend) -> str:
        """TYPE:ID, whether or not there is one."""
        return str(refused.channel)

    @admin.display(description=_("reason"), ordering="reason")
    def why(self, refused: RefusedSend) -> str:
        """The code and its name."""
        return f"{refused.reason} {REASONS.get(refused.reason, '')}".strip()


@admin.register(Device)
class DeviceAdmin(ReadOnly, PageAdmin):
    """Which kinds of device a uid may connect with. Tokens are set by the HTTP API."""

    channel_lookup = None
    list_display = ["uid", "device", "level", at("updated_at", _("updated"))]
    list_filter = [("flag", DeviceFilter), "level"]
    search_fields = ["uid__startswith"]
    ordering = ["-id"]
    fields = ["uid", "device", "level", "updated_at"]
    readonly_fields = ["device"]

    @admin.display(description=_("device flag"), ordering="flag")
    def device(self, device: Device) -> str:
        """In a word."""
        return _device(device.flag)

    def lookup_allowed(self, lookup: str, value: Any, request: Any = None) -> bool:
        """No filter by the token's hash: it would tell the hash bit by bit."""
        return not lookup.startswith("token_hash") and super().lookup_allowed(
            lookup, value, request
        )


class SystemAccountForm(forms.ModelForm):
    """One account."""

    def clean_uid(self) -> str:
        """The uid."""
        return clean_uid(self)


@admin.register(SystemAccount)
class SystemAccountAdmin(PageAdmin):
    """Who may send everywhere, and be sent to by everybody. An account is not edited: it is
    deleted, and another one is added."""

    form = SystemAccountForm
    channel_lookup = None
    list_display = ["uid"]
    search_fields = ["uid__startswith"]
    ordering = ["uid"]
    fields = ["uid"]

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody changes: another uid is another account."""
        return False


class LiveFilter(admin.SimpleListFilter):
    """Sessions that are live, or not."""

    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        """Live, closed, and lost with their node."""
        return [("live", _("live")), ("closed", _("closed")), ("lost", _("lost with its node"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The sessions in the chosen state."""
        if self.value() is None:
            return queryset
        if self.value() == "closed":
            return queryset.filter(closed_at__isnull=False)
        live = registry.live_sessions().values("pk")
        if self.value() == "live":
            return queryset.filter(pk__in=live)
        return queryset.filter(closed_at__isnull=True).exclude(pk__in=live)


@admin.register(Session)
class SessionAdmin(ReadOnly, PageAdmin):
    """Who is connected where, and who was."""

    channel_lookup = None
    list_display = [at("opened_at", _("opened")), "uid", "state", "node", "device",
                    "device_id", "address"]  # fmt: skip
    list_display_links = ["uid"]
    list_filter = [LiveFilter, ("device_flag", DeviceFilter)]
    list_select_related = ["node"]
    search_fields = ["uid__startswith", "id__exact", "device_id__exact", "address__startswith"]
    search_help_text = _("The beginning of a uid or address, or a session's or device's whole id.")
    date_hierarchy = "opened_at"
    ordering = ["-opened_at"]
    fields = ["id", "uid", "state", "node", "device", "device_id", "device_level", "address",
              "opened_at", "closed_at", "closed_because", "kick"]  # fmt: skip
    readonly_fields = ["state", "device"]

    @admin.display(description=_("device flag"), ordering="device_flag")
    def device(self, session: Session) -> str:
        """In a word."""
        return _device(session.device_flag)

    def read_page(self, page: Sequence[Any]) -> None:
        """Which rows are live: open, on a node with a valid lease."""
        rows = registry.live_sessions().filter(pk__in=[session.pk for session in page])
        live = set(rows.values_list("pk", flat=True))
        for session in page:
            session.is_live = session.pk in live

    @admin.display(description=_("state"), ordering="closed_at")
    def state(self, session: Any) -> SafeString | str:
        """Live, or how it ended."""
        if session.closed_at:
            names = {"ago": ago(session.closed_at), "why": session.closed_because or "–"}
            return gettext("closed %(ago)s: %(why)s") % names
        if not hasattr(session, "is_live"):
            self.read_page([session])
        if session.is_live:
            return with_icon("yes", _("live"))
        return with_icon("no", _("lost with its node"))


@admin.register(Node)
class NodeAdmin(ReadOnly, PageAdmin):
    """The server processes: which run, what they hold, when they last looked at all of it."""

    channel_lookup = None
    list_display = ["id", "host", "pid", "state", at("started_at", _("started")), "sessions",
                    "held", "groups", "checked", "probe"]  # fmt: skip
    list_display_links = ["id", "host"]
    search_fields = ["host__startswith", "pid__exact"]
    ordering = ["-id"]
    fields = ["id", "host", "pid", "state", "started_at", "lease_until", "stopped_at", "sessions",
              "held", "groups", "checked", "probe"]  # fmt: skip
    readonly_fields = ["state", "held", "checked", "probe"]

    def read_page(self, page: Sequence[Any]) -> None:
        """Which nodes hold a valid lease."""
        running = set(registry.live_nodes())
        for node in page:
            node.is_running = node.pk in running

    @admin.display(description=_("state"))
    def state(self, node: Any) -> SafeString | str:
        """Running, stopped, or gone without a word."""
        if node.stopped_at:
            return gettext("stopped %s") % ago(node.stopped_at)
        if not hasattr(node, "is_running"):
            self.read_page([node])
        if node.is_running:
            return with_icon("yes", _("running"))
        return with_icon("no", gettext("lease over since %s") % ago(node.lease_until))

    @admin.display(description=_("bindings"), ordering="bindings")
    def held(self, node: Node) -> SafeString | str:
        """Bindings held, and those expected where that is another number."""
        if node.bindings == node.expected:
            return str(node.bindings)
        numbers = {"held": node.bindings, "expected": node.expected}
        return with_icon("no", gettext("%(held)d of %(expected)d") % numbers)

    @admin.display(description=_("last complete check"), ordering="checked_at")
    def checked(self, node: Node) -> str:
        """Its age."""
        return ago(node.checked_at) if node.checked_at else gettext("never")

    @admin.display(description=_("probe"), ordering="probe_ms")
    def probe(self, node: Node) -> SafeString | str:
        """How long the way through the layer takes, or how often nothing came back."""
        if node.probe_missed:
            return with_icon("no", gettext("missed %d times") % node.probe_missed)
        return "" if node.probe_ms is None else gettext("%.1f ms") % node.probe_ms
