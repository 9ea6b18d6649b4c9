"""The admin: who belongs to which channel, whether they are heard, what was found and mended.

Nothing here decides: memberships and flags are written by the services, so that the change log
names the staff user; bindings are looked at and mended by audits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.db import transaction
from django.db.models import Count, Field, Model, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import Truncator
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from subscriptions import (
    admin_explain,  # noqa: F401 - registers its page
    admin_health,  # noqa: F401 - the same
    group_bindings,
    services,
)
from subscriptions.admin_actions import BindingActions
from subscriptions.admin_forms import AccessRuleForm, ChannelForm, MembershipForm
from subscriptions.admin_parts import (
    PageAdmin,
    ReadOnly,
    ago,
    at,
    in_seconds,
    link,
    with_icon,
)
from subscriptions.audit import Kind
from subscriptions.audits import STORAGE
from subscriptions.bindings import ChannelType
from subscriptions.group_bindings import GroupBindingState, State
from subscriptions.models import (
    KIND_LABELS,
    AccessRule,
    Audit,
    AuditAnswer,
    Channel,
    Finding,
    Membership,
    MembershipChange,
)
from subscriptions.services import FLAGS

REASON = "in the admin"
"""Why a membership changed, in the change log, when staff did it here."""
READERS = ("read_seq", "hidden_seq")
"""What a reader keeps in a membership: the only columns that can be edited."""


def list_url(model: type[Model], **query: Any) -> str:
    """The address of a model's list, filtered."""
    meta = model._meta
    return reverse(
        f"admin:{meta.app_label}_{meta.model_name}_changelist", query=query
    )  # fmt: skip


# --- memberships -------------------------------------------------------------------------------


