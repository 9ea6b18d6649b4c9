"""`fill USERS MEMBERSHIPS`: users u0, u1, … who are all in the rooms r0, r1, …"""

from __future__ import annotations

import os
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.db import transaction

from benchmarks.peers.tutorial.models import Membership


class Command(BaseCommand):
    """Create the memberships, in one transaction."""

    help = "Put users u0, u1, … into the rooms r0, r1, …"

    def add_arguments(self, parser: CommandParser) -> None:
        """How many users, and of how many rooms each."""
        parser.add_argument("users", type=int)
        given = int(os.environ.get("MEMBERSHIPS", "0"))
        parser.add_argument("memberships", type=int, nargs="?", default=given)

    def handle(self, *, users: int, memberships: int, **options: Any) -> None:
        """Fill the table."""
        fill(users, memberships)


@transaction.atomic
def fill(users: int, memberships: int) -> None:
    """Put each user into each room; no room is theirs alone."""
    for user in range(users):
        rows = (Membership(uid=f"u{user}", room=f"r{room}") for room in range(memberships))
        Membership.objects.bulk_create(rows)
