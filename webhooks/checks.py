"""System checks of this app's settings, each with what to do about it."""

from __future__ import annotations

from typing import Any

from django.core.checks import CheckMessage, Error, Tags, register

from subscriptions.conf import problems
from webhooks.conf import WebhooksConf

HINT = (
    'docs/reference/settings.md has the keys there are; see docs/reference/checks.md, section "'
    'Settings".'
)


@register(Tags.compatibility)
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """A misspelt key of WEBHOOKS would be ignored in silence; it is an error instead."""
    wrong = problems(WebhooksConf, "WEBHOOKS")
    return [Error(text, hint=HINT, id="webhooks.E001") for text in wrong]
