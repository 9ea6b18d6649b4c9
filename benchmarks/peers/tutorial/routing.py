"""The two paths for sockets."""

from __future__ import annotations

from typing import Any

from django.urls import re_path

from benchmarks.peers.tutorial.consumers import ChatConsumer, MembershipsConsumer

# Any: Django's types know views only, not ASGI applications.
chat: Any = ChatConsumer.as_asgi()
memberships: Any = MembershipsConsumer.as_asgi()
websocket_urlpatterns: list[Any] = [
    re_path(r"^ws/chat/(?P<room>\w+)/$", chat),
    re_path(r"^ws/memberships/(?P<uid>\w+)/$", memberships),
]
