"""Messages over the HTTP API: what a POST /message/send costs, in front of Django and through it.

    python -m benchmarks.rest [--rounds 3] [--write] [--quick]

Connections that are kept, each with one request under way, to 100 channels in turn with nobody
connected. Each round starts both servers anew, and goes both ways at each, all in a shuffled order.
With --write the figures go into docs/performance/rest.md, too. It takes some three minutes.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from base64 import b64encode
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import uvloop

from benchmarks.contenders import OURS, OURS_EMBEDDED, Running, Services, services
from benchmarks.report import Report
from benchmarks.runs import Bar, Clocks, Spent, ask, median_of, percentile, shuffled, spread_of
from tests.support.server import API_TOKEN, ROOT

PAGE = ROOT / "docs" / "performance" / "rest.md"
PACKAGES = ("django", "djangorestframework", "uvicorn", "uvloop", "httptools")
SERVERS = (OURS_EMBEDDED, OURS)
FRONT, VIEW = "in front of Django", "through the view"
PATHS = {FRONT: "/message/send", VIEW: "/message/send?view"}
"""A request with a query string is none of the plain ones."""
RATE, MICROS = 2_000, 500
"""At least so many messages a second with many under way, and at most so many µs of server CPU."""
SALT = os.urandom(4).hex()


@dataclass(frozen=True, slots=True)
class Size:
    """So many channels, requests under way, bytes of text in each, and seconds."""

    channels: int = 100
    in_flight: tuple[int, ...] = (1, 64)
    bytes: int = 160
    seconds: float = 4.0
    warm_up: float = 1.5

    def rooms(self) -> dict[str, list[str]]:
        """The channels, with a member each."""
        return {f"room{number}": ["alice"] for number in range(self.channels)}


QUICK = Size(channels=5, in_flight=(4,), seconds=0.3, warm_up=0.2)


@dataclass(frozen=True, slots=True)
class Cost:
    """What some requests cost; `milliseconds`: what each answer took."""

    milliseconds: list[float]
    spent: Spent

    @property
    def rate(self) -> float:
        """Messages a second."""
        return len(self.milliseconds) / self.spent.wall

    @property
    def micros(self) -> float:
        """Server CPU of a message, µs."""
        return self.of_message(self.spent.server)

    @property
    def p50(self) -> float:
        """Milliseconds until half of the callers had their answer."""
        return percentile(self.milliseconds, 50)

    @property
    def p99(self) -> float:
        """Milliseconds until 99 of 100 callers had their answer."""
        return percentile(self.milliseconds, 99)

    def of_message(self, seconds: float) -> float:
        """These seconds of CPU as µs a message."""
        return seconds / len(self.milliseconds) * 1e6


Results = dict[tuple[str, int, str], list[Cost]]
"""By the server's name, requests under way, and the way."""


# --- the load -----------------------------------------------------------------------------------


@dataclass
class Calls:
    """Requests of one kind, as many as fit into the time."""

    path: str
    until: float
    size: Size
    sent: int = 0
    milliseconds: list[float] = field(default_factory=list)

    def next(self) -> bytes | None:
        """The next request; None when the time is over."""
        if time.perf_counter() > self.until:
            return None
        self.sent += 1
        text = f"@{self.sent:012x}@".ljust(self.size.bytes, "x")
        payload = b64encode(b'{"type":1,"content":"%s"}' % text.encode()).decode()
        body = (
            '{"header":{"no_persist":0,"red_dot":1,"sync_once":0},"from_uid":"alice","channel_id":'
            f'"room{self.sent % self.size.channels}","channel_type":2,"payload":"{payload}",'
            f'"client_msg_no":"{SALT}{random.getrandbits(64):016x}"}}'
        )
        return (
            f"POST {self.path} HTTP/1.1\r\nhost: 127.0.0.1\r\ntoken: {API_TOKEN}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
        ).encode()


