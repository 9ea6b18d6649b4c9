"""System checks: what is refused at start, each with what to do about it."""

from __future__ import annotations

from typing import Any

from django.core.checks import CheckMessage, Error, Tags, register
from django.db import connections

from subscriptions.conf import SubscriptionsConf, unknown_keys
from subscriptions.triggers import install


@register(Tags.compatibility)
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """A misspelt key of SUBSCRIPTIONS would be ignored in silence; it is an error instead."""
    unknown = unknown_keys(SubscriptionsConf, "SUBSCRIPTIONS")
    if not unknown:
        return []
    return [
        Error(
            f"SUBSCRIPTIONS has unknown keys: {', '.join(unknown)}.",
            hint="See docs/reference/settings.md for the keys there are.",
            id="subscriptions.E001",
        )
    ]


@register(Tags.database)
def check_triggers(databases: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """Without its triggers the database would take memberships that nobody hears of (F10)."""
    found: list[CheckMessage] = []
    for alias in databases or []:
        missing = install.missing(connections[alias])
        if missing and "wukongim_subscriptions_channel" in _tables(alias):
            found.append(
                Error(
                    f"Database {alias!r} lacks triggers, or has others: {', '.join(missing)}.",
                    hint="Run `manage.py migrate`, which installs them.",
                    id="subscriptions.E002",
                )
            )
    return found


def _tables(alias: str) -> list[str]:
    return connections[alias].introspection.table_names()
