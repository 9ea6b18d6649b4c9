"""The documents say what is so: examples run, links lead somewhere, tables equal the code."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from django.core.management import get_commands, load_command_class
from django.urls import URLPattern, URLResolver, get_resolver
from uvicorn.main import main as uvicorn_command

from messaging.api.metrics import OpenFindings, WaitingWebhooks
from messaging.conf import MessagingConf
from messaging.consumers import WORDS
from messaging.protocol.close_codes import CloseCode
from subscriptions.audit import Kind
from subscriptions.audits import AuditOutcome
from subscriptions.conf import SubscriptionsConf
from subscriptions.management.commands.repair_subscriptions import report
from subscriptions.metrics import REGISTRY
from subscriptions.models import Audit
from tests.faults.injections import INJECTIONS
from tests.support.server import API_TOKEN, ServerProcess
from webhooks.conf import WebhooksConf
from wukongim.environment import KNOWN

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("messaging", "subscriptions", "webhooks", "wukongim")
TOP = (*PACKAGES, "tests", "docs", ".ci")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SOURCES = [
    path for package in (*PACKAGES, "tests") for path in sorted(ROOT.glob(f"{package}/**/*.py"))
]
every_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def code_in(text: str) -> list[str]:
    """Everything written as code: fenced and indented lines, and spans."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^    .+", rest, re.MULTILINE)
    return [*(line for block in fenced for line in block.splitlines()), *indented, *spans(rest)]


def spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def section(text: str, heading: str) -> str:
    """What is below a second-level heading."""
    return text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def rows(text: str) -> list[list[str]]:
    """The cells of all table rows whose first cell begins with code."""
    lines = re.findall(r"^\| (`.*) \|$", text, re.MULTILINE)
    return [[cell.strip() for cell in line.split(" | ")] for line in lines]


# --- examples -----------------------------------------------------------------------------------


def test_readme_example_is_twenty_lines_and_chats(tmp_path):
    example = blocks(read("README.md"), "python")[0]
    assert len([line for line in example.splitlines() if line.strip()]) <= 20
    (tmp_path / "chat.py").write_text(example, encoding="utf-8")
    with ServerProcess() as server:
        for seq in (1, 2):
            done = subprocess.run(
                [sys.executable, "chat.py", server.http, API_TOKEN],
                cwd=tmp_path, capture_output=True, text=True, timeout=60,
            )  # fmt: skip
            assert done.stdout == f"alice: Hello, Bob! (seq {seq})\n", done.stderr


def test_embedding_guide_makes_a_project_that_works(tmp_path):
    settings, urls, asgi, services, message = blocks(read("docs/guides/embedding.md"), "python")
    environ = {name: value for name, value in os.environ.items() if "WUKONGIM" not in name}
    environ |= {"PYTHONPATH": str(ROOT), "DJANGO_SETTINGS_MODULE": "site_project.settings"}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stderr

    environ.pop("DJANGO_SETTINGS_MODULE")
    run("-m", "django", "startproject", "site_project", ".")
    environ["DJANGO_SETTINGS_MODULE"] = "site_project.settings"
    package = tmp_path / "site_project"
    with (package / "settings.py").open("a", encoding="utf-8") as file:
        file.write(settings)
    (package / "urls.py").write_text(urls, encoding="utf-8")
    (package / "asgi.py").write_text(asgi, encoding="utf-8")
    run("manage.py", "migrate", "--verbosity", "0")
    run("manage.py", "check", "--database", "default")
    outcome = (
        "from django.test import Client\n"
        "from messaging.models import Message\n"
        "from subscriptions.models import Membership, MembershipChange\n"
        "assert [row.uid for row in Membership.objects.all()] == ['alice']\n"
        "assert MembershipChange.objects.get(joined=False).reason == 'left the company'\n"
        "assert Message.objects.get().seq == outcome.message.seq == 1\n"
        "style = Client(HTTP_HOST='localhost').get('/static/admin/css/base.css')\n"
        "assert (style.status_code, b'--primary' in b''.join(style)) == (200, True)\n"
    )
    said = run("-c", f"from site_project.asgi import application\n{services}{message}{outcome}")
    assert '"event": "membership.left"' in said
    assert '"uid": "bob"' in said


