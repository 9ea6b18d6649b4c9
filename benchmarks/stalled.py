"""Readers that stop reading: what the others notice, and what the server keeps for them.

    python -m benchmarks.stalled [--rounds 3] [--write] [--quick]

One room of 2,000 readers and messages of 4 kB, one under way, which has arrived when all who read
have it. In one run all read; in the other one in a hundred stops for some fifteen seconds, less
than it takes until the server's pings give them up, and then reads on. Each round starts a server
anew for each of the two, in a shuffled order. With --write the figures go into
docs/performance/stalled.md, too. It takes some three minutes.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.contenders import OURS, Running, Services, services
from benchmarks.crowd import memory
from benchmarks.load import Crowd, Socket
from benchmarks.report import Report
from benchmarks.runs import (
    Bar,
    Clocks,
    Cost,
    allow_files,
    ask,
    cost_of,
    median_of,
    percentile,
    ratio,
    require_all,
    shuffled,
    spread_of,
)
from messaging.conf import MessagingConf
from messaging.outbox import PIECE
from tests.support.server import ROOT

PAGE = ROOT / "docs" / "performance" / "stalled.md"
PACKAGES = ("django", "channels", "channels-redis", "uvicorn", "uvloop", "picows")
ROOM = "room"
NOBODY, SOME = "all read", "1 % stalled"
VARIANTS = (NOBODY, SOME)
SLOWER = 1.2
"""99 of 100 deliveries to those who read take at most so many times as long beside stalled ones."""
RECEIVE, SEGMENT = 1 << 12, 1448
"""What a stalled reader's kernel keeps, bytes, and its segments: those of Ethernet. On the loopback
device with its own of 64 KiB the server's kernel would keep 4 MB for it, and the server nothing."""
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
CATCHING_UP = 60.0
"""Seconds in which those who read on have to have all, or to have been sent away."""


@dataclass(frozen=True, slots=True)
class Size:
    """So many readers, of whom so many stall, messages of so many bytes; seconds in which outboxes
    may fill, and that are measured. Both together stay under the 20 s between pings."""

    readers: int = 2_000
    stalled: int = 20
    bytes: int = 4_000
    filling: float = 11.0
    seconds: float = 6.0
    warm_up: float = 2.0


QUICK = Size(readers=100, stalled=4, seconds=2.0, warm_up=0.5)


@dataclass(frozen=True, slots=True)
class Result:
    """What a round showed. MiB: of the server before it and at its end, and of all TCP buffers in
    the kernel; `overflows`: times that an outbox was full; of those who stalled so many caught up,
    in so many seconds, and so many were sent away."""

    cost: Cost
    p50: float
    p99: float
    before: float
    after: float
    kernel: float
    overflows: float
    caught_up: int = 0
    seconds: float = 0.0
    sent_away: int = 0

    @property
    def grown(self) -> float:
        """MiB that the server took meanwhile."""
        return self.after - self.before


Results = dict[str, list[Result]]


# --- one run --------------------------------------------------------------------------------------


async def measure(size: Size, stalls: bool, running: Running, clocks: Clocks) -> Result:
    """Fill the outboxes of those who stall, measure those who read, and let the others read on."""
    crowd = Crowd(running.dialect, running.url)
    names = [(f"u{number}", ROOM) for number in range(size.readers + 1)]
    sender, *_ = await crowd.connect(names[: -size.stalled])
    require_all(await crowd.talk([sender], size.warm_up, 1, size.bytes))
    last = await crowd.connect(names[-size.stalled :], socket_factory=narrow)
    before, kernel = rss(running), kernel_buffers()
    stalled = stall(crowd, last) if stalls else []
    await fill(size, crowd, sender, running, len(stalled))
    cost = await cost_of(crowd, clocks, [sender], 1, size.bytes, size.seconds, 0, each_delay=True)
    after, kernel = rss(running), kernel_buffers() - kernel
    full = await overflows(running)
    began = time.perf_counter()
    sent_away = await read_on(crowd, sender, stalled)
    result = Result(
        cost, percentile(cost.heard.delays, 50), percentile(cost.heard.delays, 99), before, after,
        kernel, full, len(stalled) - sent_away, time.perf_counter() - began, sent_away,
    )  # fmt: skip
    await crowd.close()
    return result


