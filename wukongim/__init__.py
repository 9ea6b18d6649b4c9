"""The project package: settings, URLs and the ASGI application; no rule of the domain."""
