"""POST /message/send in front of Django: a plain yes is answered in the node's own event loop.

Through Django such a request takes a thread, a connection to the database and several milliseconds;
here it takes a fraction of one (docs/performance/rest.md). Only a yes is answered here. Whatever
else comes goes on to the view (`views.MessageSend`) as it came, and so does what the log refused or
did not answer, together with what it said. So there is one set of rules, texts and log lines: those
of the view and its serializer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from io import BytesIO
from typing import Any

from django.conf import settings
from django.core.exceptions import DisallowedHost
from django.core.handlers.asgi import ASGIRequest
from django.db import DatabaseError, connection
from rest_framework.exceptions import APIException
from rest_framework.renderers import JSONRenderer

from messaging import node, sending
from messaging.api import serializers, views
from messaging.messages import Appended, Draft, Outcome, StoredMessage
from messaging.permissions import makes_channel
from subscriptions.api.authentication import ApiTokenAuthentication
from subscriptions.api.base import JSONBody
from subscriptions.bindings import ChannelKey
from subscriptions.models import Channel
from subscriptions.selectors import pages

Scope = dict[str, Any]
Event = Mapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Header = tuple[bytes, bytes]
Variant = tuple[str | None, str | None]
"""Scheme and Accept-Language: what the headers of a yes depend on, where there are no cookies."""

LARGEST = 1 << 17
"""Bytes of a body that is answered here: a payload of 64 KiB is 87 KB of base64. Reading more would
hold up the loop for more than the millisecond that this takes."""

NESTED = 100
"""Brackets in a body that is answered here. How deep is too deep for the parser depends on the
stack that it is called from, which is another in the view."""

VARIANTS = 32
"""Kinds of requests (`Variant`) whose answers' headers are kept; others are the view's."""

SILENT = frozenset({
    "corsheaders.middleware.CorsMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
})  # fmt: skip
"""Middleware that lets a request without cookies and Origin to a known host pass, and adds to its
answer what depends on its `Variant` alone."""

SEEN_BY_MIDDLEWARE = frozenset({"HTTP_COOKIE", "HTTP_ORIGIN"})
"""Headers with which those are not silent."""

UNREADABLE = (APIException, DisallowedHost)
"""What a request raises that is nobody's, is for another host, or breaks a rule. Anything else is
raised by Django all the same, and answered by the server."""


def in_front_of(django: Application, path: str) -> Application:
    """`django`, with plain sends to `path` answered before it. `django` itself in a project whose
    settings let others have a say in a request."""
    redirects = settings.SECURE_SSL_REDIRECT or settings.PREPEND_WWW
    if redirects or settings.DISALLOWED_USER_AGENTS or not SILENT.issuperset(settings.MIDDLEWARE):
        return django
    return DirectSend(django, path)


class DirectSend:
    """An ASGI application for HTTP: `django`, with plain sends to `path` answered before it.

    For these Django's signals of a request's start and end are not sent: they are for what holds
    connections to the database.
    """

    def __init__(self, django: Application, path: str) -> None:
        self._django, self._path = django, path
        self._authentication, self._parser = ApiTokenAuthentication(), JSONBody()
        self._serializer = serializers.SendBody()  # to use one takes a fifth of making one as well
        self._renderer = JSONRenderer()
        self._channels = Channels()
        self._headers: dict[Variant, tuple[list[Header], list[Header]]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, here or through Django."""
        if scope["path"] != self._path or not _is_plain(scope):
            await self._django(scope, receive, send)
            return
        body = Body(receive)
        asked = await self._read(scope, body)
        current = asked and await self._node_for(asked[0])
        if not asked or not current:
            await self._django(scope, body.receive, send)
            return
        draft, variant = asked
        outcome = await _append(current, draft)
        if isinstance(outcome, Appended) and variant in self._headers:
            await self._answer(outcome.message, variant, send)
        else:
            scope = {**scope, views.SUBMITTED: views.Submitted(draft, outcome)}
            await self._django(scope, body.receive, self._learning(variant, send))

    async def _read(self, scope: Scope, body: Body) -> tuple[Draft, Variant] | None:
        """What the request asks the log for, and its variant. None for anything unusual."""
        if not await body.read():
            return None
        content = body.content
        length = str(len(content))
        try:
            request = ASGIRequest(scope, BytesIO(content))
            request.get_host()
            self._authentication.authenticate(request)  # type: ignore[arg-type]  # asks for META only
            if not SEEN_BY_MIDDLEWARE.isdisjoint(request.META) or _brackets(content) > NESTED:
                return None
            if request.META.get("CONTENT_LENGTH", length) != length:
                return None
            data = self._parser.parse(BytesIO(content))
            asked = self._serializer.run_validation(data)
        except UNREADABLE:
            return None
        if asked["key"] is None:
            return None  # to each of a list of uids
        draft = views.draft_of(asked, asked["key"])
        return draft, (request.scheme, request.META.get("HTTP_ACCEPT_LANGUAGE"))

    async def _node_for(self, draft: Draft) -> node.Node | None:
        """The node whose log takes this draft in this loop; None where the view has to say what
        becomes of it."""
        current = node.current_node()
        if current is None or current.loop is not asyncio.get_running_loop():
            return None
        made = makes_channel(draft.key, draft.sender)
        if not made and not await self._channels.exists(current, draft.key):
            return None
        return None if current.stopping else current

    async def _answer(self, message: StoredMessage, variant: Variant, send: Send) -> None:
        body = self._renderer.render(views.yes(message))
        before, after = self._headers[variant]
        headers = [*before, (b"Content-Length", b"%d" % len(body)), *after]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    def _learning(self, variant: Variant, send: Send) -> Send:
        """`send`, which keeps the headers of a yes: the next of its kind is answered with them."""

        async def learn(event: Event) -> None:
            if event["type"] == "http.response.start" and event["status"] == 200:
                headers = event["headers"]
                names = [name.lower() for name, _ in headers]
                if b"content-length" in names and len(self._headers) < VARIANTS:
                    at = names.index(b"content-length")
                    self._headers[variant] = headers[:at], headers[at + 1 :]
            await send(event)

        return learn