class GroupBindingFilter(admin.SimpleListFilter):
    """Memberships by the state of their group binding."""

    title = _("group binding")
    parameter_name = "group_binding"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        """The four states."""
        return list(State.choices)

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The memberships in the chosen state; of a state that does not exist, none."""
        if self.value() is None:
            return queryset
        if self.value() not in State.values:
            return queryset.none()
        return group_bindings.filter_by_state(queryset, str(self.value()))


@admin.register(Membership)
class MembershipAdmin(BindingActions):
    """Who belongs where, and is heard? Adding is joining, deleting is leaving."""

    form = MembershipForm
    list_display = ["uid", "channel", "group_binding", at("joined_at", _("joined")), "read_seq"]
    list_filter = [GroupBindingFilter]
    # Each state's number would be one more look at every membership, all in one statement.
    show_facets = admin.ShowFacets.NEVER
    list_select_related = ["channel"]
    search_fields = ["uid__startswith", "channel__channel_id__startswith"]
    search_help_text = _("The beginning of a uid or channel id, or TYPE:ID, for example 2:team.")
    ordering = ["-id"]
    autocomplete_fields = ["channel"]
    scope_fields = [
        ["channel__channel_type", "channel__channel_id", "uid"],
        ["channel__channel_type", "channel__channel_id"],
        ["uid"],
    ]

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """To join, a channel and a uid; afterwards what is known of the stay, too."""
        place = ["channel", "uid"]
        if obj is None:
            return place
        stay = ["joined_at", "joined_version", "joined_seq"]
        return [*place, "group_binding", *stay, "read_seq", "hidden_seq", "see_also"]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        """All that is not what a reader keeps."""
        fields = self.get_fields(request, obj)
        return [name for name in fields if name not in READERS] if obj else []

    def formfield_for_dbfield(self, db_field: Any, request: Any, **kwargs: Any) -> Any:
        """No reader stands before the first message."""
        if db_field.name in READERS:
            kwargs["min_value"] = 0
        return super().formfield_for_dbfield(db_field, request, **kwargs)

    def read_page(self, page: Sequence[Any]) -> None:
        """The state of every row's group binding."""
        states = group_bindings.states(page)
        for membership in page:
            membership.binding = states[membership.pk]

    @admin.display(description=_("group binding"))
    def group_binding(self, membership: Any) -> SafeString:
        """The state in words, with the age of the last check."""
        known = getattr(membership, "binding", None)
        return describe(known or group_bindings.states([membership])[membership.pk])

    @admin.display(description=_("see also"))
    def see_also(self, membership: Membership) -> SafeString:
        """The lists that tell more about this membership."""
        query = {"q": str(membership.channel), "uid": membership.uid}
        return format_html(
            "{} · {}",
            link(list_url(MembershipChange, **query), _("joins and leaves")),
            link(list_url(Finding, **query), _("findings")),
        )

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Join by the service; of an existing row write only the fields that were edited."""
        if change:
            obj.save(update_fields=form.changed_data)
            return
        actor = request.user.get_username()
        services.join(obj.channel.key, [obj.uid], actor=actor, reason=REASON)
        obj.pk = Membership.objects.values_list("pk").get(channel=obj.channel, uid=obj.uid)[0]
        obj.refresh_from_db()

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        """Leave by the service."""
        self.delete_queryset(request, Membership.objects.filter(pk=obj.pk))

    @transaction.atomic
    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """Leave by the service, channel by channel, all or none."""
        rows = queryset.select_related("channel").order_by("channel_id", "pk")
        for channel, leaving in groupby(rows, key=lambda membership: membership.channel):
            uids = [membership.uid for membership in leaving]
            actor = request.user.get_username()
            services.leave(channel.key, uids, actor=actor, reason=REASON)


def describe(binding: GroupBindingState) -> SafeString:
    """A group binding's state in words, behind an icon."""
    if binding.state == State.OFFLINE:
        return format_html('<span class="quiet">{}</span>', State.OFFLINE.label)
    if binding.state == State.MISSING:
        text: Any = format_html(
            '<strong style="color: var(--error-fg)">{}</strong>', State.MISSING.label
        )
        seen = gettext("seen %s") % ago(binding.missed_at) if binding.missed_at else ""
        return with_icon("no", format_html('{} <span class="quiet">· {}</span>', text, seen))
    if binding.checked_at is None:
        age = gettext("no whole check since it was opened")
    else:
        age = gettext("checked %s") % ago(binding.checked_at)
    if binding.state == State.UNCHECKED:
        text, icon = State.UNCHECKED.label, "alert"
    else:
        text = ngettext("bound on %d session", "bound on %d sessions", binding.sessions)
        text, icon = text % binding.sessions, "yes"
    return with_icon(icon, format_html('{} <span class="quiet">· {}</span>', text, age))


# --- channels ----------------------------------------------------------------------------------


