"""Connecting with a thousand memberships: what it costs, against the Channels tutorial.

    python -m benchmarks.connecting [--rounds 3] [--write] [--quick]

Each user is in 1,000 rooms, the same for all, and ten connect at once. Ours shows a token; its
first connection finds a node that holds none of the rooms' groups (cold), the others find them
there (warm). The tutorial's consumer joins the groups one by one. Each round starts both servers
anew, in a shuffled order. With --write the figures go into docs/performance/connecting.md, too. It
takes some two minutes.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvloop

from benchmarks.contenders import (
    Ours,
    Running,
    Services,
    fill_postgres,
    give_tokens,
    services,
    tutorial_with_memberships,
)
from benchmarks.load import Crowd
from benchmarks.report import Report
from benchmarks.runs import (
    Bar,
    Clocks,
    Spent,
    ask,
    median_of,
    ratio,
    require_all,
    shuffled,
    spread_of,
)
from tests.support.server import ROOT

PAGE = ROOT / "docs" / "performance" / "connecting.md"
PACKAGES = ("django", "channels", "channels-redis", "daphne", "uvicorn", "uvloop", "picows")
OURS, TUTORIAL = "ours", "tutorial, group_add one by one"
WARM, COLD = "ours, warm", "ours, cold"
FASTER = 60.0
"""At least so many times the tutorial's connections a second, warm."""
SETTLED = 0.1
"""Seconds after the last CONNACK in which the server looks once more at what it bound (design §6);
that is part of the cost."""
GONE = 30.0
"""Seconds for the server to notice that a wave has gone, at most."""


@dataclass(frozen=True, slots=True)
class Size:
    """So many memberships of each user, users of a wave, waves, users of the tutorial, who come all
    in one, and connections that are being opened at once."""

    memberships: int = 1_000
    users: int = 100
    waves: int = 3
    tutorial_users: int = 20
    at_once: int = 10

    @property
    def last(self) -> str:
        """The room in which somebody speaks once all are there."""
        return f"r{self.memberships - 1}"

    def rooms(self) -> dict[str, list[str]]:
        """{room: everybody}"""
        everybody = ["sender", *(f"u{user}" for user in range(self.users))]
        return {f"r{room}": everybody for room in range(self.memberships)}


QUICK = Size(memberships=50, users=20, waves=2, tutorial_users=5)


@dataclass(frozen=True, slots=True)
class Cost:
    """What some connections took; `seconds` until the last of them was let in."""

    connections: int
    seconds: float
    spent: Spent

    @property
    def rate(self) -> float:
        """Connections a second."""
        return self.connections / self.seconds

    @property
    def millis(self) -> float:
        """Server CPU of a connection, ms."""
        return self.of_one(self.spent.server)

    def of_one(self, seconds: float) -> float:
        """These seconds of CPU as ms a connection."""
        return seconds / self.connections * 1000


Costs = dict[str, list[Cost]]
"""{what connected: its waves over all rounds}"""


# --- one server ---------------------------------------------------------------------------------


class Arrivals:
    """Who comes to one server, and what that costs it."""

    def __init__(self, size: Size, running: Running, clocks: Clocks) -> None:
        self.size, self.clocks = size, clocks
        self.crowd = Crowd(running.dialect, running.url)

    async def come(self, *names: str) -> Cost:
        """Connect these and see what it takes; who is in their rooms speaks, and all have to hear
        it."""
        before = self.clocks.read()
        await self.crowd.connect(((name, self.size.last) for name in names), self.size.at_once)
        seconds = time.perf_counter() - before.wall
        await asyncio.sleep(SETTLED)
        return Cost(len(names), seconds, self.clocks.read() - before)

    async def hear(self) -> None:
        """Somebody speaks in a room, and all who have come have to hear it."""
        sender, *_ = self.crowd.rooms[self.size.last]
        require_all(await self.crowd.talk([sender], seconds=0, in_flight=1, size=160, least=1))


async def measure_tutorial(size: Size, running: Running, clocks: Clocks) -> Costs:
    """One wave."""
    arrivals = Arrivals(size, running, clocks)
    await arrivals.come("sender")
    cost = await arrivals.come(*(f"u{user}" for user in range(size.tutorial_users)))
    await arrivals.hear()
    await arrivals.crowd.close()
    return {TUTORIAL: [cost]}


async def measure_ours(size: Size, running: Running, clocks: Clocks) -> Costs:
    """The first connection, which stays, and waves that come and go."""
    arrivals = Arrivals(size, running, clocks)
    cold = await arrivals.come("sender")
    (sender,) = arrivals.crowd.sockets.values()
    warm = []
    for _ in range(size.waves):
        warm.append(await arrivals.come(*(f"u{user}" for user in range(size.users))))
        await arrivals.hear()
        others = [each for each in arrivals.crowd.sockets.values() if each is not sender]
        await arrivals.crowd.close(others)
        await until_alone(running)
    await arrivals.crowd.close()
    return {COLD: [cold], WARM: warm}


async def until_alone(running: Running) -> None:
    """Wait until the server has noticed that all but one have gone."""
    deadline = time.monotonic() + GONE
    while await asyncio.to_thread(running.metric, "wukongim_sessions") != 1:
        assert time.monotonic() < deadline, "the server still has sessions of those who went"
        await asyncio.sleep(0.1)


# --- both -----------------------------------------------------------------------------------------


