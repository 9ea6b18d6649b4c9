"""`manage.py deliver_webhooks`: bring the events that were recorded to the endpoints."""

from __future__ import annotations

import signal
import sys
import threading
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from contextlib import closing
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import connection

from webhooks import outbox
from webhooks.conf import conf, endpoint_key, endpoint_name
from webhooks.deliverer import Deliverer, deliver
from webhooks.models import OutboxEvent

HELP = """\
Brings recorded events to the endpoints of WUKONGIM_WEBHOOKS, in order and each at least once.
`serve` does this by itself; run it where nothing serves, or beside `serve --no-webhooks`. Several
may run: one delivers to an endpoint, the others wait until it ends.

  manage.py deliver_webhooks                       until SIGTERM or Ctrl-C
  manage.py deliver_webhooks --once                what waits now, then end
  manage.py deliver_webhooks --replay 1200-1350    let these events wait again, then end
  manage.py deliver_webhooks --replay 1200-1350 --once
  manage.py deliver_webhooks --endpoint https://app.example/hook --once

Exit code of --once: 0 when nothing waits any more, 1 when something does: the log says why.
"""


class Command(BaseCommand):
    """Parses, asks, prints, exits; the rules are in `webhooks.outbox` and `webhooks.deliverer`."""

    help = HELP

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> Any:
        """With the lines of the help as they are."""
        parser = super().create_parser(prog_name, subcommand, **kwargs)
        parser.formatter_class = RawDescriptionHelpFormatter
        return parser

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--once", action="store_true", help="deliver what waits, up to a first failure, and end"
        )
        parser.add_argument(
            "--replay", type=_range, metavar="FROM-TO",
            help="let the events with these ids (the admin shows them) wait again that were "
            "delivered or given up; the deliverer that runs sends them first",
        )  # fmt: skip
        parser.add_argument(
            "--endpoint", metavar="URL", help="only this one of the endpoints that are configured"
        )

    def handle(
        self, *, once: bool, replay: tuple[int, int] | None, endpoint: str | None, **options: Any
    ) -> None:
        urls = _urls(endpoint)
        if replay is not None:
            self._replay(urls, *replay)
        if once:
            left = sum([self._deliver_once(url) for url in urls])
            sys.exit(1 if left else 0)
        if replay is None:
            self._deliver(urls)

    def _replay(self, urls: list[str], low: int, high: int) -> None:
        keys = [endpoint_key(url) for url in urls]
        rows = OutboxEvent.objects.filter(pk__gte=low, pk__lte=high, endpoint__in=keys)
        self.stdout.write(f"{outbox.send_again(rows)} events wait again.")

    def _deliver_once(self, url: str) -> int:
        """How many are left."""
        with closing(Deliverer(url)) as deliverer:
            before = outbox.waiting(deliverer.key).count()
            mine = deliverer.run_once()
            left = outbox.waiting(deliverer.key).count()
        name = endpoint_name(url)
        if not mine:
            self.stdout.write(f"{name}: another process delivers there; {left} events wait.")
        else:
            self.stdout.write(f"{name}: {max(0, before - left)} events are done, {left} wait.")
        return left

    def _deliver(self, urls: list[str]) -> None:
        stopping = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: stopping.set())
        connection.close()  # each thread has its own
        self.stdout.write(f"Delivering to {', '.join(map(endpoint_name, urls))} (Ctrl-C stops)")
        self.stdout.flush()
        deliver(urls, stopping)


def _urls(endpoint: str | None) -> list[str]:
    urls = list(conf().endpoints)
    if not urls:
        raise CommandError(
            'No endpoint is configured. For example: WUKONGIM_WEBHOOKS=\'{"ENDPOINTS": '
            '["https://app.example/hook"]}\'; see docs/reference/webhooks.md.'
        )
    if endpoint is None:
        return urls
    if endpoint not in urls:
        known = ", ".join(map(endpoint_name, urls))
        raise CommandError(f"{endpoint} is no endpoint that is configured. There are: {known}")
    return [endpoint]


def _range(word: str) -> tuple[int, int]:
    low, _, high = word.partition("-")
    if not (low.isdecimal() and high.isdecimal() and int(low) <= int(high)):
        raise ArgumentTypeError(f"{word!r} is no range of ids: 1200-1350 is one.")
    return int(low), int(high)
