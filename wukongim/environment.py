"""What the environment says: the WUKONGIM_* variables, typed, with blank meaning "not set".

Mistakes in a value raise ImproperlyConfigured with a text for whoever set it. A misspelt name
cannot raise anything, so a system check looks for those (`wukongim.checks`).
"""

import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from environs import Env, EnvError

PREFIX = "WUKONGIM_"
KNOWN = frozenset(
    PREFIX + name
    for name in (
        "ALLOWED_HOSTS",
        "ALLOWED_ORIGINS",
        "API_TOKEN",
        "DATABASE_URL",
        "DATA_DIR",
        "DEBUG",
        "MESSAGING",
        "REDIS_URL",
        "SECRET_KEY",
        "SUBSCRIPTIONS",
    )
)

SQLITE_OPTIONS = {
    # A transaction that reads and then writes would otherwise fail at once when another wrote.
    "transaction_mode": "IMMEDIATE",
    "timeout": 20,  # seconds a writer waits for the one before it
    # FULL: a message that was acknowledged survives a power cut.
    "init_command": (
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; "
        "PRAGMA mmap_size=134217728; PRAGMA cache_size=-16000;"
    ),
}

_env = Env(prefix=PREFIX)


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """The names that look like ours and are not, sorted."""
    return sorted(name for name in environ if name.startswith(PREFIX) and name not in KNOWN)


def text(name: str, default: str = "") -> str:
    return _read(_env.str, name, default)


def flag(name: str) -> bool:
    return _read(_env.bool, name, False)


def words(name: str, default: list[str]) -> list[str]:
    """A comma-separated list; blanks around the words do not count."""
    return [word.strip() for word in _read(_env.list, name, default) if word.strip()]


def table(name: str) -> dict[str, Any]:
    """A JSON object, for the settings that are dicts."""
    value = _read(_env.json, name, {})
    if not isinstance(value, dict):
        raise ImproperlyConfigured(
            f'{PREFIX}{name} must be a JSON object such as {{"KEY": 1}}; it is something else.'
        )
    return value


def secret(name: str, folder: Path) -> str:
    """The variable, else the file of that name which `manage.py bootstrap` wrote, else ""."""
    file = folder / name.lower()
    try:
        return text(name) or file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ImproperlyConfigured(
            f"Cannot read {file}: {error.strerror}. Run as the user who owns it, "
            f"or set {PREFIX}{name}."
        ) from error


def database(folder: Path) -> dict[str, Any]:
    """Django's entry for the database; a SQLite file in `folder` unless an URL names another."""
    entry = _read(_env.dj_db_url, "DATABASE_URL", None)
    if entry is None:
        _make_private(folder)
        entry = {"ENGINE": "django.db.backends.sqlite3", "NAME": folder / "db.sqlite3"}
    # Opening a connection costs 0.7 ms on SQLite and 5 ms on PostgreSQL, at every call from a
    # consumer: keep them.
    entry = {**entry, "CONN_MAX_AGE": None}
    if entry["ENGINE"].endswith(".sqlite3"):
        options = {**SQLITE_OPTIONS, **entry.get("OPTIONS", {})}
        # A file, since threads have connections of their own and memory has only one.
        return {**entry, "OPTIONS": options, "TEST": {"NAME": folder / "test.sqlite3"}}
    _require_driver(entry["ENGINE"])
    return {**entry, "CONN_HEALTH_CHECKS": True}


def channel_layers(redis_url: str) -> dict[str, dict[str, Any]]:
    """Django Channels' CHANNEL_LAYERS: in memory without an URL, else Redis publish/subscribe."""
    if not redis_url:
        return {"default": {"BACKEND": "messaging.layer.MemoryLayer"}}
    # Without a limit, a publisher waits for ever on a Redis that froze.
    host = {"address": redis_url, "socket_timeout": 5}
    backend = "channels_redis.pubsub.RedisPubSubChannelLayer"
    return {"default": {"BACKEND": backend, "CONFIG": {"hosts": [host]}}}


def _read(parse: Callable[[str], Any], name: str, default: Any) -> Any:
    if not os.environ.get(PREFIX + name, "").strip():
        return default
    try:
        return parse(name)
    except EnvError as error:
        # Not chained: what it was raised from may quote the value, and an URL holds a password.
        raise ImproperlyConfigured(str(error)) from None


def _make_private(folder: Path) -> None:
    """Make `folder` readable for its owner alone; one that exists stays as it is."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ImproperlyConfigured(
            f"Cannot make the data folder {folder}: {error.strerror}. "
            f"Name another in {PREFIX}DATA_DIR."
        ) from error


def _require_driver(engine: str) -> None:
    if "postgresql" in engine and not (find_spec("psycopg") or find_spec("psycopg2")):
        raise ImproperlyConfigured(
            f"{PREFIX}DATABASE_URL names PostgreSQL, whose driver is not installed: "
            'pip install "psycopg[binary]", or unset the variable to use SQLite.'
        )
