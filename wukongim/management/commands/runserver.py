"""daphne's `runserver`, which speaks WebSocket. daphne is not among the installed apps: there it
would load Twisted into every process, a fifth of each one's start and 19 MB of its memory."""

from daphne.management.commands.runserver import Command

__all__ = ["Command"]