@admin.register(Channel)
class ChannelAdmin(BindingActions):
    """Channels and their flags. What a channel has said and who was there is kept: no deleting."""

    form = ChannelForm
    channel_lookup = ""
    list_display = ["__str__", "channel_type", "members", "findings", "flags", "last_seq",
                    "membership_version", at("created_at", _("created"))]  # fmt: skip
    list_filter = ["channel_type", "ban", "disband", "send_ban"]
    search_fields = ["channel_id__startswith"]
    search_help_text = _("The beginning of a channel id, or TYPE:ID, for example 2:team.")
    ordering = ["-id"]
    scope_fields = [["channel_type", "channel_id"]]
    about_deleting = _(
        "A channel is not deleted here: its messages and its change log are evidence. Disband it"
        " to end it; its members can be removed in the list of memberships."
    )

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """A name and flags; of an existing channel, what is known of it, too."""
        flags = (_("Flags"), {"fields": FLAGS, "description": self.about_deleting if obj else ""})
        name = ["channel_id", "channel_type"]
        if obj is None:
            return [(None, {"fields": name}), flags]
        known = [*name, "last_seq", "membership_version", "created_at", "members", "findings"]
        return [(None, {"fields": known}), flags]

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        """Most channels are groups."""
        return {
            "channel_type": ChannelType.GROUP.value,
            **super().get_changeform_initial_data(request),
        }

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        """All that is not a flag."""
        if obj is None:
            return []
        return ["channel_id", "channel_type", "last_seq", "membership_version", "created_at",
                "members", "findings"]  # fmt: skip

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody deletes (`about_deleting` tells why)."""
        return False

    def read_page(self, page: Sequence[Any]) -> None:
        """Members and open findings of every row's channel."""
        members = _count(Membership.objects.all(), page)
        findings = _count(Finding.objects.filter(healed_at__isnull=True), page)
        for channel in page:
            channel.numbers = members.get(channel.pk, 0), findings.get(channel.pk, 0)

    @admin.display(description=_("members"))
    def members(self, channel: Any) -> SafeString:
        """Their number, with the way to them."""
        number, _findings = self._numbers(channel)
        return link(list_url(Membership, channel__id__exact=channel.pk), number)

    @admin.display(description=_("open findings"))
    def findings(self, channel: Any) -> SafeString | str:
        """Their number, with the way to them."""
        _members, number = self._numbers(channel)
        if not number:
            return self.get_empty_value_display()
        query = {"channel__id__exact": channel.pk, OpenFilter.parameter_name: "open"}
        return with_icon("no", link(list_url(Finding, **query), number))

    @admin.display(description=_("flags"))
    def flags(self, channel: Channel) -> str:
        """The names of the flags that are set."""
        fields = [Channel._meta.get_field(name) for name in FLAGS if getattr(channel, name)]
        return ", ".join(str(field.verbose_name) for field in fields if isinstance(field, Field))

    def _numbers(self, channel: Any) -> tuple[int, int]:
        if not hasattr(channel, "numbers"):
            self.read_page([channel])
        numbers: tuple[int, int] = channel.numbers
        return numbers

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Write the flags by the service, which judges sends anew and announces it."""
        flags = {name: getattr(obj, name) for name in FLAGS}
        actor = request.user.get_username()
        obj.pk = services.save_channel(obj.key, flags, actor=actor).pk
        obj.refresh_from_db()


def _count(rows: QuerySet[Any], page: Sequence[Any]) -> dict[int, int]:
    counts = rows.filter(channel__in=page).order_by().values_list("channel").annotate(Count("pk"))
    return dict(counts)


# --- the change log and access rules -----------------------------------------------------------


@admin.register(MembershipChange)
class MembershipChangeAdmin(ReadOnly, PageAdmin):
    """Every join and leave there ever was, whoever did it."""

    list_display = [at("at", _("when")), "change", "uid", "channel", "version", "seq", "actor",
                    "reason"]  # fmt: skip
    list_display_links = ["change"]
    list_filter = ["joined", "at"]  # a date hierarchy reads the whole log to find its days
    list_select_related = ["channel"]
    search_fields = ["uid__startswith", "channel__channel_id__startswith", "actor__startswith"]
    search_help_text = _("The beginning of a uid, channel id or actor, or TYPE:ID.")
    ordering = ["-id"]
    fields = ["channel", "uid", "joined", "version", "seq", "at", "actor", "reason"]

    @admin.display(description=_("change"), ordering="joined")
    def change(self, change: MembershipChange) -> str:
        """The verb."""
        return gettext("joined") if change.joined else gettext("left")


@admin.register(AccessRule)
class AccessRuleAdmin(PageAdmin):
    """Deny and allow lists. A rule is not edited: it is deleted, and another one is added."""

    form = AccessRuleForm
    channel_lookup = ""
    list_display = ["__str__", "uid", "allow", "channel_type", "channel_id"]
    list_filter = ["allow", "channel_type"]
    search_fields = ["uid__startswith", "channel_id__startswith"]
    search_help_text = _("The beginning of a uid or channel id, or TYPE:ID, for example 2:team.")
    ordering = ["-id"]
    fieldsets = [
        (None, {
            "fields": ["channel_type", "channel_id", "uid", "allow"],
            "description": _(
                "Of a person (type 1), the list is the receiver's: its channel id is that uid."
            ),
        })
    ]  # fmt: skip

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody changes: the database refuses it, since sends are judged under a version."""
        return False


