"""The app's identity, which migrations freeze, and what is wired at start."""

from __future__ import annotations

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class MessagingConfig(AppConfig):
    """Messages, sessions and nodes. The label keeps its tables apart in another project."""

    name = "messaging"
    label = "wukongim_messaging"
    verbose_name = _("Messaging")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from messaging import checks, doorbell, registry, storage, witness  # noqa: F401 - checks register themselves
        from subscriptions import live, signals

        live.register(
            live.Provider(
                registry.live_sessions, registry.node_views, storage.check, witness.testify
            )
        )
        signals.membership_changed.connect(doorbell.ring_membership)
        signals.audit_requested.connect(doorbell.ring_audit)
