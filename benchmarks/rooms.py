"""Many small rooms: what a stored message costs, against the Channels tutorial with an insert.

    python -m benchmarks.rooms [--rounds 3] [--write] [--quick]

1,000 rooms of five members each, 5,000 sockets, and 200 messages under way over the rooms in turn:
the first member of each room sends. Each round starts every server anew, in a shuffled order. With
--write the figures go into docs/performance/sending.md, too. It takes some ten minutes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import uvloop

from benchmarks.contenders import (
    OURS,
    OURS_EMBEDDED,
    TUTORIAL_POSTGRES,
    TUTORIAL_SQLITE,
    Ours,
    Peer,
    Running,
    Services,
    services,
)
from benchmarks.load import Crowd, Heard
from benchmarks.report import Report
from benchmarks.runs import (
    Bar,
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

PAGE = ROOT / "docs" / "performance" / "sending.md"
PACKAGES = ("django", "channels", "channels-redis", "daphne", "uvicorn", "uvloop", "picows")
OUR, THEIRS = (OURS_EMBEDDED, OURS), (TUTORIAL_SQLITE, TUTORIAL_POSTGRES)
"""Each of ours, and what it is compared with."""
FLOOD_PATIENCE = 3.0
"""Seconds after which what a flooded peer has not delivered is lost."""
FASTER, ANSWERED_MS, ALIKE = 10.0, 150.0, 1.5
"""At least so many times the tutorial's messages a second; at most so many milliseconds for 99 of
100 SENDACKs; a delivery in many rooms at most so many times one in a single room."""


@dataclass(frozen=True, slots=True)
class Size:
    """So many rooms of so many members, messages under way, bytes of each, and seconds. `carried`:
    under way at the tutorial, whose layer holds 100 for a process and drops the rest. `turns`: how
    often ours is measured in many rooms and in one, one right after the other."""

    rooms: int = 1_000
    members: int = 5
    in_flight: int = 200
    carried: int = 64
    bytes: int = 160
    turns: int = 3
    seconds: float = 5.0
    warm_up: float = 1.0

    def people(self) -> dict[str, list[str]]:
        """{room: members}: the many rooms, and the one that they are compared with."""
        rooms = small_rooms(self.rooms, self.members)
        return {**rooms, ONE: [f"one{member}" for member in range(self.members)]}


ONE = "one"
QUICK = Size(rooms=40, seconds=1.0, warm_up=0.3)


@dataclass(frozen=True, slots=True)
class Result:
    """What a message cost in many rooms and, right after that, in one; and what came of too many at
    once."""

    many: Cost
    one: Cost
    flood: Heard | None = None

    @property
    def alike(self) -> float:
        """A delivery in many rooms as a multiple of one in a single room. Both are measured within
        seconds: a machine that does other things is not the same one a minute later."""
        return self.many.delivery_micros / self.one.delivery_micros


Results = dict[str, list[Result]]
"""{contender: its turns of all rounds}"""


async def measure(size: Size, running: Running, clocks: Clocks, is_ours: bool) -> list[Result]:
    """Many rooms, then the one room, with as many messages under way: there all members send in
    turn, since one of ours may have 64 under way. Ours several times."""
    crowd = Crowd(running.dialect, running.url)
    await crowd.connect((name, room) for room, names in size.people().items() for name in names)
    first = [members[0] for room, members in crowd.rooms.items() if room != ONE]
    in_flight = size.in_flight if is_ours else size.carried
    results = []
    for _ in range(size.turns if is_ours else 1):
        many, one = [
            await cost_of(crowd, clocks, senders, in_flight, size.bytes, size.seconds, size.warm_up)
            for senders in (first, crowd.rooms[ONE])
        ]
        results.append(Result(many, one))
    if not is_ours:
        crowd.patience = FLOOD_PATIENCE
        flood = await crowd.talk(first, size.seconds, size.in_flight, size.bytes)
        results = [Result(many, one, flood)]
    await crowd.close()
    return results


def run(report: Report, stack: Services, size: Size, rounds: int) -> Results:
    """Every contender in every round."""
    results: Results = defaultdict(list)
    contenders: list[Ours | Peer] = [*OUR, *THEIRS]
    for number, contender in shuffled(contenders, rounds):
        with contender.running(stack, size.people()) as running:
            clocks = Clocks(stack, running)
            turns = uvloop.run(measure(size, running, clocks, contender in OUR))
        results[contender.name] += turns
        head = f"{number} {contender.name:38}"
        for turn in turns:
            report.say(f"{head} many  {line(turn.many)}", keep=False)
            report.say(f"{head} one   {line(turn.one)}", keep=False)
            if turn.flood is not None:
                report.say(f"{head} {size.in_flight} under way: {lost(turn.flood)}", keep=False)
    return {each.name: results[each.name] for each in contenders}


def line(cost: Cost) -> str:
    """A round of one contender, on the terminal."""
    answered = f" answered {cost.answered_p99:,.0f}" if cost.heard.answered else ""
    return (
        f"{cost.rate:7,.0f} msg/s  CPU µs a message: server {cost.micros:7,.0f}"
        f"  PostgreSQL {cost.of_message(cost.spent.postgres):5,.0f}"
        f"  Valkey {cost.of_message(cost.spent.valkey):5,.0f}"
        f"  load {cost.of_message(cost.spent.load):4,.0f}"
        f"  p99 ms: heard {cost.heard_p99:,.0f}{answered}"
    )


def lost(heard: Heard) -> str:
    """What came of too many at once."""
    return f"{heard.lost:,} of {heard.deliveries + heard.lost:,} deliveries lost"


# --- what is said of them -----------------------------------------------------------------------

TITLES = (
    "server", "messages a second", "server CPU, µs a message", "µs a delivery", "PostgreSQL, µs",
    "Valkey, µs", "load, µs", "heard by all, p99 ms", "answered, p99 ms",
)  # fmt: skip


def row(name: str, costs: Sequence[Cost]) -> tuple[str, ...]:
    """A contender's row of the table."""
    answered = (
        spread_of(costs, lambda cost: cost.answered_p99) if costs[0].heard.answered else "no answer"
    )
    return (
        name,
        spread_of(costs, lambda cost: cost.rate),
        spread_of(costs, lambda cost: cost.micros),
        spread_of(costs, lambda cost: cost.delivery_micros, ".1f"),
        f"{median_of(costs, lambda cost: cost.of_message(cost.spent.postgres)):,.0f}",
        f"{median_of(costs, lambda cost: cost.of_message(cost.spent.valkey)):,.0f}",
        f"{median_of(costs, lambda cost: cost.of_message(cost.spent.load)):,.0f}",
        spread_of(costs, lambda cost: cost.heard_p99),
        answered,
    )


