"""POST /message/send in front of Django: what it answers itself, and that nobody can tell."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from django.db import OperationalError
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from messaging import metrics, sending
from messaging.api import direct
from messaging.api.direct import LARGEST, NESTED, VARIANTS, DirectSend, in_front_of
from messaging.messages import Draft
from messaging.models import Message
from messaging.protocol.reasons import Reason
from subscriptions import services
from subscriptions.bindings import ChannelKey
from subscriptions.models import Channel
from tests.support.factories import in_thread, make_group
from tests.support.peers import Peer
from tests.support.server import API_TOKEN, ServerProcess
from tests.support.waiting import eventually
from wukongim.asgi import application, django_application

PATH = "/message/send"
HELLO = base64.b64encode(b'{"type":1,"content":"hello"}').decode()
SEND = {"channel_id": "team", "channel_type": 2, "payload": HELLO}
RIGHT = b"the body's own"


# --- asking, as an ASGI server does -------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """One request: the body in pieces, and what is said about it."""

    pieces: Sequence[bytes]
    headers: Sequence[tuple[bytes, bytes]] = ()
    host: bytes = b"127.0.0.1"
    token: bytes | None = API_TOKEN.encode()
    length: bytes | None = RIGHT
    method: str = "POST"
    path: str = PATH
    query: bytes = b""
    root: str = ""
    scheme: str = "http"
    stays: bool = True
    """Whether the caller waits for the answer, or is gone once the body is sent."""

    @property
    def scope(self) -> dict[str, Any]:
        """The call as an ASGI server announces it."""
        headers = [(b"host", self.host), *self.headers]
        if self.token is not None:
            headers.append((b"token", self.token))
        if self.length is not None:
            own = str(sum(map(len, self.pieces))).encode()
            headers.append((b"content-length", own if self.length == RIGHT else self.length))
        return {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1",
            "method": self.method, "scheme": self.scheme, "path": self.path,
            "raw_path": self.path.encode(), "query_string": self.query, "root_path": self.root,
            "headers": headers, "client": ("127.0.0.1", 50000), "server": ("127.0.0.1", 8000),
        }  # fmt: skip


def saying(body: Any, **changes: Any) -> Call:
    """A call with this body; bytes are sent as they are."""
    return Call([body if isinstance(body, bytes) else json.dumps(body).encode()], **changes)


@dataclass
class Answer:
    """What a caller gets; status 0 is nothing at all."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""

    @property
    def json(self) -> Any:
        """The body's value."""
        return json.loads(self.body)

    @property
    def masked(self) -> Answer:
        """This answer without the values that each message has for itself."""
        body = re.sub(rb'"(message_id|message_seq)":\d+', rb'"\1":0', self.body)
        length = (b"Content-Length", str(len(self.body)).encode())
        headers = [(each[0], b"right") if each == length else each for each in self.headers]
        return Answer(self.status, headers, MADE_UP.sub(b'"made up"', body))


MADE_UP = re.compile(rb'"[0-9a-f]{32}0"')
"""A client message number that the server made up, as JSON."""


def masked(draft: Draft) -> Draft:
    """The same of a draft."""
    made_up = MADE_UP.fullmatch(json.dumps(draft.client_msg_no).encode())
    return replace(draft, client_msg_no="made up") if made_up else draft


async def ask(application: Any, call: Call) -> Answer:
    """What the application answers."""
    answer, left = Answer(), list(call.pieces)

    async def receive() -> dict[str, Any]:
        if left:
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}
        if call.stays:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(event: dict[str, Any]) -> None:
        if event["type"] == "http.response.start":
            answer.status, answer.headers = event["status"], list(event["headers"])
        else:
            answer.body += event.get("body", b"")

    await application(call.scope, receive, send)
    return answer


class Ways:
    """The two ways to one log, in front of Django and through it, with what came through each."""

    def __init__(self, node: Any) -> None:
        self.node = node
        self.direct = DirectSend(self._django, PATH)
        self.through_django = 0
        self.drafts: list[Draft] = []
        self._submit, node.log.submit = node.log.submit, self._spy

    async def _django(self, scope: Any, receive: Any, send: Any) -> None:
        self.through_django += 1
        await django_application(scope, receive, send)

    def _spy(self, draft: Draft) -> Any:
        self.drafts.append(draft)
        return self._submit(draft)

    async def ask(self, call: Call) -> Answer:
        """What the way in front of Django answers."""
        return await ask(self.direct, call)

    async def ask_both(self, call: Call) -> tuple[Answer, Answer]:
        """What both answer to the same call."""
        return await ask(self.direct, call), await ask(django_application, call)


