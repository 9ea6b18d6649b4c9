"""The page "Subscription health": is anybody deaf? In one line, and then with its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import Case, Count, IntegerField, Value, When
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils import timezone
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from subscriptions.admin_parts import ReadOnly, ago, may_view, page_model
from subscriptions.api import health
from subscriptions.audit import Kind
from subscriptions.clock import ago as seconds_ago
from subscriptions.conf import conf
from subscriptions.models import KIND_LABELS, Finding

MINUTES = 5
"""Minutes of one bar of the last hour."""
HOUR_BARS, DAY_BARS = 60 // MINUTES, 24
HEIGHT, BAR, GAP = 64, 18, 4
"""Of the plots, in their own units."""
ICONS = {"healthy": "yes", "unhealthy": "no", "unchecked": "alert"}


@admin.register(page_model("Health", _("subscription health")))
class HealthAdmin(ReadOnly, admin.ModelAdmin):
    """The page and the part of it that refreshes itself, for whoever may see findings."""

    def get_urls(self) -> list[Any]:
        """These two and no others."""
        name = f"{self.opts.app_label}_{self.opts.model_name}"
        view = self.admin_site.admin_view
        return [
            path("", view(self.page), name=f"{name}_changelist"),
            path("now/", view(self.now), name=f"{name}_now"),
        ]

    def has_module_permission(self, request: HttpRequest) -> bool:
        """As for the page."""
        return self.has_view_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whether this user may see findings."""
        return may_view(request, Finding)

    def page(self, request: HttpRequest) -> HttpResponse:
        """The whole page."""
        around = self.admin_site.each_context(request)
        name = f"{self.admin_site.name}:{self.opts.app_label}_{self.opts.model_name}_now"
        more = {"title": _("Subscription health"), "opts": self.opts, "now_url": reverse(name)}
        return self._answer(request, "health.html", {**around, **more})

    def now(self, request: HttpRequest) -> HttpResponse:
        """The part that changes."""
        return self._answer(request, "health_now.html", {})

    def _answer(self, request: HttpRequest, template: str, more: dict[str, Any]) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        template = f"admin/{self.opts.app_label}/{template}"
        return TemplateResponse(request, template, {**more, **_now()})


def _now() -> dict[str, Any]:
    """Everything that the part shows. Four statements, whatever there is."""
    summary = health.summary()
    hour, day = _heals_over_time()
    return {
        **summary,
        "icon": ICONS[summary["state"]],
        "headline": _headline(summary),
        "explanation": _explanation(summary),
        "nodes": [_node(node) for node in summary["nodes"]],
        "kinds": _kinds(summary),
        "plots": [
            _plot(gettext("Heals of the last hour, per 5 minutes"), gettext("1 hour ago"), hour),
            _plot(gettext("Heals of the last day, per hour"), gettext("1 day ago"), day),
        ],
        "taken_at": timezone.now(),
    }


def _headline(summary: dict[str, Any]) -> str:
    if summary["state"] == "healthy":
        return gettext("Healthy: nobody is known to be deaf.")
    if summary["state"] == "unhealthy":
        return gettext("Unhealthy: somebody may hear nothing.")
    return gettext("Unchecked: whether anybody is deaf is not known.")


def _explanation(summary: dict[str, Any]) -> str:
    """Why that is the state, in one sentence."""
    nodes = summary["nodes"]
    if summary["state"] == "unchecked" and not nodes:
        return gettext("No node is running, so nobody looks.")
    if summary["state"] == "unchecked":
        late = [str(node["node"]) for node in nodes if not _is_fresh(node)]
        text = ngettext("Node %s has finished no check lately.",
                        "Nodes %s have finished no check lately.", len(late))  # fmt: skip
        return text % ", ".join(late)
    if summary["state"] == "healthy":
        held = sum(node["bindings_held"] for node in nodes)
        text = ngettext("%d binding is held as expected, and no finding is open.",
                        "%d bindings are held as expected, and no finding is open.",
                        held)  # fmt: skip
        return text % held
    number = sum(summary["open_findings"].values())
    if number:
        return ngettext("%d finding is open.", "%d findings are open.", number) % number
    short = [str(node["node"]) for node in nodes if _is_short(node)]
    text = ngettext("Node %s holds fewer bindings than it expects.",
                    "Nodes %s hold fewer bindings than they expect.", len(short))  # fmt: skip
    return text % ", ".join(short)


