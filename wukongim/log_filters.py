"""What other people's loggers say, brought to the level and the words that it has for us."""

from __future__ import annotations

import logging

PEERS_FAULTS = frozenset({"Invalid UTF-8 sequence received from client."})
"""What uvicorn reports as its own error, with a traceback, though anybody can send it."""


class PeersFaults(logging.Filter):
    """Make a peer's fault one line at INFO, so that nobody can fill the log with tracebacks."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record in place; nothing is left out."""
        if record.getMessage() in PEERS_FAULTS:
            _make_info(record)
        return True


class Requests(logging.Filter):
    """Name a request by method and path: its query may hold a token that was meant for a header.

    What the caller did wrong is INFO, what we did stays an error with its traceback.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record in place; nothing is left out."""
        request = record.__dict__.pop("request", None)
        if request is not None:
            record.__dict__.update(method=request.method, path=request.path)
        if getattr(record, "status_code", 500) < 500:
            _make_info(record)
        return True


class UnknownHosts(logging.Filter):
    """Make a request for a host that is not served one line that names our variable."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record in place; nothing is left out."""
        words = record.getMessage().partition(" You may need")[0]
        record.msg, record.args = f"{words} WUKONGIM_ALLOWED_HOSTS names the hosts served.", ()
        record.__dict__.pop("request", None)
        _make_info(record)
        return True


def _make_info(record: logging.LogRecord) -> None:
    record.levelno, record.levelname = logging.INFO, "INFO"
    record.exc_info = record.exc_text = None