@pytest.fixture
async def ways(here):
    await in_thread(make_group, "team", "alice")
    both = Ways(here.node)
    assert (await both.ask(saying(SEND))).status == 200  # the next is answered in front
    both.through_django = 0
    both.drafts.clear()
    return both


# --- a plain yes --------------------------------------------------------------------------------

BASIC = b"Basic " + base64.b64encode(b"x:" + API_TOKEN.encode())
PLAIN = [
    saying(SEND),
    saying({**SEND, "header": {"red_dot": 1}, "from_uid": "carol", "expire": 60}),
    saying({**SEND, "client_msg_no": '\u2028 \u2029 \U0001f600 \\ " é'}),
    saying({**SEND, "header": {"no_persist": True, "sync_once": 1}}),
    saying({**SEND, "from_uid": "alice", "channel_type": 1, "channel_id": "bob"}),
    saying({**SEND, "whatever": {"is": ["unknown"]}, "subscribers": None}),
    saying(SEND, token=None, headers=[(b"authorization", BASIC)]),
    saying(SEND, headers=[(b"content-type", b"text/plain"), (b"user-agent", b"curl/8")]),
    saying(SEND, headers=[(b"x-forwarded-for", b"10.0.0.1"), (b"traceparent", b"00-1-2-01")]),
    saying(SEND, length=None, headers=[(b"transfer-encoding", b"chunked")]),
    saying(SEND, host=b"localhost:8000"),
    saying(json.dumps(SEND).encode("utf-16")),
    Call([json.dumps(SEND).encode()[:20], b"", json.dumps(SEND).encode()[20:]]),
    saying({**SEND, "payload": base64.b64encode(b"x" * (1 << 16)).decode()}),
]


@pytest.mark.parametrize("call", PLAIN)
async def test_plain_yes_is_answered_in_front_of_django_and_as_by_it(ways, call):
    mine = await ways.ask(call)
    assert ways.through_django == 0
    theirs = await ask(django_application, call)
    assert mine.status == 200
    assert mine.masked == theirs.masked
    first, second = ways.drafts
    assert masked(first) == masked(second)


async def test_yes_comes_after_the_commit(ways):
    data = (await ways.ask(saying(SEND))).json["data"]
    message = await in_thread(Message.objects.get, message_id=data["message_id"])
    assert (message.seq, message.client_msg_no) == (data["message_seq"], data["client_msg_no"])


async def test_first_yes_of_each_kind_is_django_s(ways):
    """Whatever its answer's headers depend on, they are learned from an answer of its own."""
    kinds = [
        {"scheme": "https"},
        *({"headers": [(b"accept-language", each)]} for each in (b"*", b"de", b"en;q=0.5", b"de")),
    ]
    answers = [await ways.ask_both(saying(SEND, **kind)) for kind in kinds]
    assert ways.through_django == 4
    for kind, (first, theirs) in zip(kinds, answers, strict=True):
        again = await ways.ask(saying(SEND, **kind))
        assert first.masked == theirs.masked == again.masked
    assert ways.through_django == 4
    assert len(ways.drafts) == 3 * len(kinds)


async def test_kinds_that_are_kept_have_a_bound(ways):
    for number in range(VARIANTS + 5):
        headers = [(b"accept-language", f"en;q=0.{number + 1}".encode())]
        for _ in range(2):
            assert (await ways.ask(saying(SEND, headers=headers))).status == 200
    assert ways.through_django == (VARIANTS - 1) + 2 * 6
    assert (await ways.ask(saying(SEND))).status == 200
    assert ways.through_django == (VARIANTS - 1) + 2 * 6


async def test_many_at_once_share_statements_and_transactions(ways, monkeypatch):
    asked: list[int] = []
    existing = direct.existing

    def spy(keys: Any) -> Any:
        asked.append(len(keys))
        return existing(keys)

    monkeypatch.setattr(direct, "existing", spy)
    for number in range(40):
        await in_thread(services.save_channel, ChannelKey(2, f"room{number}"))
    calls = [saying({**SEND, "channel_id": f"room{number % 40}"}) for number in range(120)]
    answers = await asyncio.gather(*map(ways.ask, calls))
    assert [answer.json["data"]["message_seq"] for answer in answers] == sorted([1, 2, 3] * 40)
    assert sum(asked) <= 80
    assert len(asked) < 10


