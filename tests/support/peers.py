"""A chat client for tests: JSON-RPC over a real socket, with its own log of what it heard."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
from collections import defaultdict
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

PATIENCE = 10.0
"""Seconds a test waits for what must happen: twice the product's own bound."""


class Peer:
    """One connected user. `heard` has every message by channel, in order of arrival."""

    def __init__(self, url: str, uid: str, token: str = "", **connect_params: Any) -> None:
        self.url, self.uid, self.token = url, uid, token or f"token-of-{uid}"
        self.connect_params = connect_params
        self.heard: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.notices: list[dict[str, Any]] = []
        self.answers: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self.acknowledging = True
        self._ids = itertools.count(1)
        self._changed = asyncio.Condition()
        self.socket: ClientConnection
        self.reader: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def open(self) -> dict[str, Any]:
        """Connect and log in; returns the answer to `connect`."""
        self.socket = await connect(self.url, compression=None, proxy=None)
        self.reader = asyncio.create_task(self._read())
        params = {"uid": self.uid, "token": self.token, "deviceFlag": 2, "deviceId": self.uid}
        return await self.ask("connect", {**params, **self.connect_params})

    async def close(self) -> None:
        """Go away politely."""
        await self.socket.close()
        await asyncio.gather(self.reader, return_exceptions=True)

    async def ask(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send a request; returns its response. Raises ConnectionResetError if the connection ends
        before it comes."""
        answer = self.post(method, params or {})
        await asyncio.wait_for(asyncio.wait([answer]), PATIENCE)
        if answer.cancelled():
            raise ConnectionResetError("the connection ended before the answer")
        return answer.result()

    def post(self, method: str, params: dict[str, Any]) -> asyncio.Future[dict[str, Any]]:
        """Send a request now; the future gets its response."""
        number = str(next(self._ids))
        future = self.answers[number] = asyncio.get_running_loop().create_future()
        frame = {"id": number, "method": method, "params": params}
        task = asyncio.ensure_future(self.socket.send(json.dumps(frame)))
        task.add_done_callback(lambda done: done.exception())
        return future

    async def send(self, channel: str, text: str, kind: int = 2, **extra: Any) -> dict[str, Any]:
        """Send a text message; returns the response."""
        return await self.ask("send", self.message(channel, text, kind, **extra))

    def message(self, channel: str, text: str, kind: int = 2, **extra: Any) -> dict[str, Any]:
        """The params of a `send`."""
        body = base64.b64encode(json.dumps({"type": 1, "content": text}).encode()).decode()
        return {"channelId": channel, "channelType": kind, "payload": body, **extra}

    def texts(self, channel: str) -> list[str]:
        """What was heard in a channel, in order of arrival."""
        return [message["payload"]["content"] for message in self.heard[channel]]

    def seqs(self, channel: str) -> list[int]:
        """Seqs heard in a channel, in order of arrival."""
        return [message["messageSeq"] for message in self.heard[channel]]

    async def until(self, condition: Any, seconds: float = PATIENCE) -> None:
        """Wait until `condition()` holds; fails the test saying what was heard if it does not."""
        try:
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(condition)
        except TimeoutError:
            counts = {channel: len(messages) for channel, messages in self.heard.items()}
            raise AssertionError(f"{self.uid} waited {seconds} s in vain; heard {counts}") from None

    async def until_heard(self, channel: str, text: str, seconds: float = PATIENCE) -> None:
        """Wait until a text was heard."""
        await self.until(lambda: text in self.texts(channel), seconds)

    async def _read(self) -> None:
        try:
            async for raw in self.socket:
                await self._take(json.loads(raw))
        except ConnectionClosed:
            pass
        finally:
            await self._end()

    async def _end(self) -> None:
        """Nothing comes any more: whoever waits is told."""
        for future in self.answers.values():
            if not future.done():
                future.cancel()
        async with self._changed:
            self._changed.notify_all()

    async def _take(self, frame: dict[str, Any]) -> None:
        if "id" in frame:
            asked = self.answers.pop(frame["id"])
            if not asked.done():  # whoever asked may have given up
                asked.set_result(frame)
        elif frame["method"] == "recv":
            message = frame["params"]
            self.heard[message["channelId"]].append(message)
            if self.acknowledging:
                ack = {"messageId": message["messageId"], "messageSeq": message["messageSeq"]}
                await self.socket.send(json.dumps({"method": "recvack", "params": ack}))
        else:
            self.notices.append(frame)
        async with self._changed:
            self._changed.notify_all()
