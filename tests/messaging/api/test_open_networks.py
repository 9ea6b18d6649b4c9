"""WUKONGIM_API_OPEN_TO: whoever calls from there needs no token, and nobody else gets in by it."""

from __future__ import annotations

import httpx
import pytest
from rest_framework.test import APIClient

from subscriptions import checks
from tests.messaging.api.test_direct import SEND, ask, saying, ways  # noqa: F401 - a fixture
from tests.support.server import API_TOKEN
from wukongim.asgi import django_application

BODY = {"channel_id": "team", "channel_type": 2}
FOREIGN = "https://evil.example"
CHAT = "https://chat.example"


def post(address, **headers):
    return APIClient(REMOTE_ADDR=address, headers=headers).post("/channel", BODY)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("networks", "address"),
    [
        (["10.1.2.0/24"], "10.1.2.3"),
        (["192.0.2.1"], "192.0.2.1"),
        (["192.0.2.1", "10.0.0.0/8"], "10.200.0.1"),
        (["10.1.2.0/24"], "::ffff:10.1.2.3"),
        (["fd00::/8"], "fd00::17"),
    ],
)
def test_whoever_calls_from_an_open_network_needs_no_token(settings, networks, address):
    settings.WUKONGIM_API_OPEN_TO = networks
    assert post(address).json() == {"status": 200}
    assert post(address, token=API_TOKEN).json() == {"status": 200}


@pytest.mark.django_db
@pytest.mark.parametrize(
    "address", ["10.1.3.1", "192.0.2.1", "::1", "fd00::17", "::ffff:10.1.3.1", "", "unix:", "a, b"]
)
def test_everybody_else_does(settings, address):
    settings.WUKONGIM_API_OPEN_TO = ["10.1.2.0/24"]
    assert post(address).status_code == 401
    assert post(address, token=API_TOKEN).json() == {"status": 200}


@pytest.mark.django_db
def test_by_default_no_network_is_open(settings):
    assert settings.WUKONGIM_API_OPEN_TO == []
    assert post("127.0.0.1").status_code == 401
    del settings.WUKONGIM_API_OPEN_TO  # as in a project that never heard of it
    assert post("127.0.0.1").status_code == 401


@pytest.mark.django_db
def test_wrong_token_is_refused_from_an_open_network_too(settings):
    settings.WUKONGIM_API_OPEN_TO = ["10.1.2.0/24"]
    assert post("10.1.2.3", token="wrong").status_code == 401
    assert post("10.1.2.3", authorization="Basic eDp3cm9uZw==").status_code == 401


@pytest.mark.django_db
def test_open_network_needs_no_token_to_be_configured(settings):
    settings.WUKONGIM_API_OPEN_TO, settings.WUKONGIM_API_TOKEN = ["10.1.2.0/24"], ""
    assert post("10.1.2.3").json() == {"status": 200}
    assert post("10.1.3.3").status_code == 401


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("origin", "code"),
    [
        ("http://testserver", 200),
        (CHAT, 200),
        (FOREIGN, 401),
        ("https://chat.example.evil.example", 401),
        ("null", 401),
        ("http://[", 401),
        ("", 401),
    ],
)
def test_page_of_another_origin_gets_nothing_from_its_visitors_address(settings, origin, code):
    """A browser in the network sends whatever any page says."""
    settings.WUKONGIM_API_OPEN_TO = ["10.1.2.0/24"]
    settings.CORS_ALLOWED_ORIGINS = [CHAT]
    assert post("10.1.2.3", origin=origin).status_code == code
    assert post("10.1.2.3", origin=origin, token=API_TOKEN).status_code == 200


# --- in front of Django -----------------------------------------------------------------------


async def test_send_without_token_from_an_open_network_is_answered(ways, settings):  # noqa: F811
    settings.WUKONGIM_API_OPEN_TO = ["127.0.0.0/8"]
    call = saying(SEND, token=None)
    mine = await ways.ask(call)
    assert (mine.status, ways.through_django) == (200, 0)
    assert mine.masked == (await ask(django_application, call)).masked


