"""The HTTP API's description in OpenAPI 3.1: every view of this project, by its table."""

from __future__ import annotations

from functools import cache

from django.utils import translation
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.renderers import OpenApiJsonRenderer
from rest_framework.views import APIView

import subscriptions.api.described
from messaging.api.described import channels, chats, messages, server
from messaging.api.described.notes import NOTES
from subscriptions.api.description import Answer, DescribedSchema, Operation
from wukongim import views

OWN: dict[type[APIView], Operation] = {
    views.Schema: Operation(
        Answer({"type": "object"}, {"openapi": "3.1.0", "info": {"title": "WuKongIM"}})
    )
}


class Schema(DescribedSchema):
    """Knows the views of both apps and of the project."""

    notes = NOTES
    operations = {
        **OWN,
        **subscriptions.api.described.OPERATIONS,
        **channels.OPERATIONS,
        **messages.OPERATIONS,
        **chats.OPERATIONS,
        **server.OPERATIONS,
    }


@cache
def document() -> bytes:
    """The description as JSON. It is made once a process, in a quarter of a second, since nobody
    needs a token to ask for it."""
    with translation.override("en"):
        return bytes(OpenApiJsonRenderer().render(SchemaGenerator().get_schema(public=True)))
