"""Ten thousand idle sessions in one process: memory and CPU.

    python -m benchmarks.crowd [--rounds 3] [--write] [--quick]

10,000 sessions with 50 memberships each, ten sessions in each room, on PostgreSQL and Valkey. Each
round starts a server anew, connects everybody, waits until the server has checked all bindings
once, and then watches it for a minute while nobody says anything. With --write the figures go into
docs/performance/crowd.md, too. A round takes some five minutes.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
import uvloop

from benchmarks.contenders import Ours, Running, Services, fill_postgres, give_tokens, services
from benchmarks.idle import Load
from benchmarks.load import Crowd
from benchmarks.report import Report
from benchmarks.runs import (
    Bar,
    Clocks,
    Spent,
    allow_files,
    ask,
    median_of,
    require_all,
    require_ports,
    spread_of,
)
from tests.support.server import ROOT

PAGE = ROOT / "docs" / "performance" / "crowd.md"
PACKAGES = ("django", "channels", "channels-redis", "uvicorn", "uvloop", "picows")
SETTINGS = '{"IDLE_SECONDS": 3600}'
"""The clients here say nothing, and are not to be closed for it; they answer pings."""
KILOBYTES, CORE = 45.0, 6.0
"""At most so many KiB a session, and so many % of a core."""
CHECKED = 300.0
"""Seconds within which the node has to have checked all."""
TALKERS = 20
"""Rooms of which one is asked at the end whether it hears."""


@dataclass(frozen=True, slots=True)
class Size:
    """Who is there, and how long they are watched."""

    load: Load = Load(sessions=10_000, channels=50, together=10)  # noqa: RUF009 - it is frozen
    seconds: float = 60.0


QUICK = Size(Load(sessions=200, channels=50, together=10), seconds=5.0)


@dataclass(frozen=True, slots=True)
class Result:
    """What a round showed: KiB of the server before and after everybody had come, what it took
    while nobody spoke, and what coming took."""

    sessions: int
    before: Mapping[str, int]
    after: Mapping[str, int]
    idle: Spent
    coming: Spent

    @property
    def core(self) -> float:
        """% of a core while nobody spoke."""
        return self.idle.server / self.idle.wall * 100

    @property
    def arrivals(self) -> float:
        """Connections a second."""
        return self.sessions / self.coming.wall

    def kilobytes(self, kind: str) -> float:
        """KiB a session, of `Rss` or `Pss`."""
        return (self.after[kind] - self.before[kind]) / self.sessions


def memory(pid: int) -> dict[str, int]:
    """KiB of a process by the kernel's names: `Rss` is what it has in memory, `Pss` the same with
    shared pages divided among those who share them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    return {name: int(value.split()[0]) for name, value in (line.split(":") for line in lines)}


# --- one round ------------------------------------------------------------------------------------


