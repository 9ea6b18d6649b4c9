"""Signals for embedders of this app."""

from __future__ import annotations

from django.dispatch import Signal

message_appended = Signal()
"""message (StoredMessage), after commit, in the process whose log appended it. Receivers run in
the node's event loop: they must be quick and must not touch the database."""
