"""What is wrong with settings and database is an error at start, in words."""

from __future__ import annotations

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connection

from subscriptions.checks import check_settings, check_triggers
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
    (["PAGE_SIZE"], "SUBSCRIPTIONS must be a dict of settings, not ['PAGE_SIZE']."),
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


def test_migrations_back_and_forth_leave_the_triggers_as_written():
    server = ServerProcess()
    server.manage("migrate", "auth", "--verbosity", "0")
    assert server.manage("check", "--database", "default").returncode == 0
    for arguments in ([], ["wukongim_messaging", "zero"], ["wukongim_subscriptions", "zero"], []):
        server.manage("migrate", *arguments, "--verbosity", "0")
        server.manage("check", "--database", "default")
    server.close()
