"""Two workers on one port against one process: where the CPU goes.

    python -m benchmarks.workers [--rounds 3] [--write] [--quick]

`serve --workers 2` and `serve`, on PostgreSQL and Valkey: one message to 500 receivers, eight under
way, and 1,000 rooms of five members, 200 under way. All share all cores, the load among them. Each
round starts both servers anew, in a shuffled order. With --write the figures go into
docs/performance/workers.md, too. It takes some ten minutes.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import uvloop

from benchmarks.contenders import (
    ALL_CORES,
    Ours,
    Running,
    Services,
    children,
    cpu_clock,
    pin,
    services,
)
from benchmarks.load import Crowd
from benchmarks.report import Report
from benchmarks.runs import (
    Clocks,
    Cost,
    allow_files,
    ask,
    cost_of,
    median_of,
    ratio,
    shuffled,
    small_rooms,
    spread_of,
)
from tests.support.server import ROOT

PAGE = ROOT / "docs" / "performance" / "workers.md"
PACKAGES = ("django", "channels", "channels-redis", "uvicorn", "uvloop", "picows")
WORKERS = 2
ONE = Ours("one process", cores=ALL_CORES)
SEVERAL = Ours(f"{WORKERS} workers", workers=WORKERS, cores=ALL_CORES)
VARIANTS = (ONE, SEVERAL)
LARGE = "large"


@dataclass(frozen=True, slots=True)
class Size:
    """Receivers in the large room and messages under way there; small rooms, members of each, and
    messages under way over them; bytes and seconds."""

    receivers: int = 500
    in_large: int = 8
    rooms: int = 1_000
    members: int = 5
    in_small: int = 200
    bytes: int = 160
    seconds: float = 5.0
    warm_up: float = 1.0

    def people(self) -> dict[str, list[str]]:
        """{room: members}; in the large room there is one more, who sends."""
        large = [f"large{member}" for member in range(self.receivers + 1)]
        return {LARGE: large, **small_rooms(self.rooms, self.members)}


QUICK = Size(receivers=50, rooms=40, seconds=1.0, warm_up=0.3)


@dataclass(frozen=True, slots=True)
class Result:
    """What the messages of one load cost, and the CPU of each of the server's processes, s."""

    cost: Cost
    processes: tuple[float, ...]

    def cores(self, seconds: float) -> float:
        """So many seconds of CPU as cores that were busy all the time."""
        return seconds / self.cost.spent.wall

    @property
    def largest(self) -> float:
        """The part of the server's CPU that its busiest process took, %."""
        return max(self.processes) / sum(self.processes) * 100

    @property
    def rest(self) -> float:
        """Cores that nothing of this used."""
        spent = self.cost.spent
        used = spent.server + spent.postgres + spent.valkey + spent.load
        return len(ALL_CORES) - self.cores(used)


Results = dict[tuple[str, str], list[Result]]
"""{(load, variant): its rounds}"""


async def measure(size: Size, running: Running, clocks: Clocks) -> dict[str, Result]:
    """Both loads."""
    crowd = Crowd(running.dialect, running.url)
    await crowd.connect((name, room) for room, names in size.people().items() for name in names)
    first = [members[0] for room, members in crowd.rooms.items() if room != LARGE]
    loads = {
        f"one room of {size.receivers:,}, {size.in_large} under way":
            (crowd.rooms[LARGE][:1], size.in_large),
        f"{size.rooms:,} rooms of {size.members}, {size.in_small} under way":
            (first, size.in_small),
    }  # fmt: skip
    results = {}
    for load, (senders, in_flight) in loads.items():
        before = by_process(running.pid)
        cost = await cost_of(
            crowd, clocks, senders, in_flight, size.bytes, size.seconds, size.warm_up
        )
        after = by_process(running.pid)
        spent = (now - then for now, then in zip(after, before, strict=True))
        results[load] = Result(cost, tuple(spent))
    await crowd.close()
    return results


def by_process(pid: int) -> list[float]:
    """CPU seconds of a process without those that it started, and of each of these."""
    started = [cpu_clock(child) for child in children(pid)]
    return [cpu_clock(pid) - sum(started), *started]