def _is_fresh(node: dict[str, Any]) -> bool:
    age = node["last_check_age_seconds"]
    return age is not None and age <= conf().check_fresh_seconds


def _is_short(node: dict[str, Any]) -> bool:
    return bool(node["bindings_held"] < node["bindings_expected"])


def _node(node: dict[str, Any]) -> dict[str, Any]:
    """What a node's row shows, with the icon of each cell that has one."""
    age = node["last_check_age_seconds"]
    return {
        **node,
        "is_short": _is_short(node),
        "is_fresh": _is_fresh(node),
        "checked": gettext("never") if age is None else _age(age),
        "probe": "" if node["probe_ms"] is None else gettext("%.1f ms") % node["probe_ms"],
    }


def _kinds(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The open findings by kind, each with the list of them."""
    meta = Finding._meta
    listed = f"admin:{meta.app_label}_{meta.model_name}_changelist"
    return [
        {
            "label": KIND_LABELS[Kind(kind)],
            "count": count,
            "age": _age(summary["oldest_open_seconds"][kind]),
            "url": reverse(listed, query={"state": "open", "kind__exact": kind}),
        }
        for kind, count in summary["open_findings"].items()
    ]


def _age(seconds: float) -> str:
    return ago(timezone.now() - timedelta(seconds=seconds))


# --- plots ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar, in the plot's units."""

    x: int
    y: int
    height: int


@dataclass(frozen=True, slots=True)
class Plot:
    """Numbers over time as bars, the oldest first, and the same in words."""

    title: str
    since: str
    words: str
    most: int
    bars: list[Bar]

    bar_width: ClassVar[int] = BAR

    @property
    def view_box(self) -> str:
        """With a line below the bars."""
        return f"0 0 {len(self.bars) * (BAR + GAP) - GAP} {HEIGHT + 1}"


def _plot(title: str, since: str, numbers: Sequence[int]) -> Plot:
    most = max(numbers)
    heights = [_height(number, most) for number in numbers]
    bars = [Bar(i * (BAR + GAP), HEIGHT - height, height) for i, height in enumerate(heights)]
    words = gettext("%(title)s, the oldest first: %(numbers)s") % {
        "title": title,
        "numbers": ", ".join(map(str, numbers)),
    }
    return Plot(title, since, words, most, bars)


def _height(number: int, most: int) -> int:
    """In proportion, but seen however small it is."""
    return max(3, round(HEIGHT * number / most)) if number else 0


def _heals_over_time() -> tuple[list[int], list[int]]:
    """Heals of the last hour and of the last day, the oldest bar first. One statement: the first
    hour in short pieces, each of the others in one."""
    ends = [60 * MINUTES * n for n in range(1, HOUR_BARS + 1)]
    ends += [health.HOUR * n for n in range(2, DAY_BARS + 1)]
    pieces = [When(healed_at__gte=seconds_ago(end), then=Value(n)) for n, end in enumerate(ends)]
    rows = Finding.objects.filter(healed_at__gte=seconds_ago(health.DAY)).order_by()
    piece = Case(*pieces, output_field=IntegerField())
    counts = dict(rows.values_list(piece).annotate(Count("pk")))
    numbers = [counts.get(n, 0) for n in range(len(ends))]
    hour, earlier = numbers[:HOUR_BARS], numbers[HOUR_BARS:]
    return hour[::-1], [sum(hour), *earlier][::-1]
