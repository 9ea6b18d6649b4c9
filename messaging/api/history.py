"""Which part of a channel's log `/channel/messagesync` means (http-api §1.7)."""

from __future__ import annotations

from dataclasses import dataclass

from messaging.models import Message

OLDER = 0
NEWER = 1


@dataclass(frozen=True, slots=True)
class Span:
    """Seqs with after < seq <= up_to (None: the end), of which the newest or the first count."""

    after: int
    up_to: int | None
    newest: bool


def span(start: int, end: int, mode: int) -> Span:
    """The span of a request. `start` belongs to it, `end` does not; in both modes 0 is no bound,
    and 0, 0 is the newest messages. A span that nothing lies in is no error."""
    if not start and not end:
        return Span(0, None, newest=True)
    if mode == NEWER:
        return Span(start - 1, end - 1 if end else None, newest=False)
    return Span(end, start, newest=True)


def read(channel: int | None, wanted: Span, limit: int) -> tuple[list[Message], bool]:
    """At most `limit` messages, ascending, and whether the span has more. One query.

    Nothing for no channel.
    """
    if channel is None:
        return [], False
    rows = Message.objects.filter(channel=channel, seq__gt=wanted.after)
    if wanted.up_to is not None:
        rows = rows.filter(seq__lte=wanted.up_to)
    messages = list(rows.order_by("-seq" if wanted.newest else "seq")[: limit + 1])
    more = len(messages) > limit
    messages = messages[:limit]
    return (messages[::-1] if wanted.newest else messages), more