@pytest.mark.parametrize(
    "outcome",
    [
        AuditOutcome("done", nodes=1, checked_bindings=7),
        AuditOutcome("done", nodes=1, found=1, missing_memberships=1),
        AuditOutcome("done", nodes=1),
        AuditOutcome("done", nodes=0),
        AuditOutcome("could_not_finish", nodes=1, silent_nodes=[1]),
    ],
    ids=["whole", "found", "nobody", "down", "silent"],
)
def test_guide_quotes_what_the_command_says_first(outcome):
    guide = section(read("docs/guides/runbook.md"), "A user receives nothing")
    quoted = [spans(first)[0] for first, *_ in rows(guide)]
    assert len(quoted) == 5
    assert report(Audit(repair=False, kinds=[]), outcome).splitlines()[0] in quoted


# --- names --------------------------------------------------------------------------------------


@every_document
def test_links_lead_somewhere(document):
    broken = [
        target
        for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8"))
        if "://" not in target and not leads_somewhere(document, target)
    ]
    assert broken == []


def leads_somewhere(document: Path, target: str) -> bool:
    name, _, anchor = target.partition("#")
    path = document.parent / name if name else document
    if not path.exists():
        return False
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return not anchor or anchor in [slug(heading) for heading in headings]


def slug(heading: str) -> str:
    """The anchor of a heading, as forges make it."""
    return re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")


@every_document
def test_paths_exist(document):
    named = re.compile(rf"({'|'.join(map(re.escape, TOP))})/[\w./-]*")
    paths = [span for span in spans(document.read_text(encoding="utf-8")) if named.fullmatch(span)]
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_readme_names_definitions_where_they_are():
    pairs = re.findall(r"`([\w/]+\.py)`: ((?:`\w+`(?:, )?)+)", read("README.md"))
    assert len(pairs) > 5
    missing = [
        (path, name)
        for path, names in pairs
        for name in spans(names)
        if not re.search(rf"(def|class) {name}\b", read(path))
    ]
    assert missing == []


def test_readme_layout_exists():
    [block] = blocks(section(read("README.md"), "Layout"), "")
    parent = ROOT
    for line in block.splitlines():
        names = re.split(r"\s{2,}", line.strip(), maxsplit=1)[0].split()
        if not line.startswith(" "):
            parent = ROOT / names[0] if names[0].endswith("/") else ROOT
        for name in names:
            assert (parent / name if line.startswith(" ") else ROOT / name).exists(), name


@every_document
def test_make_targets_exist(document):
    targets = re.search(r"^\.PHONY: (.*)$", read("Makefile"), re.MULTILINE)[1].split()
    code = code_in(document.read_text(encoding="utf-8"))
    named = {name for line in code for name in re.findall(r"(?:^|\s)make ([a-z-]+)", line)}
    assert named <= set(targets)


@every_document
def test_commands_and_their_flags_exist(document):
    text = document.read_text(encoding="utf-8")
    for line in code_in(text):
        for name, rest in re.findall(r"manage\.py ([a-z_]+)(.*)", line):
            assert set(re.findall(r"--[a-z-]+", rest)) <= flags_of(name), line
    alone = {span.split()[0] for span in spans(text) if span.startswith("--")}
    ours = flags_of("repair_subscriptions") | flags_of("serve") | flags_of("bootstrap")
    ours |= flags_of("deliver_webhooks") | flags_of("serve_tcp")
    servers = {
        flag for each in uvicorn_command.params for flag in [*each.opts, *each.secondary_opts]
    }
    assert alone <= ours | servers


def flags_of(command: str) -> set[str]:
    """The options of a management command."""
    app = get_commands()[command]
    loaded: Any = load_command_class(app, command) if isinstance(app, str) else app
    return set(loaded.create_parser("manage.py", command)._option_string_actions)


