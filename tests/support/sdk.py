"""One person with WuKongIM's own Python SDK, as PyPI has it."""

from __future__ import annotations

import asyncio

from wukong_easy_sdk import WKIM, AuthOptions, WKIMChannelType, WKIMEvent, WKIMOptions

GROUP, PERSON = WKIMChannelType.GROUP, WKIMChannelType.PERSON
PATIENCE = 20.0


class User:
    """One person with the SDK: what it told its application, in order."""

    def __init__(self, server, uid, **options):
        self.uid = uid
        self.events = []
        self.received = []
        self._news = asyncio.Event()
        self.sdk = WKIM.init(
            server.url, AuthOptions(uid=uid, token=f"token-of-{uid}"), WKIMOptions(**options)
        )
        self.sdk.on(WKIMEvent.MESSAGE, self._hear)
        for event in (WKIMEvent.CONNECT, WKIMEvent.DISCONNECT, WKIMEvent.ERROR):
            self.sdk.on(event, lambda value, event=event: self._note(event, value))

    async def __aenter__(self):
        await self.sdk.connect()
        return self

    async def __aexit__(self, *error):
        await self.sdk.destroy()

    def _hear(self, message):
        self.received.append(message)
        self._news.set()

    def _note(self, event, value):
        self.events.append((event, value))
        self._news.set()

    async def say(self, channel, kind, text):
        """Send a text; returns the acknowledgement."""
        return await self.sdk.send(channel, kind, {"type": 1, "content": text})

    def heard(self, channel, kind):
        """Messages of one channel, in order of arrival."""
        return [
            message
            for message in self.received
            if (message["channelId"], message["channelType"]) == (channel, kind)
        ]

    def texts(self, channel, kind):
        """The texts of one channel, in order of arrival."""
        return [message["payload"]["content"] for message in self.heard(channel, kind)]

    def connects(self):
        """How often the SDK said that it is connected."""
        return sum(event == WKIMEvent.CONNECT for event, _ in self.events)

    async def until(self, condition):
        """Wait until `condition()` holds."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not condition():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            counts = f"heard {len(self.received)} messages, {self.events}"
            raise AssertionError(f"{self.uid} waited {PATIENCE} s in vain: {counts}") from None

    async def until_heard(self, channel, kind, text):
        """Wait until a text was heard."""
        await self.until(lambda: text in self.texts(channel, kind))
