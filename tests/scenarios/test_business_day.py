"""A day of a business server that was written for WuKongIM: it knows an address, calls the HTTP API
as WuKongIM's documentation has it, and receives webhooks. Two server processes on one PostgreSQL
and one Valkey; its users come with the SDK.
"""

from __future__ import annotations

import base64
import json
import threading
from contextlib import AsyncExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from wukong_easy_sdk import WKIMError, WKIMEvent

from tests.support.sdk import GROUP, PERSON, User
from tests.support.server import API_TOKEN, ServerProcess, networked_settings, reserve_port
from tests.support.waiting import eventually

PEOPLE = ("ann", "bea", "cat", "dan")
NAMES = ("msg.notify", "msg.offline", "user.onlinestatus")


class Listener:
    """The business server's own ear for webhooks: it may die and come back on the same port."""

    def __init__(self):
        self.reservation = reserve_port()
        self.port = self.reservation.getsockname()[1]
        self.calls = []
        self.server = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v2/webhook"

    def start(self):
        calls = self.calls

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                [event] = parse_qs(urlsplit(self.path).query)["event"]
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                calls.append((event, body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments):
                pass

        ThreadingHTTPServer.allow_reuse_address = True
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def die(self):
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def notified(self):
        """The texts of all messages that msg.notify told of, in the order in which it did."""
        bodies = [body for event, body in self.calls if event == "msg.notify"]
        return [text_of(message) for body in bodies for message in body]

    def offline(self, text):
        """Who was said to be offline for a message."""
        bodies = [body for event, body in self.calls if event == "msg.offline"]
        return {uid for body in bodies if text_of(body) == text for uid in body["to_uids"]}

    def statuses(self):
        """The strings of user.onlinestatus."""
        bodies = [body for event, body in self.calls if event == "user.onlinestatus"]
        return [each for body in bodies for each in body]


class BusinessServer:
    """Calls one address, whose password is the API token, and never another header."""

    def __init__(self, server):
        host = server.http.removeprefix("http://")
        self.client = httpx.Client(
            base_url=f"http://business:{API_TOKEN}@{host}", timeout=30, trust_env=False
        )

    def post(self, path, body):
        """An answer that WuKongIM's callers take for a success: 200, and what it says."""
        answer = self.client.post(path, json=body)
        assert answer.status_code == 200, (path, answer.text)
        return answer.json()

    def get(self, path, **query):
        answer = self.client.get(path, params=query)
        assert answer.status_code == 200, (path, answer.text)
        return answer.json()

    def say(self, channel, text, kind=2, **more):
        """POST /message/send of a text; the answer's data."""
        body = {"channel_id": channel, "channel_type": kind, "payload": encoded(text), **more}
        return self.post("/message/send", body).get("data")


def encoded(text):
    return base64.b64encode(json.dumps({"type": 1, "content": text}).encode()).decode()


def text_of(message):
    return json.loads(base64.b64decode(message["payload"]))["content"]


@pytest.fixture
def listener():
    each = Listener()
    each.start()
    yield each
    each.die()
    each.reservation.close()


@pytest.fixture
def pair(listener):
    hooks = {"ENDPOINTS": [listener.url], "ALLOW_PRIVATE": ["127.0.0.0/8"]}
    settings = networked_settings(WUKONGIM_WEBHOOKS=json.dumps(hooks))
    with ServerProcess(**settings) as first, ServerProcess(**settings) as second:
        yield first, second


async def test_a_day(pair, listener):
    first, second = pair
    early, late = BusinessServer(first), BusinessServer(second)

    # Morning: accounts, the staff's system account, a group.
    for uid in PEOPLE:
        body = {"uid": uid, "token": f"token-of-{uid}", "device_flag": 2, "device_level": 1}
        assert early.post("/user/token", body) == {"status": 200}
    early.post("/user/systemuids_add", {"uids": ["notices"]})
    assert late.get("/user/systemuids") == ["notices"]
    early.post("/channel", {"channel_id": "team", "channel_type": 2,
                            "subscribers": ["ann", "bea", "cat"]})  # fmt: skip

    async with AsyncExitStack() as stack:
        ann = await stack.enter_async_context(User(first, "ann"))
        bea = await stack.enter_async_context(User(second, "bea"))
        cat = await stack.enter_async_context(User(first, "cat"))
        online = {each["uid"] for each in late.post("/user/onlinestatus", list(PEOPLE))}
        assert online == {"ann", "bea", "cat"}

        # Talk, by hand and from the back end.
        await ann.say("team", GROUP, "good morning")
        late.say("team", "the office is open", from_uid="bea")
        early.say("team", "lunch at noon")
        for user in (bea, cat):
            await user.until_heard("team", GROUP, "lunch at noon")

        # Somebody joins from another node, hears at once, and reads what was before.
        late.post("/channel/subscriber_add", {"channel_id": "team", "subscribers": ["dan"]})
        dan = await stack.enter_async_context(User(second, "dan"))
        await ann.say("team", GROUP, "welcome dan")
        await dan.until_heard("team", GROUP, "welcome dan")
        sync = {"login_uid": "dan", "channel_id": "team", "channel_type": 2, "limit": 30,
                "pull_mode": 1, "start_message_seq": 0, "end_message_seq": 0}  # fmt: skip
        page = early.post("/channel/messagesync", sync)
        assert [text_of(each) for each in page["messages"]] == [
            "good morning", "the office is open", "lunch at noon", "welcome dan",
        ]  # fmt: skip

        # Mute all: only the listed may send; the system account always may.
        early.post("/channel/whitelist_set",
                   {"channel_id": "team", "channel_type": 2, "uids": ["ann"]})  # fmt: skip
        await ann.say("team", GROUP, "only I may speak")
        assert await refused(bea, "team") == 13
        late.post("/channel/whitelist_set",
                  {"channel_id": "team", "channel_type": 2, "uids": []})  # fmt: skip
        await bea.say("team", GROUP, "and now I may again")

        # One is denied, and may again.
        who = {"channel_id": "team", "channel_type": 2, "uids": ["cat"]}
        late.post("/channel/blacklist_add", who)
        assert await refused(cat, "team") == 4
        early.post("/channel/blacklist_remove", who)
        await cat.say("team", GROUP, "sorry")

        # One is removed on the other node, and hears nothing that is sent after the answer.
        early.post("/channel/subscriber_remove",
                   {"channel_id": "team", "channel_type": 2, "subscribers": ["dan"]})  # fmt: skip
        await bea.say("team", GROUP, "dan is gone")
        await cat.until_heard("team", GROUP, "dan is gone")
        await ann.say("dan", PERSON, "you were removed")
        await dan.until_heard("ann", PERSON, "you were removed")
        assert "dan is gone" not in dan.texts("team", GROUP)

        # The group is banned and opened again.
        flags = {"channel_id": "team", "channel_type": 2}
        early.post("/channel/info", {**flags, "ban": 1})
        assert await refused(ann, "team") == 19
        late.post("/channel/info", flags)
        await ann.say("team", GROUP, "we are back")
        await bea.until_heard("team", GROUP, "we are back")

        # The listener dies; what happens meanwhile is told when it is back.
        listener.die()
        await cat.__aexit__()
        await eventually(
            lambda: late.post("/user/onlinestatus", ["cat"]) == [], "the server knows that cat left"
        )
        await ann.say("team", GROUP, "while nobody listened")
        early.post("/message/send", {
            "header": {"sync_once": 1}, "channel_id": "team", "channel_type": 2,
            "from_uid": "bea", "payload": encoded("a command"),
        })  # fmt: skip
        listener.start()
        await eventually(
            lambda: "a command" in listener.notified(), "the listener is told of the command"
        )
        told = listener.notified()
        stored = [text for text in told if text != "you were removed"]
        assert list(dict.fromkeys(stored)) == [
            "good morning", "the office is open", "lunch at noon", "welcome dan",
            "only I may speak", "and now I may again", "sorry", "dan is gone", "we are back",
            "while nobody listened", "a command",
        ]  # fmt: skip
        await eventually(
            lambda: "cat" in listener.offline("while nobody listened"), "cat is said to be offline"
        )
        assert "dan" not in listener.offline("while nobody listened")

        # What cat finds when she comes back: an unread conversation, and a command.
        conversation = conversation_of(late, "cat", "team")
        assert conversation["unread"] >= 1
        assert text_of(conversation["recents"][0]) == "while nobody listened"
        commands = late.post("/message/sync", {"uid": "cat", "limit": 100})
        assert [text_of(each) for each in commands] == ["a command"]
        early.post("/message/syncack",
                   {"uid": "cat", "last_message_seq": commands[-1]["message_seq"]})  # fmt: skip
        assert late.post("/message/sync", {"uid": "cat", "limit": 100}) == []
        read = {"uid": "cat", "channel_id": "team", "channel_type": 2, "unread": 0}
        early.post("/conversations/setUnread", read)
        assert conversation_of(late, "cat", "team")["unread"] == 0

        # Evening: a device quits, and cannot come back with its old token.
        early.post("/user/device_quit", {"uid": "bea", "device_flag": -1})
        await bea.until(lambda: any(event == WKIMEvent.DISCONNECT for event, _ in bea.events))
        await eventually(
            lambda: any(each.startswith("bea-2-0-") for each in listener.statuses()),
            "the listener is told that bea is gone",
        )


async def refused(user, channel):
    """The reason with which a send is refused."""
    with pytest.raises(WKIMError) as error:
        await user.say(channel, GROUP, "may I?")
    return error.value.code


def conversation_of(server, uid, channel):
    body = {"uid": uid, "version": 0, "last_msg_seqs": "", "msg_count": 5}
    [found] = [each for each in server.post("/conversation/sync", body)
               if each["channel_id"] == channel]  # fmt: skip
    return found
