"""`manage.py repair_subscriptions`: find memberships without a group binding, and mend them."""

from __future__ import annotations

import json
import logging
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandError
from django.db import connection
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from subscriptions import audits, live
from subscriptions.audit import Kind
from subscriptions.bindings import ChannelKey
from subscriptions.management.answering import UNFINISHED, AnsweringCommand
from subscriptions.models import Audit, Membership
from subscriptions.selectors import find_channel, is_channel
from subscriptions.services import clean_uids
from subscriptions.triggers import install

WHOLE, LEFT = 0, 1

HELP = """\
Checks that every membership of a live session is bound to its channel's group, and mends what is
not: what should be is read from the database, what is from every running node.

  manage.py repair_subscriptions                        check and mend everything
  manage.py repair_subscriptions --dry-run              only report
  manage.py repair_subscriptions --uid alice            what concerns one user
  manage.py repair_subscriptions --channel 2:team       what concerns one channel (TYPE:ID)
  manage.py repair_subscriptions --kind missing_group_binding --json

Exit code: 0 for whole, or whole again; 1 for what could not be mended, and for anything that a
dry run sees; 2 for a check that did not come to its end, with the cause in the output.
"""


class Command(AnsweringCommand):
    """Parses, asks, prints, exits; the rules are in `subscriptions.audits`."""

    help = HELP

    def add_arguments(self, parser: ArgumentParser) -> None:
        kinds = f"only this kind (repeatable): {', '.join(Kind)}"
        parser.add_argument("--dry-run", action="store_true", help="report, mend nothing")
        parser.add_argument("--channel", metavar="TYPE:ID", help="only this channel")
        parser.add_argument("--uid", help="only this user")
        parser.add_argument("--kind", action="append", default=[], help=kinds)
        super().add_arguments(parser)

    def unfinished(self, error: str) -> str:
        """An outcome like any other."""
        return as_json(audits.AuditOutcome("could_not_finish", errors=[error]))

    def handle(
        self,
        *args: Any,
        dry_run: bool,
        channel: str | None,
        uid: str | None,
        kind: list[str],
        **options: Any,
    ) -> None:
        """Ask the nodes, wait for them with a bar on a terminal, and say what came of it."""
        try:
            with _in_own_words():
                _require_tables()
                audit = _ask(channel, uid, kind, not dry_run)
                result = self._wait(audit, quiet=options["json"])
        except KeyboardInterrupt as error:
            text = "Interrupted. What the nodes were asked for, they still do."
            raise CommandError(text) from error
        except Exception as error:
            raise CommandError(f"Could not finish: {error}") from error
        if options["json"]:
            self.stdout.write(as_json(result, audit))
        else:
            self.stdout.write(report(audit, result))
        sys.exit(exit_code(result))

    def _wait(self, audit: Audit, quiet: bool) -> audits.AuditOutcome:
        console = Console(stderr=True)
        bar = Progress(
            TextColumn("{task.description}"), BarColumn(),
            TextColumn("{task.percentage:.0f} %"), TimeElapsedColumn(),
            console=console, transient=True, disable=quiet or not console.is_terminal,
        )  # fmt: skip
        with bar:
            task = bar.add_task("Nodes are checking", total=1.0)

            def show(result: audits.AuditOutcome) -> None:
                bar.update(task, completed=result.done / result.total if result.total else 0.0)

            return audits.wait(audit, on_progress=show)


@contextmanager
def _in_own_words() -> Iterator[None]:
    """Without the log's lines about this audit: they say what is printed here."""
    level = audits.logger.level
    audits.logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        audits.logger.setLevel(level)


def _require_tables() -> None:
    """Raises where the database does not count its changes: no check would be true."""
    if not install.has_tables(connection):
        raise ValueError(
            f"The database {connection.settings_dict['NAME']} has no tables. Are WUKONGIM_DATA_DIR"
            " and WUKONGIM_DATABASE_URL the server's? `manage.py migrate` makes new ones."
        )
    install.require(connection)


