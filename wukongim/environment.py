"""What the environment says: the WUKONGIM_* variables, typed, with blank meaning "not set".

Mistakes in a value raise ImproperlyConfigured with a text for whoever set it. A misspelt name
cannot raise anything, so a system check looks for those (`wukongim.checks`).
"""

import os
from collections.abc import Callable, Mapping
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
        "API_CORS_ORIGINS",
        "API_OPEN_TO",
        "API_TOKEN",
        "DATABASE_POOL",
        "DATABASE_URL",
        "DATA_DIR",
        "DEBUG",
        "MESSAGING",
        "REDIS_PREFIX",
        "REDIS_URL",
        "SECRET_KEY",
        "SUBSCRIPTIONS",
        "WEBHOOKS",
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

DATABASE_POOL, SMALLEST_POOL, OF_THE_NODE = 20, 10, 8
"""Connections to PostgreSQL that one process holds at most. Its node takes 8 of its own (4 read, 1
writes, 1 beats, 1 appends, 1 waits for channels that others hold); the rest, 2 or more, is the pool
of the requests. PostgreSQL allows 100 unless told."""

POSTGRES_SESSION = {
    # A process that is frozen, or cut off, within a transaction holds channels of everybody else's.
    # Between two statements ours take milliseconds: after 5 s, a quarter of a lease, PostgreSQL
    # ends it, and whoever waited goes on while the bound of a repair still holds.
    "idle_in_transaction_session_timeout": 5_000,  # milliseconds
    # The same from PostgreSQL's side as from ours below: a machine that is lost is noticed after
    # 10 + 2 × 5 s of silence, or 20 s of an answer that nobody takes; left alone, after two hours.
    "tcp_keepalives_idle": 10,
    "tcp_keepalives_interval": 5,
    "tcp_keepalives_count": 2,
    "tcp_user_timeout": 20_000,
    # A node hangs up on what has no answer for a lease. A backend that waits for somebody's table
    # would not look at its socket meanwhile, and keep its rows, its locks and its place among the
    # connections: node after node would take those of all.
    "client_connection_check_interval": 5_000,
}
"""What PostgreSQL itself does for each of our sessions."""

POSTGRES_OPTIONS = {
    "application_name": "wukongim",
    "options": " ".join(f"-c {name}={value}" for name, value in POSTGRES_SESSION.items()),
    "connect_timeout": 3,  # seconds: a network may swallow it, and in 5 all has to be heard
    # A database that vanished without a word: unanswered bytes give up as soon as a lease would.
    "keepalives_idle": 10,  # seconds of silence before the first of them
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 20_000,  # milliseconds
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


def number(name: str, default: int) -> int:
    """A whole number above 0."""
    value: int = _read(_env.int, name, default)
    if value < 1:
        raise ImproperlyConfigured(f"{PREFIX}{name} must be above 0, not {value}.")
    return value


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
    if entry["ENGINE"].endswith(".sqlite3"):
        options = {**SQLITE_OPTIONS, **entry.get("OPTIONS", {})}
        # Opening the file costs 0.7 ms at every call from a consumer: keep it open. A file for
        # tests too, since threads have connections of their own and memory has only one.
        return {
            **entry, "CONN_MAX_AGE": None, "OPTIONS": options,
            "TEST": {"NAME": folder / "test.sqlite3"},
        }  # fmt: skip
    if not entry["ENGINE"].endswith(".postgresql"):
        raise ImproperlyConfigured(
            f"{PREFIX}DATABASE_URL names a database that is not served: use postgresql://, or "
            "unset the variable to use SQLite."
        )
    return _postgresql(entry)


def _postgresql(entry: dict[str, Any]) -> dict[str, Any]:
    """Connections come from a pool of the process, checked before use: opening one costs 5 ms,
    and one that PostgreSQL has closed meanwhile is replaced without anybody noticing."""
    size = number("DATABASE_POOL", DATABASE_POOL)
    if size < SMALLEST_POOL:
        raise ImproperlyConfigured(
            f"{PREFIX}DATABASE_POOL must be at least {SMALLEST_POOL}, not {size}: the node of a "
            f"process takes {OF_THE_NODE} connections, and requests need some, too."
        )
    given = entry.get("OPTIONS", {})
    options = {
        **POSTGRES_OPTIONS, **given,
        "pool": {"min_size": 2, "max_size": size - OF_THE_NODE, "timeout": 10},
    }  # fmt: skip
    if "options" in given:  # the later of two values of a parameter counts
        options["options"] = f"{POSTGRES_OPTIONS['options']} {given['options']}"
    return {**entry, "CONN_MAX_AGE": 0, "CONN_HEALTH_CHECKS": True, "OPTIONS": options}


def channel_layers(redis_url: str, prefix: str = "wukongim") -> dict[str, dict[str, Any]]:
    """Django Channels' CHANNEL_LAYERS: in memory without an URL, else Redis publish/subscribe.

    `prefix` keeps two installations apart that share a Redis: its databases do not divide what is
    published.
    """
    if not redis_url:
        return {"default": {"BACKEND": "messaging.layer.MemoryLayer"}}
    config = {"hosts": [{"address": redis_url}], "prefix": prefix}
    return {"default": {"BACKEND": "messaging.redis_layer.RedisLayer", "CONFIG": config}}


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
