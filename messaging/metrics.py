"""What a server's processes count and measure of messages, sessions and nodes.

Gauges are as of the node's last tick, whose time is one of them. No label can hold a uid, a
channel, a session or a message. With several workers each process writes into a file of its own
(`prepare_workers`), and whichever is asked adds them up.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from django.db import DatabaseError
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.multiprocess import mark_process_dead

from messaging.conf import STEPS
from messaging.messages import Outcome, Refused, StoredMessage
from messaging.protocol.close_codes import CloseCode
from messaging.protocol.reasons import Reason
from subscriptions.metrics import REGISTRY, counters

if TYPE_CHECKING:
    from messaging.node import Node
    from messaging.registry import Beat

WORKERS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The variable by which prometheus_client is told to count in files. It looks once, when it is
imported first."""


def _gauge(name: str, text: str, mode: str) -> Gauge:
    """`mode`: what becomes of the values of several workers. Those that ended never count."""
    return Gauge(name, text, registry=REGISTRY, multiprocess_mode=mode)  # type: ignore[arg-type]  # a literal


def _counter(name: str, text: str) -> Counter:
    return Counter(name, text, registry=REGISTRY)


def _histogram(name: str, text: str, bounds: Sequence[float]) -> Histogram:
    return Histogram(name, text, registry=REGISTRY, buckets=bounds)


def _histograms(
    name: str, text: str, label: str, values: Sequence[str], bounds: Sequence[float]
) -> dict[str, Histogram]:
    """A histogram for each value of a label."""
    family = Histogram(name, text, [label], registry=REGISTRY, buckets=bounds)
    return {value: family.labels(value) for value in values}


# --- nodes ------------------------------------------------------------------------------------

NODES = _gauge("wukongim_nodes", "Nodes that run in this server's processes.", "livesum")
READY = _gauge("wukongim_node_ready", "1 while new sessions should come: of workers, the worst.",
               "livemin")  # fmt: skip
DRAINING = _gauge("wukongim_node_draining", "1 while sessions are asked to come back elsewhere.",
                  "livemax")  # fmt: skip
LEASE = _gauge("wukongim_lease_held", "1 while the lease is renewed: of workers, the worst.",
               "livemin")  # fmt: skip
REGISTERED_AGAIN = _counter(
    "wukongim_lease_registered_again", "Times that a node was swept and registered itself anew."
)
LAST_TICK = _gauge("wukongim_last_tick_timestamp_seconds",
                   "Unix time of the last tick, as of which gauges are: of workers, the oldest.",
                   "livemin")  # fmt: skip
LAST_CHECK = _gauge("wukongim_last_check_timestamp_seconds",
                    "Unix time at which the last complete check began: of workers, the oldest; "
                    "0 before the first.", "livemin")  # fmt: skip
TICK_LATE = _histogram("wukongim_tick_late_seconds",
                       "How late the event loop woke the tick: all sessions wait so long.",
                       (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5))  # fmt: skip
STEP = _histograms("wukongim_tick_step_seconds", "What a step of the tick took.", "step", STEPS,
                   (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10))  # fmt: skip
FAILED_STEPS = counters("wukongim_tick_failures", "Steps of the tick that failed.", "step", STEPS)
DATABASE_ERRORS = counters(
    "wukongim_database_errors", "Times that the database failed, by what was asked of it.",
    "where", ("connect", "append", "tick"),
)  # fmt: skip

# --- sessions and bindings --------------------------------------------------------------------

CAUSES = (
    *(code.name.lower() for code in CloseCode if code != CloseCode.CONNECT_TIMEOUT),
    "going_away", "gone_without_a_word", "other",
)  # fmt: skip
"""Why sessions end: in the log's words (docs/reference/log-events.md), with underscores."""

SESSIONS = _gauge("wukongim_sessions", "Open sessions.", "livesum")
OPENED = _counter("wukongim_sessions_opened", "Sessions that were opened.")
CLOSED = counters("wukongim_sessions_closed", "Sessions that ended.", "cause", CAUSES)
HELD = _gauge("wukongim_bindings_held", "Bindings that the groups have: they deliver.", "livesum")
EXPECTED = _gauge("wukongim_bindings_expected", "Bindings that the sessions have.", "livesum")
GROUPS = _gauge("wukongim_groups", "Groups with a session here.", "livesum")

# --- messages ---------------------------------------------------------------------------------

APPENDED = counters(
    "wukongim_messages_appended", "Messages that the log took; `unstored` are those with noPersist,"
    " `repeated` those it had.", "how", ("stored", "unstored", "repeated"),
)  # fmt: skip
REASONS = tuple(
    reason.name.lower() for reason in Reason if reason not in (Reason.UNKNOWN, Reason.SUCCESS)
)
REFUSED = counters("wukongim_messages_refused", "Messages refused by the log.", "reason", REASONS)
LANES = ("fast", "slow")
"""The slow one waits for channels whose rows somebody else holds, so its batches may take long."""
BATCH_SIZE = _histograms("wukongim_log_batch_size", "Messages tried in one transaction of the log.",
                         "lane", LANES, (1, 2, 5, 10, 20, 50, 100, 200, 500))  # fmt: skip