# --- findings and audits -----------------------------------------------------------------------


class OpenFilter(admin.SimpleListFilter):
    """Findings that are still open, or not."""

    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        """Open and healed."""
        return [("open", _("open")), ("healed", _("healed"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The findings in the chosen state."""
        if self.value() is None:
            return queryset
        return queryset.filter(healed_at__isnull=self.value() == "open")


@admin.register(Finding)
class FindingAdmin(ReadOnly, PageAdmin):
    """What was not as it should be, and how it ended."""

    list_display = [at("first_seen", _("first seen")), "kind", "uid", "channel", "seqs", "state"]
    list_display_links = ["kind"]
    list_filter = [OpenFilter, "kind"]
    list_select_related = ["channel"]
    search_fields = ["uid__startswith", "channel__channel_id__startswith", "session_id__exact"]
    search_help_text = _("The beginning of a uid or channel id, a session's id, or TYPE:ID.")
    date_hierarchy = "first_seen"
    ordering = ["-id"]
    fields = ["kind", "state", "reason", "channel", "uid", "session_id", "node_id", "memberships",
              "first_seen", "last_seen", "seen", "from_seq", "to_seq", "detail", "healed_at",
              "healed_by"]  # fmt: skip
    readonly_fields = ["state"]

    @admin.display(description=_("state"), ordering="healed_at")
    def state(self, finding: Finding) -> SafeString:
        """Open, or how it was healed."""
        if finding.healed_at is None:
            return with_icon("no", gettext("open, last seen %s") % ago(finding.last_seen))
        text = gettext("healed by {by} {ago}")
        how = format_html(text, by=_healer(finding.healed_by), ago=ago(finding.healed_at))
        return with_icon("yes", how)

    @admin.display(description=_("seqs"))
    def seqs(self, finding: Finding) -> str:
        """What was not heard meanwhile, as far as it is known."""
        if finding.from_seq is None:
            return ""
        return f"{finding.from_seq}–{finding.to_seq}"


def _healer(healed_by: str) -> SafeString | str:
    """What healed a finding; an audit as a link to its page, instead of its id."""
    named = re.search(r"audit ([0-9a-f-]{36})", healed_by)
    if named is None:
        return healed_by
    meta = Audit._meta
    url = reverse(f"admin:{meta.app_label}_{meta.model_name}_change", args=[named[1]])
    before, after = healed_by[: named.start()], healed_by[named.end() :]
    return format_html("{}{}{}", before, link(url, gettext("an audit")), after)


class AuditAnswerInline(ReadOnly, admin.TabularInline):
    """What storage and each node answered."""

    model = AuditAnswer
    fields = ["who", "checked", "found", "repaired", "kinds", "error", "finished_at", "took"]
    readonly_fields = ["who", "checked", "found", "repaired", "kinds", "took"]
    ordering = ["node_id"]
    extra = 0

    @admin.display(description=_("who"))
    def who(self, answer: AuditAnswer) -> str:
        """Storage, or the node."""
        return gettext("node %d") % answer.node_id if answer.node_id else gettext("storage")

    @admin.display(description=_("bindings checked"))
    def checked(self, answer: AuditAnswer) -> int:
        """How many bindings were looked at."""
        return int(answer.counts.get("checked_bindings", 0))

    @admin.display(description=_("found"))
    def found(self, answer: AuditAnswer) -> int:
        """How many disagreements there were."""
        return int(answer.counts.get("found", 0))

    @admin.display(description=_("repaired"))
    def repaired(self, answer: AuditAnswer) -> int:
        """How many are gone."""
        return int(answer.counts.get("repaired", 0))

    @admin.display(description=_("took"))
    def took(self, answer: AuditAnswer) -> str:
        """Seconds from the request to the answer."""
        return in_seconds(answer.seconds)

    @admin.display(description=_("kinds"))
    def kinds(self, answer: AuditAnswer) -> str:
        """What was found, by kind."""
        tallies = sorted(answer.counts.get("by_kind", {}).items())
        return ", ".join(f"{KIND_LABELS[Kind(kind)]}: {tally['found']}" for kind, tally in tallies)


@admin.register(Audit)
class AuditAdmin(ReadOnly, PageAdmin):
    """Checks and repairs that somebody asked for, with the answers."""

    channel_lookup = None
    list_display = [at("requested_at", _("asked")), "what", "where", "actor", "state", "took",
                    "found", "repaired"]  # fmt: skip
    list_display_links = ["what"]
    list_filter = ["repair", "actor"]
    search_fields = ["actor__startswith"]
    search_help_text = _("The beginning of who asked, or the id that a healed finding names.")
    date_hierarchy = "requested_at"
    ordering = ["-requested_at"]
    fields = ["what", "where", "only", "actor", "requested_at", "asked", "state", "took", "found",
              "repaired"]  # fmt: skip
    readonly_fields = ["what", "where", "only", "asked", "state", "took", "found", "repaired"]
    inlines = [AuditAnswerInline]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Audit]:
        """With the answers, which the list adds up."""
        return super().get_queryset(request).prefetch_related("answers")

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """The audit of that id, or what the search fields find."""
        try:
            return queryset.filter(pk=UUID(search_term.strip())), False
        except ValueError:
            return super().get_search_results(request, queryset, search_term)

    @admin.display(description=_("what"), ordering="repair")
    def what(self, audit: Audit) -> str:
        """Check or repair."""
        return gettext("repair") if audit.repair else gettext("check")

    @admin.display(description=_("where"))
    def where(self, audit: Audit) -> str:
        """The scopes in short."""
        places = [" ".join(scope[name] for name in ("uid", "channel") if name in scope)
                  for scope in audit.scopes]  # fmt: skip
        return Truncator(", ".join(places) or gettext("everything")).chars(80)

    @admin.display(description=_("kinds"))
    def only(self, audit: Audit) -> str:
        """The kinds that were asked for."""
        return ", ".join(str(KIND_LABELS[Kind(kind)]) for kind in audit.kinds) or gettext("all")

    @admin.display(description=_("nodes asked"))
    def asked(self, audit: Audit) -> str:
        """Their ids."""
        return ", ".join(map(str, audit.nodes)) or gettext("none was running")

    @admin.display(description=_("took"), ordering="finished_at")
    def took(self, audit: Audit) -> str:
        """Seconds until the last answer."""
        return in_seconds(audit.seconds)

    @admin.display(description=_("state"), ordering="finished_at")
    def state(self, audit: Audit) -> SafeString:
        """Whether all have answered, and who has not."""
        answers = [answer for answer in audit.answers.all() if answer.finished_at]
        answered = {answer.node_id for answer in answers}
        silent = [str(node) for node in audit.nodes if node not in answered]
        if silent:
            text = ngettext("node %s has not answered", "nodes %s have not answered", len(silent))
            return with_icon("alert", text % ", ".join(silent))
        if STORAGE not in answered or any(answer.error for answer in answers):
            return with_icon("alert", gettext("could not finish"))
        if not audit.nodes:
            return with_icon("alert", gettext("no node was running: storage only"))
        return with_icon("yes", gettext("finished"))

    @admin.display(description=_("found"))
    def found(self, audit: Audit) -> int:
        """How many disagreements there were."""
        return sum(answer.counts.get("found", 0) for answer in audit.answers.all())

    @admin.display(description=_("repaired"))
    def repaired(self, audit: Audit) -> int:
        """How many are gone."""
        return sum(answer.counts.get("repaired", 0) for answer in audit.answers.all())
