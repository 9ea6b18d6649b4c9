"""Settings of the tutorial's chat: those of a new project that its sockets need, and Redis.

https://channels.readthedocs.io/en/latest/tutorial/part_2.html (the layer) and
https://docs.djangoproject.com/en/5.2/ref/databases/ (under ASGI no persistent connections, but
PostgreSQL's connection pool; SQLite as it comes).
"""

from __future__ import annotations

import os

import dj_database_url
from django.core.management.utils import get_random_secret_key

SECRET_KEY = get_random_secret_key()
ALLOWED_HOSTS = ["*"]  # also what the tutorial's origin check goes by; the load sends no Origin
DEBUG = False
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "daphne",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "benchmarks.peers.tutorial",
]
ASGI_APPLICATION = "benchmarks.peers.tutorial.asgi.application"

# The one change for today's versions: since redis-py 8 a read fails after 5 s, as long as the layer
# waits for an event, so that every consumer would end in the first quiet moment. None is what
# redis-py had before, and what the layer was written for.
HOST = {"address": os.environ.get("REDIS_URL", "redis://127.0.0.1:6379"), "socket_timeout": None}
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.core.RedisChannelLayer",
        "CONFIG": {"hosts": [HOST]},
    }
}

# Without a URL nothing is stored and the database is never opened.
DATABASES = {
    "default": dj_database_url.parse(os.environ.get("DATABASE_URL") or "sqlite://:memory:")
}
if "postgresql" in DATABASES["default"]["ENGINE"]:
    DATABASES["default"]["OPTIONS"] = {"pool": True}
