"""One message to many: what a delivery costs, against what a user would pick instead.

    python -m benchmarks.fanout [--write] [--rounds 3] [--only ours] [--quick]

Each round starts every server anew, in a shuffled order, connects everybody, and sends into one
room after the other. With `--write` the figures go into docs/performance/fanout.md, too.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import uvloop

from benchmarks.contenders import (
    NODE_SOCKETIO,
    NODE_WS,
    OURS,
    OURS_EMBEDDED,
    PYTHON_SOCKETIO,
    TUTORIAL,
    Services,
    services,
)
from benchmarks.load import Crowd, Heard
from benchmarks.report import Report
from tests.support.server import ROOT

PAGE = ROOT / "docs" / "performance" / "fanout.md"
RECEIVERS = (50, 500, 2_000)
SIZES = (160, 4_000)
IN_FLIGHT = (1, 8)
CONTENDERS = (OURS, OURS_EMBEDDED, TUTORIAL, PYTHON_SOCKETIO, NODE_SOCKETIO, NODE_WS)
SECONDS, WARM_UP = 1.5, 0.5


@dataclass(frozen=True, slots=True)
class Cell:
    """One thing that is measured: so many receivers, so many messages under way, of that size;
    `acks`: each receiver acknowledges each message."""

    receivers: int
    in_flight: int
    size: int
    acks: bool = False

    def __str__(self) -> str:
        acks = ", acknowledged" if self.acks else ""
        return f"{self.receivers:,} receivers, {self.in_flight} in flight, {self.size:,} B{acks}"


CELLS = [
    Cell(receivers, in_flight, size)
    for receivers in RECEIVERS
    for in_flight in IN_FLIGHT
    for size in SIZES
]
ACKED = [Cell(500, 1, 160, acks=True), Cell(500, 8, 160, acks=True)]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a cell cost one server in one round."""

    heard: Heard
    cpu: float

    @property
    def micros(self) -> float:
        """Server CPU of a delivery, µs."""
        return self.cpu / max(1, self.heard.deliveries) * 1e6

    @property
    def load_micros(self) -> float:
        """The load's own CPU of a delivery, µs."""
        return self.heard.load_cpu / max(1, self.heard.deliveries) * 1e6

    @property
    def rate(self) -> float:
        """Deliveries a second."""
        return self.heard.deliveries / self.heard.seconds


Costs = dict[tuple[str, Cell], list[Cost]]


def people(receivers: Iterable[int]) -> dict[str, list[str]]:
    """A room for each count, with one member more, who sends."""
    return {f"room{count}": [f"u{count}x{n}" for n in range(count + 1)] for count in receivers}


async def measure(running: Any, rooms: dict[str, list[str]], cells: Sequence[Cell]) -> Any:
    """Connect everybody and go through the cells; yields (cell, cost)."""
    crowd = Crowd(running.dialect, running.url)
    everybody = [(name, room) for room, names in rooms.items() for name in names]
    await crowd.connect(everybody)
    results = []
    for cell in cells:
        crowd.acknowledges = cell.acks
        sender = crowd.rooms[f"room{cell.receivers}"][0]
        await crowd.talk([sender], WARM_UP, cell.in_flight, cell.size)
        before = running.cpu()
        heard = await crowd.talk([sender], SECONDS, cell.in_flight, cell.size)
        cost = Cost(heard, running.cpu() - before)
        assert not heard.lost and not heard.out_of_order and not crowd.gone, (cell, heard)
        results.append((cell, cost))
    await crowd.close()
    return results


def run(stack: Services, contenders: Sequence[Any], cells: Sequence[Cell], rounds: int) -> Costs:
    """Every contender in every round, shuffled."""
    costs: Costs = defaultdict(list)
    rooms = people(sorted({cell.receivers for cell in cells}))
    for number in range(rounds):
        for contender in random.sample(list(contenders), len(contenders)):
            mine = [cell for cell in cells if not cell.acks or contender in (OURS, OURS_EMBEDDED)]
            with contender.running(stack, rooms) as running:
                for cell, cost in uvloop.run(measure(running, rooms, mine)):
                    costs[contender.name, cell].append(cost)
                    print(f"{number + 1} {contender.name:28} {cell!s:52} {cost.micros:7.1f} µs"
                          f" {cost.rate:9,.0f}/s  load {cost.load_micros:4.1f} µs"
                          f"  p50 {statistics.median(cost.heard.milliseconds):.1f} ms", flush=True)
    return costs


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="")
    parser.add_argument("--receivers", type=int, default=0)
    asked = parser.parse_args()
    chosen = [each for each in CONTENDERS if asked.only in each.name]
    wanted = [c for c in [*CELLS, *ACKED] if not asked.receivers or c.receivers == asked.receivers]
    with services() as stack:
        run(stack, chosen, wanted, asked.rounds)