class Contenders:
    """Both servers; our database is filled once, and copied for each round."""

    def __init__(self, stack: Services, size: Size) -> None:
        self.stack, self.size = stack, size
        self.filled = stack.postgres.create_database(stack.template)
        fill_postgres(stack.url(self.filled), size.rooms())
        give_tokens(stack.url(self.filled))

    @contextmanager
    def running(self, name: str) -> Iterator[tuple[Running, Any]]:
        """The server of this name, and how it is measured."""
        if name == OURS:
            database = self.stack.postgres.create_database(self.filled)
            ours = Ours(name, settings="{}")
            with ours.running(self.stack, {}, database) as running:
                yield running, measure_ours
        else:
            peer = tutorial_with_memberships(self.size.tutorial_users, self.size.memberships)
            with peer.running(self.stack, {}) as running:
                yield running, measure_tutorial


def run(report: Report, stack: Services, size: Size, rounds: int) -> Costs:
    """Both in every round."""
    costs: Costs = defaultdict(list)
    contenders = Contenders(stack, size)
    for number, name in shuffled((OURS, TUTORIAL), rounds):
        with contenders.running(name) as (running, measure):
            measured = uvloop.run(measure(size, running, Clocks(stack, running)))
        for what, waves in measured.items():
            costs[what] += waves
            for cost in waves:
                report.say(f"{number} {what:31} {line(cost)}", keep=False)
    return {what: costs[what] for what in (WARM, COLD, TUTORIAL)}


def line(cost: Cost) -> str:
    """A wave, on the terminal."""
    return (
        f"{cost.connections:4} connections, {cost.rate:7.1f}/s  CPU ms each:"
        f" server {cost.millis:7.2f}  PostgreSQL {cost.of_one(cost.spent.postgres):6.2f}"
        f"  Valkey {cost.of_one(cost.spent.valkey):6.2f}  load {cost.of_one(cost.spent.load):6.2f}"
    )


def show(report: Report, costs: Costs) -> None:
    """The table, and whether the bar is kept."""
    report.table(
        ("connecting", "connections a second", "server CPU, ms each", "PostgreSQL, ms",
         "Valkey, ms", "load, ms"),
        [(what, *row(waves)) for what, waves in costs.items()],
    )  # fmt: skip
    warm, theirs = costs[WARM], costs[TUTORIAL]
    faster = ratio(warm, theirs, lambda cost: cost.rate)
    cheaper = ratio(theirs, warm, lambda cost: cost.millis)
    bar = Bar(f"{WARM}: connections a second, against the tutorial's", faster, FASTER, " ×", True)
    report.say(f"\n* {bar}")
    report.say(f"* {WARM}: a connection takes the tutorial {cheaper:.0f} × the server's CPU")


def row(waves: Sequence[Cost]) -> tuple[str, ...]:
    """The figures of what connected."""
    return (
        spread_of(waves, lambda cost: cost.rate, ",.1f"),
        spread_of(waves, lambda cost: cost.millis, ",.2f"),
        f"{median_of(waves, lambda cost: cost.of_one(cost.spent.postgres)):,.2f}",
        f"{median_of(waves, lambda cost: cost.of_one(cost.spent.valkey)):,.2f}",
        f"{median_of(waves, lambda cost: cost.of_one(cost.spent.load)):,.2f}",
    )


def main() -> None:
    """Run and print all of it."""
    asked = ask(__doc__ or "", PAGE.name)
    size = QUICK if asked.quick else Size()
    report = Report(HEAD.format(size=size))
    with services() as stack:
        report.introduce(stack, PACKAGES)
        show(report, run(report, stack, size, asked.rounds))
    if asked.write:
        report.save(PAGE, MEANING)


HEAD = """\
# Connecting with many memberships

What it costs to connect a user with {size.memberships:,} memberships, until he is told that he is
in. `python -m benchmarks.connecting --write` has written this page. Each figure is the median of
the waves of all rounds, with the smallest and the largest. After each wave somebody speaks in a
room of all, and all have to hear it, or there would be no figure.

All users are in the same rooms, and {size.at_once} connect at once. To ours they show their tokens,
and {size.users} come in a wave. *Cold* is the first connection of a server that has just started,
alone: none of its groups is joined yet, and no connection to the database has been used. *Warm* are
the others. To the tutorial come {size.tutorial_users}, with nothing to show. Its consumer accepts,
reads the user's rooms from PostgreSQL, and joins one after the other in Redis, which costs the same
whoever is there already.

A server has one core of its own; the load, PostgreSQL and Valkey share the others. The tables have
been vacuumed, as PostgreSQL does by itself within a minute.
"""

MEANING = """
## What it means

The tutorial asks Redis twice for each membership and waits for both answers. Ours reads all
memberships of those who connect at the moment, with their heads, in one statement, writes a
dictionary entry for each, and asks the layer only for groups that are new to the process, in one
batch. So a warm connection asks it for nothing, and when everybody comes back after a restart only
the first in each room pays for it.

Sixty times is not reached by a server that keeps books. It upgrades a request, looks at a token,
writes the session's row under a lock and sends away whom it displaces, of which the tutorial does
nothing; those who come at once share the transactions of that ([decision
40](../decisions/0040-those-who-connect-at-once-are-let-in-together.md)). In CPU it comes nearer
than in connections a second: the ten who are under way ask the database three times, one after the
other, and for part of that the server has nothing to do. Of the CPU most is by now what a connect
with few memberships costs as well. The rest is a fraction of a microsecond for each number that is
read, and more for each binding, which is put into three tables that lie all over the memory.
"""


if __name__ == "__main__":
    main()
