"""Rings the nodes from wherever a change was made: a thread of this process, or none.

A process without a node (a command, a worker) rings nobody through the in-memory layer; the nodes'
tick finds what it wrote within two seconds.
"""

from __future__ import annotations

from typing import Any

from messaging import node
from subscriptions.bindings import NODES_GROUP, ChannelKey

HINT_UIDS = 500
"""Uids that one event names: 500 × 100 B stay far below what a layer carries in one piece."""


def ring(group: str, event: dict[str, Any]) -> None:
    """Publish an event through this process's node, from any thread. Nothing without a node."""
    current = node.current_node()
    if current is not None:
        current.publish_from_thread(group, event)


def ring_membership(
    channel: ChannelKey, channel_pk: int, uids: tuple[str, ...], **kwargs: Any
) -> None:
    """`membership_changed`: every node looks at the channel and ensures these uids' bindings."""
    for start in range(0, len(uids), HINT_UIDS):
        named = list(uids[start : start + HINT_UIDS])
        ring(NODES_GROUP, {"type": "membership", "channel": channel_pk, "uids": named})


def ring_audit(**kwargs: Any) -> None:
    """`audit_requested`: nodes answer now instead of at their next poll."""
    ring(NODES_GROUP, {"type": "audit"})


def ring_kick(uid: str) -> None:
    """A session of `uid` was told to go, in the database: its node reads that now."""
    ring(NODES_GROUP, {"type": "kick", "uid": uid})
