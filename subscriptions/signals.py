"""Signals for embedders, all but one sent after commit, in the process that made the change.

What another process or raw SQL did is not signalled here: the change log has all of it.
"""

from __future__ import annotations

import logging
from typing import Any

from django.dispatch import Signal

logger = logging.getLogger(__name__)

membership_changed = Signal()
"""channel (ChannelKey), channel_pk, uids (tuple), joined (bool), actor, reason."""

audit_requested = Signal()
"""audit (Audit): somebody asks the nodes to look."""

findings_written = Signal()
"""recorded (list of (Finding, whether it was opened now)): findings that were opened, seen again or
healed, in the transaction that did so. A receiver that fails fails it."""

finding_opened = Signal()
"""finding (Finding)."""

finding_healed = Signal()
"""finding (Finding), with healed_at and healed_by set."""


def send(signal: Signal, sender: Any, **fields: Any) -> None:
    """Send a signal; a receiver that fails is logged and hurts nobody else."""
    for receiver, answer in signal.send_robust(sender=sender, **fields):
        if isinstance(answer, Exception):
            logger.error("signal.failed", exc_info=answer, extra={"receiver": repr(receiver)})