def run(report: Report, stack: Services, size: Size, rounds: int) -> Results:
    """Both in every round. PostgreSQL and Valkey may use all cores as well."""
    for service in (stack.postgres, stack.valkey):
        assert service.process is not None
        pin(service.process.pid, ALL_CORES)
    os.sched_setaffinity(0, ALL_CORES)
    results: Results = defaultdict(list)
    for number, variant in shuffled(VARIANTS, rounds):
        with variant.running(stack, size.people()) as running:
            measured = uvloop.run(measure(size, running, Clocks(stack, running)))
        for load, result in measured.items():
            results[load, variant.name].append(result)
            report.say(f"{number} {variant.name:11} {load}: {line(result)}", keep=False)
    return results


def line(result: Result) -> str:
    """A round of one load, on the terminal."""
    cost, spent = result.cost, result.cost.spent
    return (
        f"{cost.rate:,.0f} msg/s, {cost.deliveries_rate:,.0f} deliveries/s,"
        f" {cost.delivery_micros:.1f} µs a delivery; cores: server {result.cores(spent.server):.2f}"
        f" (the busiest {result.largest:.0f} %), load {result.cores(spent.load):.2f},"
        f" PostgreSQL {result.cores(spent.postgres):.2f}, Valkey {result.cores(spent.valkey):.2f},"
        f" rest {result.rest:.2f}"
    )


# --- what is said of them -------------------------------------------------------------------------


def show(report: Report, results: Results) -> None:
    """A table for each load, and what the workers' deliveries cost beside one process's."""
    for load in dict.fromkeys(load for load, _ in results):
        report.say(f"\n{load[0].upper()}{load[1:]}:")
        report.table(
            ("", "deliveries a second", "server CPU, µs a delivery", "cores: server",
             "its busiest process, %", "load", "PostgreSQL", "Valkey", "rest"),
            [(each.name, *row(results[load, each.name])) for each in VARIANTS],
        )  # fmt: skip
        several, one = results[load, SEVERAL.name], results[load, ONE.name]
        dearer = ratio(several, one, lambda result: result.cost.delivery_micros)
        faster = ratio(several, one, lambda result: result.cost.rate)
        report.say(
            f"\n* {SEVERAL.name} against {ONE.name}: {dearer:.2f} × the server's CPU a delivery,"
            f" {faster:.2f} × the messages a second"
        )


def row(rounds: Sequence[Result]) -> tuple[str, ...]:
    """The figures of a variant."""
    return (
        spread_of(rounds, lambda each: each.cost.deliveries_rate),
        spread_of(rounds, lambda each: each.cost.delivery_micros, ".1f"),
        spread_of(rounds, lambda each: each.cores(each.cost.spent.server), ".2f"),
        f"{median_of(rounds, lambda each: each.largest):.0f}",
        f"{median_of(rounds, lambda each: each.cores(each.cost.spent.load)):.2f}",
        f"{median_of(rounds, lambda each: each.cores(each.cost.spent.postgres)):.2f}",
        f"{median_of(rounds, lambda each: each.cores(each.cost.spent.valkey)):.2f}",
        f"{median_of(rounds, lambda each: each.rest):.2f}",
    )


def main() -> None:
    """Run and print all of it."""
    asked = ask(__doc__ or "", PAGE.name)
    size = QUICK if asked.quick else Size()
    allow_files(size.receivers + size.rooms * size.members)
    report = Report(HEAD.format(size=size, workers=WORKERS, cores=len(ALL_CORES)))
    with services() as stack:
        report.introduce(stack, PACKAGES)
        show(report, run(report, stack, size, asked.rounds))
    if asked.write:
        report.save(PAGE, MEANING)


HEAD = """\
# Workers

`serve --workers {workers}` against `serve`, on PostgreSQL and Valkey.
`python -m benchmarks.workers --write` has written this page. Each figure is the median of the
rounds, with the smallest and the largest. Nothing was lost, repeated or out of order, or there
would be no figure.

This machine has {cores} cores, and servers, load, PostgreSQL and Valkey share them all. So the
rates say what the machine gives once everything has its part, not what workers could do. What
compares is the CPU of a delivery, and where the cores went: *rest* is waiting, the kernel's own
work, and whatever else ran.
"""

MEANING = """
## What it means

Each worker is a node: it has its own sessions, its own table, and its own inbox in the layer. A
message goes to each worker that has a member of its room, which takes it apart and delivers it to
its own. In one large room that is done once more for each worker, and spread over hundreds of
deliveries. In small rooms, whose members are at several workers, it falls on a few.

A second worker pays when there is a core for it: one process keeps one core busy, and no more.
"""


if __name__ == "__main__":
    main()
