"""The project's HTTP paths: WuKongIM's at the root, our own below them, and the admin."""

from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    path("subscriptions/", include("subscriptions.api.urls")),
    path("", include("messaging.api.urls")),
]
