"""A node's answers to audits: what it holds, said by the only one who can see it."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from messaging import check
from subscriptions import audits
from subscriptions.models import Audit

if TYPE_CHECKING:
    from messaging.node import Node

logger = logging.getLogger(__name__)


class Answers:
    """Looks for audits that ask this node, and answers them one after the other."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Look now: somebody has just asked."""
        self._wake.set()

    async def run(self) -> None:
        """Answer audits. Has its own poll: no switch of the tick turns it off (§8)."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.node.conf.answer_seconds):
                    await self._wake.wait()
            self._wake.clear()
            try:
                for request in await self.node.database.read(audits.open_audits, self.node.id):
                    await self._try_answer(request)
            except Exception:
                logger.exception("audit.failed", extra={"node": self.node.id})

    async def _try_answer(self, request: Audit) -> None:
        """One audit that cannot be answered does not keep the others waiting."""
        try:
            await self._answer(request)
        except Exception:
            who = {"node": self.node.id, "audit": str(request.pk)}
            logger.exception("audit.failed", extra=who)

    async def _answer(self, request: Audit) -> None:
        """Check, mend if asked to, and write the answer; a failure is an answer, too."""
        node = self.node

        async def progress(done: int, total: int) -> None:
            if done < total:
                await node.database.write(audits.write_progress, request, node.id, done, total)

        try:
            scopes = await node.database.read(check.resolve, request.scopes)
            found, checked = await check.check_all(node, scopes, progress)
            seen = time.monotonic()
            wanted = [each for each in found if not request.kinds or each.kind in request.kinds]
            answers = [(each, False) for each in wanted]
            if request.repair and wanted:
                answers = [each async for each in check.repair(node, wanted)]
            await node.database.write(audits.write_answer, request, node.id, answers, checked, seen)
        except Exception as error:
            await node.database.write(audits.write_failure, request, node.id, repr(error))
            raise
