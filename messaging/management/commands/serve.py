"""`manage.py serve`: HTTP and WebSocket on one port, under uvicorn, in one process or several."""

import socket
from argparse import ArgumentParser, ArgumentTypeError
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import connection

from messaging import starting
from messaging.layer import in_memory
from messaging.lifespan import LEASE_LEFT
from messaging.serving import addresses, listen, serve
from messaging.starting import NOT_STARTED
from messaging.workers import Workers
from webhooks.beside import Beside
from webhooks.conf import conf as webhooks_conf


class Command(BaseCommand):
    help = (
        "Serves the chat, the HTTP API and the admin on one port until SIGTERM or Ctrl-C. Stopping "
        "tells every client to come back (close code 1012), one after the other, lets requests "
        "finish, and exits with 0 within 30 seconds."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--host",
            default="127.0.0.1",
            help="Address to listen on. 127.0.0.1 (the default) is reached from this machine only; "
            "0.0.0.0 and :: from everywhere, and then WUKONGIM_ALLOWED_HOSTS must name this host.",
        )
        parser.add_argument(
            "--port",
            type=starting.port,
            default=8000,
            help="Port to listen on, 8000 unless given. 0 takes a free one and prints it.",
        )
        parser.add_argument(
            "--workers",
            type=_count,
            default=1,
            metavar="N",
            help="Processes that share the port, 1 unless given; each is a node, and one that dies "
            "is started again. More than one need WUKONGIM_REDIS_URL, through which they hear of "
            "each other. They want PostgreSQL, too: SQLite serves them, but has one writer at a "
            "time, so that they send no faster than one.",
        )
        parser.add_argument(
            "--no-webhooks",
            action="store_true",
            help="Start no process that delivers to the endpoints of WUKONGIM_WEBHOOKS: somebody "
            "else runs `manage.py deliver_webhooks`. Without endpoints none is started anyway.",
        )

    def handle(
        self, *, host: str, port: int, workers: int, no_webhooks: bool = False, **options: Any
    ) -> None:
        _require_reach(workers)
        starting.require_all()
        if warning := starting.warning_of_neighbours():
            self.stderr.write(warning)
        with listen(host, port) as listener:  # workers share a port, but with nobody else
            place, address = addresses(listener), listener.getsockname()[:2]
            self._webhooks = Beside(wanted=bool(webhooks_conf().endpoints) and not no_webhooks)
            if workers == 1:
                self._serve_here(listener, place)
        if workers > 1:
            self._serve_workers(address, workers, place)

    def _serve_here(self, listener: socket.socket, place: str) -> None:
        try:
            ended_well = serve(
                listener, lambda: self._started(place), on_ended=self._webhooks.close
            )
        except SystemExit as error:  # uvicorn's way to say so
            raise CommandError(NOT_STARTED) from error
        if not ended_well:
            raise CommandError(LEASE_LEFT)

    def _serve_workers(self, address: tuple[str, int], count: int, place: str) -> None:
        if connection.vendor == "sqlite":
            self.stderr.write(
                f"{count} workers on SQLite write one at a time: they deliver faster than one, and "
                "store no faster. WUKONGIM_DATABASE_URL names a PostgreSQL."
            )
        close_pool = getattr(connection, "close_pool", None)
        if close_pool is not None:
            close_pool()  # each worker has its own
        workers = Workers(address, count)
        try:
            ended_well = workers.run(lambda: self._started(place))
        finally:
            self._webhooks.close()
        if not workers.started:
            raise CommandError(NOT_STARTED)
        if not ended_well:
            raise CommandError("A worker did not end as it should; the log above says which.")

    def _started(self, line: str) -> None:
        self._webhooks.start()
        self.stdout.write(line)
        self.stdout.flush()


def _require_reach(workers: int) -> None:
    if workers > 1 and in_memory():
        raise CommandError(
            f"{workers} workers need a channel layer that reaches them all: set "
            "WUKONGIM_REDIS_URL. The one in memory ends with its process, and their clients would "
            "hear each other only by the tick."
        )


def _count(word: str) -> int:
    if not (word.isdecimal() and 1 <= int(word) <= 64):
        raise ArgumentTypeError(f"{word!r} is no number of workers: 1 to 64 is.")
    return int(word)