# --- everything else is the view's --------------------------------------------------------------

OTHERS = [
    saying(b""),
    saying(b"{"),
    saying(b"\xff\xfe\xff"),
    saying([SEND]),
    saying(b'{"channel_type": NaN}'),
    saying(b"[" * 100_000),
    saying(b'{"channel_type": ' + b"9" * 5_000 + b"}"),
    saying(b'{"a": "' + b"x" * 3_000_000 + b'"}'),
    saying({**SEND, "whatever": "x" * LARGEST}),
    saying({**SEND, "whatever": [[]] * NESTED}),
    saying({**SEND, "payload": "%%%"}),
    saying({**SEND, "payload": base64.b64encode(b"x" * ((1 << 16) + 1)).decode()}),
    saying({**SEND, "channel_id": "nowhere"}),
    saying({**SEND, "channel_id": "nowhere", "channel_type": 7}),
    saying({**SEND, "channel_id": "info", "channel_type": 7}),
    saying({**SEND, "channel_id": "banned"}),
    saying({**SEND, "channel_type": 1, "channel_id": "bob@carol", "from_uid": "alice"}),
    saying(SEND, token=None),
    saying(SEND, token=b"wrong"),
    saying(SEND, token=b"gr\xc3\xbcn"),
    saying(SEND, headers=[(b"token", API_TOKEN.encode())]),  # twice
    saying(SEND, token=None, headers=[(b"authorization", b"Basic %%%")]),
    saying(SEND, host=b"evil.example"),
    saying(SEND, host=b"127.0.0.1:http"),
    saying(SEND, headers=[(b"cookie", b"sessionid=stale; wukongim=1")]),
    saying(SEND, headers=[(b"cookie", b"django_language=de")]),
    saying({**SEND, "payload": None}, headers=[(b"accept-language", b"de")]),
    saying(SEND, query=b"x=1"),
    saying(SEND, query=b"\xff"),
    saying(SEND, length=b"0"),
    saying(SEND, length=b"many"),
    saying(SEND, method="GET"),
    saying(SEND, method="PUT"),
    saying(SEND, method="OPTIONS"),
    saying(SEND, method="HEAD"),
    saying(SEND, path=PATH + "/"),
    saying(SEND, path="/im" + PATH, root="/im"),
    saying(SEND, path=PATH, root="/message"),
]


@pytest.mark.parametrize("call", OTHERS)
async def test_everything_else_is_answered_by_the_view(ways, caplog, call):
    await in_thread(services.save_channel, ChannelKey(7, "info"))
    await in_thread(services.save_channel, ChannelKey(2, "banned"), {"ban": True})
    caplog.set_level(logging.INFO, "django")
    caplog.clear()
    mine = await ways.ask(call)
    lines = list(caplog.record_tuples)
    assert ways.through_django == 1
    caplog.clear()
    theirs = await ask(django_application, call)
    assert mine.masked == theirs.masked
    assert lines == caplog.record_tuples
    assert len(ways.drafts) in (0, 2)  # each way asks the log at most once


async def test_header_that_django_cannot_read_is_the_servers_to_answer(ways):
    call = saying(SEND, headers=[(b"content-type", b"text/plain; x*=bogus''a")])
    for way in (ways.direct, django_application):
        with pytest.raises(ValueError, match="bogus"):
            await ask(way, call)


async def test_without_a_configured_token_everybody_is_refused(ways, settings):
    settings.WUKONGIM_API_TOKEN = ""
    for token in (None, b"", API_TOKEN.encode()):
        mine, theirs = await ways.ask_both(saying(SEND, token=token))
        assert mine.masked == theirs.masked
        assert (mine.status, b"WUKONGIM_API_TOKEN" in mine.body) == (401, True)
    assert ways.drafts == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"channel_id": "nowhere"}, Reason.CHANNEL_NOT_EXIST),
        ({"channel_id": "banned"}, Reason.BAN),
        ({"client_msg_no": "n1"}, Reason.IDEMPOTENCY_CONFLICT),
    ],
)
async def test_refusal_is_counted_and_written_down_once(ways, change, reason):
    await in_thread(services.save_channel, ChannelKey(2, "banned"), {"ban": True})
    assert (await ways.ask(saying({**SEND, "client_msg_no": "n1"}))).status == 200
    noted: list[Any] = []
    note = ways.node.log._refusals.note
    ways.node.log._refusals.note = lambda *what: (noted.append(what), note(*what))
    counter = metrics.REFUSED[reason.name.lower()]
    before = counter._value.get()
    call = saying({**SEND, "payload": "YQ==", **change})
    mine = await ways.ask(call)
    counted = counter._value.get() - before
    theirs = await ask(django_application, call)
    assert mine.masked == theirs.masked
    assert (mine.status, mine.json["reason"]) == (400, reason)
    assert counter._value.get() - before == 2 * counted
    await eventually(lambda: len(noted) == 2, "both refusals were noted")
    assert [why for _, why in noted] == [reason, reason]


