"""Rows for tests, made through the same services that production uses."""

from __future__ import annotations

from typing import Any

from channels.db import database_sync_to_async

from subscriptions import services
from subscriptions.bindings import ChannelKey
from subscriptions.models import Channel


def make_users(*uids: str, flag: int = 2) -> None:
    """Give each uid the token `token-of-<uid>` for its device flag."""
    from messaging import auth

    for uid in uids:
        auth.set_token(uid, f"token-of-{uid}", flag, 0)


def make_group(name: str, *uids: str) -> Channel:
    """A group channel with these members, who get their tokens, too."""
    make_users(*uids)
    key = ChannelKey(2, name)
    services.save_channel(key)
    services.join(key, uids, actor="test")
    return Channel.objects.get(channel_id=name, channel_type=2)


def admission(uid: str, flag: int, token: str) -> Any:
    """What a connect with this token would be told."""
    from messaging import auth

    [answer] = auth.admit([auth.Claim(uid, flag, token)])
    return answer


def verdict(uid: str, flag: int, token: str) -> Any:
    """The reason of the same."""
    return admission(uid, flag, token).reason


async def in_thread(call: Any, *args: Any, **kwargs: Any) -> Any:
    """Run a piece of synchronous code as a request would: in a thread of its own."""
    return await database_sync_to_async(call, thread_sensitive=False)(*args, **kwargs)
