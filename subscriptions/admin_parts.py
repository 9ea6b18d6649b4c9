"""What the admin pages of both apps have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, cast

from django.apps.registry import Apps
from django.contrib import admin
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Page, Paginator
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.templatetags.static import static
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timesince import timesince
from django.utils.translation import gettext

from subscriptions.bindings import ChannelKey
from subscriptions.errors import InvalidChannel
from subscriptions.models import Channel
from subscriptions.selectors import is_channel
from subscriptions.services import canonical

ROWS_SHOWN = 20
"""Rows that a page names before an action; the number says how many there are."""

SECONDS_SHOWN = 120
"""Ages below this are told in seconds, above it in minutes and more, as Django tells them."""


def page_model(name: str, title: Any) -> type[Model]:
    """A model without a table, for a page that the admin is to list among those of models.

    It is in an app registry of its own: neither migrations nor content types know it.
    """
    meta = {
        "apps": Apps(),
        "app_label": Channel._meta.app_label,
        "managed": False,
        "verbose_name": title,
        "verbose_name_plural": title,
    }
    return type(name, (Model,), {"__module__": __name__, "Meta": type("Meta", (), meta)})


class ReadOnly:
    """Pages of what the machine owns: looked at, never written."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody adds."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody changes."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody deletes."""
        return False


class KeyPaginator(Paginator):
    """Pages that find their rows by key. To come to the last of many, a database then walks along
    an index only, and not over rows and all that is joined to them.

    The keys are asked for by themselves: within one statement PostgreSQL may look for them again
    for each row, as it does where its statistics say that a table is all but empty.
    """

    object_list: Any

    def page(self, number: int | str) -> Page[Any]:
        """The page of that number: its keys are read here, its rows when they are looked at."""
        page = super().page(number)
        keys = cast("QuerySet[Any]", page.object_list).values_list("pk", flat=True)
        page.object_list = self.object_list.filter(pk__in=list(keys))
        return page


class PageList(ChangeList):
    """A change list that lets its admin read what it needs for all rows of the page at once."""

    model_admin: PageAdmin

    def get_results(self, request: HttpRequest) -> None:
        """The rows of the page, read and then completed by `read_page`."""
        super().get_results(request)
        self.result_list: Any = list(self.result_list)
        self.model_admin.read_page(self.result_list)


class PageAdmin(admin.ModelAdmin):
    """An admin whose lists cost the same number of queries for any number of rows.

    A search for `TYPE:ID` finds what belongs to that very channel, whose fields are behind
    `channel_lookup`; None where there is no channel.
    """

    list_per_page = 50
    paginator = KeyPaginator
    show_full_result_count = False
    channel_lookup: str | None = "channel__"

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """The list that calls `read_page`."""
        return PageList

    def read_page(self, page: Sequence[Any]) -> None:
        """Put onto the rows of a page what their columns show besides their fields."""

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Rows of the channel that is named, or what the search fields find."""
        key = find_key(search_term)
        if key is None or self.channel_lookup is None:
            return super().get_search_results(request, queryset, search_term)
        return queryset.filter(is_channel(key, self.channel_lookup)), False


def find_key(text: str) -> ChannelKey | None:
    """The channel that a search names, with its id as it is stored; None when it names none."""
    try:
        return canonical(ChannelKey.parse(text.strip()))
    except (ValueError, InvalidChannel):
        return None


def ago(moment: datetime) -> str:
    """How long ago that was, in words."""
    age = max(timezone.now() - moment, timedelta())
    if age.total_seconds() < SECONDS_SHOWN:
        return gettext("%d s ago") % age.total_seconds()
    return gettext("%s ago") % timesince(moment)


def in_seconds(seconds: float | None) -> str:
    """A duration; nothing for one that has not ended."""
    return "" if seconds is None else gettext("%.1f s") % seconds


def at(field: str, label: Any) -> Callable[[Any], SafeString | str]:
    """A list's column for a time, to the second and the same in every language."""

    @admin.display(description=label, ordering=field)
    def column(row: Any) -> SafeString | str:
        moment: datetime | None = getattr(row, field)
        return on_one_line(f"{timezone.localtime(moment):%Y-%m-%d %H:%M:%S}") if moment else ""

    return column


def on_one_line(text: Any) -> SafeString:
    """A text that is not broken into lines."""
    return format_html('<span style="white-space: nowrap">{}</span>', text)


def with_icon(name: str, text: Any) -> SafeString:
    """A text behind one of the admin's own icons (yes, no or alert), on one line."""
    image = static(f"admin/img/icon-{name}.svg")
    return on_one_line(format_html('<img src="{}" alt=""> {}', image, text))


def link(url: str, text: Any) -> SafeString:
    """A link."""
    return format_html('<a href="{}">{}</a>', url, text)


def ask(
    model_admin: admin.ModelAdmin, request: HttpRequest, rows: QuerySet[Any], template: str,
    **context: Any,
) -> TemplateResponse:  # fmt: skip
    """The page (of `confirm.html`) that asks before an action on these of the selected rows.
    `context`: title, question, action, button, and what the template itself wants."""
    across = request.POST.get("select_across") == "1"
    common = {
        **model_admin.admin_site.each_context(request),
        "opts": model_admin.opts,
        "rows": rows[:ROWS_SHOWN],
        "more": max(0, rows.count() - ROWS_SHOWN),
        "checkbox": ACTION_CHECKBOX_NAME,
        "selected": request.POST.getlist(ACTION_CHECKBOX_NAME)[: 1 if across else None],
        "across": int(across),
    }
    return TemplateResponse(request, template, common | context)


def may_view(request: HttpRequest, model: type[Model]) -> bool:
    """Whether this user's admin has pages of `model`."""
    label, name = model._meta.app_label, model._meta.model_name
    return request.user.has_perm(f"{label}.view_{name}") or request.user.has_perm(
        f"{label}.change_{name}"
    )
