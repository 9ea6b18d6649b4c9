"""What the runs share: the command line, rounds in shuffled order, clocks, spread, and bars."""

from __future__ import annotations

import argparse
import math
import random
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from benchmarks.contenders import Running, Services
from benchmarks.load import Crowd, Heard, Socket
from benchmarks.report import cpu_seconds

T = TypeVar("T")
PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line says. `quick`: tiny, to see that it works; its figures mean nothing."""

    rounds: int
    write: bool
    quick: bool


def ask(text: str, page: str, arguments: Sequence[str] | None = None) -> Asked:
    """The command line of a benchmark with this docstring, which writes docs/performance/<page>."""
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="times that all is measured (3)")
    parser.add_argument(
        "--write", action="store_true", help=f"write the figures into docs/performance/{page}"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny and short: does it work? No figures to keep"
    )
    asked = parser.parse_args(arguments)
    if asked.rounds < 1:
        parser.error("--rounds is 1 or more")
    if asked.quick and asked.write:
        parser.error("--quick gives no figures worth to --write")
    return Asked(asked.rounds, asked.write, asked.quick)


def shuffled(variants: Sequence[T], rounds: int) -> Iterator[tuple[int, T]]:
    """(round, variant): every variant in every round, each time in another order, so that what the
    machine does meanwhile falls on all of them."""
    for number in range(1, rounds + 1):
        for variant in random.sample(variants, len(variants)):
            yield number, variant


def small_rooms(rooms: int, members: int) -> dict[str, list[str]]:
    """{room: its members}, of whom each is in that room alone."""
    return {f"r{room}": [f"u{room}x{member}" for member in range(members)] for room in range(rooms)}


# --- clocks -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds on the clock, and of CPU: of the server, of what it stands on, and of the load."""

    wall: float
    server: float
    postgres: float
    valkey: float
    load: float

    def __sub__(self, earlier: Spent) -> Spent:
        """What was spent since."""
        return Spent(
            self.wall - earlier.wall, self.server - earlier.server,
            self.postgres - earlier.postgres, self.valkey - earlier.valkey,
            self.load - earlier.load,
        )  # fmt: skip


class Clocks:
    """The clocks of a running server and of what it stands on."""

    def __init__(self, stack: Services, running: Running) -> None:
        self.stack, self.running = stack, running

    def read(self) -> Spent:
        """What they say now."""
        postgres, valkey = self.stack.postgres.process, self.stack.valkey.process
        assert postgres is not None
        assert valkey is not None
        return Spent(
            time.perf_counter(), self.running.cpu(), cpu_seconds(postgres.pid),
            cpu_seconds(valkey.pid), time.process_time(),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cost:
    """What some messages cost."""

    heard: Heard
    spent: Spent

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.heard.rate

    @property
    def deliveries_rate(self) -> float:
        """Deliveries a second."""
        return self.heard.deliveries / self.heard.seconds

    @property
    def micros(self) -> float:
        """Server CPU of a message, µs."""
        return self.of_message(self.spent.server)

    @property
    def delivery_micros(self) -> float:
        """Server CPU of a delivery, µs."""
        return self.of_delivery(self.spent.server)

    @property
    def answered_p99(self) -> float:
        """Milliseconds until 99 of 100 senders had their answer."""
        return percentile(self.heard.answered, 99)

    @property
    def heard_p99(self) -> float:
        """Milliseconds until the last receiver had 99 of 100 messages."""
        return percentile(self.heard.milliseconds, 99)

    def of_message(self, seconds: float) -> float:
        """These seconds of CPU as µs a message."""
        return seconds / max(1, self.heard.messages) * 1e6

    def of_delivery(self, seconds: float) -> float:
        """These seconds of CPU as µs a delivery."""
        return seconds / max(1, self.heard.deliveries) * 1e6


async def cost_of(
    crowd: Crowd,
    clocks: Clocks,
    senders: Sequence[Socket],
    in_flight: int,
    size: int,
    seconds: float,
    warm_up: float,
    each_delay: bool = False,
) -> Cost:
    """Have them talk, a while for warmth and then measured. Raises AssertionError where anything is
    lost, repeated, out of order, leaked or refused."""
    require_all(await crowd.talk(senders, warm_up, in_flight, size))
    before = clocks.read()
    heard = await crowd.talk(senders, seconds, in_flight, size, each_delay=each_delay)
    spent = clocks.read() - before
    require_all(heard)
    return Cost(heard, spent)


def require_all(heard: Heard) -> None:
    """Raise AssertionError unless everybody heard everything, once, in order, and nobody else."""
    assert not heard.faults, f"not all was heard as it should be: {heard.faults}"


# --- what comes of it ---------------------------------------------------------------------------


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that so many in a hundred do not exceed; NaN of none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """The median, with the smallest and the largest."""
    least, most = min(values), max(values)
    return f"{statistics.median(values):{form}} ({least:{form}}–{most:{form}})"


def median_of(costs: Sequence[T], value: Callable[[T], float]) -> float:
    """The median of a value over the rounds."""
    return statistics.median(map(value, costs))


def ratio(costs: Sequence[T], others: Sequence[T], value: Callable[[T], float]) -> float:
    """The median of a value over the rounds, as a multiple of that of others."""
    return median_of(costs, value) / median_of(others, value)


def spread_of(costs: Sequence[T], value: Callable[[T], float], form: str = ",.0f") -> str:
    """The same, with the smallest and the largest."""
    return spread(list(map(value, costs)), form)


@dataclass(frozen=True, slots=True)
class Bar:
    """A number that is promised: a value and its limit, in a unit."""

    what: str
    value: float
    limit: float
    unit: str
    at_least: bool = False

    @property
    def kept(self) -> bool:
        """Whether the promise is."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        side = "at least" if self.at_least else "at most"
        verdict = "kept" if self.kept else "NOT KEPT"
        return f"{self.what}: {self.value:,.3g}{self.unit} ({side} {self.limit:g}): {verdict}"


# --- what the machine has to allow --------------------------------------------------------------


def allow_files(count: int) -> None:
    """Let this process, and those that it starts, have so many open files. Raises AssertionError
    where the machine does not."""
    wanted = count + 500  # pipes, logs, databases
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or wanted <= hard, (
        f"{count:,} sockets need {wanted:,} open files, and this machine allows {hard:,}: "
        "raise `ulimit -Hn` first"
    )
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def require_ports(count: int) -> None:
    """Raise AssertionError unless so many connections to one port can be made from here."""
    first, last = map(int, PORTS.read_text(encoding="ascii").split())
    assert count < (last - first) * 0.9, (
        f"{count:,} connections need as many ports, and this machine has {last - first:,}: "
        "widen net.ipv4.ip_local_port_range first"
    )
