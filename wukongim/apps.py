"""Makes the project package an app, so that its system checks run."""

from django.apps import AppConfig


class WukongimConfig(AppConfig):
    name = "wukongim"
    verbose_name = "WuKongIM"

    def ready(self) -> None:
        from wukongim import checks  # noqa: F401 - they register themselves
