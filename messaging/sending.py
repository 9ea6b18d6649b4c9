"""Sending from outside the event loop: REST and commands."""

from __future__ import annotations

import threading

from django.db import close_old_connections

from messaging import node, refusals
from messaging.appender import Appender
from messaging.messages import Draft, Held, Outcome, Refused
from messaging.protocol.reasons import Reason

SECONDS = 30
"""How long a caller waits for the log: SQLite's own wait for its lock is 20 s."""

_local = threading.local()


def refuse(draft: Draft, reason: Reason) -> None:
    """Write down that this draft is refused, without asking the log."""
    current = node.current_node()
    if current is not None and not current.stopping:
        current.loop.call_soon_threadsafe(current.log.refuse, draft, reason)
    else:
        refusals.write_now(draft, reason)


def send(draft: Draft) -> Outcome:
    """Append one draft and ring its channel. Blocks; must not be called in the node's loop.

    With a node in this process the draft joins its batches; without one, or with one that ends, it
    is appended here, and the nodes' tick finds it.
    """
    current = node.current_node()
    if current is not None and not current.stopping:
        close_old_connections()  # the pool has it back while this thread waits for the log
        return current.send_from_thread(draft).result(timeout=SECONDS)
    if not hasattr(_local, "appender"):
        _local.appender = Appender()
    appended: Outcome | Held = _local.appender.append([draft], SECONDS)[0]
    outcome = Refused(Reason.SYSTEM_ERROR) if isinstance(appended, Held) else appended
    if isinstance(outcome, Refused):
        refusals.write_now(draft, outcome.reason)
    elif not outcome.repeated:
        node.announce_appended(outcome.message)
    return outcome