# --- tables -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("MESSAGING", MessagingConf),
        ("SUBSCRIPTIONS", SubscriptionsConf),
        ("WEBHOOKS", WebhooksConf),
    ],
)
def test_settings_table_has_every_key_with_its_default(name, cls):
    table = rows(section(read("docs/reference/settings.md"), name))
    documented = {
        key.strip("`"): ast.literal_eval(default.strip("`")) for key, default, *_ in table
    }
    assert documented == {field.name.upper(): field.default for field in fields(cls)}


@pytest.mark.parametrize(
    "text",
    [
        section(read("docs/reference/settings.md"), "Environment"),
        section(read("README.md"), "Configuration"),
    ],
    ids=["settings", "readme"],
)
def test_environment_table_has_every_variable(text):
    named = {name for first, *_ in rows(text) for name in spans(first)}
    assert named == KNOWN


CHECK_ID = r"(?:wukongim|messaging|subscriptions|webhooks)\.[EW]\d{3}"


@cache
def check_ids() -> frozenset[str]:
    """The ids of the system checks that the code has."""
    texts = (text for tree in trees() for text in strings_in(tree))
    return frozenset(text for text in texts if re.fullmatch(CHECK_ID, text))


def test_checks_tables_have_every_id_once():
    text = read("docs/reference/checks.md")
    documented = re.findall(rf"^\| `({CHECK_ID})` \|", text, re.MULTILINE)
    assert sorted(documented) == sorted(check_ids())


@every_document
def test_checks_that_are_named_exist(document):
    assert set(re.findall(CHECK_ID, document.read_text(encoding="utf-8"))) <= check_ids()


def test_every_check_has_a_hint_that_leads_to_a_section():
    hints = [hint for tree in trees() for hint in hints_in(tree)]
    assert len(hints) >= len(check_ids())
    for hint in hints:
        places = re.findall(r'(docs/reference/\w+\.md), section "([^"]+)"', hint)
        assert places, hint
        for path, heading in places:
            assert f"\n## {heading}\n" in read(path), hint


