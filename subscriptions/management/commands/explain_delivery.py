"""`manage.py explain_delivery`: why did somebody hear, or not hear, a message?"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError
from django.core.serializers.json import DjangoJSONEncoder
from django.db import connection
from rich.console import Console
from rich.table import Table
from rich.text import Text

from subscriptions.bindings import ChannelKey
from subscriptions.explain.evidence import when
from subscriptions.explain.facts import Question
from subscriptions.explain.questions import as_json, explain_delivery, make_question
from subscriptions.explain.rules import Explanation
from subscriptions.explain.verdicts import Verdict
from subscriptions.management.answering import UNFINISHED, AnsweringCommand
from subscriptions.triggers import install

REACHED, UNKNOWN = 0, 1
PIPED_WIDTH = 10_000
"""Columns of what is not printed on a terminal: each fact is one line, to be searched."""

HELP = """\
Says why a user heard, or did not hear, a message: one verdict from what is stored, and the facts
that it rests on, with their times. Nothing is written, and no node needs to run.

  manage.py explain_delivery --uid bob --channel 2:team --seq 17
  manage.py explain_delivery --uid bob --channel 1:alice --seq 3      between bob and alice
  manage.py explain_delivery --uid bob --channel 2:team --sender alice --client-msg-no 5f0c
                                                    a message that may have been refused
  manage.py explain_delivery --uid bob --channel 2:team --seq 17 --json

A session that was live without a recorded hole is "delivered_normally": nothing speaks against
it. Whether the client has shown it is not stored. All verdicts: docs/reference/explain.md.

Exit code: 0 for a verdict; 1 for "unknown", with what is missing; 2 for arguments that are wrong
and a database that cannot be read.
"""


class Command(AnsweringCommand):
    """Parses, asks, prints, exits; the rules are in `subscriptions.explain`."""

    help = HELP

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--uid", required=True, help="who heard, or did not hear")
        parser.add_argument(
            "--channel", metavar="TYPE:ID", required=True, help="where; 1:PEER is between two"
        )
        parser.add_argument("--seq", type=int, help="the number of the message in its channel")
        parser.add_argument("--client-msg-no", default="", help="or the number its sender gave it")
        parser.add_argument("--sender", default="", help="who sent it, with --client-msg-no")
        super().add_arguments(parser)

    def unfinished(self, error: str) -> str:
        """The code, and what stopped it."""
        return json.dumps({"exit_code": UNFINISHED, "error": error}, indent=2)

    def handle(
        self,
        *args: Any,
        uid: str,
        channel: str,
        seq: int | None,
        client_msg_no: str,
        sender: str,
        **options: Any,
    ) -> None:
        """Ask, print, and exit with what the verdict means."""
        try:
            if not install.has_tables(connection):
                raise ValueError(
                    f"The database {connection.settings_dict['NAME']} has no tables. Is"
                    " WUKONGIM_DATA_DIR the server's?"
                )
            question = make_question(uid, ChannelKey.parse(channel), seq, sender, client_msg_no)
            explanation = explain_delivery(question)
        except Exception as error:
            raise CommandError(f"Could not explain: {error}") from error
        code = UNKNOWN if explanation.verdict == Verdict.UNKNOWN else REACHED
        if options["json"]:
            answer = {"exit_code": code, **as_json(question, explanation)}
            self.stdout.write(json.dumps(answer, indent=2, cls=DjangoJSONEncoder))
        else:
            text = report(question, explanation, colour=not options["no_color"])
            self.stdout.write(text, ending="")
        sys.exit(code)


def report(question: Question, explanation: Explanation, colour: bool = False) -> str:
    """The verdict first, then each session where there were several, then the evidence."""
    console = Console(highlight=False, markup=False, no_color=not colour)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    message = "the message" if explanation.seq is None else f"message {explanation.seq}"
    with console.capture() as captured:
        console.print(f"{question.uid} and {message} of {question.key}:", soft_wrap=True)
        console.print(explanation.verdict.value, style="bold")
        console.print(explanation.sentence, soft_wrap=True)
        console.print(explanation.advice, soft_wrap=True)
        if len(explanation.sessions) > 1:
            console.print("\nEach session that was open then, of which the worst decides:")
            for each in explanation.sessions:
                console.print(f"  {each.verdict.value}: {each.sentence}", soft_wrap=True)
        if explanation.evidence:
            console.print("", _table(explanation), sep="\n")
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def _table(explanation: Explanation) -> Table:
    table = Table("when", "fact", "from", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.columns[0].no_wrap = True
    table.columns[2].overflow = "fold"  # a session's id is one long word
    for line in explanation.evidence:
        table.add_row(when(line.at), Text(line.fact), Text(f"{line.source} {line.id}"))
    return table