BATCH_SECONDS = _histograms("wukongim_log_batch_seconds",
                            "From handing a batch to the database's thread to its answer.",
                            "lane", LANES,
                            (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5,
                             10))  # fmt: skip
DELIVERIES = counters(
    "wukongim_deliveries", "Messages handed to a session's outbox: by a doorbell, fetched from the "
    "log, or unstored.", "how", ("doorbell", "fetched", "unstored"),
)  # fmt: skip
FETCHES = _histogram("wukongim_fetch_age_seconds",
                     "Age of the oldest message of a fetch: what a lost doorbell or a slow reader "
                     "cost.",
                     (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600))  # fmt: skip
OVERFLOWS = _counter("wukongim_outbox_overflows",
                     "Times that an outbox was full; what is stored is fetched later.")  # fmt: skip
RESENT = _counter("wukongim_messages_resent", "Messages sent again for want of a RECVACK.")
GIVEN_UP = _counter("wukongim_messages_given_up", "Messages never acknowledged after re-sends.")

# --- the layer --------------------------------------------------------------------------------

DROPPED = counters(
    "wukongim_doorbells_dropped", "Events that did not get through the layer; sweeps find what "
    "they said.", "why", ("queue_full", "inbox_full", "timeout", "connection", "other"),
)  # fmt: skip
PROBE_SECONDS = _histogram("wukongim_probe_seconds",
                           "A probe's way through the layer, receive and dispatch.",
                           (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1,
                            2.5, 5))  # fmt: skip
PROBES_MISSED = _counter("wukongim_probes_missed", "Probes that were not back by the next tick.")
PROBES_MISSING = _gauge("wukongim_probes_missing",
                        "Probes missed in a row: of workers, the most.", "livemax")  # fmt: skip
RECONNECTED = _counter("wukongim_layer_reconnects", "Times that the layer was connected anew.")
REMADE = _counter("wukongim_layer_remakes", "Times that a deaf node had its connection remade.")
REJOINED = _counter("wukongim_layer_rejoined_groups", "Groups that were left and joined again.")

# --- what the call sites say ------------------------------------------------------------------


def show_beat(state: Beat) -> None:
    """Show what a node is about to write of itself, whether or not the database takes it."""
    SESSIONS.set(state.sessions)
    HELD.set(state.bindings)
    EXPECTED.set(state.expected)
    GROUPS.set(state.groups)


def show_tick(node: Node) -> None:
    """Show how the node stands after a tick, and count what its hub has delivered since the last.

    The hub counts in plain numbers: its rules know no library, and a delivery no lock.
    """
    NODES.set(1)
    READY.set(node.ready)
    DRAINING.set(node.draining)
    LEASE.set(node.tick.holds_lease)
    PROBES_MISSING.set(node.probe.missed)
    for how, number in node.hub.deliveries.items():
        DELIVERIES[how].inc(number)
        node.hub.deliveries[how] = 0
    LAST_TICK.set(time.time())


def show_stopped() -> None:
    """No node runs here any more."""
    for gauge in (NODES, READY, DRAINING, LEASE, LAST_TICK, LAST_CHECK, PROBES_MISSING,
                  SESSIONS, HELD, EXPECTED, GROUPS):  # fmt: skip
        gauge.set(0)


async def sleep(seconds: float) -> None:
    """Sleep, and measure how much longer it took: what the event loop was busy with."""
    due = time.monotonic() + seconds
    await asyncio.sleep(seconds)
    TICK_LATE.observe(max(0.0, time.monotonic() - due))


def count_failed_step(step: str, error: Exception) -> None:
    """Count a step of the tick that raised."""
    FAILED_STEPS[step].inc()
    if isinstance(error, DatabaseError):
        DATABASE_ERRORS["tick"].inc()


def count_closed(because: str) -> None:
    """Count a session's end, given why in the log's words."""
    cause = because.replace(" ", "_")
    CLOSED[cause if cause in CLOSED else "other"].inc()


@contextmanager
def batch(lane: str, size: int) -> Iterator[None]:
    """Measure one batch of the log."""
    BATCH_SIZE[lane].observe(size)
    with BATCH_SECONDS[lane].time():
        yield


def count_outcome(outcome: Outcome) -> None:
    """Count what became of one draft."""
    how = _outcome(outcome)
    (APPENDED[how] if how in APPENDED else REFUSED[how]).inc()


def _outcome(outcome: Outcome) -> str:
    if isinstance(outcome, Refused):
        return outcome.reason.name.lower()
    if outcome.repeated:
        return "repeated"
    return "stored" if outcome.message.seq else "unstored"


def count_fetched(messages: Sequence[StoredMessage]) -> None:
    """Measure the age of the oldest message of a fetch, by this machine's clock."""
    if messages:
        FETCHES.observe(max(0.0, time.time() - messages[0].created_ms / 1000))


# --- several workers --------------------------------------------------------------------------


def prepare_workers(folder: Path) -> None:
    """Make the processes that are spawned from now on count in files in `folder`, which has to be
    there and to be empty. The caller's own numbers stay in its memory and are shown to nobody."""
    os.environ[WORKERS_FOLDER] = str(folder)


def worker_ended(pid: int) -> None:
    """Take the gauges of a worker that has ended out of the sums. What it counted stays: a total
    never falls. Twice is once."""
    mark_process_dead(pid)