async def test_answer_that_is_late_is_503_and_the_message_is_stored_once(ways, monkeypatch):
    """The log waits for the channel's row, or for its turn: so it is told to wait here."""
    release = asyncio.Event()
    append = ways.node.log._append

    async def late(batch: Any) -> Any:
        await release.wait()
        return await append(batch)

    monkeypatch.setattr(ways.node.log, "_append", late)
    monkeypatch.setattr(sending, "SECONDS", 0.05)
    call = saying({**SEND, "client_msg_no": "n1"})
    mine = await ways.ask(call)
    theirs = await ask(django_application, call)
    assert mine.masked == theirs.masked
    assert (mine.status, "client_msg_no n1" in mine.json["msg"]) == (503, True)
    monkeypatch.undo()
    release.set()
    assert (await ways.ask(call)).status == 200
    assert await in_thread(Message.objects.filter(client_msg_no="n1").count) == 1


# --- whatever is said, both ways answer the same --------------------------------------------------

NAMES = [7, "a@b", "x" * 101, "x" * 202, "a\u0000", "\ud800"]
SWITCHES = [2, 1.0, "1", []]
NUMBERS = [7, 13, -1, 2**32, 10**30, 2.0, "2", True]
FIELDS: dict[str, tuple[list[Any], list[Any]]] = {
    "from_uid": (["alice", "", None, "é\u2028\u200b", " a b "], NAMES),
    "channel_id": (["team"], ["bob", "alice@bob", "bob@carol", "@", "info", "nowhere", *NAMES]),
    "channel_type": ([2], [1, 0, None, *NUMBERS]),
    "payload": ([HELLO, "YQ=="], ["", "YQ", "-_8=", "%%%", "é", "Y Q = =", None, {"type": 1}, 7]),
    "client_msg_no": (["n1", "n2", "", None, "é\u2028"], NAMES),
    "expire": ([0, 60, None], NUMBERS),
    "subscribers": ([[], [""], None], [["alice"], "alice", [7]]),
    "is_stream": ([0, 1, True, None], SWITCHES),
    "header": (
        [{}, None, *({"red_dot": each, "no_persist": 1} for each in (0, 1, True, None))],
        [[], "x", *({"sync_once": each} for each in SWITCHES)],
    ),
    "whatever": ([None, [[]], {"a": NUMBERS}, "\ud800"], [10**30]),
}
bodies = st.fixed_dictionaries(
    {},
    optional={
        name: st.sampled_from([*good * 20, *odd])  # so that a third of all is a yes
        for name, (good, odd) in FIELDS.items()
    },
).map(lambda changes: {**SEND, **changes})
texts = st.builds(
    lambda body, ascii_only, indent: json.dumps(body, ensure_ascii=ascii_only, indent=indent),
    bodies, st.booleans(), st.sampled_from([None, 1]),
)  # fmt: skip
contents = st.one_of(
    texts.map(lambda text: text.encode("utf-8", "surrogatepass")),
    texts.map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.builds(
        lambda text, coding: text.encode(coding, "surrogatepass"),
        texts, st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"]),
    ),
    st.builds(
        lambda text, at, junk: text[: at % len(text)].encode("utf-8", "surrogatepass") + junk
        + text[at % len(text) :].encode("utf-8", "surrogatepass"),
        texts, st.integers(0), st.sampled_from([b",", b'"', b"\xff", b"\x00", b" ", b"1", b"\\u"]),
    ),
)  # fmt: skip
calls = st.builds(
    lambda content, at, **said: Call([content[:at], content[at:]] if at else [content], **said),
    contents,
    st.sampled_from([0, 0, 1, 30]),
    headers=st.lists(
        st.sampled_from([
            (b"accept-language", b"de"), (b"content-type", b"application/x-www-form-urlencoded"),
            (b"content-type", b"text/plain; charset=utf-16"), (b"accept", b"text/html"),
            (b"x-real-ip", b"10.0.0.1"),
        ]),
        max_size=2,
    ),
    token=st.sampled_from([API_TOKEN.encode()] * 9 + [None, b"wrong"]),
    length=st.sampled_from([RIGHT] * 9 + [None, b"0", b"-1", b"x"]),
    host=st.sampled_from([b"127.0.0.1"] * 9 + [b"evil.example"]),
)  # fmt: skip


