"""What a test does to a node's channel layer behind its back, whichever layer it is."""

from __future__ import annotations

from messaging.layer import NodeLayer
from messaging.redis_layer import RedisLayer, Shard


def lose_group(layer: NodeLayer, group: str) -> None:
    """The events of a group reach the node no more, and nobody told it. Over Redis it is so when
    the server has read the command, which is at once."""
    if not isinstance(layer._layer, RedisLayer):
        del layer._layer.groups[group][layer.inbox]
        return
    hearing = shard_of(layer)._hearing
    if hearing is None or hearing.connection._writer is None:
        return  # it is lost already: there is no connection
    connection = hearing.connection
    connection._writer.writelines(connection.pack_command("UNSUBSCRIBE", channel(layer, group)))


def subscribed(layer: NodeLayer) -> set[str] | None:
    """The groups whose events reach the node; None when it cannot be told."""
    start = len(channel(layer, "")) if isinstance(layer._layer, RedisLayer) else 0
    groups = {name[start:] for name in inboxes(layer)}
    lost = layer.lost(groups)
    return None if lost is None else groups.difference(lost)


def inboxes(layer: NodeLayer) -> dict[str, set[str]]:
    """{group: inboxes in it}, as the layer of this process keeps it. Names are the layer's."""
    each = layer._layer._get_layer() if isinstance(layer._layer, RedisLayer) else layer._layer
    return {name: set(members) for name, members in each.groups.items()}


def inboxes_in(layer: NodeLayer, group: str) -> set[str]:
    """The inboxes in one group."""
    name = channel(layer, group) if isinstance(layer._layer, RedisLayer) else group
    return inboxes(layer).get(name, set())


def shard_of(layer: NodeLayer) -> Shard:
    """The one Redis of a node's layer."""
    (shard,) = layer._layer._get_layer()._shards
    return shard


def channel(layer: NodeLayer, group: str) -> str:
    """What Redis calls a group."""
    name: str = layer._layer._get_layer()._get_group_channel_name(group)
    return name
