"""The database's clock: the only one that leases, audits and ages of checks are judged by (F55)."""

from __future__ import annotations

from datetime import timedelta

from django.db.models import DateTimeField, ExpressionWrapper, Value
from django.db.models.functions import Now


def ago(seconds: float) -> ExpressionWrapper:
    """That clock's time so many seconds ago, to be computed where a statement runs."""
    then = Now() - Value(timedelta(seconds=seconds))
    return ExpressionWrapper(then, output_field=DateTimeField())


def ahead(seconds: float) -> ExpressionWrapper:
    """The same, so many seconds from now."""
    return ago(-seconds)
