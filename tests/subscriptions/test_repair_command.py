"""`manage.py repair_subscriptions`: its first line, its exit codes, its help."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from contextlib import suppress
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.core.management.base import SystemCheckError
from django.db import connection

from messaging import registry
from messaging.models import Node, Session
from subscriptions import audits
from subscriptions.audit import Disagreement, Kind
from subscriptions.management.commands import repair_subscriptions
from subscriptions.models import Audit, Finding, Membership
from subscriptions.triggers import install
from tests.support.factories import make_group
from tests.support.server import NETWORKED, ROOT, ServerProcess, networked_settings

pytestmark = pytest.mark.django_db


def run(*arguments):
    """(exit code, what it printed to standard output)."""
    output = StringIO()
    with pytest.raises(SystemExit) as stopped:
        call_command("repair_subscriptions", *arguments, stdout=output)
    return stopped.value.code, output.getvalue()


def refused(*arguments):
    """The text of its refusal; fails unless the exit code is 2."""
    output = StringIO()
    with pytest.raises(CommandError) as stopped:
        call_command("repair_subscriptions", *arguments, stdout=output)
    assert (stopped.value.returncode, output.getvalue()) == (2, "")
    return str(stopped.value)


def break_membership():
    install.remove(connection)
    Membership.objects.filter(uid="alice").update(joined_seq=77)
    install.install(connection)


def missing(channel, memberships=1):
    return Disagreement(
        Kind.MISSING_GROUP_BINDING, "layer", channel.pk, "", "", memberships=memberships
    )


@pytest.fixture
def answering(db, monkeypatch):
    """A node whose answer is what the test puts into the list, and its number."""
    node, answers = registry.register_node(), []
    wait = audits.wait

    def answer_and_wait(audit, **options):
        found = [(each, audit.repair) for each in answers]
        audits.write_answer(audit, node, found, checked=12)
        return wait(audit, **options)

    monkeypatch.setattr(audits, "wait", answer_and_wait)
    return answers


def test_whole_is_0_and_said_first(answering):
    code, text = run()
    assert code == 0
    assert (
        text == "Every membership of a live session has its group binding (12 checked on 1 node).\n"
    )


@pytest.mark.parametrize(
    ("count", "line"),
    [
        (1, "1 membership of live sessions has no group binding."),
        (3, "3 memberships of live sessions have no group binding."),
    ],
)
def test_missing_bindings_are_counted_in_the_first_line(answering, count, line):
    answering.append(missing(make_group("team", "alice"), count))
    code, text = run("--dry-run")
    assert code == 1
    assert text.splitlines() == [
        line,
        "  missing_group_binding: 1 found, 0 mended",
        "Nothing was mended: this was a dry run. Run it again without --dry-run to mend.",
    ]
    code, text = run()
    assert code == 0
    assert text.splitlines() == [
        line, "  missing_group_binding: 1 found, 1 mended", "All 1 mended.",
    ]  # fmt: skip


def test_without_a_node_storage_is_checked_and_bindings_are_unchecked(db):
    make_group("team", "alice")
    code, text = run()
    assert code == 0
    assert text == "No node is running: live bindings are unchecked; storage was checked.\n"


def test_dry_run_is_1_and_touches_nothing_and_the_repair_0(db):
    make_group("team", "alice")
    break_membership()
    assert run("--dry-run")[0] == 1
    assert Membership.objects.get().joined_seq == 77
    code, text = run("--kind", "membership_invalid")
    assert (code, Membership.objects.get().joined_seq) == (0, 0)
    assert "  membership_invalid: 1 found, 1 mended" in text.splitlines()
    assert run()[0] == 0
    assert not Finding.objects.filter(healed_at__isnull=True).exists()


def test_what_is_left_is_1(db, monkeypatch):
    make_group("team", "alice")
    break_membership()
    monkeypatch.setattr("subscriptions.storage._mend", lambda each, reason: None)
    code, text = run()
    assert code == 1
    assert "0 mended, 1 left: see the findings in the admin." in text


def test_silent_node_is_2_and_named_and_nothing_is_called_whole(db, settings):
    settings.SUBSCRIPTIONS = {"AUDIT_PATIENCE": 0.05}
    node = registry.register_node()
    code, text = run()
    assert code == 2
    assert text.splitlines() == [
        "Not everything could be checked; nothing is known of the rest.",
        f"Could not finish: node {node} holds a lease but does not answer.",
    ]


def test_storage_that_fails_is_2_and_says_why(db, monkeypatch):
    def fail(*args):
        raise RuntimeError("disk I/O error")

    monkeypatch.setattr("subscriptions.storage.check", fail)
    code, text = run()
    assert code == 2
    assert text.splitlines() == [
        "No node is running: live bindings are unchecked, and so is storage.",
        "Could not finish: storage could not be checked: disk I/O error",
    ]


def test_json_is_alone_and_whole(answering):
    answering.append(missing(make_group("team", "alice")))
    code, text = run("--dry-run", "--json")
    said = json.loads(text)
    assert (code, said["exit_code"], said["found"], said["left"]) == (1, 1, 1, 1)
    assert said["audit"] == str(Audit.objects.get().pk)


def test_other_kinds_are_counted_in_the_first_line_when_asked_for_alone(answering):
    code, text = run("--kind", "deaf_node", "--kind", "log_hole")
    assert (code, text) == (0, "Nothing found of deaf_node, log_hole.\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kind", "nonsense"], "There is no kind 'nonsense'; there are: missing_group_binding,"),
        (["--channel", "team"], "'team' is not TYPE:ID, for example 2:team"),
        (["--channel", "13:team"], "Channel type 13 does not exist"),
        (["--channel", "2:taem"], "there is no channel 2:taem."),
        (["--channel", ""], "--channel is empty: leave it out to mean every channel."),
        (["--uid", ""], "--uid is empty: leave it out to mean everybody."),
        (["--uid", " "], "--uid is empty"),
        (["--uid", "a@b"], "A uid must be 1 to 100 characters"),
    ],
)
def test_what_cannot_be_asked_is_2_and_asks_nobody(db, arguments, words):
    make_group("team", "alice")
    assert words in refused(*arguments)
    assert not Audit.objects.exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--uid", "ghost"], "ghost is a member of no channel: is the uid right?"),
        (["--uid", "zoe"], "zoe is a member of 1 channel and has no live session."),
        (["--uid", "max"], "max is a member of 2 channels and has no live session."),
        (["--uid", "zoe", "--channel", "2:other"], "zoe is no member of 2:other."),
    ],
)
def test_uid_without_anything_to_check_is_explained(answering, arguments, line):
    make_group("team", "zoe", "max")
    make_group("other", "max")
    code, text = run(*arguments)
    assert (code, text.splitlines()[1:]) == (0, [line])


def test_uid_that_is_connected_needs_no_explaining(answering):
    make_group("team", "zoe")
    node = Node.objects.get()
    Session.objects.create(id="s", uid="zoe", device_flag=2, node=node)
    assert len(run("--uid", "zoe")[1].splitlines()) == 1


def test_person_channel_is_named_in_either_order(db):
    from subscriptions import services
    from subscriptions.bindings import ChannelKey

    services.save_channel(ChannelKey(1, "bob@alice"))
    assert run("--channel", "1:alice@bob")[0] == 0


def test_missing_triggers_are_2_and_say_what_to_do(transactional_db):
    install.remove(connection)
    try:
        text = refused()
    finally:
        install.install(connection)
    assert "lacks triggers" in text
    assert "manage.py migrate" in text


def test_interrupt_is_2(db, monkeypatch):
    registry.register_node()

    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(audits, "wait", interrupt)
    assert refused() == "Interrupted. What the nodes were asked for, they still do."


def test_failed_system_check_is_2(monkeypatch):
    def fail(self, *args, **options):
        raise SystemCheckError("wrong settings")

    monkeypatch.setattr("django.core.management.base.BaseCommand.check", fail)
    with pytest.raises(SystemCheckError) as stopped:
        call_command("repair_subscriptions", skip_checks=False)
    assert stopped.value.returncode == 2
    output = StringIO()
    with pytest.raises(SystemExit):
        call_command("repair_subscriptions", "--json", skip_checks=False, stdout=output)
    assert json.loads(output.getvalue())["errors"] == ["wrong settings"]


def test_json_says_so_when_it_could_not_even_ask(db):
    code, text = run("--json", "--channel", "2:taem")
    said = json.loads(text)
    assert (code, said["exit_code"], said["status"]) == (2, 2, "could_not_finish")
    assert said["errors"] == ["Could not finish: there is no channel 2:taem."]
    assert said["audit"] is None


def test_help_teaches():
    parser = repair_subscriptions.Command().create_parser("manage.py", "repair_subscriptions")
    text = parser.format_help()
    assert "  manage.py repair_subscriptions --dry-run              only report\n" in text
    assert "Exit code: 0 for whole" in text
    for kind in Kind:
        assert kind in text.replace("\n", " ")


def test_from_a_shell_codes_are_the_same_and_output_is_alone():
    server = ServerProcess(**networked_settings(template="template1") if NETWORKED else {})
    bare = server.manage("repair_subscriptions", check=False)
    assert (bare.returncode, bare.stdout) == (2, "")
    name = server.database_url.rpartition("/")[2] or server.database
    assert f"The database {name} has no tables." in bare.stderr
    assert "Are WUKONGIM_DATA_DIR and WUKONGIM_DATABASE_URL the server's?" in bare.stderr
    bare = server.manage("repair_subscriptions", "--json", check=False)
    assert (bare.returncode, bare.stderr) == (2, "")
    assert json.loads(bare.stdout)["status"] == "could_not_finish"
    server.manage("migrate", "--verbosity", "0")
    whole = server.manage("repair_subscriptions", "--json", check=False)
    assert (whole.returncode, json.loads(whole.stdout)["status"]) == (0, "done")
    assert whole.stderr == ""
    wrong = server.manage("repair_subscriptions", "--chanel", "2:team", check=False)
    assert wrong.returncode == 2
    server.close()


def test_bar_is_shown_on_a_terminal_and_is_no_output():
    with ServerProcess() as server:
        code, screen, text = run_on_a_terminal(server, "repair_subscriptions")
        piped = server.manage("repair_subscriptions")
    assert code == 0
    assert "Nodes are checking" in screen
    assert "%" in screen
    assert text == "No live session has a membership here that could miss its group binding.\n"
    assert (piped.stdout, piped.stderr) == (text, "")


def run_on_a_terminal(server, *arguments):
    """(exit code, what a terminal at its standard error got, its standard output)."""
    screen, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT, env={**server.environment, "TERM": "xterm"}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=terminal, text=True,
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    with suppress(OSError):  # EIO: the command has closed the terminal's other end
        while some := os.read(screen, 4096):
            shown += some
    os.close(screen)
    text, _ = process.communicate(timeout=30)
    return process.returncode, shown.decode(), text
