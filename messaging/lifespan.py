"""The ASGI lifespan: the node starts with the server and drains before it ends.

Servers without a lifespan (daphne) start the node with the first session instead, and stop it
with Twisted's reactor; nothing vital hangs on this alone.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

from messaging import node

logger = logging.getLogger(__name__)

LEASE_LEFT = "The database did not take the lease back: other nodes wait until it is over."


async def lifespan(scope: Any, receive: Any, send: Any) -> None:
    """Start on `startup`, drain on `shutdown`; a node that cannot start fails the server."""
    while True:
        event = await receive()
        if event["type"] == "lifespan.startup":
            try:
                await node.start_node()
            except Exception as error:
                logger.exception("node.failed")
                await send({"type": "lifespan.startup.failed", "message": repr(error)})
                return
            await send({"type": "lifespan.startup.complete"})
        elif event["type"] == "lifespan.shutdown":
            if await node.stop_node():
                await send({"type": "lifespan.shutdown.complete"})
            else:
                await send({"type": "lifespan.shutdown.failed", "message": LEASE_LEFT})
            return


async def start_with_session() -> node.Node:
    """The node of this process, started now where the server has no lifespan.

    Without a stop its tasks are still pending when the interpreter ends, at which CPython 3.11
    crashes, and its rows stay open until the lease is over.
    """
    current = node.current_node()
    if current is None:
        current = await node.start_node()
        reactor = sys.modules.get("twisted.internet.reactor")
        if reactor is not None and reactor.running:
            reactor.addSystemEventTrigger("before", "shutdown", _stop_with_reactor)
    return current


def _stop_with_reactor() -> Any:
    from twisted.internet.defer import Deferred

    return Deferred.fromFuture(asyncio.ensure_future(node.stop_node()))
