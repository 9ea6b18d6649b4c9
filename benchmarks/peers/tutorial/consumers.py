"""The consumers: part 3 of the Channels tutorial, and the same for a user with many rooms.

https://channels.readthedocs.io/en/latest/tutorial/part_3.html (the consumer, asynchronous) and
https://channels.readthedocs.io/en/latest/topics/databases.html (there the ORM is called by its
methods with an `a`).
"""

from __future__ import annotations

import json
import os
from typing import Any

from channels.generic.websocket import AsyncWebsocketConsumer

from benchmarks.peers.tutorial.models import Membership, Message

STORES = os.environ.get("STORES") == "1"
"""Whether each message is inserted before it is sent to its room."""


class Listener(AsyncWebsocketConsumer):
    """A socket that hears what its groups are sent."""

    async def chat_message(self, event: dict[str, Any]) -> None:
        """Pass a message of a room on."""
        await self.send(text_data=json.dumps({"message": event["message"]}))


class ChatConsumer(Listener):
    """A socket in the one room of its path, which hears itself, too."""

    async def connect(self) -> None:
        """Join the room, then accept."""
        self.room = self.scope["url_route"]["kwargs"]["room"]
        self.group = group_of(self.room)
        await self.channel_layer.group_add(self.group, self.channel_name)
        await self.accept()

    async def disconnect(self, code: int) -> None:
        """Leave the room."""
        await self.channel_layer.group_discard(self.group, self.channel_name)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Send a text to the room; where messages are stored, once it is stored."""
        text = json.loads(text_data or "")["message"]
        if STORES:
            await Message.objects.acreate(room=self.room, text=text)
        event = {"type": "chat.message", "message": text}
        await self.channel_layer.group_send(self.group, event)


class MembershipsConsumer(Listener):
    """A socket in all rooms of its user, each joined as the tutorial joins one."""

    async def connect(self) -> None:
        """Join every room, then say how many.

        It accepts first: daphne gives a handshake 5 s, and many who come at once take longer.
        """
        await self.accept()
        self.joined: list[str] = []
        uid = self.scope["url_route"]["kwargs"]["uid"]
        async for room in Membership.objects.filter(uid=uid).values_list("room", flat=True):
            group = group_of(room)
            await self.channel_layer.group_add(group, self.channel_name)
            self.joined.append(group)
        await self.send(text_data=json.dumps({"ready": len(self.joined)}))

    async def disconnect(self, code: int) -> None:
        """Leave every room."""
        for group in self.joined:
            await self.channel_layer.group_discard(group, self.channel_name)


def group_of(room: str) -> str:
    """The name of a room's group in the layer."""
    return f"chat_{room}"
