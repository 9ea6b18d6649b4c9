"""`manage.py serve_tcp`: the binary protocol over plain TCP, for the mobile SDKs."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from prometheus_client import start_http_server

from messaging import (
    metrics,  # noqa: F401 - puts this app's metrics into the registry
    starting,
)
from messaging.lifespan import LEASE_LEFT
from messaging.serving import configuration, listen, place, serve
from messaging.starting import NOT_STARTED
from messaging.tcp import TcpSocket
from subscriptions.metrics import REGISTRY


class Command(BaseCommand):
    help = (
        "Serves the binary protocol over TCP, with TLS where a certificate is given, until SIGTERM "
        "or Ctrl-C. This process is a node like those of `serve`, which it runs beside: they hear "
        "of each other through WUKONGIM_REDIS_URL. Stopping asks every client to come back, one "
        "after the other, and exits with 0 within 30 seconds."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--host",
            default="127.0.0.1",
            help="Address to listen on. 127.0.0.1 (the default) is reached from this machine only; "
            "0.0.0.0 and :: from everywhere.",
        )
        parser.add_argument(
            "--port",
            type=starting.port,
            default=5100,
            help="Port to listen on, 5100 unless given. 0 takes a free one and prints it.",
        )
        parser.add_argument(
            "--certificate",
            type=Path,
            metavar="FILE",
            help="Serve TLS with this certificate, in PEM, with those of its issuers behind it. "
            "Without one tokens and messages travel as everybody on the way can read them.",
        )
        parser.add_argument(
            "--key",
            type=Path,
            metavar="FILE",
            help="The certificate's private key, in PEM, where it is not in the same file.",
        )

        parser.add_argument(
            "--metrics-port",
            type=starting.port,
            metavar="PORT",
            help="Answer Prometheus there with what this process has counted, to callers from this "
            "machine alone. Nowhere unless given.",
        )

    def handle(
        self,
        *,
        host: str,
        port: int,
        certificate: Path | None = None,
        key: Path | None = None,
        metrics_port: int | None = None,
        **options: Any,
    ) -> None:
        starting.require_all()
        if warning := starting.warning_of_neighbours():
            self.stderr.write(warning)
        config = configuration(http=TcpSocket, **_tls(certificate, key))
        if metrics_port is not None:
            _show_metrics(metrics_port)
        with listen(host, port) as listener:
            secure = "TLS" if certificate else "no TLS"
            line = f"Serving: chat tcp://{place(listener)}, {secure} (Ctrl-C stops)"
            try:
                ended_well = serve(listener, lambda: self._started(line), config=config)
            except SystemExit as error:  # uvicorn's way to say so
                raise CommandError(NOT_STARTED) from error
        if not ended_well:
            raise CommandError(LEASE_LEFT)

    def _started(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()


def _show_metrics(port: int) -> None:
    """Serve them from a thread of their own. No token: nobody is named, nobody else can ask."""
    try:
        start_http_server(port, addr="127.0.0.1", registry=REGISTRY)
    except OSError as error:
        raise CommandError(
            f"Cannot show metrics on port {port}: {error.strerror}. Choose another --metrics-port."
        ) from error


def _tls(certificate: Path | None, key: Path | None) -> dict[str, Any]:
    """uvicorn's options for these files. Raises CommandError for one that cannot be used."""
    if certificate is None:
        if key is not None:
            raise CommandError("A --key goes with a --certificate.")
        return {}
    options = {"ssl_certfile": str(certificate), "ssl_keyfile": str(key) if key else None}
    try:
        configuration(http=TcpSocket, **options).load()
    except OSError as error:  # SSLError is one
        files = f"{certificate} and {key}" if key else str(certificate)
        raise CommandError(f"There is no certificate with its key in {files}: {error}.") from error
    return options