async def test_send_without_token_from_elsewhere_is_refused(ways, settings):  # noqa: F811
    settings.WUKONGIM_API_OPEN_TO = ["10.1.2.0/24"]
    mine, theirs = await ways.ask_both(saying(SEND, token=None))
    assert mine.masked == theirs.masked
    assert mine.status == 401
    assert ways.drafts == []


@pytest.mark.parametrize("origin", [CHAT, FOREIGN, "http://127.0.0.1"])
async def test_send_of_a_page_is_djangos_to_answer(ways, settings, origin):  # noqa: F811
    settings.CORS_ALLOWED_ORIGINS = [CHAT]
    call = saying(SEND, headers=[(b"origin", origin.encode())])
    for _ in range(2):
        mine, theirs = await ways.ask_both(call)
        assert mine.masked == theirs.masked
        allowed = dict(mine.headers).get(b"access-control-allow-origin")
        assert allowed == (CHAT.encode() if origin == CHAT else None)
    assert ways.through_django == 2
    plain = await ways.ask(saying(SEND))  # its headers are not those of a page's
    assert b"access-control-allow-origin" not in dict(plain.headers)


# --- behind a proxy ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("open_to", "forwarded", "code"),
    [
        ("127.0.0.0/8", None, 200),
        ("127.0.0.0/8", "203.0.113.7", 401),
        ("10.1.2.0/24", "10.1.2.3", 200),
        ("10.1.2.0/24", "10.1.2.3, 203.0.113.7", 401),
        ("10.1.2.0/24", None, 401),
    ],
)
@pytest.mark.parametrize("path", ["/channel", "/message/send"])
async def test_trusted_proxy_says_who_calls(here, settings, path, open_to, forwarded, code):
    """uvicorn believes 127.0.0.1, and of a list the last address that is no proxy."""
    async with httpx.AsyncClient(base_url=here.http, trust_env=False) as client:
        made = await client.post("/channel", json=BODY, headers={"token": API_TOKEN})
        assert made.status_code == 200
        settings.WUKONGIM_API_OPEN_TO = [open_to]
        headers = {"x-forwarded-for": forwarded} if forwarded else {}
        answer = await client.post(path, json=SEND, headers=headers)
    assert answer.status_code == code


async def test_who_is_no_proxy_cannot_say_so(here, settings):
    settings.WUKONGIM_API_OPEN_TO = ["10.1.2.0/24"]
    transport = httpx.AsyncHTTPTransport(local_address="127.0.0.2")
    async with httpx.AsyncClient(transport=transport, base_url=here.http) as client:
        headers = {"x-forwarded-for": "10.1.2.3"}
        assert (await client.post("/channel", json=BODY, headers=headers)).status_code == 401


# --- the system check -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("networks", "proxies", "ids"),
    [
        ([], "*", []),
        (["10.1.2.0/24", "192.0.2.1", "fd00::/8"], "10.0.0.10", []),
        (["10.1.2.3/24"], "", ["subscriptions.E006"]),
        (["office", "10.1.2.0/33"], "*", ["subscriptions.E006"] * 2),
        (["0.0.0.0/0"], "", ["subscriptions.W007"]),
        (["10.0.0.0/8", "::/0"], "", ["subscriptions.W007"]),
        (["10.1.2.0/24"], "*", ["subscriptions.W008"]),
        (["10.1.2.0/24"], "127.0.0.1, 0.0.0.0/0", ["subscriptions.W008"]),
    ],
)
def test_check_says_what_opens_too_much(settings, monkeypatch, networks, proxies, ids):
    settings.WUKONGIM_API_OPEN_TO = networks
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", proxies)
    found = checks.check_open_api()
    assert [each.id for each in found] == ids
    assert all("docs/" in each.hint for each in found)


def test_check_runs_with_manage_check():
    from django.core.checks.registry import registry

    assert checks.check_open_api in registry.get_checks()


@pytest.mark.django_db
def test_words_that_are_no_networks_let_nobody_in(settings):
    settings.WUKONGIM_API_OPEN_TO = ["10.1.2.0/24", "nonsense"]
    with pytest.raises(ValueError, match="nonsense"):
        post("10.1.2.3")
