"""One message to many: what a delivery costs, against what a user would pick instead.

    python -m benchmarks.fanout [--rounds 3] [--write] [--quick]

Rooms of 50, 500 and 2,000 receivers, of whom none acknowledges, with one and with eight messages
under way, of 160 bytes and of 4 kB; then with acknowledgements. Ours is measured in JSON-RPC and in
the binary protocol, where each receiver has a key of its own. Each round starts every server anew,
in a shuffled order. With --write the figures go into docs/performance/fanout.md, too. It takes some
fifteen minutes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median

import uvloop

from benchmarks.codec import MESSAGE_ID, micros
from benchmarks.contenders import (
    NODE_SOCKETIO,
    NODE_WS,
    OURS,
    OURS_BINARY,
    OURS_EMBEDDED,
    PYTHON_SOCKETIO,
    TUTORIAL,
    Running,
    Services,
    services,
)
from benchmarks.load import BINARY_VERSION, SAMPLE, TOKEN_LENGTH, Crowd, message_of
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
    spread,
    spread_of,
)
from messaging.protocol.binary import SharedRecv
from messaging.protocol.cipher import agree
from messaging.protocol.packets import Recv
from tests.support.binary_client import Client
from tests.support.server import ROOT

PAGE = ROOT / "docs" / "performance" / "fanout.md"
PACKAGES = (
    "django", "channels", "channels-redis", "daphne", "python-socketio", "uvicorn", "uvloop",
    "picows",
)  # fmt: skip
OUR = (OURS, OURS_EMBEDDED)
CONTENDERS = (*OUR, OURS_BINARY, TUTORIAL, PYTHON_SOCKETIO, NODE_SOCKETIO, NODE_WS)


@dataclass(frozen=True, slots=True)
class Cell:
    """One thing that is measured: so many receivers, messages under way, and bytes of each;
    `acknowledged`: by each receiver, where there is such a thing."""

    receivers: int
    in_flight: int
    size: int
    acknowledged: bool = False


@dataclass(frozen=True, slots=True)
class Size:
    """What is measured, and for how many seconds each."""

    receivers: tuple[int, ...] = (50, 500, 2_000)
    seconds: float = 1.5
    warm_up: float = 0.5

    @property
    def cells(self) -> list[Cell]:
        """All that is measured."""
        plain = [Cell(*values) for values in product(self.receivers, (1, 8), (160, 4_000))]
        acknowledged = [Cell(self.receivers[1], in_flight, 160, True) for in_flight in (1, 8)]
        return plain + acknowledged

    @property
    def rooms(self) -> dict[str, list[str]]:
        """{room: members}: so many receivers, and one more, who sends."""
        return {
            room_of(count): [f"u{count}x{number}" for number in range(count + 1)]
            for count in self.receivers
        }


QUICK = Size((5, 20, 50), seconds=0.3, warm_up=0.1)
Costs = dict[Cell, dict[str, list[Cost]]]
"""{what: {contender: its rounds}}"""


def room_of(receivers: int) -> str:
    """The name of the room with so many receivers."""
    return f"room{receivers}"


async def measure(
    size: Size, running: Running, clocks: Clocks, cells: Sequence[Cell]
) -> dict[Cell, Cost]:
    """Connect everybody, and go through the cells."""
    crowd = Crowd(running.dialect, running.url)
    await crowd.connect((name, room) for room, names in size.rooms.items() for name in names)
    costs = {}
    for cell in cells:
        crowd.acknowledges = cell.acknowledged
        senders = crowd.rooms[room_of(cell.receivers)][:1]
        costs[cell] = await cost_of(
            crowd, clocks, senders, cell.in_flight, cell.size, size.seconds, size.warm_up
        )
    await crowd.close()
    return costs


def run(report: Report, stack: Services, size: Size, rounds: int) -> Costs:
    """Every contender in every round."""
    costs: Costs = {cell: defaultdict(list) for cell in size.cells}
    for number, contender in shuffled(CONTENDERS, rounds):
        cells = [cell for cell in size.cells if not cell.acknowledged or contender in OUR]
        with contender.running(stack, size.rooms) as running:
            found = uvloop.run(measure(size, running, Clocks(stack, running), cells))
        for cell, cost in found.items():
            costs[cell][contender.name].append(cost)
            report.say(f"{number} {contender.name:32} {line(cell, cost)}", keep=False)
    return costs


def line(cell: Cell, cost: Cost) -> str:
    """A round of one contender, on the terminal."""
    acknowledged = ", acknowledged" if cell.acknowledged else ""
    what = f"{cell.receivers:,} × {cell.in_flight} × {cell.size:,} B{acknowledged}"
    return (
        f"{what:30} {cost.delivery_micros:7.1f} µs of server, {load_micros(cost):5.1f} µs of load"
        f" a delivery, {cost.deliveries_rate:9,.0f}/s, p99 {cost.heard_p99:,.0f} ms"
    )


def load_micros(cost: Cost) -> float:
    """The load's own CPU of a delivery, µs."""
    return cost.spent.load / max(1, cost.heard.deliveries) * 1e6


