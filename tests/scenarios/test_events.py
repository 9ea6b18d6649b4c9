"""Events of a message that is written bit by bit, and commands to a list of uids, as WuKongIM's own
Python SDK hears them."""

from __future__ import annotations

import asyncio
import base64
import json
from contextlib import AsyncExitStack

import pytest
from wukong_easy_sdk import WKIMEvent

from tests.support.sdk import GROUP, PERSON, User
from tests.support.server import NETWORKED, ServerProcess, networked_settings
from tests.support.services import Valkey

COUNT = 50
USERS = ("ann", "bea", "cat", "eve")


@pytest.fixture(scope="module")
def servers():
    """Two nodes where there is a layer between them, else one."""
    if not NETWORKED:
        with ServerProcess() as only:
            yield prepared(only), only
        return
    with Valkey() as valkey:
        settings = networked_settings(WUKONGIM_REDIS_URL=valkey.url)
        with ServerProcess(**settings) as first, ServerProcess(**settings) as second:
            yield prepared(first), second


def prepared(server):
    for uid in USERS:
        server.make_user(uid)
    server.make_group("team", "ann", "bea")
    return server


class Listener(User):
    """A user who keeps the events, too."""

    def __init__(self, server, uid):
        super().__init__(server, uid)
        self.told = []
        self.sdk.on(WKIMEvent.CUSTOM_EVENT, self._take)

    def _take(self, event):
        self.told.append(event)
        self._news.set()

    async def until_told(self, event_type):
        await self.until(lambda: event_type in [each["type"] for each in self.told])


def payload(content):
    return base64.b64encode(json.dumps({"type": 1, "content": content}).encode()).decode()


async def post(server, path, **body):
    return (await asyncio.to_thread(server.post, path, **body)).json()


async def stream(server, number, **anchor):
    """Send an anchor and write its words bit by bit; returns the anchor's place."""
    anchor = {"from_uid": "bot", "client_msg_no": number, **anchor}
    sent = await post(server, "/message/send", payload=payload(""), is_stream=1, **anchor)
    for n in range(COUNT):
        delta = {"kind": "text", "delta": f"{n} "}
        event = {"event_id": f"{number}-{n}", "event_type": "stream.delta", "payload": delta}
        await post(server, "/message/event", **anchor, **event)
    await post(server, "/message/event", **anchor, event_id="end", event_type="stream.finish")
    return sent["data"]


async def test_members_hear_a_message_grow_and_nobody_else_does(servers):
    first, second = servers
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        ann, eve = await enter(Listener(first, "ann")), await enter(Listener(first, "eve"))
        bea = await enter(Listener(second, "bea"))
        sent = await stream(first, "n1", channel_id="team", channel_type=2)
        secret = {"channel_id": "team", "channel_type": 2, "from_uid": "bot"}
        await post(first, "/message/send", payload=payload(""), is_stream=1, client_msg_no="n2",
                   **secret)  # fmt: skip
        await post(first, "/message/event", client_msg_no="n2", event_id="e1", payload={"a": 1},
                   event_type="stream.delta", visibility="private", **secret)  # fmt: skip
        await post(first, "/message/event", client_msg_no="n2", event_id="last",
                   event_type="stream.finish", **secret)  # fmt: skip
        for user in (ann, bea):
            await user.until(lambda user=user: "last" in [each["id"] for each in user.told])
        assert eve.told == []
    for user in (ann, bea):
        told = [each for each in user.told if each["data"]["client_msg_no"] == "n1"]
        data = [each["data"] for each in told]
        assert [each["msg_event_seq"] for each in data] == list(range(1, COUNT + 2))
        words = "".join(each["payload"]["delta"] for each in data[:-1])
        assert words == "".join(f"{n} " for n in range(COUNT))
        assert told[0]["id"] == "n1-0"
        assert told[0]["type"] == "stream.delta"
        assert told[0]["timestamp"] > 1_700_000_000_000
        assert data[0] == {
            "channel_id": "team",
            "channel_type": 2,
            "client_msg_no": "n1",
            "from_uid": "bot",
            "message_id": sent["message_id"],
            "event_key": "main",
            "msg_event_seq": 1,
            "stream_status": "open",
            "visibility": "public",
            "payload": {"kind": "text", "delta": "0 "},
        }
        assert (data[-1]["event_key"], data[-1]["stream_status"]) == ("__finish__", "closed")
        others = [each["id"] for each in user.told if each["data"]["client_msg_no"] == "n2"]
        assert others == ["last"]
        assert user.texts("team", GROUP) == ["", ""]


async def test_each_of_two_is_told_of_the_other(servers):
    first, second = servers
    async with Listener(first, "ann") as ann, Listener(second, "cat") as cat:
        await ann.say("cat", PERSON, "hello")
        await cat.until_heard("ann", PERSON, "hello")
        await stream(second, "p1", from_uid="ann", channel_id="cat", channel_type=1)
        await ann.until_told("stream.finish")
        await cat.until_told("stream.finish")
    assert {each["data"]["channel_id"] for each in ann.told} == {"cat"}
    assert {each["data"]["channel_id"] for each in cat.told} == {"ann"}


async def test_who_left_is_told_no_more(servers):
    first, second = servers
    await asyncio.to_thread(first.make_group, "club", "ann", "bea")
    async with Listener(first, "ann") as ann, Listener(second, "bea") as bea:
        await stream(first, "c1", channel_id="club", channel_type=2)
        await bea.until_told("stream.finish")
        await post(first, "/channel/subscriber_remove", channel_id="club", channel_type=2,
                   subscribers=["bea"])  # fmt: skip
        await stream(first, "c2", channel_id="club", channel_type=2)
        await ann.until(lambda: len(ann.told) == 2 * (COUNT + 1))
        await ann.say("bea", PERSON, "you were removed")
        await bea.until_heard("ann", PERSON, "you were removed")
    assert {each["data"]["client_msg_no"] for each in bea.told} == {"c1"}


async def test_commands_to_a_list_are_heard_from_the_server_itself(servers):
    first, second = servers
    async with AsyncExitStack() as stack:
        users = [
            await stack.enter_async_context(User(server, uid))
            for server, uid in ((first, "ann"), (second, "bea"), (second, "eve"))
        ]
        for number, header in enumerate([{"sync_once": 1}, {"sync_once": 1, "no_persist": 1}]):
            body = {"from_uid": "shop", "subscribers": ["ann", "bea"]}
            said = payload(f"command {number}")
            await post(first, "/message/send", header=header, payload=said, **body)
            for user in users[:2]:
                await user.until_heard("____system", PERSON, f"command {number}")
        for user in users[:2]:
            stored, live = user.received
            assert stored["header"]["syncOnce"]
            assert (stored["fromUid"], stored["messageSeq"]) == ("shop", 1)
            assert (live["header"]["noPersist"], live["messageSeq"]) == (True, 0)
        await users[0].say("eve", PERSON, "nothing for you")
        await users[2].until_heard("ann", PERSON, "nothing for you")
        assert len(users[2].received) == 1
