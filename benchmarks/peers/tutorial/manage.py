"""Django's command line for the tutorial's chat, on the database of DATABASE_URL.

    python -m benchmarks.peers.tutorial.manage migrate
    python -m benchmarks.peers.tutorial.manage fill 100 1000

The second creates memberships: here, 100 users who are in 1,000 rooms each.
"""

from __future__ import annotations

import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.peers.tutorial.settings"
    execute_from_command_line(sys.argv)
