"""What has to be there before a server starts, each with what to do where it is not."""

from __future__ import annotations

from argparse import ArgumentTypeError

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError
from django.db import DatabaseError, connection

from messaging import registry
from messaging.layer import in_memory
from subscriptions.errors import TriggersMissing
from subscriptions.triggers import install

NOT_STARTED = "The application did not start; the log above says why."


def require_all() -> None:
    """A secret key, tables and triggers. Raises CommandError."""
    _require_secret_key()
    _require_triggers()


def _require_secret_key() -> None:
    try:
        settings.SECRET_KEY  # noqa: B018  # Django raises on reading an empty one
    except ImproperlyConfigured as error:
        raise CommandError(
            "There is no secret key. `manage.py bootstrap` makes what is missing; "
            "or set WUKONGIM_SECRET_KEY (in a project of your own: SECRET_KEY)."
        ) from error


def _require_triggers() -> None:
    try:
        if not install.has_tables(connection):
            raise CommandError("The database has no tables yet: run `manage.py migrate`.")
        install.require(connection)
    except (DatabaseError, TriggersMissing) as error:
        raise CommandError(str(error)) from error
    finally:
        connection.close()


def warning_of_neighbours() -> str | None:
    """What to tell whoever starts a second process with a layer in memory: the two do not hear each
    other's doorbells."""
    nodes = registry.live_nodes()
    connection.close()
    if not nodes or not in_memory():
        return None
    return (
        f"Node {', '.join(map(str, nodes))} serves this database, or did until a moment ago. With "
        "a channel layer in memory the clients of two processes hear each other only by the tick, "
        "some seconds late: run one, or set WUKONGIM_REDIS_URL."
    )


def port(word: str) -> int:
    """A port that was named on the command line."""
    if not (word.isdecimal() and int(word) <= 65535):
        raise ArgumentTypeError(f"{word!r} is no port: a number from 0 to 65535 is.")
    return int(word)
