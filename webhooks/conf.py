"""The settings of this app, read from `settings.WEBHOOKS` through one frozen dataclass."""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from subscriptions.conf import Words, read
from webhooks.events import Event

SECRET_PREFIX = "whsec_"  # noqa: S105 - how a secret begins, as Standard Webhooks has it
SHORTEST_SECRET, LONGEST_SECRET = 24, 64
"""Bytes of a secret, of the same standard."""


def _is_secret(text: str) -> bool:
    if not text:
        return True
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


ENDPOINTS = Words("URLs that begin with http:// or https://", _is_url, secret=True)
SECRET = Words("whsec_ and the base64 of 24 to 64 bytes", _is_secret, secret=True)
FOCUS_EVENTS = Words(f"events among {', '.join(Event)}", lambda text: text in list(Event))
ALLOW_PRIVATE = Words("networks such as 10.0.0.0/8", _is_network)


@dataclass(frozen=True, slots=True)
class WebhooksConf:
    """Every setting of this app, with the reason for its default."""

    endpoints: tuple[str, ...] = field(default=(), metadata=ENDPOINTS.metadata)
    """URLs that are told. None: nothing is recorded, and nothing is asked of the database."""

    secret: str = field(default="", metadata=SECRET.metadata)
    """What requests are signed with (`whsec_` and base64). Empty: they are not, as WuKongIM's."""

    focus_events: tuple[str, ...] = field(default=(), metadata=FOCUS_EVENTS.metadata)
    """The events that are told; empty means all of them."""

    allow_private: tuple[str, ...] = field(default=(), metadata=ALLOW_PRIVATE.metadata)
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
    return read(WebhooksConf, "WEBHOOKS")


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
