"""The tables of a node in memory: what it costs to ask whether they agree.

    python -m benchmarks.tables [--rounds 3] [--write] [--quick]

No server, no socket, no database: the hub of a node with the bindings of ten thousand sessions, and
the check's looks at it, in a process of their own. Each round fills the hub anew. With --write the
figures go into docs/performance/tables.md, too. A round takes some three seconds.
"""

from __future__ import annotations

import gc
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from benchmarks.crowd import QUICK as QUICK_SIZE
from benchmarks.crowd import Size
from benchmarks.idle import Load
from benchmarks.report import Report, machine
from benchmarks.runs import ask, spread
from messaging.fanout import Fanout
from messaging.hub import Hub, LiveSession, Needs
from subscriptions.audit import Agreement, compare_group_tables, compare_session_tables
from subscriptions.bindings import ChannelKey, Memberships
from tests.support.server import ROOT

PAGE = ROOT / "docs" / "performance" / "tables.md"
CACHES = 64 << 20
"""Bytes that are touched between two looks, as what a node does meanwhile pushes its tables out of
the processor's caches."""
COME = 500
"""Sessions that have come between two looks: 125 a second."""
FIRST = 100_000
"""The first channel, beyond the integers of which Python keeps one for all."""


class Nowhere:
    """A socket that takes everything."""

    def offer(self, fanout: Fanout, uid: str) -> bool:
        """Taken."""
        return True


@dataclass(frozen=True, slots=True)
class Figures:
    """Milliseconds of each look, and bytes of what is remembered."""

    looks: dict[str, float]
    remembered: int


# --- one round ------------------------------------------------------------------------------------


def connect(hub: Hub, load: Load, user: int) -> LiveSession:
    """A session with its bindings, as those who connect get them."""
    session = LiveSession(f"{user:032x}", f"u{user}", Nowhere(), datetime.now(UTC))
    hub.register(session)
    channels = [FIRST + channel for channel in load.channels_of(user % load.sessions)]
    stays = [5] * len(channels)
    states = dict.fromkeys(channels, (7, 1_000))
    keys = {channel: ChannelKey(2, f"c{channel}") for channel in channels}
    hub.bind_all(session, Memberships(channels, stays, stays, states), keys)
    session.connecting = False
    return session


def measure(load: Load) -> Figures:
    """Fill a hub, and look at it: for the first time, when nothing has changed, when some have
    come, and when one binding is lost."""
    gc.collect()  # the round before; while it looks a node collects next to nothing
    gc.disable()
    hub = Hub(Needs(lambda _: None, lambda _: None, lambda _: None))
    for user in range(load.sessions):
        connect(hub, load, user)
    agreement = Agreement()

    def look() -> bool:
        return agreement.holds(hub.sessions.values(), hub.groups)

    looks = {"the first, at everything": timed(look, True)}
    looks["when nothing has changed"] = timed(look, True)
    remembered = sum(map(sys.getsizeof, (*agreement._of_sessions.values(),
                                         *agreement._of_groups.values())))  # fmt: skip
    come = min(COME, load.sessions // 10)
    for user in range(load.sessions, load.sessions + come):
        session = connect(hub, load, user)
    looks[f"when {come} sessions have come"] = timed(look, True)
    group = hub.groups[next(iter(session.bindings))]
    del group.bindings[session]
    looks["when a binding is lost"] = timed(look, False)
    looks["the search for it"] = timed(lambda: len(search(hub)), 1)
    return Figures(looks, remembered)


def search(hub: Hub) -> list[object]:
    """What the check finds once the tables do not agree."""
    return [*compare_session_tables(hub.sessions.values(), hub.groups),
            *compare_group_tables(hub.groups.values(), hub.sessions)]  # fmt: skip


def timed(look: Callable[[], object], expected: object) -> float:
    """Milliseconds of one look that has to come out as expected, with nothing of the tables in the
    caches."""
    others = bytearray(CACHES)
    for place in range(0, CACHES, 64):
        others[place] = 1
    began = time.perf_counter()
    found = look()
    took = time.perf_counter() - began
    assert found == expected, f"{found} instead of {expected}"
    return took * 1_000


# --- what is said of them -------------------------------------------------------------------------


def main() -> None:
    """Run and print all of it."""
    asked = ask(__doc__ or "", PAGE.name)
    load = (QUICK_SIZE if asked.quick else Size()).load
    report = Report(HEAD.format(load=load))
    report.say(f"{machine()}, Python {platform.python_version()}.")
    rounds = [measure(load) for _ in range(asked.rounds)]
    report.table(
        ("a look", "ms"),
        [(name, spread([each.looks[name] for each in rounds], ".1f")) for name in rounds[0].looks],
    )
    kilobytes = rounds[0].remembered / load.sessions / 1024
    report.say(f"\nWhat the look remembers is {kilobytes:.1f} KiB a session.")
    if asked.write:
        report.save(PAGE, MEANING)


HEAD = """\
# Whether the tables agree

The hub of a node holds the bindings of {load.sessions:,} sessions with {load.channels} memberships
each: {load.bindings:,} bindings in {load.groups:,} groups. Every four seconds the check asks
whether the tables of the sessions and those of the groups say the same, and nothing else runs
meanwhile. `python -m benchmarks.tables --write` has written this page. Each figure is the median of
the rounds, with the smallest and the largest; before each look the processor's caches are filled
with something else.
"""

MEANING = """
## What it means

A table that is as it was when all agreed is compared with what it was, and no more: that is what a
look costs when nothing has changed. What came or went since is looked up at the other end
([decision 41](../decisions/0041-what-came-or-went-since-the-tables-agreed-is-looked-up.md)). A node
that has just started sees its sessions come bit by bit, so the first look at everything is that
after a fault: then the tables are looked up as a whole, once, and searched for what is wrong.
"""


if __name__ == "__main__":
    main()