def fill(stack: Services, load: Load) -> str:
    """A database with the memberships and tokens of everybody; returns its name."""
    rooms: dict[str, list[str]] = {f"r{number}": [] for number in range(load.groups)}
    for user in range(load.sessions):
        for channel in load.channels_of(user):
            rooms[f"r{channel}"].append(f"u{user}")
    name = stack.postgres.create_database(stack.template)
    fill_postgres(stack.url(name), rooms)
    give_tokens(stack.url(name))
    with psycopg.connect(stack.url(name), autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")
    return name


async def measure(size: Size, url: str, running: Running, clocks: Clocks) -> Result:
    """Connect everybody, wait for a whole round of the check, watch, and ask whether they hear."""
    load = size.load
    crowd = Crowd(running.dialect, running.url)
    before, began = memory(running.pid), clocks.read()
    await crowd.connect((f"u{user}", f"r{next(load.channels_of(user))}")
                        for user in range(load.sessions))  # fmt: skip
    coming = clocks.read() - began
    await asyncio.to_thread(until_checked, url, load)
    start = clocks.read()
    await asyncio.sleep(size.seconds)
    idle = clocks.read() - start
    after = memory(running.pid)
    assert not crowd.gone, f"{crowd.gone} sessions were closed"
    rooms = random.sample(list(crowd.rooms.values()), min(TALKERS, len(crowd.rooms)))
    senders = [members[0] for members in rooms]
    require_all(await crowd.talk(senders, seconds=0, in_flight=1, size=160, least=len(senders)))
    await crowd.close()
    return Result(load.sessions, before, after, idle, coming)


def until_checked(url: str, load: Load) -> None:
    """Until the node holds every binding, and a complete check that began after it has ended."""
    nodes = (
        "SELECT now() FROM wukongim_messaging_node WHERE stopped_at IS NULL AND sessions = %s"
        " AND bindings = %s"
    )
    deadline = time.monotonic() + CHECKED
    with psycopg.connect(url, autocommit=True) as connection:

        def until(query: str, *values: object) -> object:
            while (row := connection.execute(query, values).fetchone()) is None:
                assert time.monotonic() < deadline, "the node did not come so far"
                time.sleep(0.2)
            return row[0]

        bound = until(nodes, load.sessions, load.bindings)
        until(f"{nodes} AND checked_at > %s", load.sessions, load.bindings, bound)


def run(report: Report, stack: Services, size: Size, rounds: int) -> list[Result]:
    """A server anew in every round, on a copy of the same database."""
    filled = fill(stack, size.load)
    results = []
    for number in range(1, rounds + 1):
        database = stack.postgres.create_database(filled)
        with Ours("ours", settings=SETTINGS).running(stack, {}, database) as running:
            clocks = Clocks(stack, running)
            result = uvloop.run(measure(size, stack.url(database), running, clocks))
        results.append(result)
        report.say(f"{number} {line(result)}", keep=False)
    return results


def line(result: Result) -> str:
    """A round, on the terminal."""
    idle = result.idle
    return (
        f"KiB a session: RSS {result.kilobytes('Rss'):.1f}, PSS {result.kilobytes('Pss'):.1f};"
        f" {result.core:.2f} % of a core, PostgreSQL {idle.postgres / idle.wall:.2%},"
        f" load {idle.load / idle.wall:.2%}; {result.arrivals:.0f} connections/s"
    )


# --- what is said of them -------------------------------------------------------------------------


def show(report: Report, results: Sequence[Result]) -> None:
    """The table, and whether the bars are kept."""
    rss = median_of(results, lambda result: result.kilobytes("Rss"))
    pss = median_of(results, lambda result: result.kilobytes("Pss"))
    core = median_of(results, lambda result: result.core)
    report.table(
        ("one process", "median, smallest, largest"),
        [
            ("KiB a session with its bindings, RSS",
             spread_of(results, lambda result: result.kilobytes("Rss"), ".1f")),
            ("the same, PSS", spread_of(results, lambda result: result.kilobytes("Pss"), ".1f")),
            ("MiB before anybody came, RSS",
             spread_of(results, lambda result: result.before["Rss"] / 1024)),
            ("MiB with all of them, RSS",
             spread_of(results, lambda result: result.after["Rss"] / 1024)),
            ("% of a core while nobody speaks", spread_of(results, lambda each: each.core, ".2f")),
            ("the same, PostgreSQL",
             spread_of(results, lambda each: each.idle.postgres / each.idle.wall * 100, ".2f")),
            ("the same, Valkey",
             spread_of(results, lambda each: each.idle.valkey / each.idle.wall * 100, ".2f")),
            ("the same, the load",
             spread_of(results, lambda each: each.idle.load / each.idle.wall * 100, ".2f")),
            ("connections a second while they came",
             spread_of(results, lambda result: result.arrivals)),
        ],
    )  # fmt: skip
    report.say("")
    for bar in (
        Bar("Memory of a session, RSS", rss, KILOBYTES, " KiB"),
        Bar("Memory of a session, PSS", pss, KILOBYTES, " KiB"),
        Bar("CPU while nobody speaks", core, CORE, " % of a core"),
    ):
        report.say(f"* {bar}")


def main() -> None:
    """Run and print all of it."""
    asked = ask(__doc__ or "", PAGE.name)
    size = QUICK if asked.quick else Size()
    allow_files(size.load.sessions)
    require_ports(size.load.sessions)
    report = Report(HEAD.format(load=size.load, seconds=size.seconds, talkers=TALKERS))
    with services() as stack:
        report.introduce(stack, PACKAGES)
        show(report, run(report, stack, size, asked.rounds))
    if asked.write:
        report.save(PAGE, MEANING)


HEAD = """\
# A crowd that says nothing

{load.sessions:,} sessions in one server process, each of a user with {load.channels} memberships:
{load.bindings:,} bindings in {load.groups:,} groups. `python -m benchmarks.crowd --write` has
written this page. Each figure is the median of the rounds, with the smallest and the largest.

Memory is what the kernel says of the process (`smaps_rollup`) before anybody has come, and at the
end of {seconds:.0f} s in which nobody spoke; the difference is divided by the sessions. What the
kernel itself keeps for a socket is not in it. CPU is that of these seconds: the server pings each
session, the sessions answer, and the check goes round. Then somebody speaks in {talkers} rooms, and
all members have to hear it, or there would be no figure. What a node costs with fewer sessions, and
why, is in [idle.md](idle.md).
"""

MEANING = """
## What it means

Memory is what decides how many sessions a process can have. The larger part of it is the session:
the socket with the server's protocol object and its buffers, the consumer's task, the outbox. Each
binding adds its entries in two tables, that of the session and that of the group.

Of the CPU a third goes to the comparison of the tables with each other and of the groups with the
layer, every four seconds; a quarter to the digests by which memberships are compared with the
database, and the positions with their groups, once in fifty seconds; a sixth to the pings and their
answers. The rest is what a node does that has nothing to do, and looks after each session.

All of that grows with what there is: half a million bindings are spread over 400 MB, which no
processor keeps near, and most of the time is waiting for memory.
"""


if __name__ == "__main__":
    main()
