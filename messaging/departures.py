"""What a node asks the database for those who leave: their rows are closed, for as many at once as
go.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from django.db import Error

from messaging import registry
from messaging.arrivals import TOGETHER
from messaging.batching import Batcher

if TYPE_CHECKING:
    from messaging.node import Node

logger = logging.getLogger(__name__)

SECONDS_A_CLOSING = 0.5
"""Between two times that a node which drains closes the rows of those who have left."""


class Departures:
    """Sessions that have ended and whose rows are still open. `closing` are those whose turn has
    come or will; the others could not be closed, or not yet, and wait for `close_left`."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.closing: set[str] = set()
        self._left: dict[str, str] = {}
        self._together = Batcher(self._close_together, TOGETHER)

    async def close(self, session: str, because: str) -> None:
        """Close a session's row, with those of others that leave meanwhile; while the node drains,
        with those of half a second. What fails, since somebody holds the row, is tried again with
        the next tick."""
        if self.node.draining:
            self._left[session] = because
            return
        self.closing.add(session)
        try:
            await self._together.ask((session, because))
        except Error:
            self._leave_open({session: because})
        finally:
            self.closing.discard(session)

    async def _close_together(self, left: Sequence[tuple[str, str]]) -> Sequence[None]:
        await self.node.database.write(registry.close_sessions, dict(left))
        return [None] * len(left)

    async def close_left(self) -> None:
        """Close the rows that could not be closed, or are not yet, in one transaction."""
        left, self._left = self._left, {}
        if not left:
            return
        try:
            await self.node.database.write(registry.close_sessions, left)
        except Error:
            self._leave_open(left)
        except BaseException:
            self._left = left | self._left  # cancelled, perhaps before its turn came
            raise

    async def close_again_and_again(self) -> None:
        """Close the rows of those who have left until cancelled."""
        while True:
            await asyncio.sleep(SECONDS_A_CLOSING)
            await self.close_left()

    def _leave_open(self, rows: dict[str, str]) -> None:
        """Until the next tick."""
        self._left = rows | self._left
        logger.warning("rows.held", extra={"node": self.node.id, "sessions": len(self._left)})
