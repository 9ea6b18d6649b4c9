"""Frames that cannot be taken, each with the fault that it is: written by hand, not computed."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from messaging.protocol.faults import Fault
from messaging.protocol.jsonrpc import CONCATENATED

METHODS = ("connect", "send", "recvack", "ping", "disconnect", "subscribe", "unsubscribe")
LIMIT = 1 << 20
"""Bytes of the largest frame."""


@dataclass(frozen=True)
class BadFrame:
    """A frame, its fault, and the id that the answer bears (None: it had none that can be read)."""

    fault: Fault
    frame: str | bytes
    request_id: str | None = None

    def __repr__(self) -> str:
        return f"{self.fault.name} {self.frame[:100]!r} ({len(self.frame)} long)"

    def answer(self) -> dict[str, Any]:
        """The error object that an open session gets for it."""
        error = {"code": self.fault.reason.value, "message": self.fault.text}
        named = {} if self.request_id is None else {"id": self.request_id}
        return {"jsonrpc": "2.0", **named, "error": error}


def request(method: Any, params: Any = None, **members: Any) -> str:
    """A request's frame, its id "7" unless another is given."""
    return json.dumps({"id": "7", "method": method, "params": params, **members})


def notification(method: Any, params: Any = None) -> str:
    """A notification's frame."""
    return json.dumps({"method": method, "params": params})


def send(**members: Any) -> str:
    """The frame of a `send` that is fine but for `members`."""
    params = {"channelId": "team", "channelType": 2, "payload": "aGk=", **members}
    return request("send", params)


def connect(**members: Any) -> str:
    """The frame of a `connect` that is fine but for `members`."""
    return request("connect", {"uid": "mallory", "token": "t", **members})


def position(**members: Any) -> dict[str, Any]:
    """A position that is fine but for `members`."""
    return {"channelId": "team", "channelType": 2, "messageSeq": 7, **members}


def resuming(**members: Any) -> str:
    """The frame of a `connect` whose only position is fine but for `members`."""
    return connect(positions=[position(**members)])


def bad(fault: Fault, *frames: str | bytes, request_id: str | None = None) -> list[BadFrame]:
    """These frames, all with the same fault."""
    return [BadFrame(fault, frame, request_id) for frame in frames]


