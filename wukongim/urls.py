"""The project's HTTP paths: WuKongIM's at the root, our own below them, and the admin."""

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.urls import include, path
from django.utils.translation import gettext_lazy as _
from django.views.generic import RedirectView

admin.site.site_header = admin.site.site_title = "WuKongIM"
admin.site.index_title = _("Subscriptions, messages and nodes")
admin.site.site_url = None  # there is no other site to view


def no_icon(request: HttpRequest) -> HttpResponse:
    """Browsers ask for an icon on their own, and are told that there is none."""
    return HttpResponse(status=204)


urlpatterns = [
    path("admin/", admin.site.urls),
    path("subscriptions/", include("subscriptions.api.urls")),
    path("", include("messaging.api.urls")),
    path("", RedirectView.as_view(pattern_name="admin:index")),  # a socket at / is not HTTP
    path("favicon.ico", no_icon),
]