@examples(max_examples=200, suppress_health_check=list(HealthCheck))
@given(call=calls)
async def test_whatever_is_said_both_ways_answer_the_same(ways, call):
    await in_thread(services.save_channel, ChannelKey(7, "info"))
    ways.drafts.clear()
    ways.through_django = 0
    mine, theirs = await ways.ask_both(call)
    assert mine.masked == theirs.masked
    is_usual = call.length in (RIGHT, None) and b"accept-language" not in dict(call.headers)
    if mine.status == 200 and is_usual:
        assert ways.through_django == 0
    drafts = [masked(draft) for draft in ways.drafts]
    assert drafts[: len(drafts) // 2] == drafts[len(drafts) // 2 :]
    if drafts and drafts[0].client_msg_no != "made up" and not drafts[0].no_persist:
        assert mine == theirs  # the second is told what the first was


# --- who goes, and what ends ----------------------------------------------------------------------


@pytest.mark.parametrize("cut", [json.dumps(SEND).encode()[:20], json.dumps(SEND).encode()])
async def test_caller_that_goes_before_the_end_of_the_body_has_sent_nothing(ways, cut):
    async def receive() -> dict[str, Any]:
        return events.pop(0)

    for way in (ways.direct, django_application):
        events: list[dict[str, Any]] = [
            {"type": "http.request", "body": cut, "more_body": True},
            {"type": "http.disconnect"},
        ]
        answers: list[Any] = []
        await way(saying(b"", length=None).scope, receive, answers.append)
        assert (events, answers) == ([], [])
    assert ways.drafts == []


async def test_of_a_body_that_is_too_large_no_more_is_kept_than_fits():
    taken, kept = 0, []

    async def receive() -> dict[str, Any]:
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": b"x" * (1 << 16), "more_body": taken < 50}

    async def django(scope: Any, receive: Any, send: Any) -> None:
        kept.append(taken)
        while (await receive())["more_body"]:
            pass

    await DirectSend(django, PATH)(saying(b"").scope, receive, kept.append)
    assert (kept, taken) == ([LARGEST // (1 << 16) + 1], 50)


async def test_message_of_a_caller_that_goes_after_the_body_is_stored(ways):
    await ways.ask(saying({**SEND, "client_msg_no": "n1"}, stays=False))
    assert await in_thread(Message.objects.filter(client_msg_no="n1").count) == 1


async def test_caller_that_is_cancelled_disturbs_nobody(ways, monkeypatch):
    """daphne does that to those who have gone."""
    append, may_append = ways.node.database.append, asyncio.Event()

    async def append_later(*args: Any) -> Any:
        await may_append.wait()
        return await append(*args)

    monkeypatch.setattr(ways.node.database, "append", append_later)
    calls = [saying({**SEND, "client_msg_no": f"n{number}"}) for number in range(20)]
    tasks = [asyncio.create_task(ways.ask(call)) for call in calls]
    await eventually(lambda: len(ways.drafts) == 20, "all have come to the log")
    tasks[3].cancel()
    may_append.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(each, Answer) and each.status == 200 for each in answers].count(False) == 1
    assert await in_thread(Message.objects.filter(client_msg_no__startswith="n").count) == 20


async def test_while_the_node_drains_its_log_takes_what_comes(ways):
    ways.node.draining = True
    mine, theirs = await ways.ask_both(saying(SEND))
    assert mine.masked == theirs.masked
    assert (mine.status, ways.through_django) == (200, 0)


async def test_when_the_node_ends_the_view_appends(ways):
    ways.node.stopping = True
    mine, theirs = await ways.ask_both(saying(SEND))
    ways.node.stopping = False
    assert mine.masked == theirs.masked
    assert (mine.status, ways.through_django, ways.drafts) == (200, 1, [])
    assert await in_thread(Message.objects.count) == 3


async def test_without_a_node_the_view_appends(ways, monkeypatch):
    monkeypatch.setattr(direct.node, "current_node", lambda: None)
    assert (await ways.ask(saying(SEND))).status == 200
    assert (ways.through_django, ways.drafts) == (1, [])


async def test_in_another_loop_than_the_node_s_the_view_appends(ways):
    answer = await asyncio.to_thread(asyncio.run, ways.ask(saying(SEND)))
    assert (answer.status, ways.through_django, len(ways.drafts)) == (200, 1, 1)


async def test_what_a_log_that_stops_refuses_is_told(ways):
    ways.node.log._stopping = True
    mine, theirs = await ways.ask_both(saying(SEND))
    ways.node.log._stopping = False
    assert mine.masked == theirs.masked
    assert (mine.status, mine.json["reason"]) == (400, Reason.SYSTEM_ERROR)


async def test_full_queue_is_told_as_by_the_view(ways, settings):
    settings.MESSAGING = {"LOG_QUEUE": 1}
    ways.node.log._count = 1
    mine, theirs = await ways.ask_both(saying(SEND))
    ways.node.log._count = 0
    assert mine.masked == theirs.masked
    assert (mine.status, mine.json["reason"]) == (400, Reason.RATE_LIMIT)


async def test_database_that_does_not_say_what_exists_is_asked_by_the_view(
    ways, monkeypatch, caplog
):
    def fail(keys: Any) -> Any:
        raise OperationalError("the connection is gone")

    monkeypatch.setattr(direct, "existing", fail)
    caplog.clear()
    answers = await asyncio.gather(*(ways.ask(saying(SEND)) for _ in range(10)))
    assert [answer.status for answer in answers] == [200] * 10
    assert ways.through_django == 10
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


async def test_channel_that_is_gone_is_not_made_again(ways):
    """By somebody's SQL: the log would make a channel of a trusted message that names none."""
    await in_thread(services.save_channel, ChannelKey(2, "short"))
    call = saying({**SEND, "channel_id": "short", "header": {"no_persist": 1}})
    assert (await ways.ask(call)).status == 200
    await in_thread(Channel.objects.filter(channel_id="short").delete)
    assert (await ways.ask(call)).json["reason"] == Reason.CHANNEL_NOT_EXIST
    assert not await in_thread(Channel.objects.filter(channel_id="short").exists)


# --- where it stands ------------------------------------------------------------------------------


def test_it_stands_in_front_of_this_project():
    assert isinstance(application.application_mapping["http"], DirectSend)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MIDDLEWARE", ["theirs.Middleware"]),
        ("SECURE_SSL_REDIRECT", True),
        ("PREPEND_WWW", True),
        ("DISALLOWED_USER_AGENTS", [re.compile("bot")]),
    ],
)
def test_it_does_not_where_others_have_a_say(settings, name, value):
    setattr(settings, name, value)
    assert in_front_of(django_application, PATH) is django_application


