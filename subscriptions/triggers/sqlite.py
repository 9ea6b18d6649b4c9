"""The triggers for SQLite, which has row triggers only.

Every write to a membership raises its channel's version first. On SQLite the writer holds the
whole database anyway; the statement is the same one that locks the channel row elsewhere.
"""

from __future__ import annotations

from typing import Any

from subscriptions.triggers.rules import (
    CHANGE,
    CHANNEL,
    CHANNEL_MISSING,
    CHANNEL_RENAMED,
    GOING_BACK,
    JOIN_WRITTEN,
    LOG_REWRITTEN,
    MEMBERSHIP,
    MEMBERSHIP_MOVED,
    RULE,
    RULE_CHANGED,
)

REBUILDS_TABLES = True
"""To alter a table Django makes another, and the triggers of the first are gone without a word."""

NOW = "strftime('%Y-%m-%d %H:%M:%f', 'now')"

RAISE_VERSION_OF_PERSON = f"""
    UPDATE {CHANNEL} SET membership_version = membership_version + 1
    WHERE {{row}}.channel_type = 1 AND channel_type = 1 AND id IN (
        SELECT owner.channel_id FROM {MEMBERSHIP} owner
        JOIN {MEMBERSHIP} peer ON peer.channel_id = owner.channel_id
        WHERE owner.uid = {{row}}.channel_id AND peer.uid = {{row}}.uid);
"""


def _rule_trigger(event: str, row: str) -> str:
    """A rule judges sends, so it counts under the version of every channel it applies to."""
    return f"""
    CREATE TRIGGER wukongim_rule_{event.lower()} AFTER {event} ON {RULE} BEGIN
        UPDATE {CHANNEL} SET membership_version = membership_version + 1
        WHERE channel_id = {row}.channel_id AND channel_type = {row}.channel_type;
        {RAISE_VERSION_OF_PERSON.format(row=row)}
    END"""


STILL_JOINED = f"""
    (SELECT joined FROM {CHANGE} WHERE uid = NEW.uid AND channel_id = NEW.channel_id
     ORDER BY version DESC LIMIT 1)
"""

