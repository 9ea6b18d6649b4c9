"""The application: the tutorial's stack of an origin check, cookies, sessions and users.

https://channels.readthedocs.io/en/latest/tutorial/part_2.html
"""

from __future__ import annotations

import os

from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.core.asgi import get_asgi_application

# Not `setdefault`: whoever starts this may have settings of another project in its environment.
os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.peers.tutorial.settings"
http = get_asgi_application()  # loads the apps, which the import below needs

from benchmarks.peers.tutorial.routing import websocket_urlpatterns  # noqa: E402 - loaded now

application = ProtocolTypeRouter(
    {
        "http": http,
        "websocket": AllowedHostsOriginValidator(
            AuthMiddlewareStack(URLRouter(websocket_urlpatterns))
        ),
    }
)
