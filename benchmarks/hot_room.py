"""One hot room: what the batches of the message log are worth.

    python -m benchmarks.hot_room [--rounds 3] [--write] [--quick]

One room of 16 members, of whom eight send, with eight messages of each under way, on a PostgreSQL
that writes to the disk: our server as it comes, and with one transaction a message. Each round
starts both anew, in a shuffled order. With --write the figures go into docs/performance/sending.md,
too. It takes about a minute.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import uvloop

from benchmarks.contenders import Ours, Running, Services, services
from benchmarks.load import Crowd
from benchmarks.report import Report
from benchmarks.rooms import PAGE, SENDING, line
from benchmarks.runs import Bar, Clocks, Cost, ask, cost_of, median_of, ratio, shuffled, spread_of

PACKAGES = ("django", "psycopg", "uvicorn", "uvloop", "picows")
BATCHED = Ours("as it comes")
ALONE = Ours("one transaction a message", settings='{"TOKEN_REQUIRED": false, "LOG_BATCH": 1}')
VARIANTS = (BATCHED, ALONE)
FASTER = 5.0
"""At least so many times the messages a second of one transaction each."""
ROOM = "hot"


@dataclass(frozen=True, slots=True)
class Size:
    """So many members, of whom so many send, with so many messages of each under way."""

    members: int = 16
    senders: int = 8
    each: int = 8
    bytes: int = 160
    seconds: float = 5.0
    warm_up: float = 1.0


QUICK = Size(seconds=1.0, warm_up=0.3)


@dataclass(frozen=True, slots=True)
class Result:
    """What the messages of a round cost, and how many were in a transaction of the log."""

    cost: Cost
    batch: float


Results = dict[str, list[Result]]
"""{variant: its rounds}"""


async def measure(size: Size, running: Running, clocks: Clocks) -> Cost:
    """Connect the members and have the first of them send."""
    crowd = Crowd(running.dialect, running.url)
    members = await crowd.connect((f"u{number}", ROOM) for number in range(size.members))
    senders, in_flight = members[: size.senders], size.senders * size.each
    cost = await cost_of(crowd, clocks, senders, in_flight, size.bytes, size.seconds, size.warm_up)
    await crowd.close()
    return cost


def run(report: Report, stack: Services, size: Size, rounds: int) -> Results:
    """Both in every round."""
    results: Results = defaultdict(list)
    rooms = {ROOM: [f"u{number}" for number in range(size.members)]}
    for number, variant in shuffled(VARIANTS, rounds):
        with variant.running(stack, rooms) as running:
            cost = uvloop.run(measure(size, running, Clocks(stack, running)))
            tried = running.metric("wukongim_log_batch_size_sum")
            batch = tried / running.metric("wukongim_log_batch_size_count")
        results[variant.name].append(Result(cost, batch))
        report.say(f"{number} {variant.name:27} {line(cost)}  {batch:.1f} a batch", keep=False)
    return {each.name: results[each.name] for each in VARIANTS}


def show(report: Report, results: Results) -> None:
    """The table, and whether the bar is kept."""
    report.table(
        ("log", "messages a second", "messages a transaction", "server CPU, µs a message",
         "PostgreSQL, µs", "load, µs", "answered, p99 ms"),
        [(name, *row(rounds)) for name, rounds in results.items()],
    )  # fmt: skip
    batched, alone = results[BATCHED.name], results[ALONE.name]
    faster = ratio(batched, alone, lambda result: result.cost.rate)
    bar = Bar("Messages a second, against one transaction each", faster, FASTER, " ×", True)
    report.say(f"\n* {bar}")


def row(rounds: Sequence[Result]) -> tuple[str, ...]:
    """The figures of a variant."""
    costs = [each.cost for each in rounds]
    return (
        spread_of(costs, lambda cost: cost.rate),
        spread_of(rounds, lambda result: result.batch, ".1f"),
        spread_of(costs, lambda cost: cost.micros),
        f"{median_of(costs, lambda cost: cost.of_message(cost.spent.postgres)):,.0f}",
        f"{median_of(costs, lambda cost: cost.of_message(cost.spent.load)):,.0f}",
        spread_of(costs, lambda cost: cost.answered_p99),
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
        report.say(MEANING)
        report.save_part(PAGE, SENDING)


HEAD = """\
## One hot room

One room of {size.members} members, of whom {size.senders} send {size.bytes} bytes each, with
{size.each} messages of each under way, on PostgreSQL and Valkey: our server as it comes, and with
`LOG_BATCH` 1, where each message is a transaction of its own.
"""

MEANING = """
### What it means

All messages of a room take the same row, so one after the other has to be written, and each
transaction waits for the disk. Whatever has come while it waited is the next batch: nothing waits
for a batch to fill, and the busier the room the larger are the batches.
"""


if __name__ == "__main__":
    main()
