"""docs/reference/wire.md says what the code does."""

import json
import re
from pathlib import Path

import pytest

from messaging.conf import MessagingConf
from messaging.consumers import FIRST_FRAME_BYTES, POSITION_BYTES
from messaging.permissions import OPEN_TYPES
from messaging.protocol import bodies, jsonrpc
from messaging.protocol.close_codes import CloseCode
from messaging.protocol.faults import Fault
from messaging.protocol.fields import TOKEN_LENGTH
from messaging.protocol.jsonrpc import decode, encode
from messaging.protocol.packets import (
    ConnAck,
    DisconnectNotice,
    ErrorReply,
    Event,
    Header,
    Pong,
    Recv,
    ResetReason,
    Resume,
    Resumed,
    SendAck,
)
from messaging.protocol.reasons import Reason
from subscriptions import names
from subscriptions.bindings import CARRIED_TYPES, ChannelType

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "reference" / "wire.md").read_text()
EXAMPLES = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)


def table(heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its head."""
    section = re.split(r"^#+ ", PAGE.partition(f"## {heading}\n")[2], flags=re.MULTILINE)[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:1] == "|"]
    assert rows, heading
    return rows[2:]


def test_fault_table_is_the_codes():
    assert table("7. Bad frames") == [
        [fault.name, str(fault.reason.value), fault.text, "ends, 1008" if fault.closes else "stays"]
        for fault in Fault
    ]


def test_close_code_table_is_the_codes():
    assert table("8. Close codes") == [
        [str(code.value), code.reason, "yes" if code.come_back else "no"] for code in CloseCode
    ]


def test_channel_type_table_is_the_codes():
    assert table("5. Channel types") == [
        [str(kind.value), kind.name.lower().replace("_", " "), served(kind)] for kind in ChannelType
    ]


def served(kind: ChannelType) -> str:
    if kind not in CARRIED_TYPES:
        return "answers 23"
    if kind in OPEN_TYPES:
        return "by anybody, if there is such a channel"
    return {
        ChannelType.PERSON: "as a person channel",
        ChannelType.VISITORS: "by the visitor, whose uid is its id; by others as a group channel",
        ChannelType.AGENT: "by the two whose uids are its id, `uid@agent`",
    }.get(kind, "as a group channel")


def test_reason_table_has_exactly_those_that_are_used():
    sources = [path for path in (ROOT / "messaging").rglob("*.py") if path.name != "reasons.py"]
    used = {
        Reason[name]
        for path in sources
        for name in re.findall(r"\bReason\.([A-Z_]+)", path.read_text())
    }
    assert [row[:2] for row in table("6. Reason codes")] == [
        [str(reason.value), reason.wire_name] for reason in sorted(used)
    ]


def test_limits_table_is_the_codes():
    conf = MessagingConf()
    assert {what: limit for what, limit, _ in table("9. Limits")} == {
        "time until the first frame": f"{conf.first_frame_seconds:g} s",
        "silence of the client": f"{conf.idle_seconds:g} s",
        "first frame": f"{FIRST_FRAME_BYTES} bytes, and {POSITION_BYTES} for each position that a"
        " `connect` may have",
        "frame": f"{conf.frame_bytes} bytes",
        "objects in a frame": f"{jsonrpc.OBJECTS}",
        "payload": f"{bodies.PAYLOAD_BYTES} bytes",
        "levels of a payload sent as an object": f"{bodies.DEPTH}",
        "uid": f"{names.UID_LENGTH} characters",
        "channel id": f"{names.CHANNEL_ID_LENGTH} characters",
        "`clientMsgNo`, `deviceId`, `id`": f"{jsonrpc.TEXT_LENGTH} characters",
        "`topic`": f"{jsonrpc.TOPIC_LENGTH} characters",
        "`token`": f"{TOKEN_LENGTH} characters",
        "positions in a `connect`": f"{conf.resume_positions}",
        "messages that positions bring, all together": f"{conf.lag_messages}",
        "sends of a session that wait to be stored": f"{conf.in_flight}",
        "frames that wait for a slow reader": f"{conf.outbox_bytes} bytes",
        "messages that a reader may lag behind": f"{conf.lag_messages}",
        "messages kept for sending again": f"{conf.unacked}",
        "sending again": f"after {conf.resend_seconds:g} s, {conf.resends} times",
    }


def test_client_examples_are_understood():
    methods = [frame for frame in map(json.loads, EXAMPLES) if "jsonrpc" not in frame]
    assert [frame["method"] for frame in methods] == [
        "connect", "send", "recvack", "ping", "disconnect", "connect",
    ]  # fmt: skip
    assert all(decode(json.dumps(frame)) for frame in methods)


SERVER_PACKETS = [
    ErrorReply("2", Reason.SUBSCRIBER_NOT_EXIST),
    ConnAck("1", server_version=5, time_diff=12, node_id=1),
    SendAck("2", 1042, 7, Header(red_dot=True)),
    Pong("3"),
    Recv(
        1042, 7, 1764000000, "team", 2, "alice", b'{"type": 1, "content": "hi"}', "c-1",
        Header(red_dot=True),
    ),
    Event("e-1", "stream.delta", 1764000000000, '{"text":"h"}'),
    DisconnectNotice(Reason.CONNECT_KICK, "login in other device"),
    ConnAck("1", server_version=5, time_diff=0, node_id=1, positions=(
        Resumed("team", 2, Resume.GAP, 7, 8, 12),
        Resumed("bob", 1, Resume.OK, 4),
        Resumed("news", 2, Resume.RESET, 20, 3, 20, ResetReason.NOT_KEPT),
        Resumed("club", 2, Resume.RESET, reason=ResetReason.NOT_MEMBER),
    )),
]  # fmt: skip


def test_server_examples_are_what_is_sent():
    frames = [frame for frame in map(json.loads, EXAMPLES) if "jsonrpc" in frame]
    assert frames == [json.loads(encode(packet)) for packet in SERVER_PACKETS]


def test_resume_table_has_every_state_and_reason():
    rows = [row[:2] for row in table("10. Resuming")]
    assert {state.strip("`") for state, _ in rows} == set(Resume)
    assert [reason.strip("`") for _, reason in rows] == ["none", "none", *ResetReason]


@pytest.mark.parametrize("method", jsonrpc.READERS)
def test_every_method_has_its_heading(method):
    headings = [line for line in PAGE.splitlines() if line.startswith("### ")]
    assert any(f"`{method}`" in heading for heading in headings)


def test_links_within_the_page_lead_somewhere():
    headings = [line.lstrip("# ") for line in PAGE.splitlines() if line.startswith("#")]
    anchors = {re.sub(r"[^a-z0-9 -]", "", text.lower()).replace(" ", "-") for text in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= anchors
