"""Sending from outside the event loop: REST and commands."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from django.db import DatabaseError, close_old_connections

from messaging import node, refusals
from messaging.appender import Appender
from messaging.messages import Draft, Held, Outcome, Refused
from messaging.protocol.reasons import Reason
from subscriptions.person_channels import open_missing

logger = logging.getLogger(__name__)

SECONDS = 30
"""How long a caller waits for the log: SQLite's own wait for its lock is 20 s."""

TOGETHER = 500
"""Drafts of one call that are submitted at once: a batch of the log, and a tenth of its queue."""

OURS = frozenset({Reason.RATE_LIMIT, Reason.SYSTEM_ERROR})
"""Refusals that say nothing against the draft."""

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
    return _append([draft])[0]


def send_all(drafts: Sequence[Draft]) -> list[Outcome | None]:
    """Append drafts of one call and one sender, TOGETHER at a time, each lot once the last is
    stored. None for those of which the log has not said in time what became of them, and for those
    that were not tried, since the server could not take the lot before. Otherwise as `send`.
    """
    outcomes: list[Outcome | None] = []
    for start in range(0, len(drafts), TOGETHER):
        lot = drafts[start : start + TOGETHER]
        _open_channels(lot)
        outcomes += _send_lot(lot)
        if any(map(is_ours, outcomes[start:])):
            break
    return outcomes + [None] * (len(drafts) - len(outcomes))


def is_ours(outcome: Outcome | None) -> bool:
    """Whether the server is at fault: the same draft may be stored later, or is already."""
    return outcome is None or (isinstance(outcome, Refused) and outcome.reason in OURS)


def _open_channels(drafts: Sequence[Draft]) -> None:
    """Make the person channels that these drafts, of one sender, are the first of. The log makes
    them, too, but one by one; so what fails here is left to it."""
    try:
        open_missing([draft.key for draft in drafts], drafts[0].sender, "first message")
    except DatabaseError:
        logger.warning("channels.failed", exc_info=True, extra={"drafts": len(drafts)})


def _send_lot(drafts: Sequence[Draft]) -> list[Outcome | None]:
    current = node.current_node()
    if current is None or current.stopping:
        return [*_append(drafts)]
    close_old_connections()
    try:
        return current.send_all_from_thread(drafts, SECONDS).result(timeout=SECONDS + 1)
    except TimeoutError:
        return [None] * len(drafts)


def _append(drafts: Sequence[Draft]) -> list[Outcome]:
    """Append on this thread."""
    if not hasattr(_local, "appender"):
        _local.appender = Appender()
    appended: list[Outcome | Held] = _local.appender.append(drafts, SECONDS)
    return [_settled(*each) for each in zip(drafts, appended, strict=True)]


def _settled(draft: Draft, appended: Outcome | Held) -> Outcome:
    outcome = Refused(Reason.SYSTEM_ERROR) if isinstance(appended, Held) else appended
    if isinstance(outcome, Refused):
        refusals.write_now(draft, outcome.reason)
    elif not outcome.repeated:
        node.announce_appended(outcome.message)
    return outcome