def _is_plain(scope: Scope) -> bool:
    return (
        scope["method"] == "POST" and not scope.get("query_string") and not scope.get("root_path")
    )


def _brackets(content: bytes) -> int:
    return content.count(b"{") + content.count(b"[")


async def _append(current: node.Node, draft: Draft) -> Outcome | None:
    """The log's outcome; None when it is late. A caller that is cancelled cancels no append."""
    future = current.log.submit(draft)
    await asyncio.wait([future], timeout=sending.SECONDS)
    return future.result() if future.done() else None


class Body:
    """A request's body, which is read here and can be received once more by somebody else."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._events: list[Event] = []

    async def read(self) -> bool:
        """Read it; returns whether it came to its end, and within LARGEST."""
        size = 0
        while size <= LARGEST:
            event = await self._receive()
            self._events.append(event)
            if event["type"] != "http.request":
                return False
            size += len(event.get("body", b""))
            if not event.get("more_body", False):
                return size <= LARGEST
        return False

    @property
    def content(self) -> bytes:
        """What has been read."""
        return b"".join(event.get("body", b"") for event in self._events)

    async def receive(self) -> Event:
        """What has been read, from the start, and then what comes."""
        return self._events.pop(0) if self._events else await self._receive()


class Channels:
    """Asks the database which channels exist, for all requests that wait for that at once."""

    def __init__(self) -> None:
        self._asked: list[tuple[ChannelKey, asyncio.Future[bool]]] = []
        self._reading: asyncio.Task[None] | None = None

    async def exists(self, current: node.Node, key: ChannelKey) -> bool:
        """Whether there is this channel. False as well when the database does not say."""
        future = current.loop.create_future()
        self._asked.append((key, future))
        if self._reading is None or self._reading.done():
            self._reading = current.errand(self._read(current))
        return bool(await future)

    async def _read(self, current: node.Node) -> None:
        """Answer who asks, until nobody does. Who asks meanwhile has the next statement."""
        try:
            while self._asked:
                asked, self._asked = self._asked, []
                found: Collection[ChannelKey] = ()
                try:
                    found = await current.database.read(existing, {key for key, _ in asked})
                except DatabaseError:
                    pass  # the view looks itself, and says what is wrong
                finally:
                    for key, future in asked:
                        _settle(future, key in found)
        finally:
            for _, future in self._asked:
                _settle(future, False)


def _settle(future: asyncio.Future[bool], answer: bool) -> None:
    if not future.done():
        future.set_result(answer)


def existing(keys: Collection[ChannelKey]) -> set[ChannelKey]:
    """Those of these channels that there are, and perhaps some of the same id and another type.
    Plain SQL: the ORM takes five times as long."""
    found: set[ChannelKey] = set()
    for names in pages({key.channel_id for key in keys}):
        marks = ", ".join(["%s"] * len(names))
        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT channel_type, channel_id FROM {Channel._meta.db_table}"  # noqa: S608 - marks and our own names
                f" WHERE channel_id IN ({marks})",
                names,
            )
            found.update(ChannelKey(kind, name) for kind, name in cursor.fetchall())
    return found
