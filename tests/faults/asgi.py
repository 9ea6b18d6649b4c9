"""The project's application, and `POST /damage`: it has the node's own tables damaged.

Only the fault bench serves this. What is asked for is the name of a function of
`tests.faults.damage`, with a seed that says what is hit; the answer is how many were.
"""

from __future__ import annotations

import json
import random
from typing import Any

from tests.faults import damage
from wukongim import asgi


async def application(scope: Any, receive: Any, send: Any) -> None:
    """The project's, in all but one path."""
    if scope["type"] == "http" and scope["path"] == "/damage":
        asked = json.loads((await receive())["body"])
        answer = await _damage(**asked)
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})
        return
    await asgi.application(scope, receive, send)


async def _damage(name: str, seed: int, share: float) -> int:
    from messaging.node import current_node

    node = current_node()
    assert node is not None
    return damage.BY_NAME[name](node, random.Random(seed), share)
