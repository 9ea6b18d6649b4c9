"""Damage to a running node's tables, as a defect of our own would do it: nothing is announced.

Each function hits a share of what there is, as its die falls, and returns how many it hit.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar

import time_machine

from messaging.conf import conf
from messaging.hub import Group, LiveSession
from messaging.messages import Appended
from messaging.node import Node
from subscriptions.bindings import GroupBinding
from tests.support.layers import lose_group

Thing = TypeVar("Thing")
Damage = Callable[[Node, random.Random, float], int]


def some(things: Iterable[Thing], die: random.Random, share: float) -> list[Thing]:
    """A share of these, at least one if there is any."""
    all_of_them = list(things)
    count = max(1, round(share * len(all_of_them)))
    return die.sample(all_of_them, min(count, len(all_of_them)))


def pairs(node: Node) -> list[tuple[Group, LiveSession]]:
    """Each session in each of its groups."""
    groups = node.hub.groups.values()
    return [(group, session) for group in groups for session in group.bindings]


def lose_group_entries(node: Node, die: random.Random, share: float) -> int:
    """Sessions vanish from their groups' tables, by which messages are delivered (F01)."""
    hit = some(pairs(node), die, share)
    for group, session in hit:
        del group.bindings[session]
    return len(hit)


def lose_session_entries(node: Node, die: random.Random, share: float) -> int:
    """Groups vanish from their sessions' tables."""
    hit = some(pairs(node), die, share)
    for group, session in hit:
        session.bindings.pop(group.channel, None)
    return len(hit)


def lose_both_entries(node: Node, die: random.Random, share: float) -> int:
    """Both tables agree, and both are wrong: only the database knows."""
    hit = some(pairs(node), die, share)
    for group, session in hit:
        del group.bindings[session]
        session.bindings.pop(group.channel, None)
    return len(hit)


def lose_whole_sets(node: Node, die: random.Random, share: float) -> int:
    """All sessions of a group vanish: a set that a late change would begin anew (F04)."""
    hit = some(node.hub.groups.values(), die, share)
    for group in hit:
        group.bindings.clear()
    return len(hit)


def bind_strangers(node: Node, die: random.Random, share: float) -> int:
    """Sessions get into groups of channels that they are no members of, with all that delivery
    goes by but a grant (F14, S2)."""
    strangers = [
        (group, session)
        for group in node.hub.groups.values()
        for session in node.hub.sessions.values()
        if session not in group.bindings
    ]
    hit = some(strangers, die, share)
    for group, session in hit:
        session.bindings[group.channel] = group
        group.bindings[session] = GroupBinding(session.uid, group.newest)
        session.heard.setdefault(group.channel, group.head)
    return len(hit)


def lose_layer_groups(node: Node, die: random.Random, share: float) -> int:
    """The layer forgets groups behind its own back (F28, F38)."""
    hit = some(node.hub.groups.values(), die, share)
    for group in hit:
        lose_group(node.layer, group.name)
    return len(hit)


def lose_everything(node: Node, die: random.Random, share: float) -> int:
    """The whole hub's tables of bindings are empty."""
    count = node.hub.binding_count
    for group in node.hub.groups.values():
        group.bindings.clear()
    for session in node.hub.sessions.values():
        session.bindings.clear()
    return count


def publish_unknown_events(node: Node, die: random.Random, share: float) -> int:
    """Events of another release come to groups (F43): of an unknown type, of a later version, with
    nothing in them."""
    hit = some(node.hub.groups.values(), die, share)
    for group in hit:
        node.layer.publish(group.name, {"type": "of.the.future", "channel": group.channel})
        node.layer.publish(group.name, {"type": "message", "v": 99, "channel": group.channel})
        node.layer.publish(group.name, {"type": "of.the.future", "channel": "unreadable"})
    return len(hit)


def publish_nothing(node: Node, die: random.Random, share: float) -> int:
    """What is published is lost, and believed to have been sent (F31), for `share` × 10 s."""
    loop, publish = asyncio.get_running_loop(), node.layer.publish
    node.layer.publish = lambda group, event: True
    loop.call_later(share * 10, setattr, node.layer, "publish", publish)
    return 1


def block_the_readers(node: Node, die: random.Random, share: float) -> int:
    """All threads that read the database sleep for `share` × 10 s (F46)."""
    threads = conf().database_threads
    for _ in range(threads):
        node.errand(node.database.read(time.sleep, share * 10))
    return threads


def die_after_commit(node: Node, die: random.Random, share: float) -> int:
    """The process ends after the next commit of a batch, before anybody is told (F49)."""
    append = node.log._fast.append

    def last(*args: Any) -> Any:
        outcomes = append(*args)
        if any(isinstance(outcome, Appended) for outcome in outcomes):
            os._exit(9)
        return outcomes

    node.log._fast.append = last
    return 1


def set_the_clock(node: Node, die: random.Random, share: float) -> int:
    """The machine's clock is `share` × 120 s fast (F55)."""
    while CLOCKS:
        CLOCKS.pop().stop()
    if share:
        CLOCKS.append(time_machine.travel(timedelta(seconds=share * 120), tick=True))
        CLOCKS[0].start()
    return 1


CLOCKS: list[time_machine.travel] = []
"""The clock that is not the machine's, if there is one."""


def block_the_loop(node: Node, die: random.Random, share: float) -> int:
    """Somebody's code holds the event loop for `share` × 10 s (F24, F46)."""
    time.sleep(share * 10)
    return 1


BY_NAME: dict[str, Damage] = {
    each.__name__: each
    for each in (
        lose_group_entries, lose_session_entries, lose_both_entries, lose_whole_sets,
        bind_strangers, lose_layer_groups, lose_everything, publish_unknown_events,
        publish_nothing, block_the_loop, block_the_readers, die_after_commit, set_the_clock,
    )
}  # fmt: skip