async def fill(size: Size, crowd: Crowd, sender: Socket, running: Running, stalled: int) -> None:
    """Send until the outboxes of those who stall are full, if that can be before the pings."""
    began = time.perf_counter()
    while time.perf_counter() - began < size.filling and await overflows(running) < stalled:
        require_all(await crowd.talk([sender], 0.5, 1, size.bytes))


async def overflows(running: Running) -> float:
    """Times that an outbox was full."""
    return await asyncio.to_thread(running.metric, "wukongim_outbox_overflows_total")


def narrow(address: Any) -> socket.socket:
    """A socket as over a network, whose kernel keeps little for who does not read."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
    return found


def stall(crowd: Crowd, sockets: Sequence[Socket]) -> Sequence[Socket]:
    """These read no more, and nobody waits for them."""
    crowd.set_aside(sockets)
    for each in sockets:
        each.transport.underlying_transport.pause_reading()
    return sockets


async def read_on(crowd: Crowd, sender: Socket, stalled: Sequence[Socket]) -> int:
    """Have the stalled ones read on, until each has all or was sent away; returns how many were.
    Raises AssertionError where one of them has a hole, or something twice or out of order."""
    for each in stalled:
        if not each.gone:
            each.transport.underlying_transport.resume_reading()
    deadline = time.monotonic() + CATCHING_UP
    while behind := [each for each in stalled if not each.gone and each.lacks(sender)]:
        assert time.monotonic() < deadline, (
            f"{len(behind)} of {len(stalled)} lack messages, the first {behind[0].lacks(sender)}"
        )
        await asyncio.sleep(0.01)
    assert not any(each.missing for each in stalled), "one of them has a hole"
    faults = (crowd.repeated, crowd.out_of_order, crowd.leaked, crowd.gone)
    assert not any(faults), f"repeated, out of order, leaked, others gone: {faults}"
    return sum(each.gone for each in stalled)


def rss(running: Running) -> float:
    """MiB of the server."""
    return memory(running.pid)["Rss"] / 1024


def kernel_buffers() -> float:
    """MiB of all TCP sockets of the machine, in both directions."""
    (line,) = (
        line
        for line in Path("/proc/net/sockstat").read_text(encoding="ascii").splitlines()
        if line.startswith("TCP:")
    )
    words = line.split()
    return int(words[words.index("mem") + 1]) * PAGE_BYTES / 2**20


def run(report: Report, stack: Services, size: Size, rounds: int) -> Results:
    """Both in every round."""
    results: Results = defaultdict(list)
    rooms = {ROOM: [f"u{number}" for number in range(size.readers + 1)]}
    for number, variant in shuffled(VARIANTS, rounds):
        with OURS.running(stack, rooms) as running:
            clocks = Clocks(stack, running)
            result = uvloop.run(measure(size, variant == SOME, running, clocks))
        results[variant].append(result)
        report.say(f"{number} {variant:12} {line(result)}", keep=False)
    return {variant: results[variant] for variant in VARIANTS}


def line(result: Result) -> str:
    """A run, on the terminal."""
    return (
        f"{result.cost.rate:5.1f} msg/s, server {result.cost.delivery_micros:.1f} µs a delivery,"
        f" load {result.cost.of_delivery(result.cost.spent.load):.1f};"
        f" deliveries p50 {result.p50:.1f} p99 {result.p99:.1f} ms, the last of a message p99"
        f" {result.cost.heard_p99:.1f} ms; server {result.before:.1f} → {result.after:.1f} MiB,"
        f" kernel {result.kernel:+.1f} MiB; {result.overflows:.0f} overflows,"
        f" {result.caught_up} caught up in {result.seconds:.1f} s, {result.sent_away} sent away"
    )


# --- what is said of them -------------------------------------------------------------------------


def show(report: Report, size: Size, results: Results) -> None:
    """The table, and whether the bars are kept."""
    report.table(
        ("", "messages a second", "server CPU, µs a delivery", "PostgreSQL, µs", "load, µs",
         "a delivery, p50 ms", "p99 ms", "the last of a message, p99 ms", "server grew by, MiB",
         "kernel, MiB"),
        [(variant, *row(rounds)) for variant, rounds in results.items()],
    )  # fmt: skip
    some = results[SOME]
    bound = size.stalled * (MessagingConf().outbox_bytes + PIECE) / 2**20
    grown = max(each.grown for each in some)
    report.say("")
    for bar in (
        Bar("p99 beside stalled readers, against without", ratio(some, results[NOBODY], p99),
            SLOWER, " ×"),
        Bar(f"Memory for {size.stalled} stalled readers, at worst", grown, bound, " MiB"),
    ):  # fmt: skip
        report.say(f"* {bar}")
    report.say(
        f"* Of the stalled readers {sum(each.caught_up for each in some)} caught up, in"
        f" {max(each.seconds for each in some):.1f} s at most, and"
        f" {sum(each.sent_away for each in some)} were sent away, over all rounds. Their outboxes"
        f" were full {spread_of(some, lambda each: each.overflows)} times a round."
    )
    if any(each.overflows < size.stalled for each in some):
        report.say("* NOT SHOWN: in a round some outbox was never full; the machine was too slow.")


def p99(result: Result) -> float:
    """What is compared."""
    return result.p99


def row(rounds: Sequence[Result]) -> tuple[str, ...]:
    """The figures of a variant."""
    costs = [each.cost for each in rounds]
    return (
        spread_of(costs, lambda cost: cost.rate, ".1f"),
        spread_of(costs, lambda cost: cost.delivery_micros, ".1f"),
        f"{median_of(costs, lambda cost: cost.of_delivery(cost.spent.postgres)):.1f}",
        f"{median_of(costs, lambda cost: cost.of_delivery(cost.spent.load)):.1f}",
        f"{median_of(rounds, lambda each: each.p50):.1f}",
        spread_of(rounds, p99, ".1f"),
        spread_of(costs, lambda cost: cost.heard_p99, ".1f"),
        spread_of(rounds, lambda each: each.grown, ".1f"),
        spread_of(rounds, lambda each: each.kernel, ".1f"),
    )


def main() -> None:
    """Run and print all of it."""
    asked = ask(__doc__ or "", PAGE.name)
    size = QUICK if asked.quick else Size()
    allow_files(size.readers)
    report = Report(HEAD.format(size=size, receive=RECEIVE // 1024, segment=SEGMENT))
    with services() as stack:
        report.introduce(stack, PACKAGES)
        show(report, size, run(report, stack, size, asked.rounds))
    if asked.write:
        report.save(PAGE, MEANING)


HEAD = """\
# Readers that stop reading

What others notice of them, and what the server keeps for them.
`python -m benchmarks.stalled --write` has written this page. Each figure is the median of the
rounds, with the smallest and the largest. Everybody heard everything, once and in order, those who
stalled afterwards, or there would be no figure.

One room of {size.readers:,} readers; somebody sends {size.bytes:,} bytes, and again as soon as all
who read have it. Of the readers {size.stalled} stop to read. Once their outboxes are full
{size.seconds:.0f} s are measured; then they read on. Their sockets are as over a network, in
segments of {segment} bytes, and their kernel keeps {receive} KiB: otherwise it would be the kernel
alone that keeps what they do not read. Our server is on PostgreSQL and Valkey.
"""

MEANING = """
## What it means

A message for somebody who does not read ends in his outbox, which costs less than a write, so the
others do not wait. Once that holds a mebibyte nothing more is taken for him: his binding stays at
its position, and what he missed is read from the log when he has room again. Most of what waits is
the same bytes for all of them, so memory grows by less than its bound. What the kernel keeps for a
socket comes besides, and is not in the process.
"""


if __name__ == "__main__":
    main()
