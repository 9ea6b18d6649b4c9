"""The settings of this app, read from `settings.SUBSCRIPTIONS` through one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeVar

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

Conf = TypeVar("Conf")


def read(cls: type[Conf], name: str) -> Conf:
    """The dict `settings.<name>` as a `cls`. Raises ImproperlyConfigured for an unknown key."""
    given: dict[str, Any] = getattr(settings, name, {})
    unknown = unknown_keys(cls, name)
    if unknown:
        raise ImproperlyConfigured(f"{name} has unknown keys: {', '.join(unknown)}")
    return cls(**{key.lower(): value for key, value in given.items()})


def unknown_keys(cls: type[Any], name: str) -> list[str]:
    """Keys of `settings.<name>` that `cls` does not know."""
    known = {field.name.upper() for field in fields(cls)}
    return sorted(key for key in getattr(settings, name, {}) if key not in known)


@dataclass(frozen=True, slots=True)
class SubscriptionsConf:
    """Every number of this app, with the reason for its default."""

    audit_patience: float = 10.0
    """Seconds until a leased node that has not answered an audit is named as silent. Nodes look
    each second; five ticks of two seconds leave room for a busy one."""

    page_size: int = 1000
    """Rows of memberships or uids a statement takes. SQLite allows 32,766 parameters; a thousand
    joins hold the channel row for about 20 ms."""

    closed_findings_kept_days: int = 90
    """How long a healed finding stays as evidence."""


def conf() -> SubscriptionsConf:
    """The settings in force. Not cached: a dict look-up, and tests change it."""
    return read(SubscriptionsConf, "SUBSCRIPTIONS")
