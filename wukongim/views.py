"""What the project itself answers: the description of its HTTP API, and no icon."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from rest_framework.request import Request

from subscriptions.api.base import OpenView


class Schema(OpenView):
    """GET /schema: this API in OpenAPI 3.1."""

    def get(self, request: Request) -> HttpResponse:
        """As JSON; the same for everybody, as long as the process runs."""
        from wukongim import openapi  # what describes is loaded when somebody asks

        return HttpResponse(openapi.document(), content_type="application/json")


def no_icon(request: HttpRequest) -> HttpResponse:
    """Browsers ask for an icon on their own, and are told that there is none."""
    return HttpResponse(status=204)
