"""The HTTP API is as its description says, and the description says all of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from django.test import Client
from django.urls import get_resolver
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from messaging.api.described.shapes import PAYLOAD
from tests.support.server import API_TOKEN, NETWORKED, ServerProcess
from tests.test_docs import endpoints
from wukongim import openapi

ENDPOINTS = sorted(endpoints(get_resolver("wukongim.urls").url_patterns))
every_endpoint = pytest.mark.parametrize(
    ("method", "path"), ENDPOINTS, ids=[" ".join(each) for each in ENDPOINTS]
)


@cache
def document() -> dict[str, Any]:
    """The description."""
    return dict(json.loads(openapi.document()))


@pytest.fixture
def operation(method: str, path: str) -> dict[str, Any]:
    """What it says of an endpoint."""
    return document()["paths"][path][method.lower()]


# --- the description ----------------------------------------------------------------------------


def test_every_path_and_method_is_described():
    paths = document()["paths"]
    described = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    assert sorted(described) == ENDPOINTS


@every_endpoint
def test_operation_says_what_it_is_for(method, path, operation):
    assert operation["summary"]


@every_endpoint
def test_request_has_a_body_or_parameters_with_an_example(method, path, operation):
    if method == "POST":
        body = operation["requestBody"]["content"]["application/json"]
        assert_examples_fit(body)
    for parameter in operation.get("parameters", ()):
        if "examples" in parameter:
            assert_examples_fit(parameter)
    required = [each for each in operation.get("parameters", ()) if each.get("required")]
    assert all("examples" in each for each in required)


@every_endpoint
def test_every_answer_has_an_example(method, path, operation):
    answers = operation["responses"]
    assert [status for status in answers if status in ("200", "202")]
    assert {"400", "405", "503"} <= set(answers)
    assert ("401" in answers) == ({} not in operation["security"])
    for answer in answers.values():
        for content in answer["content"].values():
            assert_examples_fit(content)


def assert_examples_fit(described: dict[str, Any]) -> None:
    """Each example is one of what its schema describes; there is at least one."""
    examples = [each["value"] for each in described["examples"].values()]
    assert examples
    checked = validator(described["schema"])
    assert [error.message for each in examples for error in checked.iter_errors(each)] == []


def validator(described: dict[str, Any]) -> Draft202012Validator:
    """What checks values by a schema of the document."""
    return Draft202012Validator(
        {**document(), **described}, format_checker=Draft202012Validator.FORMAT_CHECKER
    )


def test_description_is_served_to_everybody(db):
    answer = Client().get("/schema")
    assert (answer.status_code, answer["Content-Type"]) == (200, "application/json")
    assert answer.json() == document()
    assert API_TOKEN not in answer.text


def test_page_needs_nothing_from_other_hosts_and_no_inline_code(db):
    page = Client().get("/docs").text
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert [Client().get(address).status_code for address in addresses] == [200, 200, 200]
    assert all(address.startswith("/static/") for address in addresses)
    assert "<style" not in page
    assert page.count("<script") == page.count("></script>")


# --- the server ---------------------------------------------------------------------------------

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
MOST = 16 if NETWORKED else 10
"""Requests an endpoint: PostgreSQL is the stricter of the two."""


@cache
def schema() -> Any:
    """What makes requests up."""
    config = {"generation": {"deterministic": True, "database": "none"}}
    return schemathesis.openapi.from_dict(document(), config=SchemathesisConfig.from_dict(config))


@pytest.fixture(scope="module")
def running() -> Iterator[ServerProcess]:
    """A server."""
    with ServerProcess() as server:
        yield server


@pytest.fixture
def server(running: ServerProcess) -> ServerProcess:
    """The server with the people, channels and messages that the examples name, whatever the test
    before it did to them."""
    for uid in ("alice", "bob"):
        running.make_user(uid)
    team = {"channel_id": "team", "channel_type": 2}
    running.post("/channel", **team, subscribers=["alice", "bob"], reset=1)
    running.post("/channel/whitelist_set", **team, uids=["alice"])
    sent = {"from_uid": "alice", "payload": PAYLOAD}
    running.post("/message/send", **team, **sent, client_msg_no="c-1")
    running.post("/message/send", **team, **sent, client_msg_no="stream-1", is_stream=1)
    command = {"no_persist": 0, "red_dot": 0, "sync_once": 1}
    running.post("/message/send", **team, **sent, client_msg_no="c-0", header=command)
    running.post("/message/send", channel_id="bob", channel_type=1, **sent, client_msg_no="c-1")
    return running


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    """Connections that are kept."""
    with requests.Session() as session:
        session.trust_env = False
        yield session


@every_endpoint
def test_example_is_answered_as_described(method, path, operation, server):
    query = {}
    for parameter in operation.get("parameters", ()):
        if "examples" in parameter:
            [example] = [each["value"] for each in parameter["examples"].values()]
            if parameter["in"] == "query":
                query[parameter["name"]] = example
            else:
                asked = server.client.post(path.rpartition("/")[0], json={}).json()
                path = path.replace(f"{{{parameter['name']}}}", asked["id"])
    body = None
    if "requestBody" in operation:
        [example] = operation["requestBody"]["content"]["application/json"]["examples"].values()
        body = example["value"]
    answer = server.client.request(method, path, params=query, json=body)
    [success] = [status for status in operation["responses"] if status in ("200", "202")]
    assert str(answer.status_code) == success, answer.text
    kind = answer.headers["Content-Type"].partition(";")[0]
    described = operation["responses"][success]["content"][kind]["schema"]
    value = answer.json() if kind == "application/json" else answer.text
    assert [error.message for error in validator(described).iter_errors(value)] == []


@every_endpoint
def test_server_asks_for_the_token_where_it_is_described(method, path, operation, running):
    answer = httpx.request(method, running.http + path, trust_env=False)
    assert (answer.status_code == 401) == ("401" in operation["responses"])
    if answer.status_code == 401:
        assert validator({"$ref": "#/components/schemas/Error"}).is_valid(answer.json())


@every_endpoint
def test_server_answers_what_is_made_up_as_described(method, path, server, session):
    def ask(case: Any) -> None:
        asked = {"headers": {"token": API_TOKEN}, "checks": CHECKS, "timeout": 30}
        case.call_and_validate(server.http, session, **asked)

    operation = schema()[path][method]
    for case in boundaries(operation):
        ask(case)
    cases = st.one_of([operation.as_strategy(generation_mode=mode) for mode in GenerationMode])
    seldom = settings(
        max_examples=5, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    seldom(given(cases)(ask))()


def boundaries(operation: Any) -> list[Any]:
    """Requests at and beyond the limits of each field and parameter; of many, every second or
    third: at most MOST."""
    config = schema().config.generation_for(operation=operation, phase="coverage")
    modes = list(GenerationMode)
    cases = list(
        schema().iter_coverage_cases(operation, generation_modes=modes, generation_config=config)
    )
    return cases[:: -(-len(cases) // MOST)]
