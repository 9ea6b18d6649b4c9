"""What is wrong with settings and database is an error at start, in words."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.db.utils import ConnectionHandler

from subscriptions import checks
from subscriptions.checks import check_clocks, check_connections, check_settings, check_triggers
from subscriptions.conf import SubscriptionsConf, conf
from subscriptions.triggers import install
from tests.support.server import ServerProcess

WRONG = [
    ({"PAGE_SIZES": 5}, "SUBSCRIPTIONS has unknown keys: PAGE_SIZES."),
    ({"page_size": 5, 7: 1}, "SUBSCRIPTIONS has unknown keys: 7, page_size."),
    ({"PAGE_SIZE": "5"}, "SUBSCRIPTIONS: PAGE_SIZE must be a whole number, not '5'."),
    ({"PAGE_SIZE": 5.0}, "SUBSCRIPTIONS: PAGE_SIZE must be a whole number, not 5.0."),
    ({"PAGE_SIZE": True}, "SUBSCRIPTIONS: PAGE_SIZE must be a whole number, not True."),
    ({"PAGE_SIZE": 0}, "SUBSCRIPTIONS: PAGE_SIZE must be above 0, not 0."),
    ({"AUDIT_PATIENCE": -1}, "SUBSCRIPTIONS: AUDIT_PATIENCE must be above 0, not -1."),
    ({"AUDIT_PATIENCE": float("nan")}, "SUBSCRIPTIONS: AUDIT_PATIENCE must be a number, not nan."),
    ({"AUDIT_PATIENCE": None}, "SUBSCRIPTIONS: AUDIT_PATIENCE must be a number, not None."),
    (["PAGE_SIZE"], "SUBSCRIPTIONS must be a dict of settings, not list."),
]


@pytest.mark.parametrize(("given", "sentence"), WRONG)
def test_wrong_setting_is_an_error_with_a_sentence(settings, given, sentence):
    settings.SUBSCRIPTIONS = given
    [error] = check_settings()
    assert (error.id, error.msg) == ("subscriptions.E001", sentence)
    with pytest.raises(ImproperlyConfigured) as raised:
        conf()
    assert str(raised.value) == sentence


def test_settings_are_typed_and_read_anew_when_they_change(settings):
    settings.SUBSCRIPTIONS = {"AUDIT_PATIENCE": 3}
    assert check_settings() == []
    assert (conf().audit_patience, type(conf().audit_patience)) == (3.0, float)
    assert conf() is conf()
    settings.SUBSCRIPTIONS = {}
    assert conf() == SubscriptionsConf()


@pytest.mark.django_db
def test_triggers_are_looked_for_in_the_databases_that_are_asked_about():
    assert check_triggers(["default"]) == []
    assert check_triggers(None) == []


@pytest.mark.django_db
def test_database_without_triggers_of_its_own_is_an_error(monkeypatch):
    monkeypatch.setattr(install, "MODULES", {"oracle": None})
    [error] = check_triggers(["default"])
    assert error.id == "subscriptions.E003"
    assert f"'default' is {connection.vendor}; the triggers are written for oracle" in error.msg


@pytest.mark.django_db
def test_triggers_that_are_missing_are_a_warning_that_names_the_command(monkeypatch):
    monkeypatch.setattr(install, "differing", lambda connection: ["membership_joined"])
    [warning] = check_triggers(["default"])
    assert (warning.id, warning.is_serious()) == ("subscriptions.W002", False)
    assert "manage.py migrate" in warning.hint


POSTGRESQL = {"ENGINE": "django.db.backends.postgresql", "NAME": "chat"}


@pytest.mark.parametrize(
    ("entry", "ids"),
    [
        ({**POSTGRESQL, "CONN_MAX_AGE": 60}, ["subscriptions.W004"]),
        ({**POSTGRESQL, "CONN_MAX_AGE": None}, ["subscriptions.W004"]),
        ({**POSTGRESQL, "CONN_MAX_AGE": 0}, []),
        ({**POSTGRESQL, "OPTIONS": {"pool": True}}, []),
        ({"ENGINE": "django.db.backends.sqlite3", "CONN_MAX_AGE": None}, []),
    ],
)
def test_connection_that_is_kept_for_nobody_is_a_warning(monkeypatch, entry, ids):
    monkeypatch.setattr(checks, "connections", ConnectionHandler({"default": entry}))
    assert [each.id for each in check_connections()] == ids


def test_database_of_the_settings_keeps_no_connection_for_nobody():
    assert check_connections() == []


@pytest.mark.django_db
def test_clocks_that_agree_are_no_message():
    assert check_clocks(["default"]) == check_clocks(None) == []


@pytest.mark.django_db
@pytest.mark.skipif(connection.vendor != "postgresql", reason="a file has no clock of its own")
@pytest.mark.parametrize("seconds", [-120, -1.5, 1.5, 120])
def test_clock_far_from_the_databases_is_a_warning(monkeypatch, seconds):
    ahead = SimpleNamespace(time=lambda: time.time() + seconds)
    monkeypatch.setattr(checks, "time", ahead)
    [warning] = check_clocks(["default"])
    assert (warning.id, warning.is_serious()) == ("subscriptions.W005", False)
    assert f"clock is {abs(seconds):.1f} s from" in warning.msg


BACK_AND_FORTH = """
from django.core.management import call_command
messages, bindings = "wukongim_messaging", "wukongim_subscriptions"
for target in (["auth"], [], [messages, "zero"], [bindings, "zero"], []):
    call_command("migrate", *target, verbosity=0)
    call_command("check", databases=["default"])
print("done")
"""


def test_migrations_back_and_forth_leave_the_triggers_as_written():
    server = ServerProcess()
    assert server.manage("shell", "--no-imports", "-c", BACK_AND_FORTH).stdout.endswith("done\n")
    server.close()
