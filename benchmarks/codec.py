"""The binary protocol's codec and cipher: what a packet costs, next to JSON-RPC.

    python -m benchmarks.codec [--rounds 3] [--write] [--quick]

No server, no socket: one session's codec in a loop, in CPU time of this process, each packet in
turns in a shuffled order. With --write the figures go into docs/performance/codec.md, too. It takes
some ten seconds for three rounds.
"""

from __future__ import annotations

import json
import platform
import time
from base64 import b64encode
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from statistics import median

from cryptography.hazmat.primitives.ciphers import Cipher as BlockCipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

from benchmarks.report import Report, machine
from benchmarks.runs import ask, shuffled, spread
from messaging.protocol import jsonrpc, plain
from messaging.protocol.binary import SharedRecv
from messaging.protocol.cipher import agree, padding_of
from messaging.protocol.packets import Header, Pong, Recv, Send, SendAck
from tests.support.binary_client import session
from tests.support.server import ROOT

PAGE = ROOT / "docs" / "performance" / "codec.md"
PACKAGES = ("cryptography", "msgspec")
VERSION = 5
PAYLOAD_BYTES = 160
MESSAGE_ID = 1_900_000_000_000_000_001
CLIENT_MSG_NO = "0f8fad5bd9cb469fa16570867728950e_0_3"
WORTH = 20
"""Per cent of CPU that packing what is shared once has to save, or it is not worth its code."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One thing to do over and over. `cipher`: the part of it that only the cipher does; `jsonrpc`:
    the same in JSON-RPC."""

    name: str
    run: Callable[[], object]
    cipher: Callable[[], object] | None = None
    jsonrpc: Callable[[], object] | None = None


def packets() -> list[Cell]:
    """What comes and goes for each message."""
    codec, client = session(VERSION)
    cipher = codec.cipher
    assert cipher is not None
    frame = b'{"type":1,"content":""}'
    payload = frame[:-2] + b"x" * (PAYLOAD_BYTES - len(frame)) + frame[-2:]
    header = Header(red_dot=True)
    recv = Recv(MESSAGE_ID, 42, 1_700_000_001, "team-1234", 2, "alice", payload, CLIENT_MSG_NO,
                header)  # fmt: skip
    shared = SharedRecv.of(recv, VERSION)
    text = cipher.encrypt(payload)
    signed = shared.signed + text
    send, ack = client.send(7, "team-1234", 2, payload, CLIENT_MSG_NO, 2), SendAck("7", 1, 2)
    [expected] = codec.decode(send)
    assert isinstance(expected, Send)
    assert expected.payload == payload
    recvack = client.recvack(MESSAGE_ID, 42, 2)

    def seal() -> None:
        cipher.encrypt(payload)
        cipher.sign(signed)

    signed_padded = signed + shared.padding

    def seal_padded() -> None:
        cipher.encrypt_padded(shared.plain)
        cipher.sign_padded(signed_padded)

    def open_() -> None:
        cipher.sign(signed)
        cipher.decrypt(text)

    in_json = json_send(payload)
    return [
        Cell("encode RECV, for one", lambda: codec.encode(recv), seal,
             lambda: jsonrpc.encode(recv)),
        Cell("encode RECV, one of many", lambda: codec.encode_shared(shared), seal_padded),
        Cell("encode SENDACK", lambda: codec.encode(ack), None, lambda: jsonrpc.encode(ack)),
        Cell("encode PONG", lambda: codec.encode(Pong("")), None,
             lambda: jsonrpc.encode(Pong("1"))),
        Cell("decode SEND", lambda: codec.decode(send), open_, calling(in_json)),
        Cell("decode SEND, shortcut", lambda: codec.decode_plain(send), open_,
             lambda: plain.decode(in_json)),
        Cell("decode RECVACK", lambda: codec.decode(recvack), None, calling(JSON_ACK)),
        Cell("decode RECVACK, shortcut", lambda: codec.decode_plain(recvack), None,
             lambda: plain.decode(JSON_ACK)),
        Cell("decode PING", lambda: codec.decode(b"\x70"), None,
             calling(b'{"method":"ping","id":"1"}')),
    ]  # fmt: skip


JSON_ACK = json.dumps(
    {"method": "recvack", "params": {"messageId": str(MESSAGE_ID), "messageSeq": 42}}
).encode()


def json_send(payload: bytes) -> bytes:
    """The same message in JSON-RPC."""
    params = {"channelId": "team-1234", "channelType": 2, "clientMsgNo": CLIENT_MSG_NO,
              "header": {"redDot": True}, "payload": b64encode(payload).decode()}  # fmt: skip
    return json.dumps({"method": "send", "id": "7", "params": params}).encode()


def calling(frame: bytes) -> Callable[[], object]:
    """Reading this frame of JSON-RPC."""
    return lambda: jsonrpc.decode(frame)


