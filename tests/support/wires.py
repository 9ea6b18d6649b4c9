"""A socket that is told when to take frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from messaging.fanout import Fanout


class FakeWire:
    """A `Wire` that keeps what it was given, write by write."""

    def __init__(self) -> None:
        self.paused = False
        self.writes: list[list[bytes]] = []
        self._on_takes: Callable[[], None] = lambda: None

    @property
    def frames(self) -> list[bytes]:
        """Every frame, in order."""
        return [frame for write in self.writes for frame in write]

    def write_frames(self, frames: Sequence[bytes]) -> None:
        """Keep them."""
        self.writes.append(list(frames))

    def attach(self, on_takes: Callable[[], None], taken: Callable[[bytes], bool]) -> None:
        """Call this when it goes on."""
        self._on_takes = on_takes

    async def detach(self) -> None:
        """Nothing to let go of."""

    def go_on(self) -> None:
        """The peer reads again."""
        self.paused = False
        self._on_takes()


class AsGiven:
    """A `Dialect` by which the payload of a message is its frame."""

    def frame_for(self, fanout: Fanout, uid: str) -> bytes:
        """That."""
        return fanout.said.payload
