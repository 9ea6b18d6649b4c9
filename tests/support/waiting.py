"""Waiting for what must happen, with a bound: the tests' only loop that polls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

PATIENCE = 10.0
"""Seconds a test waits for what must happen: twice the product's own bound."""


async def eventually(holds: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Wait until `holds()` is true; fails the test with `what` was waited for if it never is."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}"
        await asyncio.sleep(0.02)
