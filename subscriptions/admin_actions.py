"""The actions "Check group bindings" and "Repair group bindings": ask, wait, say what happened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from subscriptions import audits
from subscriptions.admin_parts import PageAdmin, ask, link, may_view
from subscriptions.audit import Kind
from subscriptions.audits import AuditOutcome
from subscriptions.bindings import ChannelKey
from subscriptions.conf import conf
from subscriptions.models import KIND_LABELS, Audit, Membership

Scopes = list[dict[str, str]]
MISSING = Kind.MISSING_GROUP_BINDING.value


class BindingActions(PageAdmin):
    """An admin with both actions, each behind its own permission.

    `scope_fields` lists, from narrow to wide, the fields that make a scope of a row.
    """

    actions = ["check_group_bindings", "repair_group_bindings"]
    scope_fields: ClassVar[Sequence[Sequence[str]]]

    def has_check_group_bindings_permission(self, request: HttpRequest) -> bool:
        """Whether this user may check."""
        return request.user.has_perm(f"{Membership._meta.app_label}.check_group_bindings")

    def has_repair_group_bindings_permission(self, request: HttpRequest) -> bool:
        """Whether this user may repair."""
        return request.user.has_perm(f"{Membership._meta.app_label}.repair_group_bindings")

    @admin.action(description=_("Check group bindings"), permissions=["check_group_bindings"])
    def check_group_bindings(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """Check the selected rows now and say what was found."""
        if self._any_left(request, queryset):
            self._audit(request, queryset, repair=False)

    @admin.action(description=_("Repair group bindings"), permissions=["repair_group_bindings"])
    def repair_group_bindings(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> HttpResponse | None:
        """Ask, then check and repair the selected rows and say what was found and mended."""
        if not self._any_left(request, queryset):
            return None
        if request.POST.get("confirm") != "yes":
            return self._ask(request, queryset)
        self._audit(request, queryset, repair=True)
        return None

    def _any_left(self, request: HttpRequest, queryset: QuerySet[Any]) -> bool:
        """Whether the selection still has rows. Without, its scope would mean everything."""
        if queryset.exists():
            return True
        text = _("None of what was selected is there any more: nothing was done.")
        self.message_user(request, text, messages.WARNING)
        return False

    def _scopes(self, request: HttpRequest, queryset: QuerySet[Any]) -> Scopes:
        """The audit's scopes; empty, which means everything, when all or too much is selected."""
        across = request.POST.get("select_across") == "1"
        if across and queryset.count() == self.model._default_manager.count():
            return []
        for fields in self.scope_fields:
            rows = queryset.order_by().values(*fields).distinct()[: conf().audit_scopes + 1]
            scopes = [_scope(row) for row in rows]
            if len(scopes) <= conf().audit_scopes:
                return scopes
        return []

    def _ask(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse:
        return ask(
            self, request, queryset, f"admin/{Membership._meta.app_label}/confirm_repair.html",
            title=_("Repair group bindings"), action="repair_group_bindings", button=_("Repair"),
            question=_question(self.opts, queryset.count()),
            coverage=_coverage(self._scopes(request, queryset)),
        )  # fmt: skip

    def _audit(self, request: HttpRequest, queryset: QuerySet[Any], repair: bool) -> None:
        scopes, actor = self._scopes(request, queryset), request.user.get_username()
        audit = audits.request_audit(scopes, repair=repair, actor=actor)
        result = audits.wait(audit, seconds=conf().audit_patience)
        (level, headline), *rest = report(result, repair)
        if may_view(request, Audit):
            page = f"{self.admin_site.name}:{Audit._meta.app_label}_audit_change"
            answers = link(reverse(page, args=[audit.pk]), _("See all answers"))
            headline = format_html("{} {}", headline, answers)
        self.message_user(request, headline, level)
        for level, text in rest:
            self.message_user(request, text, level)


def _scope(row: dict[str, Any]) -> dict[str, str]:
    scope = {"uid": row["uid"]} if "uid" in row else {}
    for prefix in ("", "channel__"):
        if f"{prefix}channel_id" in row and f"{prefix}channel_type" in row:
            key = ChannelKey(row[f"{prefix}channel_type"], row[f"{prefix}channel_id"])
            scope["channel"] = str(key)
    return scope


def _question(opts: Any, count: int) -> str:
    name = opts.verbose_name if count == 1 else opts.verbose_name_plural
    return gettext("Repair the group bindings of %(count)d %(name)s?") % {
        "count": count,
        "name": name,
    }


def _coverage(scopes: Scopes) -> str:
    """What is really looked at, where that is not just the selected memberships."""
    if not scopes:
        return gettext("This covers everything: all channels and sessions of all nodes.")
    number = len(scopes)
    if "uid" not in scopes[0]:
        return ngettext(
            "This covers all members of %d channel.", "This covers all members of %d channels.",
            number,
        ) % number  # fmt: skip
    if "channel" not in scopes[0]:
        return ngettext(
            "This covers all memberships of %d user.", "This covers all memberships of %d users.",
            number,
        ) % number  # fmt: skip
    return ""


def report(result: AuditOutcome, repair: bool) -> list[tuple[int, str]]:
    """What came of an audit, as (level, sentence), the plain one first."""
    said = [(_level(result), _headline(result, repair))]
    others = {kind: tally for kind, tally in result.by_kind.items() if kind != MISSING}
    if others:
        names = ", ".join(_tally(kind, tally) for kind, tally in sorted(others.items()))
        said.append((_level(result), gettext("Also found: %s.") % names))
    for node in result.silent_nodes:
        text = gettext("Node %d holds a lease but does not answer: its bindings are unchecked.")
        said.append((messages.WARNING, text % node))
    if result.status == "running":
        text = gettext("Not all have answered yet, but they are at it: look again in a moment.")
        said.append((messages.WARNING, text))
    said += [(messages.WARNING, gettext("Could not finish: %s") % e) for e in result.errors]
    return said


def _level(result: AuditOutcome) -> int:
    whole = result.status == "done" and result.nodes and not result.left
    return messages.SUCCESS if whole else messages.WARNING


def _headline(result: AuditOutcome, repair: bool) -> str:
    if not result.nodes and result.errors:
        return gettext("No node is running: live bindings are unchecked, and so is storage.")
    if not result.nodes:
        return gettext("No node is running: live bindings are unchecked; storage was checked.")
    tally = result.by_kind.get(MISSING, {"found": 0, "repaired": 0})
    found, repaired = tally["found"], tally["repaired"]
    nodes = result.nodes - len(result.silent_nodes)
    bindings = result.checked_bindings
    text = gettext("Checked %(bindings)s on %(nodes)s: %(found)s found without a group binding") % {
        "bindings": ngettext("%d binding", "%d bindings", bindings) % bindings,
        "nodes": ngettext("%d node", "%d nodes", nodes) % nodes,
        "found": found,
    }
    if result.missing_memberships > found:
        text += " " + gettext("(%d memberships)") % result.missing_memberships
    if repair:
        numbers = {"repaired": repaired, "left": found - repaired}
        text += gettext(", %(repaired)d repaired, %(left)d left") % numbers
    return f"{text}."


def _tally(kind: str, tally: dict[str, int]) -> str:
    numbers = {"kind": KIND_LABELS[Kind(kind)], **tally}
    return gettext("%(found)d × %(kind)s (%(repaired)d repaired)") % numbers
