"""What the commands that answer a question have in common: exit codes, `--json`, their help."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from typing import Any

from django.core.management.base import BaseCommand, CommandError

UNFINISHED = 2
"""The exit code where there is no answer: wrong arguments, a database that is not there."""


class AnsweringCommand(BaseCommand):
    """Its exit code says what was found; with `--json` it prints one JSON object in any case."""

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> Any:
        """The help keeps its line breaks: it is an example to copy from."""
        kwargs["formatter_class"] = RawDescriptionHelpFormatter
        return super().create_parser(prog_name, subcommand, **kwargs)

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--json", action="store_true", help="print one JSON object and nothing else"
        )

    def execute(self, *args: Any, **options: Any) -> None:
        """Check the system and run. Whatever stops it is no answer; with `--json` that is said in
        JSON, too."""
        try:
            super().execute(*args, **options)
        except CommandError as error:
            error.returncode = UNFINISHED
            if not options["json"]:
                raise
            self.stdout.write(self.unfinished(str(error)))
            sys.exit(UNFINISHED)

    def unfinished(self, error: str) -> str:
        """The JSON object that says what stopped it."""
        raise NotImplementedError
