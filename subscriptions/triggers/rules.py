"""What holds on every database: the tables that are watched, and the words of what is refused."""

from __future__ import annotations

CHANNEL = "wukongim_subscriptions_channel"
MEMBERSHIP = "wukongim_subscriptions_membership"
CHANGE = "wukongim_subscriptions_membershipchange"
RULE = "wukongim_subscriptions_accessrule"
MESSAGE = "wukongim_messaging_message"
"""The other app's, and not there where a project has this app alone."""

CHANNEL_MISSING = "a membership needs its channel: create the channel first"
MEMBERSHIP_MOVED = "a membership cannot be moved: delete it and create another"
JOIN_WRITTEN = "joined_version and joined_seq are written by the database"
CHANNEL_RENAMED = "a channel cannot be renamed: its sessions are bound to its name"
GOING_BACK = "head and version of a channel never go back"
LOG_REWRITTEN = "the change log is append-only; only its actor can be named, once"
RULE_CHANGED = "an access rule cannot be changed: delete it and create another"
TRUNCATED = "no row that TRUNCATE takes would be counted: use DELETE"