def hints_in(tree: ast.Module) -> Iterator[str]:
    """What the hint of each message of a system check is made of; empty where there is none."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call):
            given = {each.arg: each.value for each in call.keywords}
            if re.fullmatch(CHECK_ID, str(getattr(given.get("id"), "value", ""))):
                yield "".join(parts_of(given["hint"], tree)) if "hint" in given else ""


def parts_of(value: ast.expr, tree: ast.Module) -> Iterator[str]:
    """The strings in an expression, and in what its names stand for."""
    for node in ast.walk(value):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        for each in assigned_to(node, tree) if isinstance(node, ast.Name) else ():
            yield from parts_of(each, tree)


def test_findings_table_has_every_kind():
    text = read("docs/reference/findings.md")
    for heading in ("Kinds", "Who finds and who heals"):
        assert {first.strip("`") for first, *_ in rows(section(text, heading))} == set(Kind)
    readme = section(read("README.md"), 'When somebody says "I receive nothing"')
    assert {first.strip("`") for first, *_ in rows(readme)} == set(Kind)


def test_findings_table_has_every_reason():
    table = section(read("docs/reference/findings.md"), "Kinds")
    documented = set(re.findall(r"^\| (?:`\w+` )?\| `([\w ]+)` \|", table, re.MULTILINE))
    assert {reason for tree in trees() for reason in reasons_in(tree)} <= documented
    assert documented <= {text for tree in trees() for text in strings_in(tree)}


def strings_in(tree: ast.Module) -> Iterator[str]:
    """Every string that a source file has."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def reasons_in(tree: ast.Module) -> Iterator[str]:
    """The strings that are given to a Disagreement as its reason, directly or by a variable."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Disagreement":
            keywords = [each.value for each in call.keywords if each.arg == "reason"]
            for reason in [*call.args[1:2], *keywords]:
                yield from filter(None, texts(reason, tree))


def test_http_api_has_every_path_and_method():
    headings = re.findall(
        r"^### [\d.]+ `([A-Z]+) (/\S*)`$", read("docs/reference/http-api.md"), re.MULTILINE
    )
    assert sorted(headings) == sorted(endpoints(get_resolver("wukongim.urls").url_patterns))


def endpoints(patterns: list[Any], prefix: str = "/") -> Iterator[tuple[str, str]]:
    """(method, path) of every view of the API."""
    for pattern in patterns:
        path = prefix + re.sub(r"<[^>]+>", "{id}", str(pattern.pattern))
        if isinstance(pattern, URLResolver):
            if path != "/admin/":
                yield from endpoints(pattern.url_patterns, path)
        elif isinstance(pattern, URLPattern) and hasattr(pattern.callback, "cls"):
            view = pattern.callback.view_class
            for method in ("get", "post", "put", "patch", "delete"):
                if hasattr(view, method):
                    yield method.upper(), path


def test_log_events_are_those_of_the_code():
    documented = {
        event.strip("`"): set(re.findall(r"[A-Z]+", levels))
        for event, levels, *_ in rows(read("docs/reference/log-events.md"))
    }
    coded: dict[str, set[str]] = {}
    for event, level, _ in events():
        coded.setdefault(event, set()).add(level)
    assert documented == coded


def test_log_events_have_the_fields_of_the_code():
    documented = {
        event.strip("`"): set(spans(names))
        for event, _, names, *_ in rows(read("docs/reference/log-events.md"))
    }
    for event, _, names in events():
        assert names <= documented[event], event


def test_log_events_have_every_reason_why_a_session_ends():
    section_of_sessions = section(read("docs/reference/log-events.md"), "Sessions")
    coded = {code.name.lower() for code in CloseCode if code != CloseCode.CONNECT_TIMEOUT}
    assert coded | set(WORDS.values()) <= set(spans(section_of_sessions))


LEVELS = {"exception": "ERROR"} | {
    level: level.upper() for level in ("debug", "info", "warning", "error", "critical")
}


def events() -> Iterator[tuple[str, str, set[str]]]:
    """(event, level, fields named at the call) of everything that is logged."""
    for tree in trees():
        for call in ast.walk(tree):
            if not isinstance(call, ast.Call):
                continue
            if (
                isinstance(call.func, ast.Attribute)
                and getattr(call.func.value, "id", "") == "logger"
            ):
                level = LEVELS.get(call.func.attr)
            elif getattr(call.func, "id", "") == "_log":
                level = call.args[1].attr
            else:
                continue
            for event in texts(call.args[0], tree) if level else ():
                yield event, level, extra_of(call, tree)


def extra_of(call: ast.Call, tree: ast.Module) -> set[str]:
    """The literal keys of the call's `extra`, be it a dict or the name of one."""
    given = [each.value for each in call.keywords if each.arg == "extra"]
    dicts = [each for value in given for each in [value, *assigned_to(value, tree)]]
    keys = [key for each in dicts if isinstance(each, ast.Dict) for key in each.keys]
    return {key.value for key in keys if isinstance(key, ast.Constant)}


def assigned_to(value: ast.expr, tree: ast.Module) -> list[ast.expr]:
    """What a name stands for: all that is assigned to it in its file. Nothing for the rest."""
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(value, ast.Name) and isinstance(node, ast.Assign)
        and any(getattr(target, "id", "") == value.id for target in node.targets)
    ]  # fmt: skip


def texts(value: ast.expr, tree: ast.Module) -> list[str]:
    """The strings that an expression can be: its own, or for a name those assigned to it."""
    if isinstance(value, ast.Name):
        return [text for each in assigned_to(value, tree) for text in texts(each, tree)]
    if isinstance(value, ast.IfExp):
        return texts(value.body, tree) + texts(value.orelse, tree)
    return [value.value] if isinstance(value, ast.Constant) and isinstance(value.value, str) else []


@cache
def trees() -> tuple[ast.Module, ...]:
    """Every source file of the packages, parsed."""
    return tuple(
        ast.parse(path.read_text(encoding="utf-8"))
        for path in SOURCES
        if path.relative_to(ROOT).parts[0] in PACKAGES and "migrations" not in path.parts
    )