TRIGGERS: dict[str, str] = {
    # INSERT OR REPLACE, and whatever else deletes a row past the triggers, leaves a stay open in
    # the change log: it is ended before the new one begins, or it would be heard in for ever.
    "wukongim_membership_joined": f"""
    CREATE TRIGGER wukongim_membership_joined AFTER INSERT ON {MEMBERSHIP} BEGIN
        SELECT RAISE(ABORT, '{CHANNEL_MISSING}')
        WHERE NOT EXISTS (SELECT 1 FROM {CHANNEL} WHERE id = NEW.channel_id);
        UPDATE {CHANNEL} SET membership_version = membership_version + 1
        WHERE id = NEW.channel_id AND {STILL_JOINED};
        INSERT INTO {CHANGE} (channel_id, uid, version, seq, joined, at)
        SELECT id, NEW.uid, membership_version, last_seq, 0, {NOW} FROM {CHANNEL}
        WHERE id = NEW.channel_id AND {STILL_JOINED};
        UPDATE {CHANNEL} SET membership_version = membership_version + 1
        WHERE id = NEW.channel_id;
        INSERT INTO {CHANGE} (channel_id, uid, version, seq, joined, at)
        SELECT id, NEW.uid, membership_version, last_seq, 1, {NOW} FROM {CHANNEL}
        WHERE id = NEW.channel_id;
        UPDATE {MEMBERSHIP} SET (joined_version, joined_seq) =
            (SELECT membership_version, last_seq FROM {CHANNEL} WHERE id = NEW.channel_id)
        WHERE id = NEW.id;
    END""",
    "wukongim_membership_left": f"""
    CREATE TRIGGER wukongim_membership_left AFTER DELETE ON {MEMBERSHIP} BEGIN
        UPDATE {CHANNEL} SET membership_version = membership_version + 1
        WHERE id = OLD.channel_id;
        INSERT INTO {CHANGE} (channel_id, uid, version, seq, joined, at)
        SELECT id, OLD.uid, membership_version, last_seq, 0, {NOW} FROM {CHANNEL}
        WHERE id = OLD.channel_id;
    END""",
    "wukongim_membership_fixed": f"""
    CREATE TRIGGER wukongim_membership_fixed BEFORE UPDATE OF channel_id, uid ON {MEMBERSHIP}
    WHEN NEW.channel_id IS NOT OLD.channel_id OR NEW.uid IS NOT OLD.uid BEGIN
        SELECT RAISE(ABORT, '{MEMBERSHIP_MOVED}');
    END""",
    # What the change log says is the only thing that can be written there, by whomever.
    "wukongim_membership_guard": f"""
    CREATE TRIGGER wukongim_membership_guard
    BEFORE UPDATE OF joined_version, joined_seq ON {MEMBERSHIP}
    WHEN NOT EXISTS (
        SELECT 1 FROM {CHANGE} WHERE channel_id = NEW.channel_id AND uid = NEW.uid AND joined
        AND version = NEW.joined_version AND seq = NEW.joined_seq) BEGIN
        SELECT RAISE(ABORT, '{JOIN_WRITTEN}');
    END""",
    "wukongim_channel_fixed": f"""
    CREATE TRIGGER wukongim_channel_fixed BEFORE UPDATE OF id, channel_id, channel_type ON {CHANNEL}
    WHEN NEW.id IS NOT OLD.id OR NEW.channel_id IS NOT OLD.channel_id
        OR NEW.channel_type IS NOT OLD.channel_type BEGIN
        SELECT RAISE(ABORT, '{CHANNEL_RENAMED}');
    END""",
    "wukongim_channel_guard": f"""
    CREATE TRIGGER wukongim_channel_guard
    BEFORE UPDATE OF last_seq, membership_version ON {CHANNEL}
    WHEN NEW.last_seq < OLD.last_seq OR NEW.membership_version < OLD.membership_version BEGIN
        SELECT RAISE(ABORT, '{GOING_BACK}');
    END""",
    "wukongim_channel_flags": f"""
    CREATE TRIGGER wukongim_channel_flags
    AFTER UPDATE OF ban, disband, send_ban, allow_stranger ON {CHANNEL}
    WHEN (NEW.ban, NEW.disband, NEW.send_ban, NEW.allow_stranger)
        IS NOT (OLD.ban, OLD.disband, OLD.send_ban, OLD.allow_stranger) BEGIN
        UPDATE {CHANNEL} SET membership_version = membership_version + 1 WHERE id = NEW.id
        OR (NEW.channel_type = 1 AND id IN (
            SELECT channel_id FROM {MEMBERSHIP} WHERE uid = NEW.channel_id));
    END""",
    # A person's own row may be created when they have channels already: it judges them too.
    "wukongim_channel_created": f"""
    CREATE TRIGGER wukongim_channel_created AFTER INSERT ON {CHANNEL}
    WHEN NEW.channel_type = 1 AND (NEW.ban OR NEW.send_ban OR NEW.disband) BEGIN
        UPDATE {CHANNEL} SET membership_version = membership_version + 1
        WHERE id IN (SELECT channel_id FROM {MEMBERSHIP} WHERE uid = NEW.channel_id);
    END""",
    # A channel that is really deleted takes its change log along, in whatever order rows go.
    "wukongim_channel_gone": f"""
    CREATE TRIGGER wukongim_channel_gone AFTER DELETE ON {CHANNEL} BEGIN
        DELETE FROM {CHANGE} WHERE channel_id = OLD.id;
    END""",
    "wukongim_change_guard": f"""
    CREATE TRIGGER wukongim_change_guard BEFORE UPDATE ON {CHANGE}
    WHEN (NEW.id, NEW.channel_id, NEW.uid, NEW.version, NEW.seq, NEW.joined, NEW.at,
            NEW.change_mark)
        IS NOT (OLD.id, OLD.channel_id, OLD.uid, OLD.version, OLD.seq, OLD.joined, OLD.at,
            OLD.change_mark)
        OR (OLD.actor IS NOT NULL AND NEW.actor IS NOT OLD.actor)
        OR (OLD.reason IS NOT NULL AND NEW.reason IS NOT OLD.reason) BEGIN
        SELECT RAISE(ABORT, '{LOG_REWRITTEN}');
    END""",
    "wukongim_rule_insert": _rule_trigger("INSERT", "NEW"),
    "wukongim_rule_delete": _rule_trigger("DELETE", "OLD"),
    "wukongim_rule_fixed": f"""
    CREATE TRIGGER wukongim_rule_fixed BEFORE UPDATE ON {RULE}
    WHEN (NEW.channel_id, NEW.channel_type, NEW.uid, NEW.allow)
        IS NOT (OLD.channel_id, OLD.channel_type, OLD.uid, OLD.allow) BEGIN
        SELECT RAISE(ABORT, '{RULE_CHANGED}');
    END""",
}

PRESENT = r"""
    SELECT name, sql FROM sqlite_master
    WHERE type = 'trigger' AND name LIKE 'wukongim\_%' ESCAPE '\'
"""


def differing(cursor: Any) -> list[str]:
    """Names of triggers that are not there, not as written here, or not written here."""
    written = {name: " ".join(sql.split()) for name, sql in TRIGGERS.items()}
    present = _present(cursor)
    return [name for name in written | present if present.get(name) != written.get(name)]


def create(cursor: Any) -> None:
    """Make all of them, in place of whatever is there."""
    drop(cursor)
    for sql in TRIGGERS.values():
        cursor.execute(sql)


def drop(cursor: Any) -> None:
    """Drop every trigger of ours, those of another release too: one too many counts twice."""
    for name in _present(cursor):
        cursor.execute(f"DROP TRIGGER {name}")


def _present(cursor: Any) -> dict[str, str]:
    cursor.execute(PRESENT)
    return {name: " ".join(sql.split()) for name, sql in cursor.fetchall()}