def delivery_micros(cost: Cost) -> float:
    """The server's, µs."""
    return cost.delivery_micros


# --- what is said of them -----------------------------------------------------------------------


def show(report: Report, size: Size, costs: Costs) -> None:
    """A table for each thing that is measured of everybody, one of acknowledgements, the bars."""
    for cell in size.cells:
        if not cell.acknowledged:
            report.say(
                f"\n{cell.receivers:,} receivers, {cell.in_flight} in flight, {cell.size:,} bytes:"
            )
            report.table(TITLES, [row(each.name, costs[cell]) for each in CONTENDERS])
    report.say("\nOurs, with and without acknowledgements:")
    report.table(
        ("server, receivers × in flight", "without, µs", "with, µs", "an acknowledgement, µs"),
        [acknowledgement(name, cell, costs) for cell in size.cells if cell.acknowledged
         for name in (each.name for each in OUR)],
    )  # fmt: skip
    report.say("\nOurs in both protocols, and what the cipher takes:")
    report.table(
        ("receivers × in flight × bytes", "JSON-RPC, µs", "binary, µs", "as a multiple",
         "the cipher alone, µs", "of binary"),
        [protocols(cell, costs[cell]) for cell in size.cells if not cell.acknowledged],
    )  # fmt: skip
    report.say("")
    for bar in bars(size, costs):
        report.say(f"* {bar}")


TITLES = (
    "server", "server CPU, µs a delivery", "of the tutorial's", "deliveries a second",
    "heard by all, p99 ms", "load, µs a delivery",
)  # fmt: skip


def row(name: str, all_of_them: Mapping[str, list[Cost]]) -> tuple[str, ...]:
    """A contender's row."""
    costs = all_of_them[name]
    return (
        name,
        spread_of(costs, delivery_micros, ".1f"),
        f"1 / {ratio(all_of_them[TUTORIAL.name], costs, delivery_micros):.1f}",
        spread_of(costs, lambda cost: cost.deliveries_rate),
        spread_of(costs, lambda cost: cost.heard_p99, ",.1f"),
        spread_of(costs, load_micros, ".1f"),
    )


def acknowledgement(name: str, cell: Cell, costs: Costs) -> tuple[str, ...]:
    """What acknowledging adds for one of ours."""
    plain = costs[Cell(cell.receivers, cell.in_flight, cell.size)][name]
    return (
        f"{name}, {cell.receivers:,} × {cell.in_flight}",
        spread_of(plain, delivery_micros, ".1f"),
        spread_of(costs[cell][name], delivery_micros, ".1f"),
        f"{added(name, cell, costs):.1f}",
    )


def protocols(cell: Cell, all_of_them: Mapping[str, list[Cost]]) -> tuple[str, ...]:
    """What the binary protocol takes, next to JSON-RPC."""
    plain, binary = all_of_them[OURS.name], all_of_them[OURS_BINARY.name]
    cipher = [cipher_micros(cell) for _ in binary]
    return (
        f"{cell.receivers:,} × {cell.in_flight} × {cell.size:,}",
        spread_of(plain, delivery_micros, ".1f"),
        spread_of(binary, delivery_micros, ".1f"),
        f"{ratio(binary, plain, delivery_micros):.2f}",
        spread(cipher, ".1f"),
        f"{median(cipher) / median_of(binary, delivery_micros):.0%}",
    )


def cipher_micros(cell: Cell) -> float:
    """CPU that the ciphers of so many sessions take for a RECV, each for its own, µs: encryption
    and msgKey, in a loop in this process."""
    ciphers = [agree(Client(BINARY_VERSION).key).cipher for _ in range(cell.receivers)]
    room, payload = room_of(cell.receivers), message_of("x" * cell.size)
    recv = Recv(MESSAGE_ID, 42, 1_700_000_001, room, 2, "sender", payload, "x" * TOKEN_LENGTH)
    shared = SharedRecv.of(recv, BINARY_VERSION)
    signed = shared.signed + ciphers[0].encrypt(payload) + shared.padding

    def seal() -> None:
        for cipher in ciphers:
            cipher.encrypt_padded(shared.plain)
            cipher.sign_padded(signed)

    return micros(seal, 0.1) / len(ciphers)