def show(report: Report, size: Size, results: Results) -> None:
    """The tables, and whether the bars are kept."""
    many = {name: [each.many for each in rounds] for name, rounds in results.items()}
    one = {name: [each.one for each in rounds] for name, rounds in results.items()}
    report.say(f"\n{size.rooms:,} rooms:")
    report.table(TITLES, [row(name, costs) for name, costs in many.items()])
    report.say(f"\nOne room of {size.members}:")
    report.table(TITLES, [row(name, costs) for name, costs in one.items()])
    report.say("")
    for ours, peer in zip(OUR, THEIRS, strict=True):
        mine, theirs = results[ours.name], many[peer.name]
        floods = [each.flood for each in results[peer.name] if each.flood is not None]
        for bar in bars(ours.name, mine, theirs):
            report.say(f"* {bar}")
        cpu = ratio(theirs, many[ours.name], lambda cost: cost.micros)
        report.say(f"* {ours.name}: a message takes the tutorial {cpu:.1f} × the server's CPU")
        report.say(
            f"* {peer.name}, with {size.in_flight} under way:"
            f" {'; '.join(lost(flood) for flood in floods)}"
        )


def bars(name: str, mine: Sequence[Result], theirs: Sequence[Cost]) -> list[Bar]:
    """What is promised of one of ours."""
    many = [each.many for each in mine]
    rate = ratio(many, theirs, lambda cost: cost.rate)
    answered = median_of(many, lambda cost: cost.answered_p99)
    alike = median_of(mine, lambda turn: turn.alike)
    return [
        Bar(f"{name}: messages a second, against the tutorial's", rate, FASTER, " ×", True),
        Bar(f"{name}: SENDACK, 99 of 100", answered, ANSWERED_MS, " ms"),
        Bar(f"{name}: CPU of a delivery in many rooms, against one room", alike, ALIKE, " ×"),
    ]


def main() -> None:
    """Run and print all of it."""
    asked = ask(__doc__ or "", PAGE.name)
    size = QUICK if asked.quick else Size()
    allow_files(size.rooms * size.members)
    report = Report(HEAD.format(size=size, others=size.members - 1))
    with services() as stack:
        report.introduce(stack, PACKAGES)
        show(report, size, run(report, stack, size, asked.rounds))
    if asked.write:
        report.say(MEANING)
        report.save_part(PAGE, SENDING)


SENDING = """\
# What a stored message costs

Everything here is stored before its sender has an answer, and heard by all who are to hear it.
`python -m benchmarks.rooms --write` and `python -m benchmarks.hot_room --write` have written this
page. Each figure is the median of the rounds, with the smallest and the largest. Nothing was lost,
repeated or out of order but where it says so, or there would be no figure.

A server has one core of its own; the load, PostgreSQL and Valkey share the others. CPU is what the
kernel says of the processes, and compares better than rates, which depend on what the cores are
shared with.
"""

HEAD = """\
## Many small rooms

{size.rooms:,} rooms of {size.members} members with a socket each. The first member of each room
sends {size.bytes} bytes, over the rooms in turn, with {size.in_flight} messages under way. The
tutorial gets {size.carried}, which keep it as busy: its layer holds 100 messages for a process, and
drops the rest. What it loses with {size.in_flight} is said below.

Members of the tutorial's rooms hear themselves, ours do not; so a message is {others} deliveries
for ours and {size.members} for the tutorial. The one room is measured at the same server, with as
many members and messages under way, so that a message is as many deliveries; there all members send
in turn. Ours takes {size.turns} turns of many rooms and one in each round; how a delivery compares
is the median of what each turn says.
"""

MEANING = """
### What it means

The tutorial spends most on what is not the database: a hop to a thread for each event, the layer's
queue in Redis, and an insert that is a transaction of its own, which it awaits before the message
goes on. Ours appends what waits in one transaction, and delivers from a table in memory.

A delivery in many rooms costs more than in one. In the one room a receiver gets several messages in
one write; in many rooms each write has one message, and each batch of the log takes many channels.
"""


if __name__ == "__main__":
    main()
