"""System checks: what is refused at start, each with what to do about it.

docs/reference/checks.md has a row for each id. Those that ask the database carry its tag, so that
they run where databases are named (`check --database`, `migrate`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from ipaddress import ip_network
from typing import Any

from django.core import checks
from django.core.checks import CheckMessage, Error, Tags, register
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from subscriptions.api.authentication import open_words
from subscriptions.conf import SubscriptionsConf, problems
from subscriptions.errors import TriggersMissing
from subscriptions.triggers import install

SEE_SETTINGS = 'docs/reference/checks.md, section "Settings"'
SEE_DATABASE = 'See docs/reference/checks.md, section "Database".'

CLOCKS_APART = 1.0
"""Seconds that this machine's clock may be from the database's: less is not seen in a page that
says "4 seconds ago"."""


@register(Tags.compatibility)
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """A misspelt key of SUBSCRIPTIONS would be ignored in silence; it is an error instead."""
    hint = f"docs/reference/settings.md has the keys there are; see {SEE_SETTINGS}."
    return [
        Error(text, hint=hint, id="subscriptions.E001")
        for text in problems(SubscriptionsConf, "SUBSCRIPTIONS")
    ]


@register(Tags.security)
def check_open_api(**kwargs: Any) -> list[CheckMessage]:
    """Networks from which the HTTP API asks for no token: words that are none would answer 500,
    and two ways of writing one let everybody in."""
    words = open_words()
    wrong = {word: why for word in words if (why := _no_network(word))}
    if wrong:
        return [_nonsense(word, why) for word, why in wrong.items()]
    found = [_open_to_all(word) for word in words if ip_network(word).prefixlen == 0]
    proxies = {word.strip() for word in os.environ.get("FORWARDED_ALLOW_IPS", "").split(",")}
    if words and proxies & {"*", "0.0.0.0/0", "::/0"}:
        found.append(_everybody_is_a_proxy())
    return found


def _no_network(word: str) -> str:
    try:
        ip_network(word)
    except ValueError as error:
        return str(error)
    return ""


def _nonsense(word: str, why: str) -> CheckMessage:
    return Error(
        f"WUKONGIM_API_OPEN_TO has {word!r}, which is no network: {why}.",
        hint=f"Write networks as 10.1.2.0/24, one machine as 10.1.2.3. See {SEE_SETTINGS}.",
        id="subscriptions.E006",
    )


def _open_to_all(word: str) -> CheckMessage:
    return checks.Warning(
        f"WUKONGIM_API_OPEN_TO has {word}: the HTTP API asks nobody for its token.",
        hint="Whoever reaches the server reads and writes everything. Name the network of your "
        f"back end alone. See {SEE_SETTINGS}.",
        id="subscriptions.W007",
    )


def _everybody_is_a_proxy() -> CheckMessage:
    return checks.Warning(
        "WUKONGIM_API_OPEN_TO is set, and FORWARDED_ALLOW_IPS trusts everybody as a proxy.",
        hint="Whoever reaches the server says himself which network he calls from. Name the proxy "
        f"in FORWARDED_ALLOW_IPS. See {SEE_SETTINGS}.",
        id="subscriptions.W008",
    )


@register(Tags.compatibility)
def check_connections(**kwargs: Any) -> list[CheckMessage]:
    """Under ASGI each request has a thread of its own, and a connection that is kept is kept for a
    thread that has gone. Looks at settings alone."""
    if not _keeps_connections(connections["default"]):
        return []
    return [
        checks.Warning(
            "DATABASES['default'] keeps connections (CONN_MAX_AGE) without a pool.",
            hint='Set CONN_MAX_AGE to 0 and OPTIONS to {"pool": True}: a request under ASGI never '
            f"meets a connection that another has kept. {SEE_DATABASE}",
            id="subscriptions.W004",
        )
    ]


def _keeps_connections(connection: BaseDatabaseWrapper) -> bool:
    settings = connection.settings_dict
    pooled = bool(settings["OPTIONS"].get("pool"))
    return connection.vendor == "postgresql" and settings["CONN_MAX_AGE"] != 0 and not pooled


@register(Tags.database)
def check_triggers(databases: Iterable[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Without its triggers the database would take memberships that nobody hears of (F10).

    A warning where `migrate` mends it, since an error would keep `migrate` from doing so; nodes
    and the repair command refuse to work without them.
    """
    return [error for alias in databases or [] for error in _check_triggers(alias)]


def _check_triggers(alias: str) -> list[CheckMessage]:
    connection = connections[alias]
    if not install.has_tables(connection):
        return []
    if connection.vendor not in install.MODULES:
        written = ", ".join(install.MODULES)
        text = f"Database {alias!r} is {connection.vendor}; the triggers are written for {written}."
        hint = f"Without them joins and leaves are not counted: use one of those. {SEE_DATABASE}"
        return [Error(text, hint=hint, id="subscriptions.E003")]
    try:
        install.require(connection)
    except TriggersMissing as error:
        hint = f"`manage.py migrate` puts them in place. {SEE_DATABASE}"
        return [checks.Warning(str(error), hint=hint, id="subscriptions.W002")]
    return []


@register(Tags.database)
def check_clocks(databases: Iterable[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Leases, positions and findings go by the database's clock alone (F55). What is shown beside
    them, ages in the admin and times in metrics and logs, goes by this machine's."""
    apart = {alias: _seconds_apart(connections[alias]) for alias in databases or []}
    return [
        checks.Warning(
            f"This machine's clock is {seconds:.1f} s from that of database {alias!r}.",
            hint="Keep both by NTP. Nothing is delivered or repaired by this machine's clock, but "
            f"ages in the admin, alerts and the log are wrong by as much. {SEE_DATABASE}",
            id="subscriptions.W005",
        )
        for alias, seconds in apart.items()
        if seconds > CLOCKS_APART
    ]


def _seconds_apart(connection: BaseDatabaseWrapper) -> float:
    """How far the clocks are apart at least: the answer's way does not count. A database in a file
    has no clock of its own."""
    if connection.vendor != "postgresql" or not install.has_tables(connection):
        return 0.0
    with connection.cursor() as cursor:
        before = time.time()
        cursor.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
        [theirs] = cursor.fetchone()
    return max(before - theirs, theirs - time.time(), 0.0)
