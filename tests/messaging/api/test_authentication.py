"""Who may call: the same for every endpoint, so every endpoint is asked."""

from __future__ import annotations

import base64

import pytest
from rest_framework.test import APIClient

from tests.support.server import API_TOKEN

CLOSED = [
    ("post", "/user/token"),
    ("post", "/user/device_quit"),
    ("get", "/varz"),
    ("get", "/varz/setting"),
    ("get", "/connz"),
    ("post", "/conn/kick"),
    ("post", "/conn/remove"),
    ("post", "/channel"),
    ("post", "/channel/info"),
    ("post", "/channel/delete"),
    ("post", "/channel/subscriber_add"),
    ("post", "/channel/subscriber_remove"),
    ("post", "/channel/subscriber_remove_all"),
    ("post", "/channel/messagesync"),
    ("post", "/message/send"),
    ("get", "/subscriptions/memberships"),
    ("get", "/subscriptions/findings"),
    ("get", "/subscriptions/health"),
    ("post", "/subscriptions/audits"),
    ("post", "/subscriptions/repairs"),
    ("get", "/subscriptions/audits/6a40ba4c-98a2-4a5c-8a35-a1e6f31bd0f6"),
    ("get", "/subscriptions/repairs/6a40ba4c-98a2-4a5c-8a35-a1e6f31bd0f6"),
]

BODY = {"channel_id": "team", "channel_type": 2}


def basic(password: str, user: str = "anybody") -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.django_db
@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_every_closed_endpoint_refuses_a_caller_without_token(method, path):
    answer = getattr(APIClient(), method)(path, {})
    assert answer.status_code == 401
    assert answer.json()["status"] == 401
    assert "token" in answer.json()["msg"]
    assert answer["WWW-Authenticate"].startswith("Basic ")


@pytest.mark.django_db
@pytest.mark.parametrize(
    "headers",
    [
        {"token": API_TOKEN},
        {"authorization": basic(API_TOKEN)},
        {"authorization": basic(API_TOKEN, user="")},
        {"authorization": basic(API_TOKEN).replace("Basic", "basic")},
    ],
)
def test_the_token_opens_the_api(headers):
    assert APIClient(headers=headers).post("/channel", BODY).json() == {"status": 200}


@pytest.mark.django_db
@pytest.mark.parametrize(
    "headers",
    [
        {"token": "wrong"},
        {"token": ""},
        {"token": API_TOKEN + "x"},
        {"token": "gr\xfcn \u2713".encode().decode("latin-1")},
        {"token": "wrong", "authorization": basic(API_TOKEN)},
        {"authorization": basic("wrong")},
        {"authorization": basic("wrong", user=API_TOKEN)},
        {"authorization": "Basic %%%"},
        {"authorization": "Basic"},
        {"authorization": f"Bearer {API_TOKEN}"},
    ],
)
def test_anything_else_does_not(headers):
    answer = APIClient(headers=headers).post("/channel", BODY)
    assert answer.status_code == 401
    assert API_TOKEN not in answer.content.decode()


@pytest.mark.django_db
@pytest.mark.parametrize("given", ["", "anything"])
def test_without_a_configured_token_everybody_is_refused(settings, given):
    settings.WUKONGIM_API_TOKEN = ""
    answer = APIClient(headers={"token": given}).post("/channel", BODY)
    assert answer.status_code == 401
    assert "WUKONGIM_API_TOKEN" in answer.json()["msg"]


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/health", "/healthz", "/readyz", "/route"])
def test_health_and_route_are_open(path):
    assert APIClient().get(path).status_code != 401
