"""The hub's end of one socket: what goes out, and what was not acknowledged yet."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass

from messaging import metrics
from messaging.conf import conf
from messaging.messages import StoredMessage
from messaging.outbox import Outbox


@dataclass(slots=True)
class Unacknowledged:
    """A delivered message that its receiver has not acknowledged."""

    frame: str
    sent_at: float
    resends: int = 0


class Port:
    """The hub's end of a socket: its outbox, and what was not acknowledged yet."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self.unacked: OrderedDict[int, Unacknowledged] = OrderedDict()
        self.last_acked_at = 0.0

    def offer(self, frame: str, message: StoredMessage) -> bool:
        """Take the frame of a message if there is room; a stored one is remembered until it is
        acknowledged."""
        if not self.outbox.offer(frame):
            return False
        if message.seq:
            self.unacked[message.message_id] = Unacknowledged(frame, time.monotonic())
        if len(self.unacked) > conf().unacked:
            self.unacked.popitem(last=False)
        return True

    def acknowledge(self, message_id: int) -> None:
        """The receiver has it. Acknowledging what is not waited for changes nothing."""
        self.last_acked_at = time.monotonic()
        self.unacked.pop(message_id, None)

    def resend(self, now: float) -> list[int]:
        """Send again what stayed without an answer though later messages got one; returns the
        message ids that were given up."""
        given_up = []
        for message_id, sent in list(self.unacked.items()):
            if now - sent.sent_at < conf().resend_seconds:
                break
            if self.last_acked_at <= sent.sent_at:
                continue
            if sent.resends >= conf().resends:
                given_up.append(message_id)
                del self.unacked[message_id]
            elif self.outbox.offer(sent.frame):
                self.unacked[message_id] = Unacknowledged(sent.frame, now, sent.resends + 1)
                self.unacked.move_to_end(message_id)
                metrics.RESENT.inc()
        return given_up