BAD_FRAMES = [
    *bad(
        Fault.NOT_JSON, "", b"", "  \n", "no", "{", '{"id":"7","method":"ping"', "\ufeff{}",
        "\u00a0{}", b'\xef\xbb\xbf{"id":"7","method":"ping"}', b"\x00\x01\x02",
        b'{"id":"\xff","method":"ping"}', '{"id":"\\ud800","method":"ping"}',
        '{"id":"7","method":"ping","params":{"a":NaN}}', '{"id":"7","a":1e400}',
        '{"id":"7","result":' + "9" * 5_000 + "}", "{'id':'7'}", '{"id":"7","method":"ping",}',
        '{"a":"' + "x" * (LIMIT - 6),
    ),
    *bad(Fault.NOT_OBJECT, "[]", "null", "1", '"ping"', f"[{request('ping')}]", "true"),
    *bad(
        Fault.TOO_DEEP, "[" * 50_000, "[" * LIMIT, '{"a":' * 50_000 + "1" + "}" * 50_000,
        "[" * (LIMIT // 2) + "]" * (LIMIT // 2),
        '{"id":"7","result":1}' + "[" * 100_000,
    ),
    *bad(
        Fault.TOO_MANY, '{"id":"7","result":1}' * 101,
        '{"id":"7","result":1}' * (CONCATENATED // 21),
    ),
    *bad(Fault.NOT_JSON, '{"id":"7","result":1}' * (LIMIT // 21)),
    *bad(
        Fault.BAD_ID, request("ping", id=1), request("ping", id=None), request("ping", id=""),
        request("ping", id=True), request("ping", id=["7"]), request("ping", id="i" * 101),
        request("ping", id="7\x00"), request("ping", id="\x7f"), '{"id":1,"result":1}',
    ),
    *bad(
        Fault.BAD_VERSION, request("ping", jsonrpc="1.0"), request("ping", jsonrpc=2.0),
        request("ping", jsonrpc=None), request("ping", jsonrpc=["2.0"]), request_id="7",
    ),
    *bad(
        Fault.UNKNOWN_METHOD, request("pong"), request("Ping"), request("ping\x00"), request(1),
        request(["ping"]), request({}), request(None), '{"id":"7"}', request("recv"), request(""),
        request_id="7",
    ),
    *bad(Fault.UNKNOWN_METHOD, "{}", notification("recv"), '{"result":1}', '{"params":{}}'),
    *bad(Fault.NOT_A_NOTIFICATION, *(
        json.dumps({"method": method, "params": json.loads(frame)["params"]})
        for method, frame in (("send", send()), ("ping", request("ping")))
    )),
    *bad(Fault.NOT_A_REQUEST, request("recvack", {"messageId": "1"}), request_id="7"),
    *bad(
        Fault.BAD_PARAMS, request("send"), request("send", []), request("send", "x"),
        request("send", 0), request("connect", False), request("ping", []), request("ping", 0),
        request("ping", ""), request("disconnect", []), request("disconnect", 0),
        request("disconnect", {"reason": 1}), request("disconnect", {"reasonCode": 256}),
        send(channelType="2"), send(channelType=True), send(channelType=2.0),
        send(channelType=-1), send(channelType=1 << 40), send(clientMsgNo=1), send(topic=[]),
        send(expire=-1), send(expire=1 << 32), send(expire="1"), send(header=[]),
        send(header={"redDot": 1}), send(header={"DUP": "yes"}), send(setting="topic"),
        send(setting={"topic": 1}), connect(version=256), connect(clientTimestamp=1 << 63),
        connect(clientTimestamp=0.5), connect(token=1), connect(deviceFlag=None, deviceId={}),
        request_id="7",
    ),
    *bad(
        Fault.BAD_PARAMS, notification("recvack"), notification("recvack", {}),
        notification("recvack", {"messageId": ""}), notification("recvack", {"messageId": "-1"}),
        notification("recvack", {"messageId": "1.0"}), notification("recvack", {"messageId": "٣"}),
        notification("recvack", {"messageId": str(1 << 63)}),
        notification("recvack", {"messageId": "0" * 20 + "1"}),
        notification("recvack", {"messageId": "1" * 100_000}),
        notification("recvack", {"messageId": 1.0}), notification("recvack", {"messageId": True}),
        notification("recvack", {"messageId": "1", "messageSeq": 1 << 64}),
        notification("recvack", {"messageId": "1", "messageSeq": "1"}),
    ),
    *bad(
        Fault.BAD_TEXT, send(clientMsgNo="n" * 101), send(clientMsgNo="\x00"),
        send(topic="t" * 256), send(topic="a\nb"), connect(token="t" * 1_001),
        connect(token="\x1b"), connect(deviceId="d" * 101),
        request("disconnect", {"reason": "\x85"}), request_id="7",
    ),
    *bad(
        Fault.BAD_POSITIONS, connect(positions={}), connect(positions="team"), connect(positions=7),
        connect(positions=[None]), connect(positions=["team"]), connect(positions=[[]]),
        connect(positions=[position()] * 2),
        connect(positions=[position(messageSeq=1), position(messageSeq=2)]),
        connect(positions=[position(channelId=f"c{number}") for number in range(1_001)]),
        request_id="7",
    ),
    *bad(
        Fault.BAD_PARAMS, resuming(messageSeq=None), resuming(messageSeq="7"),
        resuming(messageSeq=-1), resuming(messageSeq=1 << 63), resuming(messageSeq=7.0),
        resuming(messageSeq=True), resuming(channelType="2"), request_id="7",
    ),
    *bad(
        Fault.BAD_CHANNEL_ID, resuming(channelId=""), resuming(channelId=None),
        resuming(channelId="a@b"), resuming(channelId="bob@mallory", channelType=1),
        connect(positions=[position(), position(channelId="#")]), request_id="7",
    ),
    *bad(
        Fault.BAD_CHANNEL_TYPE, connect(positions=[{}]), resuming(channelType=0),
        resuming(channelType=13), request_id="7",
    ),
    *bad(
        Fault.BAD_UID, connect(uid=""), connect(uid=" \t"), connect(uid="a@b"), connect(uid="a#"),
        connect(uid="&"), connect(uid="u" * 101), connect(uid=7), connect(uid=None),
        connect(uid="a\x00"), request("connect", {}), request_id="7",
    ),
    *bad(
        Fault.BAD_DEVICE, connect(deviceFlag=3), connect(deviceFlag=98), connect(deviceFlag=255),
        connect(device_flag=5), request_id="7",
    ),
    *bad(
        Fault.BAD_CHANNEL_ID, send(channelId=""), send(channelId=None), send(channelId=7),
        send(channelId="a\x00"), send(channelId="a@b"), send(channelId="#"),
        send(channelId="c" * 202),
        send(channelId="a@b@c", channelType=1), send(channelId="@", channelType=1),
        send(channelId="a@", channelType=1), send(channelId=" ", channelType=1),
        send(channelId="u" * 101, channelType=1), send(channelId="a&b", channelType=1),
        request_id="7",
    ),
    *bad(
        Fault.BAD_CHANNEL_TYPE, send(channelType=0), send(channelType=13), send(channelType=255),
        request("send", {"channelId": "team", "payload": "aGk="}), request_id="7",
    ),
    *bad(
        Fault.BAD_PAYLOAD, send(payload=None), send(payload=""), send(payload="hello!"),
        send(payload="aGk"), send(payload="aGk=\n"), send(payload="aG-_"), send(payload=" "),
        send(payload="é"), send(payload="NaN"), send(payload="[" * 100_000),
        send(payload=base64.b64encode(b"x" * 65_537).decode()), send(payload=[0] * 40_000),
        send(payload="A" * (LIMIT - 200)),
        request_id="7",
    ),
    *bad(Fault.NOT_SERVED, request("subscribe", {}), request("unsubscribe"), request_id="7"),
    *bad(Fault.NOT_SERVED, notification("subscribe", {"channelId": "team", "channelType": 2})),
    *bad(Fault.CONNECTED_ALREADY, connect(), request_id="7"),
]  # fmt: skip
"""Every fault, most of them several times. CONNECTED_ALREADY is one in an open session only."""


# --- generated -----------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
ids = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=100)
floats = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | st.integers() | floats | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
objects = st.dictionaries(texts, values, max_size=4)
no_strings = st.none() | st.booleans() | st.integers() | st.lists(scalars, max_size=3) | objects
no_objects = st.booleans() | st.integers() | texts | st.lists(values, max_size=3)
controls = st.characters(categories=["Cc"])
sizes = st.integers(50_000, LIMIT // 8)

Build = Callable[..., str | bytes]


def frames(fault: Fault, build: Build, *parts: st.SearchStrategy[Any]) -> Any:
    """Frames that are built of `parts`, all with this fault and no id to answer to."""
    return st.builds(lambda *drawn: BadFrame(fault, build(*drawn)), *parts)


def requests(fault: Fault, build: Build, *parts: st.SearchStrategy[Any]) -> Any:
    """Requests with a good id, built of it and `parts`, all with this fault."""
    return st.builds(lambda name, *drawn: BadFrame(fault, build(name, *drawn), name), ids, *parts)


def truncated(name: str, params: dict[str, Any], cut: int) -> str:
    """A frame that breaks off before its end."""
    whole = request("ping", params, id=name)
    return whole[: max(1, len(whole) - 1 - cut)]


def sends(fault: Fault, member: str, wrong: Any, **others: Any) -> Any:
    """`send` requests of which one member is wrong."""

    def build(name: str, value: Any) -> str:
        params = {"channelId": "team", "channelType": 2, "payload": "aGk=", **others}
        return request("send", {**params, member: value}, id=name)

    return requests(fault, build, wrong)


def connects(fault: Fault, member: str, wrong: Any) -> Any:
    """`connect` requests of which one member is wrong."""

    def build(name: str, value: Any) -> str:
        return request("connect", {"uid": "mallory", member: value}, id=name)

    return requests(fault, build, wrong)


bad_frames: st.SearchStrategy[BadFrame] = st.one_of(
    frames(Fault.NOT_JSON, lambda text: "!" + text, texts),
    frames(Fault.NOT_JSON, lambda data: b"\xff" + data, st.binary(max_size=60)),
    frames(Fault.NOT_JSON, truncated, ids, objects, st.integers(0, 60)),
    frames(Fault.NOT_JSON, lambda size: '{"a":"' + "x" * size, sizes),
    frames(Fault.NOT_JSON, lambda size: '{"id":"7","result":' + "9" * (size + 4_000) + "}", sizes),
    frames(Fault.NOT_OBJECT, json.dumps, no_objects),
    frames(Fault.TOO_DEEP, lambda size: "[" * size, sizes),
    frames(Fault.TOO_DEEP, lambda size: '{"a":' * size + "}" * size, sizes),
    frames(Fault.TOO_MANY, lambda name: json.dumps({"id": name, "error": {}}) * 101, ids),
    frames(Fault.BAD_ID, lambda name: request("ping", id=name), no_strings),
    frames(Fault.BAD_ID, lambda a, c, b: request("ping", id=a + c + b), texts, controls, texts),
    frames(Fault.UNKNOWN_METHOD, json.dumps, st.dictionaries(
        texts.filter(lambda key: key not in ("id", "method", "jsonrpc")), values, max_size=4
    )),
    requests(
        Fault.UNKNOWN_METHOD, lambda name, method: request(method, {}, id=name),
        texts.filter(lambda method: method not in METHODS) | no_strings,
    ),
    requests(
        Fault.BAD_VERSION, lambda name, version: request("ping", id=name, jsonrpc=version),
        values.filter(lambda version: version != "2.0"),
    ),
    requests(
        Fault.BAD_PARAMS, lambda name, method, params: request(method, params, id=name),
        st.sampled_from(["connect", "send", "ping", "disconnect"]), no_objects,
    ),
    requests(Fault.NOT_A_REQUEST, lambda name, params: request("recvack", params, id=name), values),
    frames(Fault.NOT_A_NOTIFICATION, lambda: notification("ping")),
    frames(
        Fault.BAD_PARAMS, lambda number: notification("recvack", {"messageId": number}),
        texts.filter(lambda text: not (text.isascii() and text.isdecimal())),
    ),
    connects(Fault.BAD_POSITIONS, "positions", no_objects.filter(
        lambda value: value != [] and not (isinstance(value, list) and isinstance(value[0], dict))
    )),
    connects(Fault.BAD_POSITIONS, "positions", st.integers(2, 50).map(
        lambda count: [position()] * count
    )),
    connects(Fault.BAD_UID, "uid", no_strings),
    connects(Fault.BAD_UID, "uid", st.builds("{}{}".format, texts, st.sampled_from("@#&"))),
    connects(Fault.BAD_DEVICE, "deviceFlag", st.integers(3, 98) | st.integers(100, (1 << 32) - 1)),
    sends(Fault.BAD_PARAMS, "channelType", texts | st.booleans() | floats),
    sends(Fault.BAD_PARAMS, "clientMsgNo", no_strings.filter(lambda value: value is not None)),
    sends(Fault.BAD_PARAMS, "header", no_objects),
    sends(Fault.BAD_PARAMS, "setting", no_objects),
    sends(Fault.BAD_PARAMS, "expire", texts | st.integers(max_value=-1)),
    sends(Fault.BAD_TEXT, "topic", st.builds("{}{}{}".format, texts, controls, texts)),
    sends(Fault.BAD_CHANNEL_ID, "channelId", no_strings),
    sends(Fault.BAD_CHANNEL_ID, "channelId", st.builds("{}{}".format, texts, controls)),
    sends(Fault.BAD_CHANNEL_ID, "channelId", st.builds("{}@".format, texts), channelType=1),
    sends(Fault.BAD_CHANNEL_TYPE, "channelType", st.integers(13, (1 << 32) - 1)),
    sends(Fault.BAD_PAYLOAD, "payload", st.builds("{}!{}".format, texts, texts).filter(
        lambda text: text.strip(" \t\r\n")[:1] not in ('"', "{", "[")
    )),
    sends(Fault.BAD_PAYLOAD, "payload", st.builds(lambda size: [0] * (65_536 + size), sizes)),
    requests(
        Fault.NOT_SERVED, lambda name, method, params: request(method, params, id=name),
        st.sampled_from(["subscribe", "unsubscribe"]), values,
    ),
)  # fmt: skip