class Caller(asyncio.Protocol):
    """A connection that is kept: the next request goes out when the answer has come."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answer = b""
        self._began = 0.0
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        """Begin."""
        self._transport = transport
        self._go_on()

    def data_received(self, data: bytes) -> None:
        """Take an answer, perhaps in pieces; it has to be a yes."""
        self._answer += data
        head, _, body = self._answer.partition(b"\r\n\r\n")
        _, _, length = head.lower().partition(b"content-length: ")
        if not length or len(body) < int(length.partition(b"\r\n")[0]):
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(AssertionError(self._answer))
            return
        self._answer = b""
        self.calls.milliseconds.append((time.perf_counter() - self._began) * 1000)
        self._go_on()

    def connection_lost(self, error: Exception | None) -> None:
        """Nobody ought to be cut off."""
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the server closed a connection"))

    def _go_on(self) -> None:
        request = self.calls.next()
        if request is None:
            self.done.set_result(None)
            self._transport.close()
            return
        self._began = time.perf_counter()
        self._transport.write(request)


async def call(port: int, path: str, size: Size, seconds: float, in_flight: int) -> Calls:
    """Send for so long, always so many at once."""
    calls = Calls(path, time.perf_counter() + seconds, size)
    loop = asyncio.get_running_loop()
    opened = [
        loop.create_connection(lambda: Caller(calls), "127.0.0.1", port) for _ in range(in_flight)
    ]
    callers = [protocol for _, protocol in await asyncio.gather(*opened)]
    await asyncio.gather(*(caller.done for caller in callers))
    return calls


# --- the rounds ---------------------------------------------------------------------------------


async def measure(
    stack: Services, running: Running, size: Size, cells: Sequence[tuple[int, str]]
) -> list[Cost]:
    """Go through the cells at one server. Whatever was answered has to be in its database."""
    clocks, port = Clocks(stack, running), running.process.port
    costs, answered = [], 0
    for in_flight, way in cells:
        warm = await call(port, PATHS[way], size, size.warm_up, in_flight)
        before = clocks.read()
        calls = await call(port, PATHS[way], size, size.seconds, in_flight)
        costs.append(Cost(calls.milliseconds, clocks.read() - before))
        answered += warm.sent + calls.sent
    [(stored,)] = running.process.query("SELECT count(*) FROM wukongim_messaging_message")
    assert stored == answered, f"{answered} were answered, {stored} are stored"
    return costs


def run(report: Report, stack: Services, size: Size, rounds: int) -> Results:
    """Every server in every round, and at each every cell."""
    results: Results = defaultdict(list)
    cells = [(in_flight, way) for in_flight in size.in_flight for way in PATHS]
    for number, server in shuffled(SERVERS, rounds):
        mine = random.sample(cells, len(cells))
        with server.running(stack, size.rooms()) as running:
            costs = uvloop.run(measure(stack, running, size, mine))
        for (in_flight, way), cost in zip(mine, costs, strict=True):
            results[server.name, in_flight, way].append(cost)
            report.say(
                f"{number} {server.name:28} {in_flight:2} under way {way:18} {cost.rate:6,.0f}/s"
                f"  server {cost.micros:6,.0f} µs  load {cost.of_message(cost.spent.load):4,.0f} µs"
                f"  p50 {cost.p50:6.1f} p99 {cost.p99:6.1f} ms",
                keep=False,
            )
    return {
        (server.name, in_flight, way): results[server.name, in_flight, way]
        for server in SERVERS
        for in_flight, way in cells
    }


def show(report: Report, size: Size, results: Results) -> None:
    """The table, and whether the bars are kept."""
    report.table(
        ("server, requests under way, way", "messages a second", "server CPU, µs a message",
         "answered, p50 ms", "p99 ms", "PostgreSQL, µs", "load, µs"),
        [
            (
                f"{name}, {in_flight}, {way}",
                spread_of(costs, lambda cost: cost.rate),
                spread_of(costs, lambda cost: cost.micros),
                f"{median_of(costs, lambda cost: cost.p50):.1f}",
                spread_of(costs, lambda cost: cost.p99, ".1f"),
                f"{median_of(costs, lambda cost: cost.of_message(cost.spent.postgres)):,.0f}",
                f"{median_of(costs, lambda cost: cost.of_message(cost.spent.load)):,.0f}",
            )
            for (name, in_flight, way), costs in results.items()
        ],
    )  # fmt: skip
    report.say("")
    many = size.in_flight[-1]
    for server in SERVERS:
        front, view = results[server.name, many, FRONT], results[server.name, many, VIEW]
        rate, micros = (median_of(front, value) for value in (rate_of, micros_of))
        report.say(f"* {Bar(f'{server.name}: messages a second', rate, RATE, '', True)}")
        report.say(f"* {Bar(f'{server.name}: server CPU of a message', micros, MICROS, ' µs')}")
        report.say(
            f"* {server.name}: through the view a message takes"
            f" {median_of(view, micros_of) / micros:.1f} × the server's CPU"
        )


def rate_of(cost: Cost) -> float:
    """Messages a second."""
    return cost.rate


def micros_of(cost: Cost) -> float:
    """Server CPU of a message, µs."""
    return cost.micros


def main() -> None:
    """Run and print all of it."""
    asked = ask(__doc__ or "", PAGE.name)
    size = QUICK if asked.quick else Size()
    report = Report(HEAD.format(size=size))
    with services() as stack:
        report.introduce(stack, PACKAGES)
        show(report, size, run(report, stack, size, asked.rounds))
    if asked.write:
        report.save(PAGE, MEANING)


HEAD = """\
# What a message over the HTTP API costs

One `POST /message/send` with all that belongs to it: HTTP, JSON, the rules of its fields, the log's
transaction, which it shares with those that wait beside it, and the answer after the commit.
`python -m benchmarks.rest --write` has written this page. Each figure is the median of the rounds,
with the smallest and the largest. Whatever was answered was in the database at the end.

{size.bytes} bytes of text, a `client_msg_no` each, to {size.channels} channels in turn with nobody
connected. One `manage.py serve` has one core of its own; the load, PostgreSQL and Valkey share the
others. Through the view go the requests that are not plain: here those with a query string.
"""

MEANING = """
## What it means

A plain send is answered in front of Django, in the node's own event loop
([decision 31](../decisions/0031-a-plain-send-is-answered-in-front-of-django.md)). Through the view
each request takes a thread and a connection to the database of its own, only to hand its message to
that same loop.

With one request under way there is nobody to share a transaction with: each answer waits for a
commit of its own, and takes the server a batch of its own.
"""


if __name__ == "__main__":
    main()
