"""System checks of this app's settings and of the channel layer, each with what to do about it.

A function decides, and another makes a message with an id of what it says; docs/reference/checks.md
has a row for each id. Only the echo needs a server: it is for `check --deploy`.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage, Error, Tags, register

from messaging.conf import STEPS, MessagingConf, conf
from messaging.layer import MemoryLayer, configured_layer, hear_echo
from messaging.redis_layer import RedisLayer, count_hosts, loosened_hosts, wrong_options
from subscriptions.conf import problems

HINT = (
    "docs/reference/settings.md has the keys there are and how they hang together; see "
    'docs/reference/checks.md, section "Settings".'
)
SEE_LAYER = 'See docs/reference/checks.md, section "Channel layer".'
HOST_AND_PORT = re.compile(r"[^/\s]+:[0-9]{1,5}")
ECHO_SECONDS = 5.0
"""How long an echo may take: a connection, 2 s at most, and a way that takes milliseconds."""


@register(Tags.compatibility)
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """A misspelt key of MESSAGING would be ignored in silence; it is an error instead."""
    wrong = problems(MessagingConf, "MESSAGING")
    if wrong:
        return [Error(text, hint=HINT, id="messaging.E001") for text in wrong]
    return [Error(text, hint=HINT, id="messaging.E002") for text in _broken_relations(conf())]


def _has_mistakes() -> bool:
    """Whether MESSAGING cannot be read: checks that need it say nothing besides."""
    return bool(problems(MessagingConf, "MESSAGING"))


def _broken_relations(settings: MessagingConf) -> list[str]:
    """What must hold between settings, as sentences about what does not."""
    rules = {
        "LEASE_SECONDS must be at least three times TICK_SECONDS, or a busy node loses its lease.":
            settings.lease_seconds >= 3 * settings.tick_seconds,
        "OUTBOX_LOW must be below OUTBOX_BYTES, or a lagging session never catches up.":
            settings.outbox_low < settings.outbox_bytes,
        "DRAIN_SECONDS must be at most 8, or a stop takes longer than its supervisor's 30 s.":
            settings.drain_seconds <= 8,
        "BEHIND_GRACE must be below TICK_SECONDS.":
            settings.behind_grace < settings.tick_seconds,
        f"STEPS may only name {', '.join(STEPS)}.":
            set(settings.steps) <= set(STEPS),
        "PAYLOAD_BYTES as base64 must fit into FRAME_BYTES.":
            settings.payload_bytes * 4 // 3 + 4096 < settings.frame_bytes,
        "WS_ADDR must begin with ws:// or wss://.":
            settings.ws_addr.startswith(("ws://", "wss://")) or not settings.ws_addr,
        "WSS_ADDR must begin with wss://.":
            settings.wss_addr.startswith("wss://") or not settings.wss_addr,
        "TCP_ADDR must be HOST:PORT without a scheme.":
            bool(HOST_AND_PORT.fullmatch(settings.tcp_addr)) or not settings.tcp_addr,
    }  # fmt: skip
    return [sentence for sentence, holds in rules.items() if not holds]


# --- the channel layer --------------------------------------------------------------------------


@register(Tags.compatibility)
def check_layer(**kwargs: Any) -> list[CheckMessage]:
    """A layer that a node cannot use, or one that leaves it without a part of what it relies on.
    Looks at settings alone."""
    unusable = _unusable_layer()
    if unusable:
        return [_unusable(text) for text in unusable]
    layer = configured_layer()
    if isinstance(layer, RedisLayer):
        return _check_hosts(_config())
    return [] if isinstance(layer, MemoryLayer) else [_foreign(layer)]


def _config() -> dict[str, Any]:
    config: dict[str, Any] = settings.CHANNEL_LAYERS["default"].get("CONFIG", {})
    return config


def _unusable_layer() -> list[str]:
    """Why no node can work with CHANNEL_LAYERS, one sentence each."""
    try:
        layer = configured_layer()
    except KeyError:
        return ['CHANNEL_LAYERS names no "default": nodes need a layer, be it in memory.']
    except Exception as error:  # noqa: BLE001 - whatever a backend raises, it is of no use
        return [f"CHANNEL_LAYERS: the layer cannot be made: {error}"]
    return wrong_options(_config()) if isinstance(layer, RedisLayer) else []


def _unusable(text: str) -> Error:
    hint = f"Servers that start like this deliver by the tick alone, or not at all. {SEE_LAYER}"
    return Error(text, hint=hint, id="messaging.E003")


def _foreign(layer: object) -> checks.Warning:
    kind = f"{type(layer).__module__}.{type(layer).__qualname__}"
    return checks.Warning(
        f"The channel layer is {kind}, which was not made for nodes.",
        hint="Use messaging.layer.MemoryLayer in one process, messaging.redis_layer.RedisLayer "
        f"where there are several. {SEE_LAYER}",
        id="messaging.W004",
    )


def _check_hosts(config: dict[str, Any]) -> list[CheckMessage]:
    if _has_mistakes():
        return []
    found: list[CheckMessage] = [
        checks.Warning(
            f"CHANNEL_LAYERS, a host of Redis: {text}",
            hint=f"Take it out of the host's options and of its URL. {SEE_LAYER}",
            id="messaging.W005",
        )
        for text in loosened_hosts(config, conf().lease_seconds)
    ]
    if count_hosts(config) > 1:
        found.append(_several_hosts(count_hosts(config)))
    return found


def _several_hosts(number: int) -> checks.Warning:
    return checks.Warning(
        f"The channel layer spreads its groups over {number} servers.",
        hint="Name one: a node's probe travels through one of them and says nothing of the "
        f"others, and each node must list the same in the same order. {SEE_LAYER}",
        id="messaging.W006",
    )


@register(Tags.compatibility, deploy=True)
def check_echo(**kwargs: Any) -> list[CheckMessage]:
    """Whether what is published from here, with these settings, is heard (F41)."""
    asked = not (_has_mistakes() or _unusable_layer())
    trouble = _echo_trouble() if asked else ""
    if not trouble:
        return []
    return [
        Error(
            f"What is published on the channel layer is not heard: {trouble}.",
            hint="Is Redis up, and are WUKONGIM_REDIS_URL and WUKONGIM_REDIS_PREFIX those of the "
            f"servers? Until then messages arrive by the tick alone. {SEE_LAYER}",
            id="messaging.E007",
        )
    ]


def _echo_trouble() -> str:
    """What keeps an echo from being heard; empty when it is."""
    try:
        asyncio.run(hear_echo(ECHO_SECONDS))
    except TimeoutError:
        return "nothing came back"
    except Exception as error:  # noqa: BLE001 - layers differ in what they raise
        return str(error)
    return ""
