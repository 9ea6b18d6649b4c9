"""System checks: what is refused at start, each with what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.core import checks
from django.core.checks import CheckMessage, Error, Tags, register
from django.db import connections

from subscriptions.conf import SubscriptionsConf, problems
from subscriptions.errors import TriggersMissing
from subscriptions.triggers import install


@register(Tags.compatibility)
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """A misspelt key of SUBSCRIPTIONS would be ignored in silence; it is an error instead."""
    hint = "See docs/reference/settings.md for the keys there are."
    return [
        Error(text, hint=hint, id="subscriptions.E001")
        for text in problems(SubscriptionsConf, "SUBSCRIPTIONS")
    ]


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
        hint = "Without them joins and leaves are not counted: use one of those databases."
        return [Error(text, hint=hint, id="subscriptions.E003")]
    try:
        install.require(connection)
    except TriggersMissing as error:
        return [checks.Warning(str(error), id="subscriptions.W002")]
    return []
