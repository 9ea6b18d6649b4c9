"""What is known of one delivery, as plain values: who asked what, and what is stored about it.

Read by `subscriptions.explain.questions`; `subscriptions.explain` judges by nothing else. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

from subscriptions.bindings import Change, Changes, ChannelKey, GroupBinding

BOUNDARY = timedelta(seconds=1)
"""Times closer than this are "about the same": a batch reads the clock before it commits, a connect
reads its bindings after its row is written, and both may wait for the writing thread."""


@dataclass(frozen=True, slots=True)
class Question:
    """Who, where, and which message: by its seq, or by its sender and client message number."""

    uid: str
    key: ChannelKey
    seq: int | None = None
    sender: str = ""
    client_msg_no: str = ""


@dataclass(frozen=True, slots=True)
class ChannelFact:
    """A channel's row."""

    pk: int
    head: int
    version: int


@dataclass(frozen=True, slots=True)
class LineFact:
    """A line of the change log about the uid."""

    pk: int
    version: int
    seq: int
    joined: bool
    at: datetime
    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class MessageFact:
    """A stored message, without what it says. `origin`: the session it came from; "" for none."""

    pk: int
    seq: int
    version: int
    sender: str
    client_msg_no: str
    origin: str
    stored_at: datetime
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class RefusalFact:
    """A send that was refused. `unwritten`: how many more were, of which nothing else is known."""

    pk: int
    sender: str
    client_msg_no: str
    reason: str
    session: str
    at: datetime
    unwritten: int


@dataclass(frozen=True, slots=True)
class NodeFact:
    """A node as its row says. `last_beat`: its last sign of life."""

    pk: int
    last_beat: datetime
    is_running: bool
    stopped_at: datetime | None
    checked_at: datetime | None


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why a session may not have heard the last of what it was sent, and from when on."""

    since: datetime
    why: str


@dataclass(frozen=True, slots=True)
class SessionFact:
    """A session's row, with its node. `doubt`: what the way it ended speaks against, if it does."""

    pk: str
    node: NodeFact
    opened_at: datetime
    closed_at: datetime | None
    closed_because: str
    doubt: Doubt | None = None


@dataclass(frozen=True, slots=True)
class FindingFact:
    """A finding. An empty uid or session stands for all of the channel on that node."""

    pk: int
    kind: str
    reason: str
    uid: str
    session: str
    node: int | None
    first_seen: datetime
    from_seq: int | None
    to_seq: int | None
    healed_at: datetime | None
    healed_by: str


@dataclass(frozen=True, slots=True)
class Witness:
    """What is known to whom carries the messages. `lowest`: the first seq that the log has; None
    when it has none. `sessions`: the uid's around that moment."""

    message: MessageFact | None = None
    lowest: int | None = None
    refusals: tuple[RefusalFact, ...] = ()
    sessions: tuple[SessionFact, ...] = ()


@dataclass(frozen=True)
class Facts:
    """Everything a verdict is made of. `unseen`: how long damage may be there before a check sees
    it. `joined_version`: of the membership's row, None without one. `witness`: None where
    nothing carries messages."""

    question: Question
    now: datetime
    unseen: timedelta
    channel: ChannelFact | None = None
    joined_version: int | None = None
    lines: tuple[LineFact, ...] = ()
    witness: Witness | None = None
    findings: tuple[FindingFact, ...] = ()

    @property
    def message(self) -> MessageFact | None:
        """The message, if it is stored."""
        return self.witness.message if self.witness else None

    @property
    def refusals(self) -> tuple[RefusalFact, ...]:
        """The refused sends."""
        return self.witness.refusals if self.witness else ()

    @cached_property
    def binding(self) -> GroupBinding:
        """What the uid may hear, by the change log: every stay there ever was."""
        version = self.channel.version if self.channel else 0
        changes = [
            Change(self.question.uid, line.version, line.seq, line.joined) for line in self.lines
        ]
        page = Changes(self.question.key, 0, version, version, 0, tuple(changes))
        return GroupBinding(self.question.uid, 0).after(page, heard=-1)

    @property
    def may_hear(self) -> bool:
        """Whether the message is there and falls into a stay of the uid."""
        return self.message is not None and self.binding.may_hear(self.message.version)

    @property
    def lines_before(self) -> list[LineFact]:
        """The lines of the change log that the message came after; none without a message."""
        version = self.message.version if self.message else 0
        return [line for line in self.lines if line.version <= version]

    @cached_property
    def open_sessions(self) -> tuple[SessionFact, ...]:
        """Those that were open when the message was stored, or opened or closed just then."""
        if self.witness is None or self.message is None:
            return ()
        at = self.message.stored_at
        return tuple(each for each in self.witness.sessions if _spans(each, at))


def _spans(session: SessionFact, at: datetime) -> bool:
    closed = session.closed_at
    return session.opened_at <= at + BOUNDARY and (closed is None or closed >= at - BOUNDARY)
