"""Signals for embedders, all sent after commit, in the process that made the change.

What another process or raw SQL did is not signalled here: the change log has all of it.
"""

from __future__ import annotations

from django.dispatch import Signal

membership_changed = Signal()
"""channel (ChannelKey), channel_pk, uids (tuple), joined (bool), actor, reason."""

permissions_changed = Signal()
"""channel (ChannelKey): its flags or access rules changed."""

audit_requested = Signal()
"""audit (Audit): somebody asks the nodes to look."""

finding_opened = Signal()
"""finding (Finding)."""

finding_healed = Signal()
"""finding (Finding), with healed_at and healed_by set."""
