"""What subscriptions has to know of live sessions and nodes, as somebody else provides it.

This app never imports the one that carries messages. That one registers here how to ask; without
it there are no live sessions and nothing can be said about bindings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.db.models import QuerySet


@dataclass(frozen=True, slots=True)
class Provider:
    """How to ask. `sessions`: live rows with id, uid, node_id, opened_at and `checked_at` of
    their node. `nodes`: ids of nodes whose lease is valid. `storage`: checks (and mends) what
    the provider stores, and returns disagreements as `subscriptions.audit` names them."""

    sessions: Callable[[], QuerySet[Any]]
    nodes: Callable[[], list[int]]
    storage: Callable[[list[dict[str, str]], bool], list[Any]]


_provider: Provider | None = None


def register(provider: Provider) -> None:
    """Let `provider` answer from now on."""
    global _provider
    _provider = provider


def live_sessions() -> QuerySet[Any] | None:
    """Live session rows, or None when nobody provides them."""
    return _provider.sessions() if _provider else None


def live_nodes() -> list[int]:
    """Ids of the nodes that hold a valid lease."""
    return _provider.nodes() if _provider else []


def check_storage(scopes: list[dict[str, str]], repair: bool) -> list[Any]:
    """Disagreements in what the provider stores: dead sessions, holes in the log."""
    return _provider.storage(scopes, repair) if _provider else []