def added(name: str, cell: Cell, costs: Costs) -> float:
    """µs that an acknowledgement adds to a delivery."""
    plain = costs[Cell(cell.receivers, cell.in_flight, cell.size)][name]
    return median_of(costs[cell][name], delivery_micros) - median_of(plain, delivery_micros)


def bars(size: Size, costs: Costs) -> list[Bar]:
    """What is promised of ours on PostgreSQL and Valkey."""
    _, middle, most = size.receivers

    def of(peer: str, receivers: int = middle, in_flight: int = 1) -> float:
        cell = costs[Cell(receivers, in_flight, 160)]
        return ratio(cell[peer], cell[OURS.name], delivery_micros)

    def binary(in_flight: int = 1) -> float:
        cell = costs[Cell(middle, in_flight, 160)]
        return ratio(cell[OURS_BINARY.name], cell[OURS.name], delivery_micros)

    def ours(receivers: int) -> float:
        return median_of(costs[Cell(receivers, 1, 160)][OURS.name], delivery_micros)

    slowest = max(added(OURS.name, cell, costs) for cell in size.cells if cell.acknowledged)
    return [
        Bar("The tutorial's CPU, against ours", of(TUTORIAL.name), 12, " ×", True),
        Bar("The same, 8 in flight", of(TUTORIAL.name, in_flight=8), 30, " ×", True),
        Bar("python-socketio's", of(PYTHON_SOCKETIO.name), 3, " ×", True),
        Bar("node socket.io's", of(NODE_SOCKETIO.name), 1, " ×", True),
        Bar("The same, 8 in flight", of(NODE_SOCKETIO.name, in_flight=8), 1, " ×", True),
        Bar("An acknowledgement", slowest, 15, " µs"),
        Bar("Binary, against JSON-RPC", binary(), 2, " ×"),
        Bar("The same, 8 in flight", binary(in_flight=8), 2, " ×"),
        Bar(f"Ours at {most:,} receivers, against {middle:,}", ours(most) / ours(middle), 1.2,
            " ×"),
    ]  # fmt: skip


def main() -> None:
    """Run and print all of it."""
    asked = ask(__doc__ or "", PAGE.name)
    size = QUICK if asked.quick else Size()
    allow_files(sum(size.receivers) + 3)
    report = Report(HEAD)
    with services() as stack:
        report.introduce(stack, PACKAGES)
        show(report, size, run(report, stack, size, asked.rounds))
    if asked.write:
        report.save(PAGE, MEANING)


HEAD = f"""\
# One message to many

`python -m benchmarks.fanout --write` has written this page. One member sends, everybody else in the
room hears it. Each server is one process on a core of its own; the load, Valkey and PostgreSQL
share the other. Ours stores each message, numbers it, and judges for each receiver whether it is
theirs; the peers pass it on. What they are and how they are set up is in
[benchmarks/peers](../../benchmarks/peers/README.md). Figures are medians of the rounds, with the
smallest and the largest. Nothing was lost, repeated or out of order, or there would be no page.

"Ours, binary" is ours on PostgreSQL and Valkey with clients that speak the binary protocol of
version {BINARY_VERSION}, each with a key of its own; the rest of ours speak JSON-RPC. To decipher
all that comes would make the load the bottleneck. So it counts packets, and reads in plain fields
of their headers whether they are complete, in order and for that room; the first that each receiver
gets, and one in {SAMPLE} after that, it deciphers, and checks the `msgKey` and the text.

CPU a delivery is all that the server's process took, a message's own cost included, divided by the
deliveries: with one message under way each is a transaction by itself, with eight they share one.
"""

MEANING = """
## What it means

A delivery is a look at the session's position and binding, an entry in its outbox, and a write to
its socket. The write is the kernel's, most of what is left, and the same for every server here.
What comes for one socket in one turn of the event loop is one write: that is why eight messages
under way cost less than half of one, and why the peers, which write each, gain little from them.

The cost of storing a message, about two milliseconds of the server's CPU when it is alone, falls on
all who hear it: on 50 it weighs, on 2,000 it does not. That, and Python where node compiles, is why
socket.io, which stores nothing, takes less with one message under way; with eight of them in a room
of hundreds it takes more.

In the binary protocol each receiver's payload is encrypted with the key of that receiver, and so is
what its `msgKey` is the hash of: two encryptions and a hash a delivery, however many are under way.
What the cipher takes for that is measured in a loop, with as many keys, apart from a server; what
else a delivery then costs more is its frame, made for one, where JSON-RPC makes one for all.

An acknowledgement is read where it comes, without the parser, the queue and the task that most
frames go through. What was tried is in [what-was-tried.md](what-was-tried.md).
"""


if __name__ == "__main__":
    main()