def _ask(channel: str | None, uid: str | None, kinds: list[str], repair: bool) -> Audit:
    """The audit. Raises ValueError or InvalidUid for what cannot be asked: a misspelt channel is
    not whole, and the empty value of a script's variable does not mean everything."""
    if uid is not None and not uid.strip():
        raise ValueError("--uid is empty: leave it out to mean everybody.")
    if channel is not None and not channel.strip():
        raise ValueError("--channel is empty: leave it out to mean every channel.")
    clean_uids([uid] if uid else [])
    [scope] = audits.clean_scopes([{"channel": channel or "", "uid": uid or ""}]) or [{}]
    if "channel" in scope and find_channel(ChannelKey.parse(scope["channel"])) is None:
        raise ValueError(f"there is no channel {scope['channel']}.")
    return audits.request_audit([scope], kinds, repair, actor="command")


def as_json(result: audits.AuditOutcome, audit: Audit | None = None) -> str:
    """The outcome for machines; `audit` is null where it did not come to one."""
    asked = str(audit.pk) if audit else None
    return json.dumps({"audit": asked, "exit_code": exit_code(result), **asdict(result)}, indent=2)


def exit_code(result: audits.AuditOutcome) -> int:
    """0 whole, 1 something is left, 2 could not finish."""
    if result.status != "done":
        return UNFINISHED
    return LEFT if result.left else WHOLE


def report(audit: Audit, result: audits.AuditOutcome) -> str:
    """What was found and done, the plain sentence first."""
    lines = [_headline(audit, result), *_about_the_uid(audit)]
    for kind, tally in sorted(result.by_kind.items()):
        lines.append(f"  {kind}: {tally['found']} found, {tally['repaired']} mended")
    if result.found:
        lines.append(_advice(audit, result))
    if result.silent_nodes:
        names = ", ".join(map(str, result.silent_nodes))
        lines.append(f"Could not finish: node {names} holds a lease but does not answer.")
    lines += [f"Could not finish: {error}" for error in result.errors]
    return "\n".join(lines)


def _headline(audit: Audit, result: audits.AuditOutcome) -> str:
    if not result.nodes and result.errors:
        return "No node is running: live bindings are unchecked, and so is storage."
    if not result.nodes:
        return "No node is running: live bindings are unchecked; storage was checked."
    count = result.missing_memberships
    if count == 1:
        return "1 membership of live sessions has no group binding."
    if count:
        return f"{count} memberships of live sessions have no group binding."
    if result.status != "done":
        return "Not everything could be checked; nothing is known of the rest."
    if audit.kinds and Kind.MISSING_GROUP_BINDING not in audit.kinds:
        kinds = ", ".join(audit.kinds)
        return (
            f"Found of {kinds}: {result.found}." if result.found else f"Nothing found of {kinds}."
        )
    if not result.checked_bindings:
        return "No live session has a membership here that could miss its group binding."
    return (
        f"Every membership of a live session has its group binding"
        f" ({result.checked_bindings} checked on {_count(result.nodes, 'node')})."
    )


def _about_the_uid(audit: Audit) -> list[str]:
    """Why nothing could be found about the user who was asked for: no member, or not connected."""
    for scope in audit.scopes:
        if "uid" in scope:
            return _why_unheard(scope["uid"], scope.get("channel"))
    return []


def _why_unheard(uid: str, channel: str | None) -> list[str]:
    memberships = Membership.objects.filter(uid=uid)
    if not memberships.exists():
        return [f"{uid} is a member of no channel: is the uid right?"]
    if channel and not memberships.filter(is_channel(ChannelKey.parse(channel), "channel__")):
        return [f"{uid} is no member of {channel}."]
    sessions = live.live_sessions()
    if sessions is None or sessions.filter(uid=uid).exists():
        return []
    number = _count(memberships.count(), "channel")
    return [f"{uid} is a member of {number} and has no live session."]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _advice(audit: Audit, result: audits.AuditOutcome) -> str:
    if not audit.repair:
        return "Nothing was mended: this was a dry run. Run it again without --dry-run to mend."
    if result.left:
        return f"{result.repaired} mended, {result.left} left: see the findings in the admin."
    return f"All {result.repaired} mended."
