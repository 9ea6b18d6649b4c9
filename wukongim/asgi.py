"""The ASGI application that a server runs: pages, API and sockets on one port."""

import os
from typing import Any

from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.urls import re_path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "wukongim.settings")
django_application = get_asgi_application()  # loads the apps, which the imports below need

from messaging.api.direct import in_front_of  # noqa: E402 - the apps are loaded now
from messaging.lifespan import lifespan  # noqa: E402 - the same
from messaging.routing import websocket_urlpatterns  # noqa: E402 - the same


async def refuse(scope: Any, receive: Any, send: Any) -> None:
    """Answer a socket on a path that serves none.

    Closing before accepting makes the server say 403; the router alone would raise instead.
    """
    await receive()
    await send({"type": "websocket.close"})


# Any: Django's types know views only, not ASGI applications.
not_found: Any = re_path("", refuse)  # type: ignore[arg-type]  # see above
routes: list[Any] = [*websocket_urlpatterns, not_found]

application = ProtocolTypeRouter(
    {
        "http": in_front_of(django_application, "/message/send"),
        "websocket": URLRouter(routes),
        "lifespan": lifespan,
    }
)
