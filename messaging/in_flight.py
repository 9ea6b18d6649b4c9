"""How many sends of one session wait for the log."""

from __future__ import annotations

from messaging.room import Room


class InFlight(Room):
    """Counts the sends of a session that have no answer yet, up to `most`.

    A semaphore, but that a send may begin without waiting where there is room: what is taken as it
    comes (`Wire.attach`) is no coroutine.
    """

    __slots__ = ("_count", "_most")

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most
        self._count = 0

    @property
    def has_room(self) -> bool:
        """Whether another may begin."""
        return self._count < self._most

    def begin(self) -> None:
        """One more waits."""
        self._count += 1

    def answered(self) -> None:
        """One has its answer."""
        self._count -= 1
        self._tell()

    async def drained(self, seconds: float) -> None:
        """Wait until all have their answers, at most `seconds`."""
        await self._within(seconds, lambda: not self._count)
