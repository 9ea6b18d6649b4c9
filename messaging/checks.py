"""System checks of this app's settings, each with what to do about it."""

from __future__ import annotations

from typing import Any

from django.core.checks import CheckMessage, Error, Tags, register

from messaging.conf import STEPS, MessagingConf, conf
from subscriptions.conf import problems

HINT = "See docs/reference/settings.md for the keys there are and how they hang together."


@register(Tags.compatibility)
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """A misspelt key of MESSAGING would be ignored in silence; it is an error instead."""
    wrong = problems(MessagingConf, "MESSAGING")
    if wrong:
        return [Error(text, hint=HINT, id="messaging.E001") for text in wrong]
    return [Error(text, hint=HINT, id="messaging.E002") for text in _broken_relations(conf())]


def _broken_relations(settings: MessagingConf) -> list[str]:
    """What must hold between settings, as sentences about what does not."""
    rules = {
        "LEASE_SECONDS must be at least three times TICK_SECONDS, or a busy node loses its lease.":
            settings.lease_seconds >= 3 * settings.tick_seconds,
        "OUTBOX_LOW must be below OUTBOX_BYTES, or a lagging session never catches up.":
            settings.outbox_low < settings.outbox_bytes,
        "BEHIND_GRACE must be below TICK_SECONDS.":
            settings.behind_grace < settings.tick_seconds,
        f"STEPS may only name {', '.join(STEPS)}.":
            set(settings.steps) <= set(STEPS),
        "PAYLOAD_BYTES as base64 must fit into FRAME_BYTES.":
            settings.payload_bytes * 4 // 3 + 4096 < settings.frame_bytes,
    }  # fmt: skip
    return [sentence for sentence, holds in rules.items() if not holds]
