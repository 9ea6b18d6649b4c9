"""What subscriptions has to know of live sessions and nodes, as somebody else provides it.

This app never imports the one that carries messages. That one registers here how to ask; without
it there are no live sessions and nothing can be said about bindings.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import QuerySet

from subscriptions.audit import Disagreement
from subscriptions.explain.facts import Question, Witness

Found = list[tuple[Disagreement, bool]]
"""Disagreements, each with whether it was mended."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """What a node with a valid lease last said of itself. `check_age`: seconds since its last
    complete check began; None before the first. `lease_left`: seconds until the lease is over.
    `is_silent`: it has missed several beats, so it may be frozen and its numbers are of before."""

    node: int
    host: str
    pid: int
    started_at: datetime
    sessions: int
    groups: int
    expected: int
    bindings: int
    check_age: float | None
    probe_ms: float | None
    probe_missed: int
    lease_left: float
    is_silent: bool


@dataclass(frozen=True, slots=True)
class Provider:
    """How to ask. `sessions`: live rows with id, uid, node_id, opened_at and `checked_at` of
    their node. `nodes`: those whose lease is valid. `storage`: checks (and with its last argument
    mends) what the provider stores, for scopes and kinds; it returns (disagreement, repaired)
    pairs. `witness`: what it knows of a message in the channel of that pk (None: there is none)
    and of the uid's sessions around it."""

    sessions: Callable[[], QuerySet[Any]]
    nodes: Callable[[], list[NodeView]]
    storage: Callable[[list[dict[str, str]], Collection[str], bool], Found]
    witness: Callable[[Question, int | None], Witness]


_provider: Provider | None = None


def register(provider: Provider) -> None:
    """Let `provider` answer from now on."""
    global _provider
    _provider = provider


def live_sessions() -> QuerySet[Any] | None:
    """Live session rows, or None when nobody provides them."""
    return _provider.sessions() if _provider else None


def node_views() -> list[NodeView]:
    """The nodes that hold a valid lease, as they last described themselves, by id."""
    return _provider.nodes() if _provider else []


def live_nodes() -> list[int]:
    """Their ids."""
    return [view.node for view in node_views()]


def check_storage(scopes: list[dict[str, str]], kinds: Collection[str], repair: bool) -> Found:
    """Disagreements in what the provider stores: dead sessions, holes in the log."""
    return _provider.storage(scopes, kinds, repair) if _provider else []


def witness(question: Question, channel: int | None) -> Witness | None:
    """What is known of a message and its reader's sessions; None when nobody carries messages."""
    return _provider.witness(question, channel) if _provider else None
