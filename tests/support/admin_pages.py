"""Who looks at the admin, and every page of it that a GET shows, named, with its address."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.contrib.admin import ShowFacets, site
from django.contrib.auth.models import Permission, User
from django.db.models import Model
from django.test import Client, RequestFactory
from django.urls import reverse

from subscriptions.models import Membership

Page = tuple[str, str]
"""A page's name and its address."""


def log_in(user: User) -> Client:
    """A browser in which this user is logged in."""
    client = Client()
    client.force_login(user)
    return client


def log_in_operator() -> Client:
    """A superuser called operator, logged in."""
    return log_in(User.objects.create_superuser("operator"))


def log_in_staff(*permissions: str) -> Client:
    """A staff user with just these permissions, logged in."""
    user = User.objects.create_user("staff", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return log_in(user)


def admin_url(model: type[Model], name: str = "changelist", *args: Any) -> str:
    """The address of one of a model's pages."""
    meta = model._meta
    return reverse(f"admin:{meta.app_label}_{meta.model_name}_{name}", args=args)


def iter_pages(viewer: User) -> Iterator[Page]:
    """Fronts, pages without a model, and of each model all that `viewer` can choose there."""
    yield "index", reverse("admin:index")
    for label in sorted({model._meta.app_label for model in site._registry}):
        yield f"app {label}", reverse("admin:app_list", args=[label])
    yield from _pages_without_model()
    for model in sorted(site._registry, key=lambda model: str(model._meta.model_name)):
        if model._meta.managed:
            yield from _pages_of(model, viewer)


def _pages_without_model() -> Iterator[Page]:
    label = Membership._meta.app_label
    yield "health", reverse(f"admin:{label}_health_changelist")
    yield "health: what refreshes itself", reverse(f"admin:{label}_health_now")
    explain = reverse(f"admin:{label}_explanation_changelist")
    yield "explain: form", explain
    yield "explain: answer", f"{explain}?uid=u0&channel=2:c0&seq=1"
    place = f"app_label={label}&model_name=membership&field_name=channel"
    yield "channels offered to a new membership", f"{reverse('admin:autocomplete')}?{place}&term=c7"


def _pages_of(model: Any, viewer: User) -> Iterator[Page]:
    """The list; its last page, searches, filters, and filters with counts; the newest row."""
    name, listed, opts = (
        model._meta.model_name,
        admin_url(model, "changelist"),
        site._registry[model],
    )
    request = RequestFactory().get(listed)
    request.user = viewer
    changes = opts.get_changelist_instance(request)
    yield f"{name}: list", listed
    if changes.paginator.num_pages > 1:
        yield f"{name}: last page", f"{listed}?p={changes.paginator.num_pages}"
    if opts.search_fields:
        for term in ("u7", "nobody", "2:c7"):
            yield f"{name}: search {term}", f"{listed}?q={term}"
    for each in changes.filter_specs:
        for choice in list(each.choices(changes))[1:]:
            yield f"{name}: {each.title} {choice['display']}", listed + choice["query_string"]
    if changes.filter_specs and opts.show_facets is not ShowFacets.NEVER:
        yield f"{name}: filters with counts", f"{listed}?_facets=True"
    newest = changes.root_queryset.order_by("-pk").first()
    if newest and opts.date_hierarchy:
        day = getattr(newest, opts.date_hierarchy)
        parts = {"year": day.year, "month": day.month, "day": day.day}
        query = "&".join(f"{opts.date_hierarchy}__{part}={n}" for part, n in parts.items())
        yield f"{name}: one day", f"{listed}?{query}"
    if newest:
        yield f"{name}: a row", admin_url(model, "change", newest.pk)
        yield f"{name}: history of a row", admin_url(model, "history", newest.pk)
    if opts.has_add_permission(request):
        yield f"{name}: add", admin_url(model, "add")
