"""The ASGI lifespan: the node starts with the server and drains before it ends.

Servers without a lifespan (daphne) start the node with the first session instead; nothing vital
hangs on this alone.
"""

from __future__ import annotations

import logging
from typing import Any

from messaging import node

logger = logging.getLogger(__name__)


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
            await node.stop_node()
            await send({"type": "lifespan.shutdown.complete"})
            return
