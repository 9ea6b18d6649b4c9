"""The hub's end of one socket: what goes out, and what was not acknowledged yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import takewhile

from messaging import metrics
from messaging.conf import conf
from messaging.dialects import Dialect
from messaging.fanout import Fanout
from messaging.outbox import Outbox


class Port:
    """The hub's end of a socket: its outbox, and what was not acknowledged yet.

    That (`sent`) is the newest `unacked` messages in the order in which they went, which is nearly
    always the order in which they are acknowledged; of those that were out of turn, the ids.
    `on_command`, where there is one, is told channel pk and seq of each command among them that is
    acknowledged.
    """

    __slots__ = (
        "_acknowledged", "_commands", "_dialect", "last_acked_at", "on_command", "outbox", "sent",
    )  # fmt: skip

    def __init__(self, outbox: Outbox, dialect: Dialect) -> None:
        self.outbox, self._dialect = outbox, dialect
        self.last_acked_at = 0.0
        self.on_command: Callable[[int, int], None] | None = None
        self._commands: dict[int, tuple[int, int]] = {}
        self.sent: deque[Fanout] = deque(maxlen=conf().unacked)
        self._acknowledged: set[int] = set()

    def offer(self, fanout: Fanout, uid: str) -> bool:
        """Take a message if there is room; a stored one is remembered until it is acknowledged. Its
        frame is not: one with a key of its own is nobody else's, and is hardly ever sent again."""
        if not self.outbox.offer(self._dialect.frame_for(fanout, uid)):
            return False
        if fanout.is_stored:
            self.sent.append(fanout)
            if fanout.command is not None and self.on_command is not None:
                self._remember_command(fanout.message_id, fanout.command)
        return True

    def acknowledge(self, message_id: int, now: float) -> None:
        """The receiver has it. Acknowledging what is not waited for changes nothing."""
        self.last_acked_at = now
        if self._commands and self.on_command is not None:
            command = self._commands.pop(message_id, None)
            if command is not None:
                self.on_command(*command)
        sent = self.sent
        if sent and sent[0].message_id == message_id:
            sent.popleft()
        elif len(self._acknowledged) < len(sent):
            self._acknowledged.add(message_id)
        if self._acknowledged:
            self._forget_acknowledged()

    def _remember_command(self, message_id: int, command: tuple[int, int]) -> None:
        """As many as messages: the oldest makes room, and comes again with /message/sync."""
        self._commands[message_id] = command
        if len(self._commands) > conf().unacked:
            del self._commands[next(iter(self._commands))]

    def _forget_acknowledged(self) -> None:
        sent = self.sent
        while sent and sent[0].message_id in self._acknowledged:
            self._acknowledged.remove(sent.popleft().message_id)
        if not sent:
            self._acknowledged.clear()

    def resend(self, now: float, uid: str) -> list[int]:
        """Send `uid` again what stayed without an answer though later messages got one; returns
        the message ids that were given up."""
        given_up: list[int] = []
        for sent in self._older(now - conf().resend_seconds):
            if sent.message_id in self._acknowledged or self.last_acked_at <= sent.at:
                continue
            if sent.resends >= conf().resends:
                given_up.append(sent.message_id)
                self.sent.remove(sent)
            elif self.outbox.offer(self._dialect.frame_for(sent, uid)):
                self.sent.remove(sent)
                self.sent.append(sent.again(now))
                metrics.RESENT.inc()
        return given_up

    def _older(self, moment: float) -> list[Fanout]:
        """What was sent at or before this moment. The oldest is first, and mostly new enough."""
        return list(takewhile(lambda each: each.at <= moment, self.sent))
