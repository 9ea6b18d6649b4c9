"""Errors on their way out: one handler, one body, `{"msg": …, "status": …}` (http-api §0)."""

from __future__ import annotations

from typing import Any

from django.db import DatabaseError
from rest_framework import views
from rest_framework.exceptions import APIException
from rest_framework.response import Response
from rest_framework.settings import api_settings

from subscriptions.errors import ChannelMissing, InvalidChannel, InvalidUid
from subscriptions.transactions import is_lock_timeout, is_transient

CALLERS_FAULTS = (ChannelMissing, InvalidChannel, InvalidUid)
"""Domain errors that the caller can mend. Others are ours: logged by Django, answered 500."""


class BadRequest(APIException):
    """The request cannot be done as it is. `extra` is added to the body."""

    status_code = 400
    default_code = "bad_request"

    def __init__(self, text: str, **extra: Any) -> None:
        super().__init__(text)
        self.extra = extra


class Unavailable(APIException):
    """The server cannot answer now; the same request may do later."""

    status_code = 503
    default_code = "unavailable"


def answer_error(error: Exception, context: dict[str, Any]) -> Response | None:
    """REST framework's exception handler. None for what nobody foresaw, so that Django logs it."""
    if isinstance(error, CALLERS_FAULTS):
        error = BadRequest(str(error))
    elif isinstance(error, DatabaseError) and (is_lock_timeout(error) or is_transient(error)):
        error = Unavailable("The database is busy or away: nothing was changed; try again.")
    response = views.exception_handler(error, context)
    if response is not None:
        response.data = {
            "msg": describe(response.data),
            "status": response.status_code,
            **getattr(error, "extra", {}),
        }
    return response


def describe(detail: Any, place: str = "") -> str:
    """All errors of a nested detail in one line, each after the field that it is about."""
    if isinstance(detail, dict):
        return " ".join(describe(part, _inside(place, name)) for name, part in detail.items())
    if isinstance(detail, list):
        return " ".join(
            describe(part, f"{place}[{index}]" if isinstance(part, dict) else place)
            for index, part in enumerate(detail)
            if part
        )
    return f"{place}: {detail}" if place else str(detail)


def _inside(place: str, name: Any) -> str:
    if name in ("detail", api_settings.NON_FIELD_ERRORS_KEY):
        return place
    if isinstance(name, int):
        return f"{place}[{name}]"
    return f"{place}.{name}" if place else str(name)
