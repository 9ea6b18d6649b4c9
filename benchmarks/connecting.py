"""Connecting with a thousand memberships: what it costs, against the Channels tutorial.

    python -m benchmarks.connecting [--rounds 3] [--write] [--quick]

Each user is in 1,000 rooms, the same for all, and fifty connect at once, as when a server has
ended, and ten, and one. Ours shows a token; its first wave finds a node that holds none of the
rooms' groups (cold), the others find them there (warm). The tutorial's consumer joins the groups
one by one. Each round starts both servers anew, in a shuffled order. With --write the figures go
into docs/performance/connecting.md, too. It takes some three minutes.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
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
    spread,
    spread_of,
)
from tests.support.server import ROOT

PAGE = ROOT / "docs" / "performance" / "connecting.md"
PACKAGES = ("django", "channels", "channels-redis", "daphne", "uvicorn", "uvloop", "picows")
OURS, TUTORIAL = "ours", "tutorial, group_add one by one"
SENDER = "sender"
FASTER = 60.0
"""At least so many times the tutorial's connections a second, of those who come in a wave."""
SETTLED = 0.1
"""Seconds after the last CONNACK in which the server looks once more at what it bound (design §6);
that is part of the cost."""
GONE = 30.0
"""Seconds for the server to notice that a wave has gone, at most."""


@dataclass(frozen=True, slots=True)
class Size:
    """So many memberships of each user, users of a wave, waves of each kind, users of the tutorial,
    who come all at once, and connections that are being opened at once in waves of each kind."""

    memberships: int = 1_000
    users: int = 100
    waves: int = 3
    tutorial_users: int = 20
    at_once: tuple[int, ...] = (50, 10, 1)

    @property
    def last(self) -> str:
        """The room in which somebody speaks once all are there."""
        return f"r{self.memberships - 1}"

    def rooms(self) -> dict[str, list[str]]:
        """{room: everybody}"""
        everybody = [SENDER, *self.people]
        return {f"r{room}": everybody for room in range(self.memberships)}

    @property
    def people(self) -> list[str]:
        """Who comes in a wave."""
        return [f"u{user}" for user in range(self.users)]


QUICK = Size(memberships=50, users=20, waves=2, tutorial_users=5, at_once=(10, 1))


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
"""{what connected: its waves in one round}"""


# --- one server ---------------------------------------------------------------------------------


class Arrivals:
    """Who comes to one server, and what that costs it."""

    def __init__(self, size: Size, running: Running, clocks: Clocks) -> None:
        self.size, self.clocks = size, clocks
        self.crowd = Crowd(running.dialect, running.url)

    async def come(self, names: Sequence[str], at_once: int = 1) -> Cost:
        """Connect these, so many at once, and see what it takes."""
        before = self.clocks.read()
        await self.crowd.connect(((name, self.size.last) for name in names), at_once)
        seconds = time.perf_counter() - before.wall
        await asyncio.sleep(SETTLED)
        return Cost(len(names), seconds, self.clocks.read() - before)

    async def hear(self) -> None:
        """Somebody speaks in a room, and all who have come have to hear it."""
        [sender] = [each for each in self.crowd.sockets.values() if each.name == SENDER]
        require_all(await self.crowd.talk([sender], seconds=0, in_flight=1, size=160, least=1))


async def measure_tutorial(size: Size, running: Running, clocks: Clocks) -> Costs:
    """One wave, in which all come at once."""
    arrivals = Arrivals(size, running, clocks)
    await arrivals.come([SENDER])
    people = size.people[: size.tutorial_users]
    cost = await arrivals.come(people, at_once=len(people))
    await arrivals.hear()
    await arrivals.crowd.close()
    return {TUTORIAL: [cost]}


async def measure_ours(size: Size, running: Running, clocks: Clocks) -> Costs:
    """A wave onto a server that has just started, and such that find all groups joined."""
    costs: Costs = defaultdict(list)
    arrivals = Arrivals(size, running, clocks)
    kinds = [("cold", size.at_once[0])]
    kinds += [("warm", at_once) for _ in range(size.waves) for at_once in size.at_once]
    for state, at_once in kinds:
        cost = await arrivals.come(size.people, at_once)
        costs[ours(state, at_once)].append(cost)
        if state == "cold":
            await arrivals.come([SENDER])
        await arrivals.hear()
        await arrivals.crowd.close(
            [each for each in arrivals.crowd.sockets.values() if each.name != SENDER]
        )
        await until_alone(running)
    await arrivals.crowd.close()
    return costs


