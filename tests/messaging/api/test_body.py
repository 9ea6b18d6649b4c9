"""How bodies are read, whichever endpoint they are for."""

from __future__ import annotations

import json
from io import BytesIO

import pytest
from django.core.handlers.asgi import ASGIRequest

from messaging.api.views import ChannelSave
from tests.support.server import API_TOKEN

BODY = {"channel_id": "team", "channel_type": 2}


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "text/plain", "application/x-www-form-urlencoded", "nonsense", ""],
)
def test_body_is_json_whatever_the_content_type_says(api, content_type):
    answer = api.generic("POST", "/channel", json.dumps(BODY), content_type=content_type)
    assert (answer.status_code, answer.json()) == (200, {"status": 200})


@pytest.mark.django_db
def test_body_of_a_chunked_request_is_read():
    # As ASGI hands it over: without a Content-Length.
    headers = [(b"token", API_TOKEN.encode()), (b"transfer-encoding", b"chunked")]
    scope = {"type": "http", "method": "POST", "path": "/channel", "headers": headers}
    request = ASGIRequest(scope, BytesIO(json.dumps(BODY).encode()))
    assert ChannelSave.as_view()(request).data == {"status": 200}


def test_answer_is_json_whatever_is_accepted(api):
    answer = api.post("/channel", BODY, headers={"accept": "text/html"})
    assert answer["Content-Type"] == "application/json"
    assert answer.json() == {"status": 200}


def test_unknown_fields_are_ignored_and_null_is_nothing(api):
    body = {**BODY, "large": None, "subscribers": None, "whatever": {"\u0000": ["\u0000"]}}
    assert api.post("/channel", body).json() == {"status": 200}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "channel_id: This field is required."),
        (b"{", "not JSON"),
        (b"\xff\xfe\xff", "not JSON"),
        (b"[1]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'{"channel_id": NaN}', "NaN"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"channel_type": ' + b"9" * 5_000 + b"}", "not JSON"),
        (b'{"a": "' + b"x" * 9_000_000 + b'"}', "more than 8388608 bytes"),
    ],
)
def test_body_that_cannot_be_read_is_400(api, raw, words):
    answer = api.generic("POST", "/channel", raw, content_type="application/json")
    assert (answer.status_code, answer.json()["status"]) == (400, 400)
    assert words in answer.json()["msg"]


def test_wrong_method_is_405_in_the_same_form(api):
    assert api.get("/channel").json()["status"] == 405


def test_paths_have_no_trailing_slash(api):
    assert api.post("/channel/", BODY).status_code == 404
