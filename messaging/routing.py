"""Where sockets are taken: `/` and `/ws` (protocol §0.1)."""

from __future__ import annotations

from typing import Any

from django.urls import path

from messaging.consumers import MessagingConsumer

serve: Any = MessagingConsumer.as_asgi()  # Django's types know views only
websocket_urlpatterns = [path("", serve), path("ws", serve)]