def ours(state: str, at_once: int) -> str:
    """What such a wave is called."""
    return f"{OURS}, {state}, {at_once} at once"


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


def run(report: Report, stack: Services, size: Size, rounds: int) -> list[Costs]:
    """Both in every round."""
    costs: dict[int, Costs] = defaultdict(dict)
    contenders = Contenders(stack, size)
    for number, name in shuffled((OURS, TUTORIAL), rounds):
        with contenders.running(name) as (running, measure):
            measured = uvloop.run(measure(size, running, Clocks(stack, running)))
        costs[number] |= measured
        for what, waves in measured.items():
            for cost in waves:
                report.say(f"{number} {what:31} {line(cost)}", keep=False)
    return list(costs.values())


def line(cost: Cost) -> str:
    """A wave, on the terminal."""
    return (
        f"{cost.connections:4} connections, {cost.rate:7.1f}/s  CPU ms each:"
        f" server {cost.millis:7.2f}  PostgreSQL {cost.of_one(cost.spent.postgres):6.2f}"
        f"  Valkey {cost.of_one(cost.spent.valkey):6.2f}  load {cost.of_one(cost.spent.load):6.2f}"
    )


def show(report: Report, rounds: Sequence[Costs], size: Size) -> None:
    """The table, and whether the bars are kept."""
    first = size.at_once[0]
    mine = [*(ours("warm", at_once) for at_once in size.at_once), ours("cold", first)]
    costs = {what: [cost for each in rounds for cost in each[what]] for what in (*mine, TUTORIAL)}
    report.table(
        ("connecting", "connections a second", "server CPU, ms each", "PostgreSQL, ms",
         "Valkey, ms", "load, ms"),
        [(what, *row(waves)) for what, waves in costs.items()],
    )  # fmt: skip
    report.say("")
    for what in mine:
        faster = [compared(each[what], each[TUTORIAL]) for each in rounds]
        text = f"{what}: connections a second, against the tutorial's in the same round"
        bar = Bar(text, median(faster), FASTER, " ×", True)
        promised = what in (ours("cold", first), ours("warm", first))
        said = str(bar) if promised else f"{text}: {bar.value:.3g} ×"
        report.say(f"* {said}; rounds: {spread(faster)}")
        cheaper = ratio(costs[TUTORIAL], costs[what], lambda cost: cost.millis)
        report.say(f"* {what}: a connection takes the tutorial {cheaper:.0f} × the server's CPU")


def compared(waves: Sequence[Cost], theirs: Sequence[Cost]) -> float:
    """How many times as many connections a second, in one round: within a minute of each other, on
    a machine that is not the same one a few minutes later."""
    return ratio(waves, theirs, lambda cost: cost.rate)


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
        show(report, run(report, stack, size, asked.rounds), size)
    if asked.write:
        report.save(PAGE, MEANING)


HEAD = """\
# Connecting with many memberships

What it costs to connect a user with {size.memberships:,} memberships, until he is told that he is
in. `python -m benchmarks.connecting --write` has written this page. Each figure is the median of
the waves of all rounds, with the smallest and the largest. After each wave somebody speaks in a
room of all, and all have to hear it, or there would be no figure.

All users are in the same rooms. To ours they show their tokens; {size.users} come in a wave, and at
most so many connect at once as the line says: {size.at_once[0]}, as they do when another server has
ended, or fewer. *Cold* is the first wave onto a server that has just started: none of its groups is
joined yet, and hardly a connection to the database has been used.
*Warm* are the others. To the tutorial come {size.tutorial_users}, all at once and with nothing to
show. Its consumer accepts, reads the user's rooms from PostgreSQL, and joins one after the other in
Redis, which costs the same whoever is there already, and however many come.

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

Those who come at once share what letting somebody in takes of the database: their tokens are looked
at by one statement, their rows written in one transaction under a lock, which sends away whom they
displace, and their memberships read by another ([decision
40](../decisions/0040-those-who-connect-at-once-are-let-in-together.md)); the tutorial does none of
that but the last. Who comes alone pays for all of it, and waits for three answers, one after the
other, in which the server has nothing to do: one at a time is a fourth of what fifty are, and ten
may not be sixty times the tutorial. It is when everybody comes that it matters. The rest is a
fraction of a microsecond for each number that is read, and more for each binding, which is put into
three tables that lie all over the memory.
"""


if __name__ == "__main__":
    main()
