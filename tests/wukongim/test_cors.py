"""Which pages of other origins a browser lets call the HTTP API."""

from __future__ import annotations

import pytest
from corsheaders.checks import check_settings
from django.test import Client

from tests.support.server import API_TOKEN

CHAT = "https://chat.example"
FOREIGN = "https://evil.example"
METHODS = {"DELETE", "GET", "OPTIONS", "PATCH", "POST", "PUT"}


def preflight(path, origin, method="POST"):
    return Client().options(
        path, headers={"origin": origin, "access-control-request-method": method}
    )


def allowed(answer):
    return answer.headers.get("access-control-allow-origin")


@pytest.fixture
def chat(settings):
    settings.CORS_ALLOWED_ORIGINS = [CHAT]


@pytest.mark.parametrize("path", ["/channel", "/route", "/message/send", "/subscriptions/health"])
def test_preflight_is_answered_without_a_token(chat, path):
    answer = preflight(path, CHAT)
    assert (answer.status_code, answer.content, allowed(answer)) == (200, b"", CHAT)
    assert set(answer.headers["access-control-allow-methods"].split(", ")) == METHODS
    headers = answer.headers["access-control-allow-headers"].split(", ")
    assert {"token", "authorization", "content-type"} <= set(headers)


def test_page_of_an_allowed_origin_may_read_the_answer(chat):
    answer = Client().get("/healthz", headers={"origin": CHAT})
    assert (answer.status_code, allowed(answer)) == (200, CHAT)
    assert "origin" in answer.headers["vary"]
    assert "access-control-allow-credentials" not in answer.headers


def test_page_may_read_why_it_was_refused(chat):
    answer = Client().get("/varz", headers={"origin": CHAT})
    assert (answer.status_code, allowed(answer)) == (401, CHAT)


def test_no_other_page_may(chat):
    assert allowed(preflight("/channel", FOREIGN)) is None
    answer = Client().get("/healthz", headers={"origin": FOREIGN, "token": API_TOKEN})
    assert allowed(answer) is None


def test_by_default_no_page_may(settings):
    assert settings.CORS_ALLOWED_ORIGINS == []
    assert allowed(preflight("/channel", CHAT)) is None
    assert allowed(Client().get("/healthz", headers={"origin": CHAT})) is None


@pytest.mark.django_db
def test_admin_is_for_no_page(chat):
    assert allowed(Client().get("/admin/login/", headers={"origin": CHAT})) is None
    assert allowed(preflight("/admin/login/", CHAT)) is None


@pytest.mark.parametrize("word", ["*", "chat.example", "https://chat.example/path"])
def test_words_that_are_no_origins_are_errors(settings, word):
    settings.CORS_ALLOWED_ORIGINS = [word]
    [error] = check_settings()
    assert error.is_serious()
