"""What a server does for sockets that say nothing, and how it ends: little, and at once."""

import asyncio
import math
import socket
import threading
import time
from contextlib import asynccontextmanager, nullcontext

import uvicorn
from websockets.asyncio.client import connect

from messaging import serving
from messaging.sockets import BoundedProtocol
from tests.support.waiting import eventually

PING_SECONDS = 2


class Counting(serving.Server):
    """Counts how often it wakes, and leaves the tests their signals."""

    wakes = 0

    async def on_tick(self, counter):
        self.wakes += 1
        return await super().on_tick(counter)

    def capture_signals(self):
        return nullcontext()


async def accept(scope, receive, send):
    """An application that accepts a socket and says nothing."""
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass


@asynccontextmanager
async def serving_silence():
    """(server, address)."""
    up = asyncio.Event()
    config = uvicorn.Config(
        accept, ws=BoundedProtocol, ws_ping_interval=PING_SECONDS, lifespan="off", log_config=None
    )
    server = Counting(config, up.set)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        task = asyncio.create_task(server.serve(sockets=[listener]))
        await up.wait()
        yield server, f"ws://127.0.0.1:{listener.getsockname()[1]}"
        await task


async def test_pings_of_one_second_are_sent_together_and_none_late(monkeypatch):
    monkeypatch.setattr(serving, "end_within", lambda seconds: None)
    async with serving_silence() as (server, url):
        loop = asyncio.get_running_loop()
        for _ in range(3):
            async with connect(url, proxy=None), connect(url, proxy=None):
                protocols = list(server.server_state.connections)
                assert len(protocols) == 2
                for protocol in protocols:
                    due = protocol.ping_timer.when()
                    assert due == math.floor(due)
                    assert PING_SECONDS - 1.1 <= due - loop.time() <= PING_SECONDS
            await asyncio.sleep(0.3)
        async with connect(url, proxy=None):
            [protocol] = server.server_state.connections
            first = protocol.ping_timer
            await eventually(lambda: protocol.ping_timer not in (first, None), "it answered a ping")
            due = protocol.ping_timer.when()
            assert due == math.floor(due)
            assert 0 < due - first.when() <= PING_SECONDS
        server.stop()


async def test_idle_server_wakes_once_a_second_and_ends_at_once(monkeypatch):
    monkeypatch.setattr(serving, "end_within", lambda seconds: None)
    async with serving_silence() as (server, _):
        await asyncio.sleep(2.1)
        assert 2 <= server.wakes <= 3
        began = time.monotonic()
        threading.Thread(target=server.stop).start()
    assert time.monotonic() - began < serving.DATE_SECONDS / 2
