from typing import Any

from django.apps.registry import Apps
from django.db import migrations, models

NAME = "wukongim_messaging_message_channel_id_2042770d"
TABLE = "wukongim_messaging_message"


def drop(apps: Apps, schema_editor: Any) -> None:
    """By hand, since Django would copy SQLite's table."""
    schema_editor.execute(f"DROP INDEX {_beside(schema_editor)} IF EXISTS {NAME}")


def make(apps: Apps, schema_editor: Any) -> None:
    """As it was."""
    beside = _beside(schema_editor)
    schema_editor.execute(f"CREATE INDEX {beside} IF NOT EXISTS {NAME} ON {TABLE} (channel_id)")


def _beside(schema_editor: Any) -> str:
    """PostgreSQL would wait for whoever reads the table, a backup perhaps, and let nobody write to
    it meanwhile."""
    return "CONCURRENTLY" if schema_editor.connection.vendor == "postgresql" else ""


class Migration(migrations.Migration):
    """The unique index on (channel, seq) begins with the channel: the one on it alone was written
    with each message, and read by nobody."""

    atomic = False  # or PostgreSQL does nothing concurrently

    dependencies = [("wukongim_messaging", "0005_own_messages")]

    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[migrations.RunPython(drop, make)],
            state_operations=[
                migrations.AlterField(
                    model_name="message",
                    name="channel",
                    field=models.ForeignKey(
                        db_index=False,
                        on_delete=models.PROTECT,
                        related_name="messages",
                        to="wukongim_subscriptions.channel",
                        verbose_name="channel",
                    ),
                )
            ],
        )
    ]
