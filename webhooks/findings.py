"""What findings tell: recorded in the transaction that opened or healed them."""

from __future__ import annotations

from typing import Any

from subscriptions.bindings import ChannelKey
from subscriptions.findings import keys_of
from subscriptions.models import Finding
from webhooks import outbox
from webhooks.events import Event


def tell(recorded: list[tuple[Finding, bool]], **kwargs: Any) -> None:
    """`findings_written`: record what was opened and what was healed."""
    opened = [finding for finding, created in recorded if created]
    healed = [finding for finding, _ in recorded if finding.healed_at]
    for event, found in ((Event.FINDING_OPENED, opened), (Event.FINDING_HEALED, healed)):
        if found and outbox.wants(event):
            keys = keys_of(found)
            outbox.record_all(event, [_body(finding, keys) for finding in found])


def _body(finding: Finding, keys: dict[int, ChannelKey]) -> dict[str, Any]:
    """What a webhook says of a finding."""
    key = keys.get(finding.channel_id or 0)
    return {
        "finding": finding.pk,
        "kind": finding.kind,
        "reason": finding.reason,
        "channel_id": key.channel_id if key else "",
        "channel_type": key.channel_type if key else 0,
        "uid": finding.uid,
        "session": finding.session_id,
        "node": finding.node_id,
        "memberships": finding.memberships,
        "from_seq": finding.from_seq,
        "to_seq": finding.to_seq,
        "detail": finding.detail,
        "first_seen": int(finding.first_seen.timestamp()),
        "healed_at": int(finding.healed_at.timestamp()) if finding.healed_at else 0,
        "healed_by": finding.healed_by,
    }
