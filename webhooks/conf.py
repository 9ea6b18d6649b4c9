"""The settings of this app, read from `settings.WEBHOOKS` through one frozen dataclass."""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

from webhooks.events import Event

SECRET_PREFIX = "whsec_"  # noqa: S105 - how a secret begins, as Standard Webhooks has it
SHORTEST_SECRET, LONGEST_SECRET = 24, 64
"""Bytes of a secret, of the same standard."""


@dataclass(frozen=True, slots=True)
class WebhooksConf:
    """Every setting of this app, with the reason for its default."""

    endpoints: tuple[str, ...] = ()
    """URLs that are told. None: nothing is recorded, and nothing is asked of the database."""

    secret: str = ""
    """What requests are signed with (`whsec_` and base64). Empty: they are not, as WuKongIM's."""

    focus_events: tuple[str, ...] = ()
    """The events that are told; empty means all of them."""

    allow_private: tuple[str, ...] = ()
    """Networks (10.0.0.0/8) that may be addressed though they are not of the public internet."""

    timeout_seconds: float = 10.0
    """For one request, from the look-up of its host's name to the end of the answer. WuKongIM gives
    30 s; here the next events of the endpoint wait so long."""

    batch: int = 100
    """Events of one request, where it may carry several: WuKongIM's number. × 87 KB (a payload of
    64 KiB in base64) = 9 MB at worst."""

    attempts: int = 12
    """Tries before an event becomes a dead letter: with pauses of 1, 2, 4 … 256, 300, 300 s that is
    a quarter of an hour, in which a receiver can be restarted or moved."""

    longest_pause_seconds: float = 300.0
    """Between two tries at most: a receiver that is back is noticed within five minutes."""

    retention_seconds: float = 86_400.0
    """For how long delivered events can be replayed: a day. A thousand a second of 1 KB each are
    86 GB; who has so many keeps them for less."""

    dead_retention_seconds: float = 2_592_000.0
    """For how long dead letters are kept, and what waits for an endpoint that is configured no
    more: 30 days."""

    @property
    def key(self) -> bytes:
        """The signing key; empty when requests are not signed."""
        return base64.b64decode(self.secret.removeprefix(SECRET_PREFIX))


def conf() -> WebhooksConf:
    """The settings in force. Raises ImproperlyConfigured with everything that is wrong."""
    return _read()


@cache
def _read() -> WebhooksConf:
    wrong = problems()
    if wrong:
        raise ImproperlyConfigured(" ".join(wrong))
    given = getattr(settings, "WEBHOOKS", {})
    return WebhooksConf(**{name.lower(): _typed(name, value) for name, value in given.items()})


def _typed(name: str, value: Any) -> Any:
    if isinstance(DEFAULTS[name], float):
        return float(value)
    return tuple(value) if isinstance(value, list) else value


def forget(**kwargs: Any) -> None:
    """`setting_changed`: read anew. Only tests change settings while a process runs."""
    _read.cache_clear()


setting_changed.connect(forget)

DEFAULTS = {each.name.upper(): each.default for each in fields(WebhooksConf)}


def problems() -> list[str]:
    """What is wrong with `settings.WEBHOOKS`, one sentence each. Never quotes a secret."""
    given = getattr(settings, "WEBHOOKS", {})
    if not isinstance(given, Mapping):
        return ["WEBHOOKS must be a dict of settings."]
    unknown = sorted(str(name) for name in given if name not in DEFAULTS)
    sentences = [f"WEBHOOKS has unknown keys: {', '.join(unknown)}."] if unknown else []
    for name, value in given.items():
        if name in DEFAULTS and (wanted := _refusal(name, value)):
            sentences.append(f"WEBHOOKS: {name} must be {wanted}.")
    return sentences


def _refusal(name: str, value: Any) -> str:
    """What the value should have been, in words; empty when it is that."""
    default = DEFAULTS[name]
    if isinstance(default, int | float):
        return _number_refusal(type(default), value)
    if isinstance(default, str):
        is_secret = isinstance(value, str) and (value == "" or _is_secret(value))
        return "" if is_secret else "whsec_ and the base64 of 24 to 64 bytes"
    if not (isinstance(value, list | tuple) and all(isinstance(word, str) for word in value)):
        return "a list of words"
    is_right, wanted = CONTENTS[name]
    wrong = [word for word in value if not is_right(word)]
    if not wrong and len(set(value)) < len(value):
        return "a list that names nothing twice"
    return f"a list of {wanted}" if wrong else ""


def _number_refusal(kind: type, value: Any) -> str:
    kinds = int if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
        return "a whole number" if kind is int else "a number"
    return "" if value > 0 else "above 0"


def _is_secret(text: str) -> bool:
    try:
        key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return False
    return text.startswith(SECRET_PREFIX) and SHORTEST_SECRET <= len(key) <= LONGEST_SECRET


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


CONTENTS: dict[str, tuple[Callable[[str], bool], str]] = {
    "ENDPOINTS": (_is_url, "URLs that begin with http:// or https://"),
    "FOCUS_EVENTS": (lambda text: text in list(Event), f"events among {', '.join(Event)}"),
    "ALLOW_PRIVATE": (_is_network, "networks such as 10.0.0.0/8"),
}


def endpoint_key(url: str) -> str:
    """The name under which the tables know an endpoint: an URL may hold a password."""
    return hashlib.blake2b(url.encode(), digest_size=8).hexdigest()


def endpoint_name(url: str) -> str:
    """The endpoint as logs and pages show it: without user, password and query."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def iter_endpoints() -> Iterator[tuple[str, str]]:
    """(key, name) of each endpoint that is configured."""
    for url in conf().endpoints:
        yield endpoint_key(url), endpoint_name(url)
