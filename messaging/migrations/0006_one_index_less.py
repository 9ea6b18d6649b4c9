from django.db import migrations, models

NAME = "wukongim_messaging_message_channel_id_2042770d"
TABLE = "wukongim_messaging_message"


class Migration(migrations.Migration):
    """The unique index on (channel, seq) begins with the channel: the one on it alone was written
    with each message, and read by nobody. Dropped by hand, since Django would copy SQLite's table.
    """

    dependencies = [("wukongim_messaging", "0005_own_messages")]

    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[
                migrations.RunSQL(
                    f"DROP INDEX IF EXISTS {NAME}",
                    f"CREATE INDEX IF NOT EXISTS {NAME} ON {TABLE} (channel_id)",
                )
            ],
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
