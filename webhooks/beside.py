"""The process that delivers beside a server: started with it, started again, ended with it.

A process of its own, since neither clients nor deliveries are to wait for each other. Spawned, as a
pool of database connections survives no fork. This module must not import models: the process loads
it before Django is set up.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess

import django

logger = logging.getLogger(__name__)

spawn = get_context("spawn")

POLL = 0.2  # seconds after which an end is noticed
STEADY_SECONDS = 60.0  # a process that lived longer did not fail at starting
LONGEST_PAUSE = 30.0  # seconds before another start, at most: 2, 4, 8, …
PATIENCE = 2.0  # seconds for it to end; then it is killed, and what it sent is sent again


class Beside:
    """Keeps one delivering process from `start` to `close`, if one is `wanted`."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the process, and what looks after it."""
        if self._wanted:
            self._thread = threading.Thread(target=self._keep, name="webhooks", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End it."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _keep(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            process = spawn.Process(target=_deliver, name="wukongim-webhooks")
            try:
                process.start()
            except OSError:  # no process or descriptor is left, perhaps for a while
                logger.exception("deliverer.failed")
            while process.is_alive() and not self._stopping.wait(POLL):
                pass
            if process.is_alive():
                _end(process)
                return
            failures = failures + 1 if time.monotonic() - began < STEADY_SECONDS else 0
            pause = min(LONGEST_PAUSE, 2.0 ** min(failures, 10))
            fields = {"pid": process.pid, "exit_code": process.exitcode, "again_in": pause}
            if not self._stopping.is_set():
                logger.error("deliverer.ended", extra=fields)
            self._stopping.wait(pause)


def _end(process: SpawnProcess) -> None:
    process.terminate()
    process.join(PATIENCE)
    if process.exitcode is None:
        process.kill()
        process.join()


def _deliver() -> None:
    """The process's whole life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which tells us
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.set())
    # What this process counts is nobody's: it must not stand beside the workers' numbers.
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    django.setup()
    from webhooks.conf import conf
    from webhooks.deliverer import deliver

    threading.Thread(target=_stop_with_parent, args=(stopping,), daemon=True).start()
    deliver(conf().endpoints, stopping)


def _stop_with_parent(stopping: threading.Event) -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
    stopping.set()
