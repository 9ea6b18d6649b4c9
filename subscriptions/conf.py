"""The settings of this app, read from `settings.SUBSCRIPTIONS` through one frozen dataclass."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields
from functools import cache
from typing import Any, TypeVar, get_type_hints

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

Conf = TypeVar("Conf")

OR_ZERO = {"zero": True}
"""Metadata of a number that may be 0. The others are periods, sizes and counts: above it."""


@dataclass(frozen=True, slots=True)
class Words:
    """What a text, or each of a list of texts that name nothing twice, has to be; in words that go
    on "must be", or "must be a list of". What is secret, or may have a password in it, is not
    quoted."""

    wanted: str
    is_right: Callable[[str], bool]
    secret: bool = False

    @property
    def metadata(self) -> dict[str, Words]:
        """That of a field of settings."""
        return {"words": self}


@cache
def read(cls: type[Conf], name: str) -> Conf:
    """The dict `settings.<name>` as a `cls`, read once until a setting changes.

    Raises ImproperlyConfigured with everything that is wrong; `problems` is for system checks.
    """
    wrong = problems(cls, name)
    if wrong:
        raise ImproperlyConfigured(" ".join(wrong))
    types = get_type_hints(cls)
    given = {key.lower(): value for key, value in getattr(settings, name, {}).items()}
    return cls(**{key: _typed(types[key], value) for key, value in given.items()})


def forget(**kwargs: Any) -> None:
    """`setting_changed`: read anew. Only tests change settings while a process runs."""
    read.cache_clear()


setting_changed.connect(forget)


def problems(cls: type[Any], name: str) -> list[str]:
    """What is wrong with `settings.<name>`, one sentence each: unknown keys, types, numbers."""
    given = getattr(settings, name, {})
    if not isinstance(given, Mapping):
        return [f"{name} must be a dict of settings, not {type(given).__name__}."]
    known = {each.name.upper(): each for each in fields(cls)}
    unknown = sorted(str(key) for key in given if key not in known)
    sentences = [f"{name} has unknown keys: {', '.join(unknown)}."] if unknown else []
    types = get_type_hints(cls)
    for key, value in given.items():
        if key in known and (wanted := _refusal(known[key], types[key.lower()], value)):
            words: Words | None = known[key].metadata.get("words")
            found = "" if words and words.secret else f", not {value!r}"
            sentences.append(f"{name}: {key} must be {wanted}{found}.")
    return sentences


def _refusal(each: Field[Any], wanted: Any, value: Any) -> str:
    """What the value should have been, in words; empty when it is that."""
    if wanted is bool:
        return "" if isinstance(value, bool) else "true or false"
    if wanted in (int, float):
        return _number_refusal(each, wanted, value)
    words = each.metadata.get("words", ANY_WORDS)
    if wanted is str:
        return "" if isinstance(value, str) and words.is_right(value) else words.wanted
    return _list_refusal(words, value)


ANY_WORDS = Words("text", lambda text: True)


def _list_refusal(words: Words, value: Any) -> str:
    if not (isinstance(value, list | tuple) and all(isinstance(word, str) for word in value)):
        return "a list of words"
    if not all(map(words.is_right, value)):
        return f"a list of {words.wanted}"
    return "a list that names nothing twice" if len(set(value)) < len(value) else ""


def _number_refusal(each: Field[Any], wanted: Any, value: Any) -> str:
    kinds = int if wanted is int else (int, float)
    finite = not isinstance(value, float) or math.isfinite(value)
    if isinstance(value, bool) or not isinstance(value, kinds) or not finite:
        return "a whole number" if wanted is int else "a number"
    zero = each.metadata.get("zero", False)
    if value < 0 or (value == 0 and not zero):
        return "0 or more" if zero else "above 0"
    return ""


def _typed(wanted: Any, value: Any) -> Any:
    if wanted is float:
        return float(value)
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class SubscriptionsConf:
    """Every number of this app, with the reason for its default."""

    audit_patience: float = 10.0
    """Seconds without an answer to an audit, and without a sign of progress, after which a leased
    node is named as silent. Nodes look as often as they tick; five ticks of two seconds leave room
    for a busy one."""

    page_size: int = 1000
    """Rows of memberships or uids a statement takes. SQLite allows 32,766 parameters; a thousand
    joins hold the channel row for about 20 ms."""

    audit_scopes: int = 100
    """Scopes of one audit that REST and the admin send. Each is one more OR in a statement; SQLite
    nests 1,000 of them."""

    check_fresh_seconds: float = 120.0
    """Age at which a node's last complete check says nothing any more, counted from its begin. A
    node goes round all it holds in 50 s, so the age swings between 50 s and 100 s; twenty more are
    for ticks that come late."""


def conf() -> SubscriptionsConf:
    """The settings in force."""
    return read(SubscriptionsConf, "SUBSCRIPTIONS")