def ciphers() -> list[Cell]:
    """The cipher alone, with its contexts kept and made anew."""
    codec, client = session(VERSION)
    cipher, plain = codec.cipher, b"x" * PAYLOAD_BYTES
    assert cipher is not None
    text = cipher.encrypt(plain)
    padded = plain + padding_of(len(plain))
    anew = BlockCipher(AES(b"0123456789abcdef"), CBC(b"0123456789abcdef"))
    key = client.key
    return [
        Cell("encrypt, context kept", lambda: cipher.encrypt(plain)),
        Cell("a context for it alone", lambda: anew.encryptor().update(padded)),
        Cell("decrypt, context kept", lambda: cipher.decrypt(text)),
        Cell("a context for it alone, to decrypt", lambda: anew.decryptor().update(padded)),
        Cell("sign", lambda: cipher.sign(plain)),
        Cell("agree on keys", lambda: agree(key)),
    ]


def micros(run: Callable[[], object], seconds: float) -> float:
    """CPU of one call, µs: as many calls as take about so long."""
    calls = 1
    while (spent := cpu_of(run, calls)) < seconds / 4:
        calls *= 2
    calls = max(1, int(calls * seconds / spent))
    return cpu_of(run, calls) / calls * 1e6


def cpu_of(run: Callable[[], object], calls: int) -> float:
    """CPU of so many calls, seconds."""
    began = time.process_time()
    for _ in range(calls):
        run()
    return time.process_time() - began


Figures = dict[str, list[float]]
"""µs of each round, by name; of a cipher, its share. What is compared is measured in one go."""


def measure(cells: list[Cell], rounds: int, seconds: float) -> Figures:
    """Every cell in every round, with what it is compared to."""
    figures: Figures = defaultdict(list)
    for _, cell in shuffled(cells, rounds):
        took = micros(cell.run, seconds)
        figures[cell.name].append(took)
        if cell.cipher is not None:
            figures[f"{cell.name}/cipher"].append(micros(cell.cipher, seconds) / took)
        if cell.jsonrpc is not None:
            figures[f"{cell.name}/jsonrpc"].append(micros(cell.jsonrpc, seconds))
    return figures


def show(report: Report, cells: list[Cell], figures: Figures) -> None:
    """The table of the packets."""

    def row(cell: Cell) -> tuple[str, ...]:
        own, cipher = figures[cell.name], figures.get(f"{cell.name}/cipher")
        other = figures.get(f"{cell.name}/jsonrpc")
        return (
            cell.name,
            f"{1e6 / median(own):,.0f}",
            spread(own, ".2f"),
            f"{median(cipher):.0%}" if cipher else "–",
            spread(other, ".2f") if other else "–",
        )

    titles = ("packet", "a second", "CPU, µs", "of it the cipher", "JSON-RPC, µs")
    report.table(titles, [row(cell) for cell in cells])
    alone, shared = (median(figures[cell.name]) for cell in cells[:2])
    saved = (1 - shared / alone) * 100
    verdict = "kept" if saved >= WORTH else "NOT KEPT"
    report.say("")
    report.say(f"* Packing what many share once saves {saved:.0f} % (at least {WORTH}): {verdict}")


def main() -> None:
    """Run and print all of it."""
    asked = ask(__doc__ or "", PAGE.name)
    seconds = 0.005 if asked.quick else 0.1
    report = Report(HEAD)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    report.say(f"{machine()}, Python {platform.python_version()}, {versions}.")
    cells, alone = packets(), ciphers()
    show(report, cells, measure(cells, asked.rounds, seconds))
    report.say("\nThe cipher by itself, with as many bytes:")
    figures = measure(alone, asked.rounds, seconds)
    report.table(
        ("what", "a second", "CPU, µs"),
        [
            (cell.name, f"{1e6 / median(figures[cell.name]):,.0f}",
             spread(figures[cell.name], ".2f"))
            for cell in alone
        ],
    )  # fmt: skip
    if asked.write:
        report.save(PAGE, MEANING)


HEAD = f"""\
# What a packet of the binary protocol costs

The codec and the cipher of one session of version {VERSION}, in a loop, without server or socket.
`python -m benchmarks.codec --write` has written this page. Each figure is the median of the rounds,
with the smallest and the largest, in CPU time of the process.

{PAYLOAD_BYTES} bytes of text in SEND and RECV, a `clientMsgNo` of {len(CLIENT_MSG_NO)} characters.
"""

MEANING = """
## What it means

Each session has a key of its own, so the payload of a RECV is encrypted for each receiver, and so
is the text of which its `msgKey` is the hash. What does not depend on the key is packed once for
everybody who speaks the same version and is shown the same channel id: `SharedRecv`. What is left
for each is mostly the cipher.

The cipher keeps one context a direction for the whole session. Making one for a message takes
longer than what it then does; how a context that is kept begins anew with the same IV is told in
`messaging/protocol/cipher.py`. The rows with a context for it alone have neither padding nor
base64, and still take longer.

A RECVACK comes for each delivery, and a SEND for each message. One that is all there is in its
frame is read by a shortcut: of a SEND in JSON-RPC it asks for all members at a stroke, where the
decoder asks for each by its names; of a binary one nothing is left out.
"""


if __name__ == "__main__":
    main()
