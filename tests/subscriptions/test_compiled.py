"""Queries that are worked out once."""

from __future__ import annotations

from itertools import count

import pytest
from django.db.models import Value
from django.db.models.functions import Now

from subscriptions.clock import ago
from subscriptions.compiled import ask
from subscriptions.models import Channel
from tests.support.factories import make_group

pytestmark = pytest.mark.django_db


def test_ask_answers_what_is_there_now_each_time():
    def names(kind):
        return Channel.objects.filter(channel_type=kind).order_by("pk").values_list("channel_id")

    assert ask(names, 2) == []
    make_group("team")
    assert ask(names, 2) == [("team",)]
    assert ask(names, 3) == []
    make_group("other")
    assert ask(names, 2) == [("team",), ("other",)]


def test_ask_works_a_query_out_once_for_each_argument():
    made = []

    def names(kind):
        made.append(kind)
        return Channel.objects.filter(channel_type=kind).values_list("channel_id")

    for kind in (2, 3, 2, 3, 2):
        ask(names, kind)
    assert made == [2, 3]


def test_times_are_those_of_the_moment_that_is_asked_not_of_the_first(django_user_model):
    numbers = count()

    def recent(seconds):
        next(numbers)
        users = django_user_model.objects.filter(date_joined__gte=ago(seconds))
        return users.filter(date_joined__lte=Now()).values_list(Value(1))

    assert ask(recent, 60) == []
    django_user_model.objects.create(username="operator", date_joined=Now())
    assert ask(recent, 60) == [(1,)]
    assert next(numbers) == 1
