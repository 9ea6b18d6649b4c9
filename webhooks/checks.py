"""System checks of this app's settings, each with what to do about it."""

from __future__ import annotations

from typing import Any

from django.core.checks import CheckMessage, Error, Tags, register

from webhooks.conf import problems

HINT = (
    'docs/reference/settings.md has the keys there are; see docs/reference/checks.md, section "'
    'Settings".'
)


@register(Tags.compatibility)
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """A misspelt key of WEBHOOKS would be ignored in silence; it is an error instead."""
    return [Error(text, hint=HINT, id="webhooks.E001") for text in problems()]
