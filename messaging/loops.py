"""Loops of a node that have to run for as long as it does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

PAUSE = 0.5
"""Seconds before a loop that failed begins again."""


async def run_forever(loop: Callable[[], Awaitable[None]]) -> None:
    """Run a loop until it is cancelled. Each sees to what it expects to fail; whatever else does
    must not be the end of it, since nobody would notice."""
    while True:
        try:
            await loop()
            return
        except Exception:
            logger.exception("loop.failed", extra={"loop": loop.__name__})
        await asyncio.sleep(PAUSE)
