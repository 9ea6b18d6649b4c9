"""The project's HTTP paths: WuKongIM's at the root, our own below them, the admin, and what
describes the API."""

from django.contrib import admin
from django.urls import include, path
from django.utils.translation import gettext_lazy as _
from django.views.generic import RedirectView, TemplateView

from wukongim import views

admin.site.site_header = admin.site.site_title = "WuKongIM"
admin.site.index_title = _("Subscriptions, messages and nodes")
admin.site.site_url = None  # there is no other site to view

urlpatterns = [
    path("admin/", admin.site.urls),
    path("subscriptions/", include("subscriptions.api.urls")),
    path("", include("messaging.api.urls")),
    path("", RedirectView.as_view(pattern_name="admin:index")),  # a socket at / is not HTTP
    path("schema", views.Schema.as_view(), name="schema"),
    path("docs", TemplateView.as_view(template_name="wukongim/docs.html")),
    path("favicon.ico", views.no_icon),
]
