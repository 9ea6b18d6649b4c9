"""What a node asks the database for those who connect, for as many at once as come.

When a node ends, all its clients come to the others within seconds. Each connect is judged, written
and told its memberships; each of these three steps is one statement or one transaction for all who
wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from messaging import auth
from messaging.batching import Alone, Batcher
from messaging.database import DatabaseThreads
from subscriptions.bindings import Memberships
from subscriptions.selectors import memberships_of

TOGETHER = 50
"""Connects of one transaction: some 10 ms, in which other writes of this node wait."""

UIDS_TOGETHER = 10
"""Uids whose memberships are read together. With 1,000 each it is 30,000 numbers, of which Python
makes objects for a millisecond or two, in which nothing else runs."""

READERS = 2
"""Batches that are read at a time: one whose connection is dead holds up its own only."""

NONE = Memberships()
"""Of who is in no channel."""


class Arrivals:
    """The three questions of a connect. `opening` are sessions whose rows are being written, and
    that their node does not know yet."""

    def __init__(self, database: DatabaseThreads) -> None:
        self.database = database
        self.opening: set[str] = set()
        self._judged = Batcher(self._judge, TOGETHER, READERS)
        self._opened = Batcher(self._open, TOGETHER)
        self._memberships = Batcher(self._read, UIDS_TOGETHER, READERS)

    async def admit(self, claim: auth.Claim) -> auth.Admission:
        """Judge a connect before anything is written for it."""
        return await self._judged.ask(claim)

    async def open(self, arrival: auth.Arrival) -> auth.Admission:
        """Judge it once more, and write its session's row (`auth.open_sessions`)."""
        return await self._opened.ask(arrival)

    async def memberships(self, uid: str) -> Memberships:
        """Every membership of a uid, in a snapshot that is taken after this was asked."""
        return await self._memberships.ask(uid)

    async def _judge(self, claims: Sequence[auth.Claim]) -> Sequence[auth.Admission]:
        return await self.database.read(auth.admit, claims)

    async def _open(self, arrivals: Sequence[auth.Arrival]) -> Sequence[auth.Admission | Alone]:
        return await self.database.write(auth.open_sessions, arrivals)

    async def _read(self, uids: Sequence[str]) -> Sequence[Memberships]:
        found = await self.database.read(memberships_of, list(dict.fromkeys(uids)))
        return [found.get(uid, NONE) for uid in uids]
