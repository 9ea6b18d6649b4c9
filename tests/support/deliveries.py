"""Deliveries with a past: everything is written as production writes it, then moved back in time.

All moments are seconds from `then`, the time of the messages, an hour ago.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from django.utils import timezone

from messaging import registry
from messaging.appender import Appender
from messaging.messages import Draft
from messaging.models import Message, Node, Session
from subscriptions import findings
from subscriptions.audit import Disagreement
from subscriptions.bindings import ChannelKey
from subscriptions.models import Finding
from tests.support.waiting import PATIENCE

TEAM = ChannelKey(2, "team")


class Past:
    """An hour ago, in one channel."""

    def __init__(self) -> None:
        self.then = timezone.now() - timedelta(hours=1)
        self._appender = Appender()

    def at(self, seconds: float) -> datetime:
        """So many seconds after the messages."""
        return self.then + timedelta(seconds=seconds)

    def make_node(self) -> int:
        """A node that runs and has just completed a check."""
        node = registry.register_node()
        registry.mark_checked(node, 0)
        return node

    def kill_node(self, node: int, seconds: float) -> None:
        """Its last beat was then; another node has swept it by now."""
        lease_until = self.at(seconds + 20)
        Node.objects.filter(pk=node).update(lease_until=lease_until)
        registry.sweep_dead_nodes(but=0)

    def send(self, text: str = "hi", *, at: float = 0, **fields: Any) -> int:
        """A message of alice's in the channel; returns its seq."""
        draft = Draft(**{"key": TEAM, "sender": "alice", "payload": text.encode(), **fields})
        [outcome] = self._appender.append([draft], PATIENCE)
        seq: int = outcome.message.seq
        moment = int(self.at(at).timestamp() * 1000)
        Message.objects.filter(channel=outcome.message.channel, seq=seq).update(created_ms=moment)
        return seq

    def open_session(self, uid: str, node: int, *, opened: float = -600, **fields: Any) -> str:
        """A session of this uid; returns its id."""
        row = Session(id=uuid4().hex, uid=uid, device_flag=2, node_id=node, **fields)
        registry.open_sessions([row])
        Session.objects.filter(pk=row.pk).update(opened_at=self.at(opened))
        return row.pk

    def close_session(self, session: str, *, closed: float, because: str = "normal") -> None:
        """It ended then."""
        registry.close_session(session, because)
        Session.objects.filter(pk=session).update(closed_at=self.at(closed))

    def record(
        self,
        disagreement: Disagreement,
        node: int | None,
        *,
        seen: float,
        healed: float | None = None,
        healed_by: str = "",
    ) -> Finding:
        """A finding, and how it ended."""
        [finding] = findings.record([disagreement], node, healed_by)
        finding.first_seen = self.at(seen)
        finding.healed_at = None if healed is None else self.at(healed)
        finding.save()
        return finding
