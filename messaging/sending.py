"""Sending from outside the event loop: REST and commands."""

from __future__ import annotations

import threading

from messaging import node
from messaging.log import Appender
from messaging.messages import Appended, Draft, Outcome

SECONDS = 30
"""How long a caller waits for the log: SQLite's own wait for its lock is 20 s."""

_local = threading.local()


def send(draft: Draft) -> Outcome:
    """Append one draft and ring its channel. Blocks; must not be called in the node's loop.

    With a node in this process the draft joins its batches; without one, or with one that drains,
    it is appended here, and the nodes' tick finds it.
    """
    current = node.current_node()
    if current is not None and not current.draining:
        return current.send_from_thread(draft).result(timeout=SECONDS)
    if not hasattr(_local, "appender"):
        _local.appender = Appender()
    outcome: Outcome = _local.appender.append([draft])[0]
    if isinstance(outcome, Appended) and not outcome.repeated:
        node.announce_appended(outcome.message)
    return outcome
