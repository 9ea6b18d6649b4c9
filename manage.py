#!/usr/bin/env python
"""Django's command line for this project."""

import os
import sys

from django.core.exceptions import ImproperlyConfigured
from django.core.management import execute_from_command_line


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "wukongim.settings")
    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        # Its text is written for whoever set the environment; the traceback is not.
        if "--traceback" in sys.argv:
            raise
        print(f"manage.py: {error}", file=sys.stderr)  # noqa: T201 - nothing else is set up yet
        sys.exit(2)  # 1 would mean that a command has looked and found something


if __name__ == "__main__":
    main()