@pytest.mark.parametrize("kind", ["serve", "daphne"])
async def test_servers_answer_alike_in_front_and_through_django(kind):
    with ServerProcess(kind) as server:
        server.make_group("team", "alice")
        server.make_user("alice")
        async with Peer(server.url, "alice") as alice:  # under daphne the node comes with her
            for number in range(3):
                body = {**SEND, "from_uid": "bob", "client_msg_no": f"n{number}"}
                mine = await asyncio.to_thread(server.client.post, PATH, json=body)
                theirs = await asyncio.to_thread(server.client.post, f"{PATH}?view", json=body)
                assert (mine.status_code, mine.content) == (200, theirs.content)
                names = [name for name, _ in mine.headers.raw]
                assert names == [name for name, _ in theirs.headers.raw]
                drop = {"date"}
                assert {k: v for k, v in mine.headers.items() if k not in drop} == {
                    k: v for k, v in theirs.headers.items() if k not in drop
                }
            pieces = (json.dumps(SEND).encode()[at : at + 9] for at in range(0, 200, 9))
            chunked = await asyncio.to_thread(lambda: server.client.post(PATH, content=pieces))
            assert chunked.status_code == 200
            for _ in range(4):
                await alice.until_heard("team", "hello")
        assert "Traceback" not in server.log_text()