HOW_WORKERS_ADD_UP = {"livesum": ", sum", "livemin": ", least", "livemax": ", most"}


def test_metrics_tables_have_every_metric_with_its_type_and_labels():
    documented = {
        name.strip("`"): (kind, spans(labels))
        for name, kind, labels, *_ in rows(read("docs/reference/metrics.md"))
    }
    coded = {}
    for each in list(REGISTRY._collector_to_names):
        [family] = each.describe()
        suffix = "_total" if family.type == "counter" else ""
        workers = HOW_WORKERS_ADD_UP.get(getattr(each, "_multiprocess_mode", ""), "")
        coded[family.name + suffix] = (family.type + workers, list(each._labelnames))
    for family in [*OpenFindings().describe(), *WaitingWebhooks().describe()]:
        coded[family.name] = (family.type, list(family._labelnames))
    assert documented == coded


def test_dependencies_are_those_asked_for():
    text = read("docs/dependencies.md")
    for heading, name in (
        ("To run", "requirements.in"),
        ("To develop and test", "requirements-dev.in"),
        ("To measure", "benchmarks/requirements.in"),
    ):
        asked = re.findall(r"^([a-z][\w-]*)", read(name), re.MULTILINE)
        named = re.findall(r"^\| ([a-z][\w-]*) \|", section(text, heading), re.MULTILINE)
        assert sorted(set(named) - {"package"}) == sorted(asked)


def test_every_decision_is_in_the_index():
    files = sorted(path.name for path in ROOT.glob("docs/decisions/0*.md"))
    assert re.findall(r"\((0\S+\.md)\)", read("docs/decisions/README.md")) == files


# --- what the code cites ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cites", "document"),
    [
        (r"\bdesign(?:\.md)? §(\d+)", "docs/design.md"),
        (r"\bhttp-api §([\d.]*\d)", "docs/reference/http-api.md"),
    ],
    ids=["design", "http-api"],
)
def test_sections_that_the_code_cites_exist(cites, document):
    there = set(re.findall(r"^#+ (\d[\d.]*?)\.? ", read(document), re.MULTILINE))
    assert cited(cites) <= there


FAILURES = {
    number: line
    for line in read("docs/reference/failures.md").splitlines()
    for number in re.findall(r"^\| ([A-Z]\d+) \|", line)
}
"""Row by number, of faults and guarantees."""


def test_every_fault_and_guarantee_has_its_row_in_order():
    faults = [f"F{number:02}" for number in range(1, 57)]
    guarantees = "S1, S2, L1, L2, L3, B1, B2, B3, B4, O1, O2, O3, O4"
    assert ", ".join(FAILURES) == ", ".join([*faults, guarantees])


def test_faults_and_guarantees_that_the_code_cites_are_listed():
    assert cited(r"\b(F\d\d|[BLOS][1-9])\b") <= FAILURES.keys()


def test_faults_are_proved_by_the_injections_that_name_them():
    injected: dict[str, set[str]] = {}
    for each in INJECTIONS.values():
        for number in each.faults:
            injected.setdefault(number, set()).add(each.name)
    proofs = {number: line.split(" | ")[-1] for number, line in FAILURES.items()}
    named = {number: set(re.findall(r"`(\w+)`", proof)) for number, proof in proofs.items()}
    assert {number: names for number, names in named.items() if names} == injected


def test_faults_and_guarantees_are_proved_by_tests_that_exist():
    for number, line in FAILURES.items():
        proof = line.split(" | ")[-1]
        for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", proof):
            assert re.search(rf"^(async )?def {name}\(", read(path), re.MULTILINE), (number, name)
        assert re.search(r"`(tests/[\w/]+\.py::test_)?\w+`", proof), number


def cited(pattern: str) -> set[str]:
    """What the comments and docstrings of all sources cite."""
    here = Path(__file__).resolve()
    found = (
        match
        for path in SOURCES
        if path.resolve() != here
        for match in re.finditer(pattern, path.read_text(encoding="utf-8"))
    )
    return {next(filter(None, match.groups())) for match in found}
