"""Where sockets are taken: `/` and `/ws` (protocol §0.1)."""

from __future__ import annotations

from django.urls import path

from messaging.consumers import MessagingConsumer

websocket_urlpatterns = [
    path("", MessagingConsumer.as_asgi()),
    path("ws", MessagingConsumer.as_asgi()),
]
