"""Several processes on one port, each of them a node, and the one that keeps them running.

Workers are spawned, not forked: a pool of database connections does not survive a fork. uvicorn's
own supervisor ends all of them when one cannot start again (its database restarts, say), starts
one that dies at once as often as it dies, and waits for them without a bound; so this is ours.

This module must not import models: a worker loads it before Django is set up.
"""

from __future__ import annotations

import logging
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

import django

from messaging import metrics

logger = logging.getLogger(__name__)

spawn = get_context("spawn")
Address = tuple[str, int]

POLL = 0.2  # seconds after which a signal is noticed
STEADY_SECONDS = 60.0  # a worker that lived longer did not fail at starting
LONGEST_PAUSE = 30.0  # seconds before another try, at most: 1, 2, 4, …
PATIENCE = 29.0  # seconds for workers to end; they take 28 at the latest, supervisors give 30


class Worker:
    """One place among the workers, and the process that fills it now."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._failures = 0
        self._due = 0.0
        self.start()

    def start(self) -> None:
        """Start a process. It says so when it serves."""
        self.started_at = time.monotonic()
        self.ready, told = spawn.Pipe(duplex=False)
        self.process: SpawnProcess = spawn.Process(
            target=_work, args=(self._address, told), name="wukongim-worker"
        )
        self.process.start()
        told.close()
        self.ended = False

    def serves(self, is_wanted: Callable[[], bool]) -> bool:
        """Wait until it serves, or nobody wants it any more. False if it has ended instead."""
        while is_wanted():
            if not self.ready.poll(POLL):
                continue
            try:
                return bool(self.ready.recv())
            except EOFError:
                self.process.join()
                return False
        return True

    def keep(self) -> None:
        """Start a process again that has ended: sooner where it is the first time."""
        now = time.monotonic()
        if self.process.is_alive():
            return
        if not self.ended:
            self._note_end(now)
        if now >= self._due:
            self.start()

    def _note_end(self, now: float) -> None:
        self.ended = True
        self.ready.close()
        metrics.worker_ended(self.process.pid or 0)
        self._failures = self._failures + 1 if now - self.started_at < STEADY_SECONDS else 0
        pause = min(LONGEST_PAUSE, 2.0**self._failures)
        self._due = now + pause
        logger.error(
            "worker.ended",
            extra={"pid": self.process.pid, "exit_code": self.process.exitcode, "again_in": pause},
        )


class Workers:
    """The processes of one `serve --workers`, kept at their number until a signal."""

    def __init__(self, address: Address, count: int) -> None:
        self._address, self._count = address, count
        self.started = self._stopping = False
        self._workers: list[Worker] = []

    def run(self, on_started: Callable[[], None]) -> bool:
        """Serve until SIGTERM or SIGINT; returns whether everything started and ended well.

        At first every one of them has to start, since what keeps one from it keeps all; a signal
        meanwhile ends the waiting. Later one that cannot is tried again, with the others serving.
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._stop)
        reservation = _reserve(self._address)
        folder = TemporaryDirectory(prefix="wukongim-metrics-")
        metrics.prepare_workers(Path(folder.name))
        try:
            self._workers = [Worker(self._address) for _ in range(self._count)]
            self.started = all(worker.serves(self._goes_on) for worker in self._workers)
            if self.started and self._goes_on():
                on_started()
            while self.started and self._goes_on():
                wait(
                    [worker.process.sentinel for worker in self._workers if not worker.ended], POLL
                )
                for worker in self._workers:
                    worker.keep()
        finally:
            reservation.close()
            ended_well = self._end()
            folder.cleanup()
        return self.started and ended_well

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True

    def _goes_on(self) -> bool:
        return not self._stopping

    def _end(self) -> bool:
        """Have every worker drain, and end those that do not."""
        processes = [worker.process for worker in self._workers if worker.process.is_alive()]
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + PATIENCE
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode is None:
                process.kill()
                process.join()
        return all(process.exitcode in (0, -signal.SIGTERM) for process in processes)


def _reserve(address: Address) -> socket.socket:
    """Keep the port while workers come and go: bound like theirs, it listens to nothing."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    holder = socket.socket(family)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    holder.bind(address)
    return holder


def _work(address: Address, told: Connection) -> None:
    """A worker's whole life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which tells us
    django.setup()
    from messaging.serving import listen, serve

    def started() -> None:
        told.send(True)
        told.close()

    with listen(*address, shared=True) as listener:
        ended_well = serve(listener, started, ends_with=parent_process())
    sys.exit(0 if ended_well else 1)
