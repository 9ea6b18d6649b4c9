"""python-socketio: rooms, with Redis between processes, under uvicorn.

https://python-socketio.readthedocs.io/en/stable/server.html, its sections on rooms, on using a
message queue and on ASGI servers. Everything has its default; no line is logged for a socket.
"""

from __future__ import annotations

import os

import socketio  # type: ignore[import-untyped]  # it comes without types
import uvicorn

server = socketio.AsyncServer(
    async_mode="asgi", client_manager=socketio.AsyncRedisManager(os.environ["REDIS_URL"])
)


@server.event
async def join(sid: str, room: str) -> None:
    """Put the client into a room; that it returns is the acknowledgement."""
    await server.enter_room(sid, room)


@server.event
async def message(sid: str, event: dict[str, str]) -> None:
    """Send a text to a room, its sender included."""
    await server.emit("message", event["text"], room=event["room"])


if __name__ == "__main__":
    uvicorn.run(
        socketio.ASGIApp(server),
        host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning",
    )  # fmt: skip
