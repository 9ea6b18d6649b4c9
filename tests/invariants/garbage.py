"""Tables of bindings with anything in them."""

from __future__ import annotations

import random

from messaging.hub import Group, LiveSession
from subscriptions.bindings import GroupBinding, Interval


def scramble(
    die: random.Random, group: Group, session: LiveSession, version: int, head: int
) -> None:
    """One session and one group: each table has the other or has it not; what was heard and may
    be heard is anything that could have been, or has yet to come."""
    group.bindings.pop(session, None)
    session.bindings.pop(group.channel, None)
    session.heard.pop(group.channel, None)
    if die.random() < 0.5:
        session.bindings[group.channel] = group
    if die.random() < 0.5:
        session.heard[group.channel] = die.randint(0, head + 2)
    if die.random() < 0.5:
        upto = die.randint(0, version + 2)
        stay = Interval(die.randint(0, upto), die.randint(0, head))
        stays = die.choice([(), (stay,), (stay,)])
        group.bindings[session] = GroupBinding.of(session.uid, upto, stays)
