"""What a server does for sockets that say nothing, and how it ends: little, and at once."""

import asyncio
import math
import socket
import threading
from contextlib import asynccontextmanager, nullcontext

import pytest
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

    @property
    def sockets(self):
        """The open ones."""
        return list(self.server_state.connections)


async def accept(scope, receive, send):
    """An application that accepts a socket and says nothing."""
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass


@pytest.fixture(autouse=True)
def immortal(monkeypatch):
    """A server that is stopped does not take the tests' process with it."""
    monkeypatch.setattr(serving, "end_within", lambda seconds: None)


@asynccontextmanager
async def serving_silence():
    """(server, its address, its task)."""
    up = asyncio.Event()
    config = uvicorn.Config(
        accept, ws=BoundedProtocol, ws_ping_interval=PING_SECONDS, lifespan="off", log_config=None
    )
    server = Counting(config, up.set)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        task = asyncio.create_task(server.serve(sockets=[listener]))
        await up.wait()
        yield server, f"ws://127.0.0.1:{listener.getsockname()[1]}", task
        server.stop()
        await task


async def test_first_pings_are_due_at_full_seconds_and_none_late():
    loop = asyncio.get_running_loop()
    async with serving_silence() as (server, url, _):
        for _ in range(3):
            began = loop.time()
            async with connect(url, proxy=None), connect(url, proxy=None):
                assert len(server.sockets) == 2
                for each in server.sockets:
                    due = each.ping_timer.when()
                    assert due == math.floor(due)
                    assert began + PING_SECONDS - 1 < due <= loop.time() + PING_SECONDS
            await eventually(lambda: not server.sockets, "both are gone")


async def test_ping_after_an_answer_is_due_at_a_full_second_and_not_late():
    async with serving_silence() as (server, url, _), connect(url, proxy=None):
        (each,) = server.sockets
        first = each.ping_timer
        await eventually(lambda: each.ping_timer not in (first, None), "a ping and its answer")
        due = each.ping_timer.when()
        assert due == math.floor(due)
        assert 0 < due - first.when() <= PING_SECONDS


async def test_idle_server_wakes_once_a_second():
    async with serving_silence() as (server, *_):
        await asyncio.sleep(2.5)
        assert 2 <= server.wakes <= 3


async def test_server_ends_at_once_when_another_thread_stops_it():
    async with serving_silence() as (server, _, task):
        wakes = server.wakes
        await eventually(lambda: server.wakes > wakes, "it has just looked at the clock")
        threading.Thread(target=server.stop).start()
        await asyncio.wait_for(task, serving.DATE_SECONDS * 0.8)
